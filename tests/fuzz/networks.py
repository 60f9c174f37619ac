"""Random integer networks that pass the gate, through both backends: every schedule gives the same bits in each."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fuzz.corpus import Corpus
from fuzz.oracle import Failure, same
from torch import Tensor

from nbsnn.integer import checking
from nbsnn.integer.backends import native
from nbsnn.integer.backends import torch as engine_torch
from nbsnn.integer.bounds import NARROW, WIDE, largest_sum, retract_at, row_sums
from nbsnn.integer.maps import AxisMap, PlaneMap
from nbsnn.integer.nodes import IMAGE, Branch, Flatten, Head, MaxPool, Pixels, SumPool, Unit
from nbsnn.integer.program import Outcome, Program, constant_values, count_values, step_sizes
from nbsnn.spiking.schedules import valid_pairs

Shape = tuple[int, ...]


class Builder:
    """A program in the making: what values there are, and of which shape."""

    def __init__(self, r: random.Random) -> None:
        self.r, self.nodes = r, []
        self.timesteps = r.choice([1, 2, 3, 3, 7, 15, 255])
        self.pixels = Pixels((r.randrange(1, 4), r.randrange(1, 9), r.randrange(1, 9)), 8, -r.randrange(600), r.randrange(600))
        self.shapes: dict[str, Shape] = {IMAGE: self.pixels.shape}

    def numbers(self, low: int, high: int, *shape: int) -> Tensor:
        """Random integers, some of them 0."""
        generator = torch.Generator().manual_seed(self.r.getrandbits(40))
        return torch.randint(low, high + 1, shape, generator=generator) * torch.randint(0, 4, shape, generator=generator).sign()

    def window(self, size: Shape, *, pool: bool = False) -> tuple[dict[str, Any], Shape] | None:
        """Kernel, stride, padding and dilation that fit, and the size they give."""
        r = self.r
        kernel, stride = [tuple(r.choice([1, 1, 2, 3]) for _ in range(2)) for _ in range(2)]
        padding = tuple(r.randrange(k // 2 + 1) if pool else r.choice([0, 0, 1, 1, 2, 4]) for k in kernel)
        dilation = (1, 1) if pool else tuple(r.choice([1, 1, 1, 2]) for _ in range(2))
        spans = zip(size, kernel, stride, padding, dilation, strict=True)
        out = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in spans)
        fits = all(1 <= n <= 12 for n in out)
        return ({"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}, out) if fits else None

    def branch(self, source: str, channels: int, places: Shape | None) -> tuple[Branch, Shape] | None:
        """A synapse on a value, with these places if they are given; None where it cannot have them."""
        r, shape = self.r, self.shapes[source]
        limit = r.choice([1, 3, 10, 31, 32, 127, 400])
        dtype = torch.int8 if limit < 128 else torch.int16
        shift = r.randrange(1, 20) if source in constant_values(self.nodes) else 0
        multiplier = self.numbers(1, r.choice([3, 200, 4000]), channels)
        if r.random() < 0.2 and shape[0] == channels and places in (None, shape[1:]):
            return Branch(source, multiplier, shift=shift), shape[1:]
        if len(shape) == 1:
            weight = self.numbers(-limit, limit, channels, shape[0]).to(dtype)
            return (Branch(source, multiplier, weight, shift=shift), ()) if places in (None, ()) else None
        made = self.window(shape[1:])
        if made is None or (places is not None and made[1] != places and not (places == () and made[1] == (1, 1))):
            return None
        options, out = made
        groups = r.choice([g for g in range(1, shape[0] + 1) if shape[0] % g == 0 and channels % g == 0])
        weight = self.numbers(-limit, limit, channels, shape[0] // groups, *options.pop("kernel")).to(dtype)
        return Branch(source, multiplier, weight, groups=groups, shift=shift, **options), out if places is None else places

    def branches(self, channels: int, places: Shape | None) -> tuple[list[Branch], Shape] | None:
        """One to three synapses of the same places."""
        made: list[Branch] = []
        for _ in range(self.r.choice([1, 1, 2, 3, 8])):
            found = self.branch(self.r.choice([*list(self.shapes)[-4:], *self.shapes]), channels, places)
            if found:
                made.append(found[0])
                places = found[1]
        return (made, places) if made and places is not None else None

    def add_unit_(self) -> None:
        channels = self.r.randrange(1, 7)
        found = self.branches(channels, None)
        if found is None:
            return
        branches, places = found
        bits, bias = self.r.randrange(1, 20), self.numbers(-500, 900, channels)
        loads = [row_sums(branch, channels) for branch in branches]
        setting = {"timesteps": self.timesteps, "sizes": step_sizes(self.nodes, self.pixels)}
        bound = largest_sum(branches, loads, bias, bits, constants=constant_values(self.nodes), **setting)  # type: ignore[arg-type]
        if bound >= WIDE:
            return
        wide = bound >= NARROW or self.r.random() < 0.1
        kind = torch.int64 if wide else torch.int32
        typed = tuple(self.typed(branch, torch.int64 if branch.shift else kind) for branch in branches)
        name = f"u{len(self.nodes)}"
        height = self.r.choice([0.5, 1.0, 3.0])
        self.shapes[name] = (channels, *places)
        levels = self.r.randrange(1, self.timesteps + 1) if self.r.random() < 0.3 else self.timesteps
        self.nodes.append(
            Unit(
                name, self.shapes[name], typed, bias.to(kind), bits, levels, height, retract_at(bits, height), int(bound), wide
            )
        )

    @staticmethod
    def typed(branch: Branch, kind: torch.dtype) -> Branch:
        """The branch with multipliers of a type."""
        return replace(branch, multiplier=branch.multiplier.to(kind))

    def add_structure_(self) -> None:
        source = self.r.choice([name for name, shape in self.shapes.items() if len(shape) == 3])
        shape, name = self.shapes[source], f"s{len(self.nodes)}"
        if self.r.random() < 0.4:
            self.shapes[name] = (shape[0] * shape[1] * shape[2],)
            self.nodes.append(Flatten(name, source, self.shapes[name]))
        elif source in count_values(self.nodes) and self.r.random() < 0.6:
            axes = [self.windows(n) for n in shape[1:]]
            self.shapes[name] = (shape[0], *(axis.places for axis in axes))
            lowest = self.r.random() < 0.5
            self.nodes.append(MaxPool(name, source, PlaneMap(axes[0], axes[1]), lowest, self.shapes[name]))
        elif made := self.window(shape[1:], pool=True):
            made[0].pop("dilation")
            self.shapes[name] = (shape[0], *made[1])
            self.nodes.append(SumPool(name, source, shape=self.shapes[name], **made[0]))

    def windows(self, size: int) -> AxisMap:
        """Any windows of an axis, each with one place or more, in any order."""
        reads, places = self.r.randrange(1, size + 1), self.r.randrange(1, 9)
        chosen = [self.r.sample(range(size), reads) for _ in range(places)]
        kept = [[at if k == 0 or self.r.random() < 0.8 else -1 for k, at in enumerate(window)] for window in chosen]
        index = torch.tensor(kept, dtype=torch.int32).T.contiguous()
        return AxisMap(index, (index >= 0).to(torch.int32), size)

    def program(self) -> Program | None:
        """The whole, if it came to one."""
        for _ in range(self.r.randrange(1, 9)):
            self.add_unit_() if self.r.random() < 0.7 else self.add_structure_()
        channels = self.r.randrange(1, 6)
        found = self.branches(channels, None)
        if found is None or not self.nodes:
            return None
        branches = tuple(Branch(b.source, b.multiplier.double() / 1000, b.weight, b.stride, b.padding, b.dilation, b.groups)
                         for b in found[0])  # fmt: skip
        head = Head((channels, *found[1]), branches, torch.zeros(channels, dtype=torch.float64))
        return Program(self.timesteps, self.pixels, tuple(self.nodes), head)


def random_network(r: random.Random, corpus: Corpus, folder: Path) -> str:
    """A random program: what the gate takes, both backends take, and give the same logits, steps, spikes and counts."""
    program = Builder(r).program()
    if program is None:
        return "impossible"
    try:
        checking.check_structure(program)
        checking.check_numbers(program)
    except ValueError:
        return "refused"
    generator = torch.Generator().manual_seed(r.getrandbits(40))
    batch = r.choice([1, 2, 3, 13, 33])
    pixels = torch.randint(program.pixels.low, program.pixels.high + 1, (batch, *program.pixels.shape), generator=generator)
    pixels = pixels.to(torch.int32)
    counts = _both(program, pixels, "counts", lambda engine: engine.run_counts)
    for neuron, schedule in valid_pairs():
        if program.timesteps > 15 and schedule != "barrier":
            continue  # thousands of steps
        options = {"neuron": neuron, "schedule": schedule}
        found = _both(program, pixels, f"{neuron} {schedule}", lambda engine: engine.run_spikes, **options)
        if schedule in ("settle", "barrier") and not same(found.counts, counts.counts):
            raise Failure(f"{schedule} ends with other counts: {program}")
    return "accepted"


def _both(program: Program, pixels: Tensor, name: str, function: Callable[[Any], Any], **options: str) -> Outcome:
    results = [function(engine)(program, pixels, keep_counts=True, **options) for engine in (engine_torch, native)]
    for field in ("accumulators", "steps", "spikes", "counts"):
        if not same(*(getattr(result, field) for result in results)):
            raise Failure(f"{name}: the backends differ in {field} on {len(pixels)} images: {program}")
    outcome: Outcome = results[0]
    return outcome
