"""Record a spiking network: what its neurons saw in each window of time, put together along all steps of an image."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nbsnn.spiking.neuron import IFNeuron
from nbsnn.spiking.recording import Chosen, Positions, Recording
from nbsnn.spiking.schedules import schedule_named


class Windows:
    """The `watch` of a `Call`: collects the windows of chosen neuron layers.

    Args:
        neurons: name → layer to record.
        depths: name → layers on the longest path from the image, its own included.
        positions: as in `SpikingNetwork.record`.
    """

    def __init__(self, neurons: Mapping[str, IFNeuron], depths: Mapping[str, int], positions: Positions | None) -> None:
        self.names = {id(neuron): name for name, neuron in neurons.items()}
        self.neurons, self.depths, self.positions = neurons, depths, positions
        self.chosen: dict[str, Chosen] = {}
        self.starts: dict[str, Tensor] = {}
        self.spikes: dict[str, list[Tensor]] = {name: [] for name in neurons}
        self.membranes: dict[str, list[Tensor]] = {name: [] for name in neurons}

    def __call__(self, neuron: nn.Module, start: Tensor, current: Tensor, spikes: Tensor) -> None:
        """A window: the membrane at its start [B, ...], the current and the spikes of its steps, both [T, B, ...]."""
        name = self.names.get(id(neuron))
        if name is None:
            return
        chosen = self.chosen.setdefault(name, Chosen(name, tuple(start.shape[1:]), self.positions))
        self.starts.setdefault(name, chosen.of(start))
        height, membrane = self.neurons[name].height(), start
        if schedule_named(self.neurons[name].schedule).order == "in turn":
            silent = torch.zeros_like(spikes)
            steps = [*zip(current, silent, strict=True), *zip(silent, spikes, strict=True)]  # integrates, and then sends
        else:
            steps = list(zip(current, spikes, strict=True))
        for step, spike in steps:  # the operations of the neuron, in its order: the same bits
            membrane = membrane + step - spike * height
            self.spikes[name].append(chosen.of(spike).to(torch.int8))
            self.membranes[name].append(chosen.of(membrane))

    def recording(self, steps: Tensor, *, timesteps: int, longest: int, neuron: str, schedule: str) -> Recording:
        """The recording; `longest` is the number of steps of a schedule whose layers take turns."""
        in_turn = schedule_named(schedule).order == "in turn"
        spikes, membranes = {}, {}
        for name in self.chosen:
            fired, charged = torch.stack(self.spikes[name]), torch.stack(self.membranes[name])
            if in_turn:
                first = (self.depths[name] - 1) * timesteps
                after, rest = longest - first - len(fired), charged.shape[1:]
                before = self.starts[name].expand(first, *rest)
                charged = torch.cat([before, charged, charged[-1:].expand(after, *rest)])
                fired = nn.functional.pad(fired, (*[0] * (2 * (fired.dim() - 1)), first, after))
            taken = int(steps.max())  # windows are whole, and images may end within the last one
            spikes[name], membranes[name] = fired[:taken], charged[:taken]
        heights = {name: float(self.neurons[name].height().detach()) for name in self.chosen}
        return Recording(
            spikes, membranes, heights, dict(heights), steps.cpu(), timesteps, neuron, schedule,
            {name: chosen.shape for name, chosen in self.chosen.items()},
            {name: chosen.positions for name, chosen in self.chosen.items()},
        )  # fmt: skip
