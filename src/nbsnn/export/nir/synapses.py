"""Branches, pools and maps of places as NIR nodes; exact in real numbers.

A plain graph has only convolutions, Affine and Flatten: its scales and pools are dense convolutions.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbsnn.errors import LoweringError
from nbsnn.export.nir.graph import NirBuilder, NodeShape, by_channel
from nbsnn.export.nir.windows import Window, dilated, fitted_together, plane_windows, spread, ungrouped
from nbsnn.integer.frozen import thawed
from nbsnn.integer.maps import PlaneMap
from nbsnn.integer.nodes import Branch, SumPool
from nbsnn.shapes import per_channel, plane

Source = tuple[str, NodeShape]  # a node, and the shape of what it returns
Bias = NDArray[np.float64] | None  # [O]
_POINT = Window((0,), 1, 0)


def add_branch(
    graph: NirBuilder, name: str, branch: Branch, source: Source, shape: NodeShape, gain: Tensor, bias: Bias = None
) -> str:
    """A branch's accumulator times a gain per channel [O] float64, plus a bias; returns the node that has it, in this shape."""
    after = None if branch.after is None or branch.after.is_identity else branch.after
    made = _product(graph, name, branch, source, gain, bias if after is None else None)
    if after is not None:
        made = _mapped(graph, name, made, after, bias)
    return _reshaped(graph, name, *made, shape)


def _product(graph: NirBuilder, name: str, branch: Branch, source: Source, gain: Tensor, bias: Bias) -> Source:
    key, have = source
    if branch.weight is None and not graph.plain:
        return graph.scale(name, have, by_channel(gain.numpy(), have), key), have
    if branch.weight is None:
        square = torch.diag(gain.expand(have[0])).reshape(have[0], have[0], 1, 1)
        return add_convolution(graph, name, square, [_POINT, _POINT], source, plane(have)[1:], bias)
    weight = thawed(branch.weight).to(torch.float64)
    weight = weight * per_channel(gain, weight.dim() - 1)
    if weight.dim() == 2:
        return graph.linear(name, weight, bias, key), (len(weight),)
    weight = ungrouped(weight, branch.groups, name)
    windows = [
        Window(dilated(n, d), s, p)
        for n, s, p, d in zip(weight.shape[2:], branch.stride, branch.padding, branch.dilation, strict=True)
    ]
    places = tuple(window.places(n) for window, n in zip(windows, plane(have)[1:], strict=True))
    return add_convolution(graph, name, weight, windows, source, places, bias)


def add_convolution(
    graph: NirBuilder, name: str, weight: Tensor, windows: list[Window], source: Source, places: NodeShape, bias: Bias = None
) -> Source:
    """A convolution of one group; its windows' taps are positions in the kernel [O, I, kh, kw].

    Raises:
        LoweringError: its kernel cannot be a square.
    """
    nir, (key, have) = graph.nir, source
    added = np.zeros(len(weight)) if bias is None else bias
    if len(have) == 1:  # one place, in the middle of the padding
        row, column = (window.taps[window.padding] for window in windows)
        matrix = weight[:, :, row, column] if min(row, column) >= 0 else torch.zeros_like(weight[:, :, 0, 0])
        return graph.linear(name, matrix, bias, key), (len(weight),)
    if len(have) == 2:
        rows, columns = windows
        line = weight[:, :, rows.taps[rows.padding]][:, :, None]
        node = nir.Conv1d(
            have[1], spread(line, [_POINT, columns])[:, :, 0].numpy(), columns.stride, columns.padding, 1, 1, added
        )
        return graph.add(name, node, key), (len(weight), places[1])
    fitted = fitted_together(windows, have[1:], places, -1)
    if fitted is None:
        sides = "×".join(str(len(window.taps)) for window in windows)
        raise LoweringError(
            f"{name} has a kernel of {sides}, which NIR cannot express: its kernels are squares, equally padded on both sides; "
            "use a kernel whose sides are both odd or both even"
        )
    node = nir.Conv2d(
        have[1:], spread(weight, fitted).contiguous().numpy(), stride=tuple(w.stride for w in fitted),
        padding=tuple(w.padding for w in fitted), dilation=(1, 1), groups=1, bias=added,
    )  # fmt: skip
    return graph.add(name, node, key), (len(weight), *places)


def add_map(graph: NirBuilder, name: str, source: Source, plane_map: PlaneMap, shape: NodeShape) -> str:
    """A map of places, as a sum over windows where its weights are 1, else as a convolution of each channel."""
    made = source if plane_map.is_identity else _mapped(graph, name, source, plane_map)
    return _reshaped(graph, name, *made, shape)


def add_sum_pool(graph: NirBuilder, name: str, source: Source, pool: SumPool) -> str:
    """Sums over windows."""
    windows = [Window((1,) * k, s, p) for k, s, p in zip(pool.kernel, pool.stride, pool.padding, strict=True)]
    made = _windowed(graph, name, source, windows, plane(pool.shape)[1:])
    return _reshaped(graph, name, *made, pool.shape)


def add_windows(graph: NirBuilder, name: str, source: Source, plane_map: PlaneMap) -> Source:
    """The number of ones in each window of a map, whatever its weights."""
    return _mapped(graph, name, source, plane_map.reach())


def _mapped(graph: NirBuilder, name: str, source: Source, plane_map: PlaneMap, bias: Bias = None) -> Source:
    return _windowed(graph, name, source, list(plane_windows(plane_map, name)), plane_map.places, bias)


def _windowed(
    graph: NirBuilder, name: str, source: Source, windows: list[Window], places: NodeShape, bias: Bias = None
) -> Source:
    key, have = source
    simple = all(set(w.taps) == {1} and w.places(n) == p for w, n, p in zip(windows, plane(have)[1:], places, strict=True))
    if simple and len(have) == 3 and bias is None and not graph.plain:
        sides: list[NDArray[np.int64]] = [
            np.array(side) for side in zip(*((len(w.taps), w.stride, w.padding) for w in windows), strict=True)
        ]
        return graph.add(name, graph.nir.SumPool2d(*sides), key), (have[0], *places)
    weight = torch.einsum("i,j->ij", *(torch.tensor(w.taps, dtype=torch.float64) for w in windows))
    weight = ungrouped(weight.expand(have[0], 1, *weight.shape), have[0], name)
    positions = [Window(tuple(range(len(w.taps))), w.stride, w.padding) for w in windows]
    return add_convolution(graph, name, weight, positions, source, places, bias)


def _reshaped(graph: NirBuilder, name: str, key: str, have: NodeShape, shape: NodeShape) -> str:
    """The same values in another shape: NIR can only flatten."""
    if have == shape:
        return key
    if len(shape) == 1:
        return add_flatten(graph, name, (key, have))
    raise LoweringError(
        f"{name} turns values of shape {have} into {shape}, and NIR can only flatten; reshape before the network"
    )


def add_flatten(graph: NirBuilder, name: str, source: Source) -> str:
    """Values of a sample in a row, channel first.

    The first axis is counted from the end: importers disagree on whether the batch is one.
    """
    key, have = source
    return graph.add(name, graph.nir.Flatten({"input": np.array(have)}, -len(have), -1), key)


def add_sum(graph: NirBuilder, name: str, shape: NodeShape, sources: list[str]) -> str:
    """The sum of several nodes, in one that does nothing else."""
    if not graph.plain:
        return graph.scale(name, shape, 1.0, *sources)
    channels = torch.eye(shape[0], dtype=torch.float64).reshape(shape[0], shape[0], 1, 1)
    first, *others = sources
    key, _ = add_convolution(graph, name, channels, [_POINT, _POINT], (first, shape), plane(shape)[1:])
    graph.connect(others, key)
    return key
