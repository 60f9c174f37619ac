"""Is a program consistent? Asked of what comes from a file, before any engine sees it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from nbsnn.integer.program import IMAGE, Branch, Flatten, Pixels, Program, SumPool, Unit

_WEIGHTS = (torch.int8, torch.int16)
_BRANCHES = 4096  # more than any network needs


def check_program(program: Program) -> None:
    """Raise ValueError, with one line, unless every shape, type and order fits and no sum can overflow."""
    _require(isinstance(program, Program), "it is not a program")
    _require(isinstance(program.timesteps, int) and 1 <= program.timesteps <= 255, "T is not in 1..255")
    _check_pixels(program.pixels)
    shapes = {IMAGE: program.pixels.shape}
    for node in program.nodes:
        _require(isinstance(node, (Unit, SumPool, Flatten)), "a node is of an unknown kind")
        _require(node.name not in shapes, f"{node.name} is there twice")
        _require(all(source in shapes for source in node.sources), f"{node.name} reads what comes after it")
        if isinstance(node, Unit):
            _check_unit(program, node, shapes)
        elif isinstance(node, SumPool):
            _check_pool(node, shapes[node.source])
        else:
            _require(node.shape == (_numel(shapes[node.source]),), f"{node.name} has a wrong shape")
        shapes[node.name] = node.shape
    _check_head(program, shapes)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _numel(shape: Iterable[int]) -> int:
    return int(torch.Size(tuple(shape)).numel())


def _check_pixels(pixels: Pixels) -> None:
    _require(len(pixels.shape) == 3 and all(n >= 1 for n in pixels.shape), "the image has no shape [C, H, W]")
    _require(-(2**30) < pixels.low <= 0 <= pixels.high < 2**30, "the pixels' range is not around 0")
    if pixels.table is not None:
        table = pixels.table
        _require(
            table.dtype == torch.int32 and tuple(table.shape) == (pixels.shape[0], 256), "the pixel table has a wrong shape"
        )
        _require(pixels.low <= int(table.min()) and int(table.max()) <= pixels.high, "the pixel table leaves its range")


def _check_unit(program: Program, unit: Unit, shapes: dict[str, tuple[int, ...]]) -> None:
    kind = torch.int64 if unit.wide else torch.int32
    _require(len(unit.shape) in (1, 3) and all(n >= 1 for n in unit.shape), f"{unit.name} has a wrong shape")
    _require(1 <= unit.levels <= program.timesteps, f"{unit.name} has more levels than T")
    _require(1 <= unit.fraction_bits <= 28, f"{unit.name} has fraction bits outside 1..28")
    _require(unit.retract < 0, f"{unit.name} would take spikes back at a positive membrane")
    _require(unit.retract >= torch.iinfo(kind).min, f"{unit.name} would take spikes back at a membrane beyond {kind}")
    _check_numbers(unit.bias, unit.shape, kind, unit.name)
    _require(1 <= len(unit.branches) <= _BRANCHES, f"{unit.name} has no branch")
    load = program.timesteps * unit.bias.double().abs() + (program.timesteps + 0.5) * 2**unit.fraction_bits
    for branch in unit.branches:
        constant = branch.source in program.constants
        _check_branch(branch, shapes[branch.source], unit.shape, torch.int64 if constant else kind, unit.name)
        _require(1 <= branch.shift <= 62 if constant else branch.shift == 0, f"{unit.name} has a wrong shift")
        size = _check_sums(program, branch, unit.name)
        product = size * branch.multiplier.double().abs()
        _require(float(product.max()) < 2**62, f"{unit.name} overflows on the image")
        load = load + program.timesteps * (product / 2.0**branch.shift + 1 if constant else product)
    _require(float(load.max()) < (2**52 if unit.wide else 2**31), f"{unit.name} overflows")


def _check_branch(branch: Branch, source: tuple[int, ...], shape: tuple[int, ...], kind: torch.dtype, name: str) -> None:
    _check_numbers(branch.multiplier, shape, kind, name)
    weight = branch.weight
    if weight is None:
        _require(source == shape, f"{name} has a skip of another shape")
        return
    _require(weight.dtype in _WEIGHTS and weight.is_contiguous() and len(weight) == shape[0], f"{name} has a wrong weight")
    _require(int(weight.min()) > -(2**15), f"{name} has a weight out of range")
    if weight.dim() == 2:
        _require(len(source) == 1 and weight.shape[1] == source[0] and len(shape) == 1, f"{name} has a wrong weight")
        return
    _require(weight.dim() == 4 and len(source) == 3 and branch.groups >= 1, f"{name} has a wrong weight")
    fits = weight.shape[1] * branch.groups == source[0] and shape[0] % branch.groups == 0
    _require(fits, f"{name} has a weight of other channels")
    places = _places(source[1:], weight.shape[2:], branch.stride, branch.padding, branch.dilation)
    _require(places == shape[1:] or (len(shape) == 1 and _numel(places) == 1), f"{name} has a wrong shape")


def _check_numbers(numbers: Tensor, shape: tuple[int, ...], kind: torch.dtype, name: str) -> None:
    _require(numbers.dtype == kind and tuple(numbers.shape) == shape[:1], f"{name} has multipliers or biases of a wrong type")


def _places(size: Iterable[int], kernel: Iterable[int], stride: Iterable[int], padding: Iterable[int],
            dilation: Iterable[int] = (1, 1)) -> tuple[int, ...]:  # fmt: skip
    sides = list(zip(size, kernel, stride, padding, dilation, strict=True))
    _require(all(k >= 1 and s >= 1 and p >= 0 and d >= 1 for _, k, s, p, d in sides), "a window has a wrong size")
    out = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
    _require(all(n >= 1 for n in out), "a window does not fit its input")
    return out


def _check_pool(node: SumPool, source: tuple[int, ...]) -> None:
    _require(len(source) == 3, f"{node.name} has a source without places")
    _require(all(2 * p <= k for p, k in zip(node.padding, node.kernel, strict=True)), f"{node.name} has too much padding")
    places = _places(source[1:], node.kernel, node.stride, node.padding)
    _require(node.shape == (source[0], *places), f"{node.name} has a wrong shape")


def _check_sums(program: Program, branch: Branch, name: str) -> Tensor:
    """The largest |acc| of a branch in one step, [O] float64; over T steps it fits int32 unless it is the image's."""
    rows = torch.ones(len(branch.multiplier), dtype=torch.float64)
    if branch.weight is not None:
        rows = branch.weight.double().abs().flatten(1).sum(1)
    size = program.sizes[branch.source] * rows
    constant = branch.source in program.constants
    _require(constant or program.timesteps * float(size.max()) < 2**31, f"{name} overflows")
    return size


def _check_head(program: Program, shapes: dict[str, tuple[int, ...]]) -> None:
    head = program.head
    _require(all(source in shapes for source in head.sources), "the head reads an unknown value")
    _check_numbers(head.bias, head.shape, torch.float64, "the head")
    for branch in head.branches:
        _check_branch(branch, shapes[branch.source], head.shape, torch.float64, "the head")
        _check_sums(program, branch, "the head")
