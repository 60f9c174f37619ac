"""Give the neurons that other simulators made of NIR's IF nodes our reset: by subtraction, from half a threshold on."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.errors import ConversionError


def patch(module: nn.Module, *, charge: float = 0.5) -> int:
    """Change the integrate-and-fire neurons of an imported network in place: one spike per step at most, reset by subtraction.

    NIR's neurons are set to a value after a spike, and so lose what they had beyond the threshold. Simulators also differ in
    what they make of an IF node: snnTorch 1.0 a leaky neuron, sinabs 3.1 one that fires several times in a step.

    Args:
        module: what `import_from_nir` or `from_nir` of SpikingJelly, snnTorch, Norse or sinabs returned, before its first step.
        charge: of each neuron before the first step, in thresholds: 0.5 for files of the profile "if-charged", 0 for those of
            the profile "if", whose bias holds it.
    Returns:
        How many layers of neurons were changed. nirtorch's older executor, which Norse and sinabs use, is also made to run a
        node after all that it reads, which it does not where paths meet.
    Raises:
        ConversionError: no such neurons.
    """
    changed = 0
    for neuron in list(module.modules()):
        if type(neuron).__name__ == "GraphExecutor":
            _order(neuron)
        kind = type(neuron)
        change = _CHANGES.get((kind.__module__.partition(".")[0], kind.__name__))
        if change is not None:
            change(neuron, charge)
            changed += 1
    if not changed:
        known = ", ".join(f"{package}'s {name}" for package, name in _CHANGES)
        raise ConversionError(f"no integrate-and-fire neurons to patch; known are {known}")
    return changed


def _spikingjelly(neuron: Any, charge: float) -> None:
    neuron.v_reset = None  # by subtraction
    neuron.set_reset_value("v", charge * neuron.v_threshold)
    neuron.reset()


def _snntorch(neuron: Any, charge: float) -> None:
    neuron.beta = torch.ones_like(neuron.beta)  # no leak
    neuron.init_hidden, neuron.output = True, False  # the executor passes it no state
    neuron.reset_delay, neuron.mem_reset = False, torch.zeros_like  # all of the reset in the step of the spike
    _charge_first(neuron, "mem", charge * float(neuron.threshold))


def _norse(neuron: Any, charge: float) -> None:
    class State(tuple[Tensor, ...]):
        """The membrane."""

    def step(x: Tensor, state: Any, parameters: Any, dt: float = 0.001) -> tuple[Tensor, Any]:
        membrane = state[0] + x
        spikes = (membrane > parameters.v_th).to(x.dtype)
        return spikes, State((membrane - spikes * parameters.v_th,))

    neuron.activation = step
    neuron.state_fallback = lambda x: State((torch.zeros_like(x) + charge * neuron.p.v_th,))


def _sinabs(neuron: Any, charge: float) -> None:
    activation = sys.modules["sinabs.activation"]
    neuron.spike_fn, neuron.min_v_mem = activation.SingleSpike, None
    neuron.spike_threshold = torch.as_tensor(neuron.spike_threshold)
    prepare = neuron.init_state_with_shape

    def charged(shape: Any, *args: Any, **kwargs: Any) -> None:
        prepare(shape, *args, **kwargs)
        neuron.v_mem = torch.zeros(shape) + charge * neuron.spike_threshold

    neuron.init_state_with_shape = charged


def _order(executor: Any) -> None:
    """Sort an executor's nodes so that sources come first."""
    order: dict[Any, None] = {}
    waiting = list(executor.execution_order)
    while waiting:
        ready = [node for node in waiting if not set(executor.graph.find_source_nodes_of(node)) & set(waiting)]
        if not ready:
            raise ConversionError("the imported graph has cycles; patch networks of the profiles if and if-charged")
        order |= dict.fromkeys(ready)
        waiting = [node for node in waiting if node not in order]
    executor.execution_order = list(order)


def _charge_first(neuron: nn.Module, state: str, charge: float) -> None:
    """Set a neuron's state before a call with inputs of another shape than it has, as before the first."""

    def set_state(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if getattr(module, state).shape != inputs[0].shape:
            setattr(module, state, torch.full_like(inputs[0], charge))

    neuron.register_forward_pre_hook(set_state)


_CHANGES: dict[tuple[str, str], Callable[[Any, float], None]] = {
    ("spikingjelly", "IFNode"): _spikingjelly,
    ("snntorch", "Leaky"): _snntorch,
    ("norse", "IAFCell"): _norse,
    ("sinabs", "IAFSqueeze"): _sinabs,
}
