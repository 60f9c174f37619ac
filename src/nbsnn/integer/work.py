"""Work and memory of a program, estimated from shapes: a file of a few kilobytes could request any amount.

The limits are generous. For comparison: `imagenet/vgg16` has 10^10 products and 9·10^6 values per image, its synapses read
    8·10^5 positions, and its largest unrolled convolution has 7·10^6 values; `cifar10/resnet110` has 3·10^8 products.
"""

from math import prod
from typing import NamedTuple

import torch

from nbsnn.integer.maps import PlaneMap
from nbsnn.integer.nodes import IMAGE, Branch, Flatten, Head, MaxPool, Node, Resample, SumPool, Unit
from nbsnn.integer.program import Program

MOST_PRODUCTS = 2**38  # per image in a run of counts: ten times those of ResNet-152 on 224×224 pixels
MOST_VALUES = 2**26  # per image: 24 bytes each in the torch backend
MOST_POSITIONS = 2**24  # of a node: the kernel indexes those of all images in flight with 32 bits
MOST_READS = 2**26  # of all synapses: 8 bytes each while the kernel's tables are made; RevNet-38 at 224×224 has 4·10^7
_WEIGHTED = 4  # times as much for each place of a map, in the table of places and weights that it is made from
MOST_COLUMNS = 2**28  # of one convolution, unrolled to a matrix: 8 bytes each in the torch backend
MOST_CHAIN = 8  # pools and flattenings one after the other


_DIGITS = 12  # of a factor of a map, in base 4 and each up to 3, in the kernel's tables (`integer.taps`)
_LARGEST_UNIT = 256  # the largest multiple of an 8-bit weight that the kernel holds


class Work(NamedTuple):
    """Work and memory of one image and of the program; see the limits of the same names."""

    products: int
    values: int
    positions: int
    reads: int
    columns: int
    chain: int


LIMITS = Work(MOST_PRODUCTS, MOST_VALUES, MOST_POSITIONS, MOST_READS, MOST_COLUMNS, MOST_CHAIN)
_WORDS = (
    "products per image", "values per image", "positions of a node", "positions that synapses read",
    "values of one unrolled convolution", "pools in a row",
)  # fmt: skip


def check_work(program: Program) -> None:
    """Raise ValueError if a program exceeds the limits; its shapes must be consistent."""
    for name, asked, most in zip(_WORDS, work_of(program), LIMITS, strict=True):
        if asked > most:
            raise ValueError(f"it needs {asked} {name}, more than the limit of {most}")


def work_of(program: Program) -> Work:
    """Estimate the work and memory of a program."""
    shapes = program.shapes
    windows = {IMAGE: 1}  # positions of the unit (or the image) that a position of a value sums over
    sums = {IMAGE: 1}  # the same, with a position as often as its weight in maps; 16-bit weights leave no room for a factor
    places = {IMAGE: prod(shapes[IMAGE][1:])}  # positions of a value, before flattening
    chains = {IMAGE: 0}  # pools and flattenings since the unit
    products = values = reads = columns = 0
    nodes: tuple[Node | Head, ...] = (*program.nodes, *program.heads)
    for node in nodes:
        values += prod(node.shape) * (len(node.branches) if isinstance(node, Head) else 1)
        if isinstance(node, (Unit, Head)):
            for branch in node.branches:
                products += _products(branch, node.shape)
                columns = max(columns, _columns(branch, node.shape))
                narrow = branch.weight is None or branch.weight.dtype == torch.int8
                times = (windows if narrow else sums)[branch.source]
                flat = places[branch.source] if len(shapes[branch.source]) == 1 else 1
                reads += times * _reads(branch, places[branch.source], node, flat=flat, narrow=narrow)
            windows[node.name] = sums[node.name] = 1
            places[node.name], chains[node.name] = prod(node.shape[1:]), 0
            continue
        window = _window(node)
        windows[node.name] = windows[node.source] * window
        sums[node.name] = sums[node.source] * (node.map.largest if isinstance(node, Resample) else window)
        places[node.name] = places[node.source] if isinstance(node, Flatten) else prod(node.shape[1:])
        chains[node.name] = chains[node.source] + 1
        products += prod(node.shape) * window
        table = max(window, _WEIGHTED * node.map.reads) if isinstance(node, Resample) else window
        reads += places[node.name] * windows[node.source] * table
        if isinstance(node, MaxPool):  # readers see its result, not its windows
            windows[node.name] = sums[node.name] = 1
    weighing: tuple[Unit | Head, ...] = (*program.units, *program.heads)
    branches = [branch for node in weighing for branch in node.branches]
    mapped = [prod(branch.after.size) for branch in branches if branch.after is not None]
    positions = max(*mapped, *(prod(shape[1:]) for shape in (*shapes.values(), *(head.shape for head in program.heads))))
    values += sum(prod(output.shape) * len(output.parts) for output in program.readout.outputs) if program.readout else 0
    return Work(products, prod(shapes[IMAGE]) + values, positions, reads, columns, max(chains.values()))


def _window(node: Node) -> int:
    """Places that a place of a node is summed or chosen from."""
    if isinstance(node, MaxPool):
        return node.map.reads
    if isinstance(node, Resample):
        return _times(node.map)
    return prod(node.kernel) if isinstance(node, SumPool) else 1


def _times(change: PlaneMap) -> int:
    """Places that a place of a map's result is summed from, each as often as the kernel's table may hold it."""
    return change.reads if change.largest <= change.reads else max(_DIGITS * change.reads, change.largest // _LARGEST_UNIT)


def _before(branch: Branch, shape: tuple[int, ...]) -> int:
    """Places of a convolution's result, before a map of them."""
    return prod(shape[1:]) if branch.after is None else prod(branch.after.size)


def _products(branch: Branch, shape: tuple[int, ...]) -> int:
    if branch.weight is None:
        return prod(shape)
    mapped = 0 if branch.after is None else prod(shape) * branch.after.reads
    return branch.weight.numel() * (_before(branch, shape) if branch.weight.dim() == 4 else 1) + mapped


def _columns(branch: Branch, shape: tuple[int, ...]) -> int:
    """Values in the matrix that a convolution is unrolled to."""
    if branch.weight is None or branch.weight.dim() == 2:
        return 0
    return branch.groups * prod(branch.weight.shape[1:]) * _before(branch, shape)


def _reads(branch: Branch, places: int, node: Unit | Head, *, flat: int, narrow: bool) -> int:
    """Positions of the source in the kernel's table, or weights that the kernel makes; `flat` of them are channels."""
    shape, after = node.shape, branch.after
    if branch.weight is None:
        unit_matrix = len(shape) == 1 and places > 1  # how a skip from a flattened value is read
        return prod(shape) ** 2 if unit_matrix else prod(shape[1:])
    if branch.weight.dim() == 2:
        return places
    kernel = prod(branch.weight.shape[2:]) * flat
    if after is None or isinstance(node, Head):  # a head's map follows the kernel's sums
        return kernel * _before(branch, shape)
    return kernel * prod(shape[1:]) * (_times(after) if narrow else after.largest)
