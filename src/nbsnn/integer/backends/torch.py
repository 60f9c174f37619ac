"""The backend of torch operations: any device, no compiler needed."""

from collections.abc import Callable

import torch
from torch import Tensor

from nbsnn.integer.backends.base import Backend, register
from nbsnn.integer.nodes import IMAGE, MaxPool, Unit
from nbsnn.integer.products import NamedTensors, Products
from nbsnn.integer.program import Outcome, Program
from nbsnn.spiking.functional import Limits
from nbsnn.spiking.schedules import Neuron, Schedule, schedule_named

# Called for each unit and max pool in each step in which it may change: its name, the step from 1 on, indices of the images
# that still run, their spikes (None: silent) and their membranes after these (None: a max pool has none), [b, *shape].
Watch = Callable[[str, int, Tensor, Tensor | None, Tensor | None], None]


def bytes_per_image(program: Program) -> int:
    """Bytes for all neurons: membrane, current, count, spikes, and a convolution's input and output in single precision."""
    return 24 * sum(torch.Size(shape).numel() for shape in program.shapes.values())


def run_counts(program: Program, pixels: Tensor, *, keep_counts: bool = False) -> Outcome:
    """The quantized network in integers: one product per branch. See `Outcome`."""
    T, products = program.timesteps, Products.of(program, pixels.device)
    values: NamedTensors = {IMAGE: pixels}
    spikes: NamedTensors = {}
    counts: NamedTensors = {}
    for index, node in enumerate(program.nodes):
        if isinstance(node, Unit):
            total = T * products.constant_current(node, values) + products.current(node, values, T)
            count = _count(total + 2 ** (node.fraction_bits - 1), node)
            values[node.name] = count.expand(len(pixels), *node.shape)
            _record(node, values[node.name], spikes, counts if keep_counts else None)
        else:
            values[node.name] = products.structural(node.name, values[node.source], T)
        _forget(program, values, index)
    steps = torch.full((len(pixels),), T, device=pixels.device)
    return Outcome(_head(program, products, values, T), steps, spikes, counts)


def run_spikes(
    program: Program,
    pixels: Tensor,
    *,
    neuron: Neuron,
    schedule: str,
    keep_counts: bool = False,
    keep_fired: bool = False,
    watch: Watch | None = None,
) -> Outcome:
    """Spikes of −1, 0 and 1 from layer to layer, step by step. See `Outcome`."""
    found = schedule_named(schedule)
    if found.order == "in turn":
        return _run_in_turn(program, pixels, found, keep_counts=keep_counts, watch=watch)
    kept = {"count": keep_counts, "fired": keep_fired}
    keep = tuple(name for name, wanted in kept.items() if wanted)
    return _Stepping(program, pixels, found, signed=neuron == "signed", keep=keep, watch=watch).run()


def _count(membrane: Tensor, unit: Unit) -> Tensor:
    """clip(V >> F, 0, levels), [B, ...] int16."""
    return (membrane >> unit.fraction_bits).clamp(0, unit.levels).to(torch.int16)


def _record(unit: Unit, count: Tensor, spikes: NamedTensors, counts: NamedTensors | None) -> None:
    spikes[unit.name] = count.flatten(1).sum(1, dtype=torch.int64)
    if counts is not None:
        counts[unit.name] = count.to(torch.int32)


def _head(program: Program, products: Products, values: NamedTensors, times: int) -> tuple[Tensor, ...]:
    return tuple(
        products.accumulate(branch, values[branch.source], head.shape, times, wide=True)
        for head in program.heads
        for branch in head.branches
    )


def _forget(program: Program, values: NamedTensors, index: int) -> None:
    """Drop values that no later node reads."""
    for name in [name for name in values if program.last_use.get(name, -1) <= index]:
        del values[name]


# -------------------------------------------------------------------------------------------------------------- in turn


def even_spikes(count: Tensor, step: int, timesteps: int) -> Tensor:
    """The spikes of steps 1 to T that spread `count` evenly, as under a constant current of count/T."""

    def until(t: int) -> Tensor:
        done: Tensor = (2 * t * count.to(torch.int32) + timesteps) // (2 * timesteps)
        return done

    return (until(step) - until(step - 1)).to(torch.int8)


def _run_in_turn(program: Program, pixels: Tensor, schedule: Schedule, *, keep_counts: bool, watch: Watch | None) -> Outcome:
    """Unit after unit: T steps of integration without firing, then T steps in which the count is emitted."""
    T, products = program.timesteps, Products.of(program, pixels.device)
    fixed = _constants(program, products, pixels)
    given: NamedTensors = {}  # counts
    spikes: NamedTensors = {}
    counts: NamedTensors = {}

    def value(name: str, step: int) -> Tensor:
        if name in fixed:
            return fixed[name]
        node = program.by_name[name]
        if isinstance(node, (Unit, MaxPool)):
            # Of two neurons the one with more spikes has had as many in any step, so the maximum of counts so far is
            # the count so far of the maximum.
            return even_spikes(counted(name), step, T)
        return products.structural(name, value(node.source, step), 1)

    def counted(name: str) -> Tensor:
        if name in given:
            return given[name]
        node = program.by_name[name]
        assert not isinstance(node, Unit)
        count = products.structural(name, counted(node.source), T)
        if isinstance(node, MaxPool):
            given[name] = count
        return count

    images = torch.arange(len(pixels), device=pixels.device)
    for unit in program.units:
        constant = products.constant_current(unit, fixed)
        membrane = (constant * 0 + 2 ** (unit.fraction_bits - 1)).expand(len(pixels), *unit.shape)
        for step in range(1, T + 1):
            sources = {source: value(source, step) for source in unit.sources}
            membrane = membrane + constant + products.current(unit, sources, 1)
            if watch:
                watch(unit.name, (program.depths[unit.name] - 1) * T + step, images, None, membrane)
        given[unit.name] = _count(membrane, unit)
        for step in range(1, T + 1):
            if watch is None:
                break
            emitted = even_spikes(given[unit.name], step, T)
            membrane = membrane - (emitted.to(membrane.dtype) << unit.fraction_bits)
            watch(unit.name, program.depths[unit.name] * T + step, images, emitted, membrane)
        _record(unit, given[unit.name], spikes, counts if keep_counts else None)
    for node in program.sending:
        for step in range(1, T + 1):
            if watch is None or not isinstance(node, MaxPool):
                break
            watch(node.name, program.depths[node.name] * T + step, images, value(node.name, step), None)
    branches = [branch for head in program.heads for branch in head.branches]
    total = [torch.zeros((), dtype=torch.int64, device=pixels.device) for _ in branches]
    for step in range(1, T + 1):
        sources = {source: value(source, step) for head in program.heads for source in head.sources}
        for i, acc in enumerate(_head(program, products, sources, 1)):
            if step == 1 or branches[i].source not in fixed:
                total[i] = total[i] + acc
    steps = torch.full((len(pixels),), schedule.steps(T, program.depth), device=pixels.device)
    return Outcome(tuple(total), steps, spikes, counts)


def _constants(program: Program, products: Products, pixels: Tensor) -> NamedTensors:
    """The image, and values pooled or flattened from it."""
    values: NamedTensors = {IMAGE: pixels}
    for node in program.nodes:
        if not isinstance(node, Unit) and node.name in program.constants:
            values[node.name] = products.structural(node.name, values[node.source], 1)
    return values


# ------------------------------------------------------------------------------------------------------------- together


class _Stepping:
    """All units in the same step, step by step; images that have settled are removed from the batch.

    State of the remaining images: membranes, net counts, spikes so far, the heads' accumulators. `keep` lists the results per
        neuron: "count", "fired".
    """

    def __init__(
        self, program: Program, pixels: Tensor, schedule: Schedule, *, signed: bool, keep: tuple[str, ...], watch: Watch | None
    ) -> None:
        self.program, self.schedule, self.signed, self.keep = program, schedule, signed, keep
        self.watch, self.number = watch, 0  # of the step
        self.length = None if schedule.windows is None else schedule.windows * program.timesteps  # in steps
        self.products = Products.of(program, pixels.device)
        self.batch, self.device = len(pixels), pixels.device
        fixed = _constants(program, self.products, pixels)
        self.outputs = [(branch, head.shape) for head in program.heads for branch in head.branches]
        self.state: NamedTensors = {}
        for i, (branch, shape) in enumerate(self.outputs):
            acc = torch.zeros((), dtype=torch.int64, device=self.device)
            if branch.source in fixed:
                acc = self.products.accumulate(branch, fixed[branch.source], shape, 1)
            self.state[f"head {i}"] = acc.expand(self.batch, *shape)
        for unit in program.units:
            shape = (self.batch, *unit.shape)
            current = self.products.constant_current(unit, fixed)
            self.state[f"current {unit.name}"] = current.expand(shape)
            self.state[f"membrane {unit.name}"] = torch.full_like(current, 2 ** (unit.fraction_bits - 1)).expand(shape)
            self.state[f"spikes {unit.name}"] = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
        for node in program.sending:
            shape = (self.batch, *node.shape)
            self.state[f"count {node.name}"] = torch.zeros((), dtype=torch.int16, device=self.device).expand(shape)
            if "fired" in keep:
                self.state[f"fired {node.name}"] = torch.zeros(shape, dtype=torch.int32, device=self.device)
        self.state["steps"] = torch.full((self.batch,), self.length or program.timesteps, device=self.device)
        self.state["image"] = torch.arange(self.batch, device=self.device)

    def run(self) -> Outcome:
        finished: list[NamedTensors] = []
        step = 0
        while len(self.state["image"]):
            step += 1
            fired = self._step(driven=step <= self.program.timesteps)
            if self.length is None and step > self.program.timesteps:
                self.state["steps"] = torch.where(fired, step, self.state["steps"])
            if step >= (self.length or self.program.timesteps):
                done = ~fired if self.length is None else torch.ones_like(fired)
                if bool(done.any()):
                    finished.append(self._leave(done))
        order = torch.cat([part["image"] for part in finished]).argsort()
        result = {key: torch.cat([part[key] for part in finished])[order] for key in finished[0]}
        names = [unit.name for unit in self.program.units]
        owners = {"count": names, "fired": [node.name for node in self.program.sending]}
        kept = {key: {name: result[f"{key} {name}"].to(torch.int32) for name in owners[key]} for key in self.keep}
        return Outcome(
            tuple(result[f"head {i}"] for i in range(len(self.outputs))),
            result["steps"],
            {name: result[f"spikes {name}"] for name in names},
            kept.get("count", {}),
            kept.get("fired", {}),
        )

    def _step(self, *, driven: bool) -> Tensor:
        """One step of all units; returns [B] bool, whether an image had any spike."""
        state, program = self.state, self.program
        values: NamedTensors = {}
        fired = torch.zeros(len(state["image"]), dtype=torch.bool, device=self.device)
        self.number += 1
        for index, node in enumerate(program.nodes):
            if isinstance(node, Unit):
                values[node.name] = self._fire(node, values, driven=driven)
                spikes = values[node.name].abs()
                number = spikes.flatten(1).sum(1, dtype=torch.int64)
                state[f"spikes {node.name}"] = state[f"spikes {node.name}"] + number
                fired |= number > 0
            elif isinstance(node, MaxPool):
                values[node.name] = self._choose(node)
            elif node.name not in program.constants:
                values[node.name] = self.products.structural(node.name, values[node.source], 1)
            if "fired" in self.keep and isinstance(node, (Unit, MaxPool)):
                state[f"fired {node.name}"] = state[f"fired {node.name}"] + values[node.name].abs()
            if self.watch and isinstance(node, (Unit, MaxPool)):
                membrane = state.get(f"membrane {node.name}")
                self.watch(node.name, self.number, state["image"], values[node.name], membrane)
            _forget(program, values, index)
        for i, (branch, shape) in enumerate(self.outputs):
            if branch.source not in program.constants:
                acc = self.products.accumulate(branch, values[branch.source], shape, 1, wide=True)
                state[f"head {i}"] = state[f"head {i}"] + acc
        return fired

    def _fire(self, unit: Unit, values: NamedTensors, *, driven: bool) -> Tensor:
        """Integrate one step and fire, [B, *shape] int8."""
        membrane, count = self.state[f"membrane {unit.name}"], self.state[f"count {unit.name}"]
        membrane = membrane + self.products.current(unit, values, 1)
        if driven:
            membrane = membrane + self.state[f"current {unit.name}"]
        limits = Limits(2**unit.fraction_bits, unit.levels, unit.retract, self.signed)
        spike = self.schedule.rule(membrane, count, limits)
        self.state[f"membrane {unit.name}"] = membrane - (spike.to(membrane.dtype) << unit.fraction_bits)
        self.state[f"count {unit.name}"] = count + spike
        return spike

    def _choose(self, pool: MaxPool) -> Tensor:
        """The change of the maximum of the counts so far, [B, *shape] int8."""
        before = self.state[f"count {pool.name}"]
        count = pool.apply(self._counted(pool.source))
        self.state[f"count {pool.name}"] = count
        return (count - before).to(torch.int8)

    def _counted(self, name: str) -> Tensor:
        """Net counts so far, [B, ...] int16, of a unit, a max pool or a choice of their places."""
        node = self.program.by_name[name]
        if isinstance(node, (Unit, MaxPool)):
            return self.state[f"count {name}"]
        return self.products.structural(name, self._counted(node.source), self.program.timesteps).to(torch.int16)

    def _leave(self, done: Tensor) -> NamedTensors:
        """Remove finished images from the state, and return their results."""
        wanted = ("head ", "steps", "image", "spikes ", *(f"{key} " for key in self.keep))
        left = {key: value[done] for key, value in self.state.items() if key.startswith(wanted)}
        self.state = {key: value[~done] for key, value in self.state.items()}
        return left


TORCH = register(Backend("torch", run_counts, run_spikes, bytes_per_image))
