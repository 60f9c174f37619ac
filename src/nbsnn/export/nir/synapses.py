"""Branches, pools and maps of places as NIR nodes: exact in real numbers, whatever profile asks for them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbsnn.errors import LoweringError
from nbsnn.export.nir.graph import Graph, Shape, by_channel
from nbsnn.export.nir.windows import Window, dilated, fitted_together, spread, ungrouped, windows_of
from nbsnn.integer.frozen import thawed
from nbsnn.integer.maps import PlaneMap
from nbsnn.integer.nodes import Branch, SumPool
from nbsnn.shapes import per_channel, plane

Source = tuple[str, Shape]  # a node, and the shape of what it returns


def add_branch(graph: Graph, name: str, branch: Branch, source: Source, shape: Shape, gain: Tensor) -> str:
    """A branch's accumulator times a gain per channel [O] float64; returns the node that has it, in this shape."""
    key, have = source
    if branch.weight is None:
        scaled = graph.scale(name, have, by_channel(gain.numpy(), have), key)
        return _reshaped(graph, name, *_mapped(graph, name, (scaled, have), branch.after), shape)
    weight = thawed(branch.weight).to(torch.float64)
    weight = weight * per_channel(gain, weight.dim() - 1)
    if weight.dim() == 2:
        return graph.add(name, graph.nir.Linear(weight.numpy()), key)
    weight = ungrouped(weight, branch.groups, name)
    windows = [
        Window(dilated(n, d), s, p)
        for n, s, p, d in zip(weight.shape[2:], branch.stride, branch.padding, branch.dilation, strict=True)
    ]
    places = tuple(window.places(n) for window, n in zip(windows, plane(have)[1:], strict=True))
    made = add_convolution(graph, name, weight, windows, source, places)
    return _reshaped(graph, name, *_mapped(graph, name, made, branch.after), shape)


def add_convolution(graph: Graph, name: str, weight: Tensor, windows: list[Window], source: Source, places: Shape) -> Source:
    """A convolution of one group; its windows' taps are positions in the kernel [O, I, kh, kw].

    Raises:
        LoweringError: its kernel cannot be a square.
    """
    nir, (key, have) = graph.nir, source
    bias = np.zeros(len(weight))
    if len(have) == 1:  # one place
        middle = [window.taps[window.padding] for window in windows]
        if -1 in middle:
            matrix = torch.zeros(weight.shape[:2], dtype=weight.dtype)
        else:
            matrix = weight[:, :, middle[0], middle[1]]
        return graph.add(name, nir.Linear(matrix.contiguous().numpy()), key), (len(weight),)
    if len(have) == 2:
        columns = spread(weight[:, :, windows[0].taps[windows[0].padding]][:, :, None], [Window((0,), 1, 0), windows[1]])
        node = nir.Conv1d(have[1], columns[:, :, 0].numpy(), windows[1].stride, windows[1].padding, 1, 1, bias)
        return graph.add(name, node, key), (len(weight), places[1])
    fitted = fitted_together(windows, have[1:], places, -1)
    if fitted is None:
        sides = "×".join(str(len(window.taps)) for window in windows)
        raise LoweringError(
            f"{name} has a kernel of {sides}, which NIR cannot express: its kernels are squares with equal padding on both sides; "
            "use a kernel whose sides are both odd or both even"
        )
    node = nir.Conv2d(
        have[1:], spread(weight, fitted).contiguous().numpy(), stride=tuple(w.stride for w in fitted),
        padding=tuple(w.padding for w in fitted), dilation=(1, 1), groups=1, bias=bias,
    )  # fmt: skip
    return graph.add(name, node, key), (len(weight), *places)


def add_map(graph: Graph, name: str, source: Source, plane_map: PlaneMap, shape: Shape) -> str:
    """A map of places, as a sum over windows where its weights are 1, else as a convolution of each channel."""
    return _reshaped(graph, name, *_mapped(graph, name, source, plane_map), shape)


def add_sum_pool(graph: Graph, name: str, source: Source, pool: SumPool) -> str:
    """Sums over windows."""
    windows = [Window((1,) * k, s, p) for k, s, p in zip(pool.kernel, pool.stride, pool.padding, strict=True)]
    made = _windowed(graph, name, source, windows, plane(pool.shape)[1:])
    return _reshaped(graph, name, *made, pool.shape)


def add_windows(graph: Graph, name: str, source: Source, plane_map: PlaneMap) -> Source:
    """The number of ones in each window of a map, whatever its weights."""
    return _mapped(graph, name, source, plane_map.reach())


def _mapped(graph: Graph, name: str, source: Source, plane_map: PlaneMap | None) -> Source:
    if plane_map is None or plane_map.is_identity:
        return source
    return _windowed(graph, name, source, list(windows_of(plane_map, name)), plane_map.places)


def _windowed(graph: Graph, name: str, source: Source, windows: list[Window], places: Shape) -> Source:
    key, have = source
    simple = all(set(w.taps) == {1} and w.places(n) == p for w, n, p in zip(windows, plane(have)[1:], places, strict=True))
    if simple and len(have) == 3:
        sides: list[NDArray[np.int64]] = [
            np.array(side) for side in zip(*((len(w.taps), w.stride, w.padding) for w in windows), strict=True)
        ]
        return graph.add(name, graph.nir.SumPool2d(*sides), key), (have[0], *places)
    weight = torch.einsum("i,j->ij", *(torch.tensor(w.taps, dtype=torch.float64) for w in windows))
    weight = ungrouped(weight.expand(have[0], 1, *weight.shape), have[0], name)
    positions = [Window(tuple(range(len(w.taps))), w.stride, w.padding) for w in windows]
    return add_convolution(graph, name, weight, positions, source, places)


def _reshaped(graph: Graph, name: str, key: str, have: Shape, shape: Shape) -> str:
    """The same values in another shape: NIR can only flatten."""
    if have == shape:
        return key
    if len(shape) == 1:
        return add_flatten(graph, name, (key, have))
    raise LoweringError(f"{name} turns values of shape {have} into {shape}, and NIR can only flatten; reshape before the network")


def add_flatten(graph: Graph, name: str, source: Source) -> str:
    """Values of a sample in a row, channel first."""
    key, have = source
    return graph.add(name, graph.nir.Flatten({"input": np.array(have)}, 0, -1), key)
