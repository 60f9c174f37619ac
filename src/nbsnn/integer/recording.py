"""Record an integer network: the steps of its units and max pools, as the torch backend computes them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nbsnn.integer.backends.torch import run_spikes
from nbsnn.integer.nodes import Unit
from nbsnn.integer.program import Program
from nbsnn.spiking.recording import Chosen, Positions, Recording, check_positions, chosen_layers
from nbsnn.spiking.schedules import Neuron


class _Frames:
    """The steps of one layer and of B images, in which images that have ended keep their last membrane."""

    def __init__(self, batch: int, chosen: Chosen, start: Tensor | None) -> None:
        self.batch, self.chosen, self.start = batch, chosen, start
        self.spikes: dict[int, Tensor] = {}
        self.membranes: dict[int, Tensor] = {}

    def add(self, step: int, images: Tensor, spikes: Tensor | None, membrane: Tensor | None) -> None:
        """A step of these images."""
        images = images.cpu()
        if spikes is not None:
            values = self.chosen.of(spikes)
            self.spikes[step] = self._all(values.new_zeros(self.batch, *values.shape[1:]), images, values)
        if membrane is not None:
            values = self.chosen.of(membrane)
            before = self.membranes[max(self.membranes)] if self.membranes else values.new_zeros(self.batch, *values.shape[1:])
            self.membranes[step] = self._all(before, images, values)

    def _all(self, before: Tensor, images: Tensor, values: Tensor) -> Tensor:
        frame = before.clone()
        frame[images] = values
        return frame

    def spikes_until(self, steps: int) -> Tensor:
        """[steps, B, ...] int8."""
        silent = torch.zeros_like(next(iter(self.spikes.values())), dtype=torch.int8)
        return torch.stack([self.spikes.get(step, silent).to(torch.int8) for step in range(1, steps + 1)])

    def membranes_until(self, steps: int) -> Tensor:
        """[steps, B, ...], the start before the first step that was seen."""
        frame = torch.full_like(next(iter(self.membranes.values())), int(self.start or 0))
        frames = []
        for step in range(1, steps + 1):
            frame = self.membranes.get(step, frame)
            frames.append(frame)
        return torch.stack(frames)


def record_program(
    program: Program,
    pixels: Tensor,
    *,
    neuron: Neuron,
    schedule: str,
    layers: str | Sequence[str] | None,
    positions: Positions | None,
) -> Recording:
    """As `IntegerNetwork.record`, of images on the grid of the pixels."""
    units, sending = tuple(unit.name for unit in program.units), tuple(node.name for node in program.sending)
    names = chosen_layers(layers, sending, units)
    check_positions(positions, names)
    chosen = {name: Chosen(name, program.shapes[name], positions) for name in names}
    firing = {unit.name: unit for unit in program.units if unit.name in names}
    frames = {
        name: _Frames(len(pixels), chosen[name], torch.tensor(firing[name].threshold // 2) if name in firing else None)
        for name in names
    }

    def watch(name: str, step: int, images: Tensor, spikes: Tensor | None, membrane: Tensor | None) -> None:
        if name in frames:
            frames[name].add(step, images, spikes, membrane)

    outcome = run_spikes(program, pixels, neuron=neuron, schedule=schedule, watch=watch)
    steps = int(outcome.steps.max())
    return Recording(
        {name: frame.spikes_until(steps) for name, frame in frames.items()},
        {name: frames[name].membranes_until(steps) for name in firing},
        {name: unit.threshold for name, unit in firing.items()},
        {name: _height(program, name) for name in names},
        outcome.steps.cpu(), program.timesteps, neuron, schedule,
        {name: program.shapes[name] for name in names},
        {name: chosen[name].positions for name in names},
    )  # fmt: skip


def _height(program: Program, value: str) -> float:
    """What a spike of a unit stands for, or a change of a maximum over such spikes."""
    node = program.by_name[value]
    while not isinstance(node, Unit):
        node = program.by_name[node.source]
    return node.height
