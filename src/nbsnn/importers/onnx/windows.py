"""Where windows of convolutions, transposed ones and pools lie: explicit and automatic padding, as ONNX defines them."""

from typing import Any

from nbsnn.importers.onnx.operation import Operation
from nbsnn.importers.onnx.values import Current

PerAxis = tuple[int, ...]  # one number for each axis of places


def pads_of(node: Operation, sizes: PerAxis, kernel: PerAxis, stride: PerAxis, dilation: PerAxis) -> tuple[PerAxis, PerAxis]:
    """The padding before and behind each axis."""
    kind, axes = _auto_pad(node), len(kernel)
    if not len(sizes) == len(stride) == len(dilation) == axes or min(*stride, *dilation, *kernel) < 1:
        node.refuse(f"has windows of {axes} axes for {len(sizes)} axes of places, or empty ones", "export it again")
    if kind.startswith("SAME"):
        totals = [
            max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)
        ]
        return _shared(totals, more_behind=kind == "SAME_UPPER")
    pads = (0,) * 2 * axes if kind == "VALID" else node.whole("pads", [0] * 2 * axes)
    if len(pads) != 2 * axes or min(pads) < 0:
        node.refuse(f"has pads={list(pads)}", f"give {2 * axes} numbers from 0 on")
    return pads[:axes], pads[axes:]


def _auto_pad(node: Operation) -> str:
    kind = node.word("auto_pad", "NOTSET") or "NOTSET"
    if kind not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        node.refuse(f"has auto_pad={kind!r}", "export explicit pads")
    return kind


def _shared(totals: list[int], *, more_behind: bool) -> tuple[PerAxis, PerAxis]:
    """Totals in two halves, of which one is larger if they are odd."""
    less, more = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
    return (less, more) if more_behind else (more, less)


def padded(node: Operation, kernel: PerAxis, stride: PerAxis, dilation: PerAxis) -> tuple[Current, PerAxis]:
    """The signal, with a border of zeros if the padding differs between sides, and the padding that is left."""
    x = node.signal()
    before, after = pads_of(node, node.reading.shape(x)[1:], kernel, stride, dilation)
    if before == after:
        return x, before
    border = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    return node.reading.add("pad", f"{node.label}_pad", x, options={"pad": border}), (0,) * len(kernel)


def count_places(size: int, kernel: int, stride: int, dilation: int, before: int, after: int, *, ceil: bool) -> int:
    """The places of windows along an axis; with `ceil` the last one may end beyond the padding, but not begin there."""
    room = size + before + after - dilation * (kernel - 1) - 1
    count = (-(-room // stride) if ceil else room // stride) + 1
    return count - 1 if ceil and (count - 1) * stride >= size + before else count


def transposed_window(node: Operation, sizes: PerAxis, kernel: PerAxis) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """Options of torch's transposed convolution, and what is to be cut off its result before and behind each axis."""
    axes, kind = len(kernel), _auto_pad(node)
    stride, dilation = node.whole("strides", [1] * axes), node.whole("dilations", [1] * axes)
    extra, shape = node.whole("output_padding", [0] * axes), node.whole("output_shape", [])
    if not len(sizes) == len(stride) == len(dilation) == len(extra) == axes or len(shape) not in (0, axes, axes + 2):
        node.refuse(f"has windows of {axes} axes for {len(sizes)} axes of places", "export it again")
    full = [(n - 1) * s + d * (k - 1) + 1 + o for n, k, s, d, o in zip(sizes, kernel, stride, dilation, extra, strict=True)]
    if shape or kind.startswith("SAME"):
        wanted = shape[-axes:] if shape else [n * s for n, s in zip(sizes, stride, strict=True)]
        totals = [max(have - want, 0) for have, want in zip(full, wanted, strict=True)]
        before, after = _shared(totals, more_behind=kind == "SAME_UPPER")
    else:
        before, after = pads_of(node, sizes, kernel, stride, dilation)
    window: dict[str, list[int]] = {"padding": [], "output_padding": []}
    crop = []
    for first, last, more, room in zip(before, after, extra, map(max, stride, dilation), strict=True):
        end = last - more  # what is cut off behind; below 0, places that no kernel reaches
        if 0 <= first - end < room:
            padding, output = first, first - end
        else:
            padding, output = (min(first, end), 0) if end >= 0 else (0, -end)
        if not 0 <= output < room:
            node.refuse(f"has {output} places behind its kernels", "give an output_padding below the stride")
        window["padding"].append(padding)
        window["output_padding"].append(output)
        crop.append((first - padding, 0 if output else end - padding))
    return {"stride": stride, "dilation": dilation, **{key: tuple(value) for key, value in window.items()}}, crop
