"""Consistency checks of a program. All programs pass them before a backend runs, and backends rely on them."""

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor

from nbsnn.integer.bounds import (
    MOST_IMAGE_PRODUCTS,
    MOST_IMAGE_SUMS,
    NARROW,
    WIDE,
    largest_sum,
    retract_at,
    row_sums,
)
from nbsnn.integer.frozen import thawed
from nbsnn.integer.maps import AxisMap, PlaneMap
from nbsnn.integer.nodes import IMAGE, Branch, MaxPool, Pixels, Resample, SumPool, Unit
from nbsnn.integer.plain import encode
from nbsnn.integer.program import Program, holds_counts
from nbsnn.integer.readout import groups_fit
from nbsnn.integer.work import check_work
from nbsnn.schema import PROGRAM
from nbsnn.schema.common import MOST_SIDE
from nbsnn.shapes import plane, window_places

_WEIGHTS = (torch.int8, torch.int16)
MOST_SUMMANDS, MOST_WEIGHT = 1024, 2**15 - 1  # of a map along one axis


def check_structure(program: Program) -> None:
    """Raise ValueError unless every field, type, shape and order is consistent, and the work is within `work.LIMITS`.

    Does not read values of tensors, but for those of small maps, and takes milliseconds.
    """
    _require(isinstance(program, Program), "it is not a program")
    PROGRAM(encode(program)[0], "program")
    shapes, counted = {IMAGE: program.pixels.shape}, set[str]()
    if program.pixels.table is not None:
        _check_tensor(program.pixels.table, (program.pixels.shape[0], 256), torch.int32, "the pixel table")
    for node in program.nodes:
        _require(node.name not in shapes, f"{node.name} occurs twice")
        _require(all(source in shapes for source in node.sources), f"{node.name} reads what comes after it")
        if isinstance(node, Unit):
            _check_unit(program, node, shapes)
        elif isinstance(node, SumPool):
            _check_pool(node, shapes[node.source])
        elif isinstance(node, MaxPool):
            _check_maximum(node, shapes[node.source])
            _require(node.source in counted, f"{node.name} compares what is no count of a neuron")
        elif isinstance(node, Resample):
            places = _check_map(node.map, plane(shapes[node.source])[1:], node.name)
            _require(plane(node.shape) == (shapes[node.source][0], *places), f"{node.name} has a wrong shape")
        else:
            _require(node.shape == (prod(shapes[node.source]),), f"{node.name} has a wrong shape")
        shapes[node.name] = node.shape
        if holds_counts(node, counted):
            counted.add(node.name)
    for head in program.heads:
        _require(all(source in shapes for source in head.sources), "the head reads an unknown value")
        _check_bias(head.bias, head.shape, torch.float64, "the head")
        for branch in head.branches:
            _check_branch(branch, shapes[branch.source], head.shape, torch.float64, "the head")
            _require(branch.shift == 0, "the head has a shift")
    _check_readout(program)
    check_work(program)


def check_numbers(program: Program) -> None:
    """Raise ValueError if a sum could overflow, or a number is not consistent with the others.

    The structure must have been checked.
    """
    _check_pixels(program.pixels)
    for unit in program.units:
        _check_sums(program, unit)
    for output in program.readout.outputs if program.readout else ():
        for part in output.parts:
            low, high = (int(x) for x in torch.aminmax(thawed(part.index)))
            _require(low >= -1 and high < prod(program.heads[part.head].shape), "an output reads beyond its head")
        numbers = [output.shift, *(part.gain for part in output.parts)]
        finite = all(bool(thawed(number).isfinite().all()) for number in numbers if number is not None)
        _require(finite, "an output has a gain or constant that is not finite")
    for head in program.heads:
        finite = all(bool(n.isfinite().all()) for n in (head.bias, *(branch.multiplier for branch in head.branches)))
        _require(finite, "the head has a multiplier or bias that is not finite")
        for branch in head.branches:
            load = row_sums(branch, head.shape[0])
            if branch.after is not None and branch.source not in program.constants:  # the map works on 64 bits
                _require(program.timesteps * program.sizes[branch.source] * float(load.max()) < WIDE, "the head overflows")
                load = load / branch.after.largest
            _check_accumulator(program, branch, load, "the head")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


# ------------------------------------------------------------------------------------------------------------ structure


def _check_unit(program: Program, unit: Unit, shapes: dict[str, tuple[int, ...]]) -> None:
    kind = torch.int64 if unit.wide else torch.int32
    _require(unit.levels <= program.timesteps, f"{unit.name} has more levels than T")
    _check_bias(unit.bias, unit.shape, kind, unit.name)
    for branch in unit.branches:
        constant = branch.source in program.constants
        _check_branch(branch, shapes[branch.source], unit.shape, torch.int64 if constant else kind, unit.name)
        _require(branch.shift >= 1 if constant else branch.shift == 0, f"{unit.name} has a wrong shift")


def _check_branch(branch: Branch, source: tuple[int, ...], shape: tuple[int, ...], kind: torch.dtype, name: str) -> None:
    _check_tensor(branch.multiplier, shape[:1], kind, name)
    weight = branch.weight
    if weight is None:
        _require(plane(source) == plane(shape) and branch.after is None, f"{name} has a skip of another shape")
        return
    _require(weight.dtype in _WEIGHTS and weight.is_contiguous() and len(weight.shape) in (2, 4), f"{name} has a wrong weight")
    _require(weight.numel() > 0 and len(weight) == shape[0], f"{name} has a wrong weight")
    if weight.dim() == 2:
        fits = len(source) == 1 and weight.shape[1] == source[0] and len(shape) == 1 and branch.after is None
        _require(fits, f"{name} has a wrong weight")
        return
    fits = weight.shape[1] * branch.groups == source[0] and shape[0] % branch.groups == 0
    _require(fits, f"{name} has a weight of other channels")
    places = _places(plane(source)[1:], weight.shape[2:], branch.stride, branch.padding, branch.dilation)
    if branch.after is not None:
        places = _check_map(branch.after, places, name)
    _require(places == plane(shape)[1:], f"{name} has a wrong shape")


def _check_readout(program: Program) -> None:
    readout = program.readout
    if readout is None:
        _require(not program.more, "it has several heads and no readout")
        return
    _require(groups_fit(readout.tree, len(readout.outputs)), "its outputs are grouped in a wrong way")
    for output in readout.outputs:
        size = (prod(output.shape),)
        _require(bool(output.parts) or output.shift is not None, "an output is made of nothing")
        if output.shift is not None:
            _check_tensor(output.shift, size, torch.float64, "an output")
        for part in output.parts:
            _require(part.head < len(program.heads), "an output reads an unknown head")
            _check_tensor(part.index, size, torch.int32, "an output")
            if part.gain is not None:
                _check_tensor(part.gain, size, torch.float64, "an output")


def _check_bias(bias: Tensor, shape: tuple[int, ...], kind: torch.dtype, name: str) -> None:
    _check_tensor(bias, shape if bias.dim() > 1 else shape[:1], kind, name)


def _check_map(plane_map: PlaneMap, size: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The places of a map's result; its indices lie in the source, of this size."""
    for axis, places in zip((plane_map.rows, plane_map.columns), size, strict=True):
        _check_axis(axis, places, name)
    return plane_map.places


def _check_axis(axis: AxisMap, size: int, name: str) -> None:
    shape = tuple(axis.index.shape)
    _require(axis.size == size and len(shape) == 2 and 0 not in shape, f"{name} has a map of another size")
    _require(shape[0] <= MOST_SUMMANDS and shape[1] <= MOST_SIDE, f"{name} has a map of too many places")
    _check_tensor(axis.index, shape, torch.int32, name)
    _check_tensor(axis.weight, shape, torch.int32, name)
    index, weight = thawed(axis.index), thawed(axis.weight)
    inside = bool(((index >= -1) & (index < size) & ((index >= 0) | (weight == 0))).all())
    _require(inside, f"{name} has a map that leaves its source")
    low, high = (int(x) for x in torch.aminmax(weight))
    _require(low >= -MOST_WEIGHT and high <= MOST_WEIGHT, f"{name} has a map with too large weights")


def _check_tensor(tensor: Tensor, shape: tuple[int, ...], kind: torch.dtype, name: str) -> None:
    fits = tensor.dtype == kind and tuple(tensor.shape) == shape
    _require(fits, f"{name} has a {list(tensor.shape)} tensor of {tensor.dtype} where {list(shape)} of {kind} is wanted")


def _places(size: Iterable[int], kernel: Iterable[int], stride: Iterable[int], padding: Iterable[int],
            dilation: Iterable[int] = (1, 1)) -> tuple[int, ...]:  # fmt: skip
    out = window_places(size, kernel, stride, padding, dilation)
    _require(all(n >= 1 for n in out), "a window does not fit its input")
    return out


def _check_pool(node: SumPool, source: tuple[int, ...]) -> None:
    _require(all(2 * p <= k for p, k in zip(node.padding, node.kernel, strict=True)), f"{node.name} has too much padding")
    places = _places(plane(source)[1:], node.kernel, node.stride, node.padding)
    _require(plane(node.shape) == (source[0], *places), f"{node.name} has a wrong shape")


def _check_maximum(node: MaxPool, source: tuple[int, ...]) -> None:
    places = _check_map(node.map, plane(source)[1:], node.name)
    _require(plane(node.shape) == (source[0], *places), f"{node.name} has a wrong shape")
    for axis in (node.map.rows, node.map.columns):
        there = thawed(axis.index) >= 0
        _require(bool(there.any(0).all()), f"{node.name} has a window without a place")
        places = thawed(axis.index).sort(0)[0]
        _require(
            not bool(((places[1:] == places[:-1]) & (places[1:] >= 0)).any()), f"{node.name} has a place twice in a window"
        )
        _require(torch.equal(thawed(axis.weight), there.to(torch.int32)), f"{node.name} has weights")


# -------------------------------------------------------------------------------------------------------------- numbers


def _check_pixels(pixels: Pixels) -> None:
    if pixels.table is not None:
        low, high = (int(x) for x in torch.aminmax(pixels.table))
        _require(pixels.low <= low and high <= pixels.high, "the pixel table leaves its range")


def _check_sums(program: Program, unit: Unit) -> None:
    loads = [row_sums(branch, unit.shape[0]) for branch in unit.branches]
    for branch, load in zip(unit.branches, loads, strict=True):
        _check_accumulator(program, branch, load, unit.name)
    bound = largest_sum(
        unit.branches, loads, unit.bias, unit.fraction_bits,
        timesteps=program.timesteps, sizes=program.sizes, constants=program.constants,
    )  # fmt: skip
    _require(bound < (WIDE if unit.wide else NARROW), f"{unit.name} overflows")
    _require(unit.bound == int(bound), f"{unit.name} has bound={unit.bound}, but its numbers make {int(bound)}")
    retract = retract_at(unit.fraction_bits, unit.height)
    _require(unit.retract == retract, f"{unit.name} has retract={unit.retract}, but its height makes {retract}")
    _require(retract >= -(2**31) or unit.wide, f"{unit.name} would cancel spikes at a membrane beyond torch.int32")


def _check_accumulator(program: Program, branch: Branch, load: Tensor, name: str) -> None:
    """Check that weights and multipliers are in range, and that sums of their products over all steps fit backends."""
    if branch.weight is not None:
        _require(int(branch.weight.min()) > -(2**15), f"{name} has a weight out of range")
        _require(not bool((branch.multiplier < 0).any()), f"{name} has a negative multiplier beside a weight")
    size = float((program.sizes[branch.source] * load).max())
    if branch.source not in program.constants:
        _require(program.timesteps * size < NARROW, f"{name} overflows")
        return
    _require(max(size, program.sizes[branch.source]) < MOST_IMAGE_SUMS, f"{name} overflows on the image")
    if not branch.multiplier.is_floating_point():
        products = program.sizes[branch.source] * load * branch.multiplier.double().abs()
        _require(float(products.max()) < MOST_IMAGE_PRODUCTS, f"{name} overflows on the image")
