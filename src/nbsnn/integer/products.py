"""Integer convolutions by floating-point ones that are exact, on any device.

Weights and values up to 256 are exact in every format to which a matrix unit may round its inputs (bfloat16 has 8 bits), and
sums below 2^24 are exact in single precision, in any order. Beyond that, double precision is used, exact to 2^53. On CUDA a
convolution is unrolled into a matrix product: Winograd's transform, which libraries may choose, uses fractions.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nbsnn.integer.frozen import thawed
from nbsnn.integer.nodes import Branch, MaxPool, Resample, Unit, placed
from nbsnn.integer.program import Program
from nbsnn.shapes import per_channel, plane, window_places

_EXACT_INPUT, _EXACT_SUM = 2**8, 2**24

NamedTensors = dict[str, Tensor]


def exact_dtype(weight: Tensor, largest: int) -> torch.dtype:
    """The floating-point type in which products of these weights with values up to `largest` are exact."""
    magnitudes = weight.to(torch.int64).abs().flatten(1)
    small = largest <= _EXACT_INPUT and int(magnitudes.max()) <= _EXACT_INPUT
    return torch.float32 if small and int(magnitudes.sum(1).max()) * largest < _EXACT_SUM else torch.float64


def convolve(x: Tensor, weight: Tensor, branch: Branch, *, unroll: bool = False) -> Tensor:
    """The branch's convolution or product of x [B, ...] with its weight, both of one floating-point type."""
    if weight.dim() == 2:
        return F.linear(x, weight)
    x = x.reshape(len(x), *plane(x.shape[1:]))
    if not unroll:
        return F.conv2d(x, weight, None, branch.stride, branch.padding, branch.dilation, branch.groups)
    size = weight.shape[2:]
    places = window_places(x.shape[2:], size, branch.stride, branch.padding, branch.dilation)
    columns = F.unfold(x, (size[0], size[1]), branch.dilation, branch.padding, branch.stride)
    columns = columns.reshape(len(x), branch.groups, -1, columns.shape[-1])
    rows = weight.reshape(branch.groups, len(weight) // branch.groups, -1)
    return torch.matmul(rows, columns).reshape(len(x), len(weight), *places)


@dataclass(frozen=True, eq=False)
class Products:
    """A program's branches, prepared for multiplication.

    Attributes:
        program: the source.
        unroll: convolutions as matrix products.
    """

    program: Program
    unroll: bool
    _types: dict[tuple[Branch, int], torch.dtype] = field(default_factory=dict, init=False, repr=False)
    _weights: dict[tuple[Branch, torch.dtype], Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, program: Program, device: torch.device) -> "Products":
        """The cached instance of a program."""
        return program.prepared("torch", lambda: cls(program, unroll=device.type == "cuda"))

    def accumulate(self, branch: Branch, x: Tensor, shape: tuple[int, ...], times: int, *, wide: bool = False) -> Tensor:
        """acc of a branch, [B, *shape]: int32, or int64 on constants and if `wide`, as in heads.

        Args:
            branch: whose source is x.
            x: [B, ...], magnitude at most `times` · the size of one step.
            shape: of the unit or the head.
            times: 1 for spikes, T for counts.
        """
        constant = branch.source in self.program.constants
        if branch.weight is None:
            acc = x
        else:
            largest = self.program.sizes[branch.source] * (1 if constant else times)
            weight = self._weight(branch, thawed(branch.weight), largest)
            acc = convolve(x.to(weight.dtype), weight, branch, unroll=self.unroll)
        whole = acc.to(torch.int64 if constant or wide else torch.int32)
        return (whole if branch.after is None else branch.after.apply(whole)).reshape(-1, *shape)

    def _weight(self, branch: Branch, weight: Tensor, largest: int) -> Tensor:
        kind = self._types.get((branch, largest))
        if kind is None:
            kind = self._types[branch, largest] = exact_dtype(weight, largest)
        if (branch, kind) not in self._weights:
            self._weights[branch, kind] = weight.to(kind)
        return self._weights[branch, kind]

    def current(self, unit: Unit, values: NamedTensors, times: int) -> Tensor:
        """Σ multiplier · acc over the branches that change in time, [B, *shape]."""
        total: Tensor = thawed(unit.bias).new_zeros(())
        for branch in unit.branches:
            if branch.source not in self.program.constants:
                acc = self.accumulate(branch, values[branch.source], unit.shape, times)
                total = total + acc * _per_channel(branch.multiplier, unit.shape)
        return total

    def constant_current(self, unit: Unit, values: NamedTensors) -> Tensor:
        """[B or 1, *shape]: the bias and the image's current per step, rounded to the membrane's unit."""
        total = placed(unit.bias, unit.shape).expand(1, *unit.shape)
        for branch in unit.branches:
            if branch.source in self.program.constants:
                acc = self.accumulate(branch, values[branch.source], unit.shape, 1)
                product = acc * _per_channel(branch.multiplier, unit.shape)
                total = total + ((product + 2 ** (branch.shift - 1)) >> branch.shift).to(unit.bias.dtype)
        return total

    def structural(self, name: str, x: Tensor, times: int) -> Tensor:
        """A value mapped, pooled or flattened, int32 (a constant of large size int64)."""
        node = self.program.by_name[name]
        assert not isinstance(node, Unit)
        largest = self.program.sizes[name] * (1 if name in self.program.constants else times)
        kind = torch.int32 if largest < 2**31 else torch.int64
        if isinstance(node, (Resample, MaxPool)):
            return node.apply(x.to(kind))
        return node.apply(x.to(torch.float32 if largest < _EXACT_SUM else torch.float64)).to(kind)


def with_pools(program: Program, counts: NamedTensors) -> NamedTensors:
    """Counts of units and of max pools, from those of units, name → [B, *shape] int32."""
    values = dict(counts)
    for node in program.nodes:
        if node.name in program.counted and not isinstance(node, Unit):
            values[node.name] = node.apply(values[node.source].double()).to(torch.int32)
    return {node.name: values[node.name] for node in program.sending}


def _per_channel(numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
    return per_channel(thawed(numbers), len(shape) - 1)
