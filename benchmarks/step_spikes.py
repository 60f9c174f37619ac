"""The spikes of every neuron in every step, as the integer network's torch backend fires them; for comparisons."""

import torch

from nbsnn.integer.backends.torch import _Stepping
from nbsnn.integer.pixels import to_integers
from nbsnn.spiking.schedules import schedule_named


class _Recorder(_Stepping):
    """Keeps what each unit and max pool emits; images that have settled are silent."""

    def __init__(self, program, pixels, schedule, *, signed):
        super().__init__(program, pixels, schedule, signed=signed, keep=("count",))
        self.emitted = {node.name: [] for node in program.sending}

    def _keep(self, name, spikes):
        whole = torch.zeros(self.batch, *spikes.shape[1:], dtype=torch.int8)
        whole[self.state["image"]] = spikes
        self.emitted[name].append(whole)
        return spikes

    def _fire(self, unit, values, *, driven):
        return self._keep(unit.name, super()._fire(unit, values, driven=driven))

    def _choose(self, pool):
        return self._keep(pool.name, super()._choose(pool))


def step_spikes(network, images, *, neuron, schedule):
    """Unit or max pool → [steps, B, *shape] int8, for images [B, ...]; and the logits [B, classes]."""
    program = network.program
    recorder = _Recorder(program, to_integers(program.pixels, images), schedule_named(schedule), signed=neuron == "signed")
    with torch.no_grad():
        outcome = recorder.run()
    return {name: torch.stack(steps) for name, steps in recorder.emitted.items()}, program.result(outcome.accumulators)


def on_grid(network, images):
    """Images as a NIR graph takes them: rounded as the integer network rounds them, float64."""
    pixels = network.program.pixels
    return to_integers(pixels, images).double() / 2**pixels.fraction_bits
