"""Networks inside the native extension: built once per instruction set, from a program, and freed with their handle."""

import ctypes
import math
from dataclasses import dataclass, replace
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

from nbsnn.integer.backends.library import check_result
from nbsnn.integer.frozen import thawed
from nbsnn.integer.nodes import IMAGE, Head, MaxPool, Unit
from nbsnn.integer.pixels import fits_single, slack_of
from nbsnn.integer.program import Program
from nbsnn.integer.taps import KernelBranch, base_of, digits_of, kernel_branch_of, windows_of
from nbsnn.integer.work import work_of


@dataclass(frozen=True, eq=False)
class Handle:
    """A network inside the extension, freed with this object, and what every run of it needs.

    Attributes:
        address, lib: of the network.
        heads: the kernel's heads.
        units: unit → its index among the kernel's nodes.
        no_counts: a null pointer per node, for runs that do not return counts.
        products: synapses of an image.
        result: whether the kernel computes the network's result.
        maps: whether a head has a map of places that the kernel leaves out.
    """

    address: int
    lib: ctypes.CDLL
    heads: tuple[Head, ...]
    units: dict[str, int]
    no_counts: "ctypes.Array[ctypes.c_void_p]"
    products: int
    result: bool
    maps: bool

    def __post_init__(self) -> None:
        finalize(self, self.lib.nbsnn_free, self.address)


def build_handle(lib: ctypes.CDLL, program: Program, target: int) -> Handle:
    """The program in the extension, for an instruction set by its number there."""
    channels, *sides = program.pixels.shape
    grid = program.pixels
    low, high = max(grid.low, -(2**31)), min(grid.high, 2**31 - 1)  # pixels have 32 bits
    scale = 2.0**grid.fraction_bits if fits_single(grid) else 0
    address = lib.nbsnn_new(target, program.timesteps, channels, math.prod(sides), low, high, scale, slack_of(grid))
    if not address:
        check_result(-1)
    heads = _kernel_heads(program)
    nodes: tuple[Unit | MaxPool | Head, ...] = (*program.sending, *heads)
    units = {node.name: i for i, node in enumerate(program.sending) if isinstance(node, Unit)}
    head = program.head
    maps = any(branch.after for head in program.heads for branch in head.branches)
    is_plain = program.readout is None and len(heads) == 1 and len(head.shape) == 1 and not maps
    handle = Handle(address, lib, heads, units, addresses_of([None for _ in nodes]), work_of(program).products, is_plain, maps)
    index = {IMAGE: -1} | {node.name: i for i, node in enumerate(program.sending)}
    for node in nodes:
        if isinstance(node, MaxPool):
            start, origin = windows_of(program, node)
            check_result(lib.nbsnn_add_pool(
                address, index[base_of(program, node.source)], int(node.lowest), len(start) - 1, start.ctypes.data,
                origin.ctypes.data, len(origin),
            ))  # fmt: skip
            continue
        positions = int(np.prod(node.shape[1:], dtype=np.int64))
        unit = node if isinstance(node, Unit) else None
        levels, bits, retract = (unit.levels, unit.fraction_bits, unit.retract) if unit else (1, 1, 0)
        wide = unit.wide if unit else True
        bias = thawed(node.bias).to(torch.int64).contiguous() if unit else torch.zeros(node.shape[0], dtype=torch.int64)
        check_result(lib.nbsnn_add_node(
            address, int(unit is None), int(wide), node.shape[0], positions, levels, bits, retract, address_of(bias),
            bias.numel(),
        ))  # fmt: skip
        for branch in node.branches:
            source, read = index[base_of(program, branch.source)], kernel_branch_of(program, branch, node.shape)
            for number, part in enumerate(digits_of(read) if unit and source >= 0 else [read]):
                _add_branch(lib, address, source, part, is_digit=number > 0)
    if is_plain:
        bias, factors = thawed(head.bias).contiguous(), thawed(head.branches[0].multiplier).contiguous()
        check_result(lib.nbsnn_set_result(address, address_of(bias), address_of(factors), len(bias)))
    check_result(lib.nbsnn_finish(address))
    return handle


def _add_branch(lib: ctypes.CDLL, net: int, source: int, s: KernelBranch, *, is_digit: bool) -> None:
    multiplier = s.multiplier.to(torch.int64).contiguous() if not s.multiplier.is_floating_point() else torch.zeros(
        len(s.multiplier), dtype=torch.int64)  # fmt: skip
    check_result(lib.nbsnn_add_branch(
        net, source, s.inputs, s.groups, s.taps, s.shift, s.start.ctypes.data, s.origin.ctypes.data, len(s.origin),
        address_of(multiplier), s.weight.ctypes.data, s.weight.size, int(is_digit),
    ))  # fmt: skip


def _kernel_heads(program: Program) -> tuple[Head, ...]:
    """A head of the kernel for each branch of each head, without the map of places behind it."""
    return tuple(
        Head((*head.shape[:1], *branch.after.size) if branch.after else head.shape, (replace(branch, after=None),), head.bias)
        for head in program.heads
        for branch in head.branches
    )


def address_of(tensor: Tensor | None) -> int | None:
    """Of its memory, or null."""
    return None if tensor is None else tensor.data_ptr()


def addresses_of(tensors: list[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    """An array of the addresses of all tensors."""
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))
