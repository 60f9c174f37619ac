"""How the values of an integer network share one block of memory: each lives from the node that makes it to its last reader."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from nbsnn.integer.nodes import IMAGE, Flatten, MaxPool, Node, Resample, SumPool, Unit
from nbsnn.integer.program import Program
from nbsnn.shapes import plane

KINDS = {"U8": 1, "I32": 4, "I64": 8}  # bytes of an element
_ALIGNMENT = 8
_BYTE, _INT = 255, 2**31 - 1


@dataclass(frozen=True)
class Placed:
    """A value in memory, of the same fields as `nbsnn_value` of the runtime; `shape` is (channels, rows, columns)."""

    offset: int
    shape: tuple[int, int, int]
    kind: str
    constant: bool


@dataclass(frozen=True)
class Layout:
    """Values by name, the nodes that compute something, and the bytes of the block."""

    values: Mapping[str, Placed]
    nodes: tuple[Node, ...]
    bytes: int


def plan_memory(program: Program) -> Layout:
    """Place the values of a program.

    A value that is flattened from one place is the same memory under another name. A unit writes over a value that only its
    skips read, element by element, if nothing else reads it later: a residual block takes two buffers instead of three.
    """
    kinds, renamed = _kinds(program), _renamed(program)
    nodes = tuple(node for node in program.nodes if node.name not in renamed)
    at = {name: index for index, name in enumerate((IMAGE, *(node.name for node in nodes)))}
    block = {name: name for name in at}  # the first value of each place in memory
    lives = {name: (index, index) for name, index in at.items()}
    for index, node in enumerate((*nodes, *program.heads), start=1):
        for source in node.sources:
            first = block[renamed.get(source, source)]
            lives[first] = (lives[first][0], index)
    for node in nodes:
        first = next((block[name] for name in _overwritten(program, node, renamed) if kinds[name] == kinds[node.name]
                      and lives[block[name]][1] == at[node.name]), node.name)  # fmt: skip
        if first != node.name:
            block[node.name] = first
            lives[first] = (lives[first][0], lives.pop(node.name)[1])
    sizes = {name: -(-prod(program.shapes[name]) * KINDS[kinds[name]] // _ALIGNMENT) * _ALIGNMENT for name in lives}
    offsets = min((_placed(lives, sizes, order) for order in _ORDERS), key=lambda placed: _extent(placed, sizes))
    values = {
        name: Placed(offsets[block[stored]], _plane(shape), kinds[stored], name in program.constants)
        for name, shape in program.shapes.items()
        for stored in [renamed.get(name, name)]
    }
    return Layout(values, nodes, _extent(offsets, sizes))


def _renamed(program: Program) -> dict[str, str]:
    """Flattened values of one place, whose order of elements does not change, and the values that they are."""
    renamed: dict[str, str] = {}
    for node in program.nodes:
        if isinstance(node, Flatten) and _plane(program.shapes[node.source])[1:] == (1, 1):
            renamed[node.name] = renamed.get(node.source, node.source)
    return renamed


def _overwritten(program: Program, node: Node, renamed: Mapping[str, str]) -> list[str]:
    """Values that a unit reads at the place alone that it writes."""
    branches = node.branches if isinstance(node, Unit) else ()
    woven = {branch.source for branch in branches if branch.weight is not None}
    names = [renamed.get(branch.source, branch.source) for branch in branches if branch.weight is None]
    return [name for name in names if name != IMAGE and name not in {renamed.get(each, each) for each in woven}]


def _plane(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, rows, columns = plane(shape)
    return channels, rows, columns


def _kinds(program: Program) -> dict[str, str]:
    """The smallest type for each value: its name in `KINDS`."""
    kinds, positive = {IMAGE: "I32"}, set[str]()
    for node in program.nodes:
        largest = program.sizes[node.name] * (1 if node.name in program.constants else program.timesteps)
        if isinstance(node, Unit):
            largest = node.levels
        elif node.name in program.counted:
            largest = program.timesteps
        if isinstance(node, Unit) or (node.source in positive and not _subtracts(node)):
            positive.add(node.name)
        few = largest <= _BYTE and node.name in positive
        kinds[node.name] = "U8" if few else "I32" if largest <= _INT else "I64"
    return kinds


def _subtracts(node: Node) -> bool:
    """Whether a map has negative weights, which leave no sign to be sure of."""
    if not isinstance(node, Resample):
        assert isinstance(node, (SumPool, MaxPool, Flatten))
        return False
    return any(bool((axis.weight < 0).any()) for axis in (node.map.rows, node.map.columns))


# ---------------------------------------------------------------------------------------------------------------- placing


_ORDERS = (  # which value is placed first: the largest, the longest-lived, or the first
    lambda life, size: (-size, life[0]),
    lambda life, size: (life[0] - life[1], -size),
    lambda life, size: (life[0], -size),
)


def _placed(lives: Mapping[str, tuple[int, int]], sizes: Mapping[str, int], key: object) -> dict[str, int]:
    """Offsets: each value at the lowest place that no value alive at the same time takes."""
    assert callable(key)
    offsets: dict[str, int] = {}
    for name in sorted(lives, key=lambda each: (key(lives[each], sizes[each]), each)):
        offset = 0
        for other in sorted(offsets, key=offsets.__getitem__):
            together = lives[other][0] <= lives[name][1] and lives[name][0] <= lives[other][1]
            if together and offsets[other] < offset + sizes[name] and offset < offsets[other] + sizes[other]:
                offset = offsets[other] + sizes[other]
        offsets[name] = offset
    return offsets


def _extent(offsets: Mapping[str, int], sizes: Mapping[str, int]) -> int:
    return max(offsets[name] + sizes[name] for name in offsets)
