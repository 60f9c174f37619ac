"""Random integer networks, made of every kind of branch and value that a program can hold."""

from dataclasses import replace

import torch
from torch import Tensor

from nbsnn.integer.bounds import largest_sum, row_sums
from nbsnn.integer.maps import AxisMap, PlaneMap
from nbsnn.integer.nodes import IMAGE, Branch, Flatten, Head, MaxPool, Pixels, SumPool, Unit
from nbsnn.integer.program import Program, constant_values, step_sizes

KINDS = (
    "conv", "strided", "dilated", "grouped", "depthwise", "pointwise", "identity", "pooled", "projection", "wide", "int16",
    "maximum", "minimum",
)  # fmt: skip


def places(size: int, kernel: int, stride: int, padding: int) -> Tensor:
    """[K, n] int32: the places of each window along an axis, −1 in the padding."""
    at = torch.arange((size + 2 * padding - kernel) // stride + 1) * stride - padding + torch.arange(kernel)[:, None]
    return torch.where((at >= 0) & (at < size), at, -1).to(torch.int32)


def random_program(
    kinds: list[str], *, timesteps: int, seed: int = 0, channels: int = 8, size: int = 6, weight: int = 3, mixed: bool = False,
    hidden: int = 24, window: int = 2,
) -> Program:  # fmt: skip
    """A stem on the image, one unit per kind, a pool, a linear unit of so many neurons, and a head on two sources."""
    g = torch.Generator().manual_seed(seed)
    pixels = Pixels(shape=(2, size, size), fraction_bits=8, low=-500, high=600)
    nodes: list = []
    shapes: dict[str, tuple[int, ...]] = {IMAGE: pixels.shape}

    def ints(low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=g).to(dtype)

    def branch(source: str, out: int, kernel: int = 3, *, groups: int = 1, limit: int = weight, **options: object) -> Branch:
        inputs = shapes[source][0]
        shape = (out, inputs // groups, kernel, kernel) if len(shapes[source]) == 3 else (out, inputs)
        dtype = torch.int8 if limit < 128 else torch.int16
        weights = ints(-limit, limit, *shape, dtype=dtype) * (ints(0, 2, *shape) > 0)
        gain = max(1, int(2**12 / (limit * (weights[0].numel() / 3) ** 0.5)))
        shift = 8 if source == IMAGE else 0
        multiplier = ints(gain // 2 + 1, gain + 1, out) * (2 if source == IMAGE else 1)
        multiplier = multiplier.long() if source == IMAGE else multiplier
        return Branch(source, multiplier, weights.to(dtype), groups=groups, shift=shift, **options)  # type: ignore[arg-type]

    def unit(name: str, shape: tuple[int, ...], branches: list[Branch], *, wide: bool = False) -> str:
        levels = int(ints(1, timesteps, 1)) if mixed else timesteps
        bias = ints(-600, 900, shape[0])
        if wide:
            branches = [replace(b, multiplier=b.multiplier.long()) for b in branches]
            bias = bias.long()
        loads = [row_sums(b, shape[0]) for b in branches]
        bound = largest_sum(
            branches, loads, bias, 12, timesteps=timesteps, sizes=step_sizes(nodes, pixels), constants=constant_values(nodes)
        )
        nodes.append(Unit(name, shape, tuple(branches), bias, 12, levels, 1.0, -5, int(bound), wide))
        shapes[name] = shape
        return name

    def place(source: str, kernel: int, stride: int, padding: int, dilation: int = 1) -> tuple[int, int]:
        h, w = ((n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n in shapes[source][1:])
        return h, w

    last = unit("stem", (channels, size, size), [branch(IMAGE, channels, padding=(1, 1))])
    before = last
    for i, kind in enumerate(kinds):
        shape, name = shapes[last], f"{kind}{i}"
        square = {"padding": (1, 1)}
        if kind == "strided":
            made = unit(name, (channels, *place(last, 3, 2, 1)), [branch(last, channels, stride=(2, 2), padding=(1, 1))])
        elif kind == "dilated":
            made = unit(name, shape, [branch(last, channels, dilation=(2, 2), padding=(2, 2))])
        elif kind in ("grouped", "depthwise"):
            made = unit(
                name,
                shape,
                [branch(last, channels, groups=channels if kind == "depthwise" else 2 if channels % 2 == 0 else 3, **square)],
            )
        elif kind == "pointwise":
            made = unit(name, shape, [branch(last, channels, 1)])
        elif kind == "identity":
            skip = Branch(last, ints(500, 2000, channels))
            made = unit(name, shape, [branch(last, channels, **square), skip])
        elif kind == "pooled":
            pool = SumPool(f"{name}.pool", last, (2, 2), (1, 1), (1, 1), (channels, shape[1] + 1, shape[2] + 1))
            nodes.append(pool)
            shapes[pool.name] = pool.shape
            made = unit(name, shape, [branch(pool.name, channels, 2)])
        elif kind in ("maximum", "minimum"):
            windows = [AxisMap(i, (i >= 0).int(), n) for i, n in ((places(n, 3, 1, 1), n) for n in shape[1:])]
            pool = MaxPool(f"{name}.pool", last, PlaneMap(windows[0], windows[1]), kind == "minimum", shape)
            nodes.append(pool)
            shapes[pool.name] = pool.shape
            made = unit(name, shape, [branch(pool.name, channels, **square), Branch(pool.name, ints(500, 2000, channels))])
        elif kind == "projection" and shapes[before][1:] == shape[1:]:
            made = unit(name, shape, [branch(last, channels, **square), branch(before, channels, 1)])
        else:
            made = unit(
                name, shape, [branch(last, channels, limit=200 if kind == "int16" else weight, **square)], wide=kind == "wide"
            )
        before, last = last, made
    c, h, w = shapes[last]
    h, w = h // window, w // window
    nodes.append(SumPool("pool", last, (window, window), (window, window), (0, 0), (c, h, w)))
    nodes.append(Flatten("flat", "pool", (c * h * w,)))
    shapes |= {n.name: n.shape for n in nodes[-2:]}
    last = unit("hidden", (hidden,), [branch("flat", hidden)])
    branches = [branch(last, 5, limit=127), branch("flat", 5, limit=127)]
    head = Head((5,), tuple(_float(b) for b in branches), torch.zeros(5, dtype=torch.float64))
    return Program(timesteps, pixels, tuple(nodes), head)


def _float(b: Branch) -> Branch:
    return Branch(b.source, b.multiplier.double() / 1000, b.weight)


def random_pixels(program: Program, batch: int, seed: int = 0) -> Tensor:
    """[B, C, H, W] int32 on the program's grid."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(program.pixels.low, program.pixels.high + 1, (batch, *program.pixels.shape), generator=g).to(
        torch.int32
    )
