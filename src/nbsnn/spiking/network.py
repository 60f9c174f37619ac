"""A spiking network: the quantized module tree with neurons as activations, and the simulation of time."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nbsnn.errors import ConfigError, ConversionError, unknown
from nbsnn.gradients import with_values
from nbsnn.inputs import as_images, to_network
from nbsnn.precision import full_float32
from nbsnn.quant.layers import FIXED_WEIGHTS, quantized_once
from nbsnn.quant.unpacking import has_fixed_weights
from nbsnn.spiking.call import Call, Stage, running
from nbsnn.spiking.functional import fold, unfold
from nbsnn.spiking.neuron import check_precision, refuse_half
from nbsnn.spiking.proxy import neurons_of, proxy_activation, rates_of, run_on_means
from nbsnn.spiking.recording import Positions, Recording, check_positions, chosen_layers
from nbsnn.spiking.schedules import Neuron, schedule_named
from nbsnn.spiking.watching import Windows
from nbsnn.structure import map_outputs
from nbsnn.threads import PerThread

Gradient = Literal["proxy", "surrogate"]


@dataclass(frozen=True, eq=False)
class SpikingResult:
    """Result of a run on B images.

    Attributes:
        logits: what the network returns, averaged over T: [B, classes], or any tensors in tuples, lists and dicts.
        steps: [B] int64, steps of each image: T ("fixed"), until its last neuron was silent ("settle"), or
            (depth + 1)·T ("barrier").
        counts: neuron layer → [B, ...] net spikes, if requested; integers in the network's floating-point type.
    """

    logits: Any
    steps: Tensor
    counts: dict[str, Tensor]


class SpikingNetwork(nn.Module):
    """Result of `nbsnn.to_spiking`. Called on images [B, C, H, W] or as the network takes them, it returns what the network
        returns, such as logits [B, classes], averaged over T.

    Several threads may call one object at the same time, as nn.DataParallel does with its replicas: each call has its own
        state. Layers stay in evaluation mode also after `train()`: batch norm uses its running statistics. In evaluation mode
        it computes in full float32 (`nbsnn.full_float32`), because exact schedules would not be exact in TF32.

    Attributes:
        network: the module tree; its state dict, and that of this object, is the quantized network's.
        neuron, schedule: as given to `to_spiking`.
        gradient: how a loss of the logits is differentiated. "proxy": without time, by the straight-through gradient of the
            quantized network at the spikes' rates. "surrogate": step by step, with a surrogate derivative for each spike
            (`nbsnn.spiking.functional.integrate_and_fire`). It may be changed.
        timesteps: T = 2^b − 1, the steps in which the image is shown.
        image_shape: (C, H, W) of the example in the audit.
        depth: neurons on the longest path from image to head.
        depths: neuron layer → neurons on the longest path from the image to it, itself included.
        steps: [B] int64, the steps of this thread's last call; `simulate` returns them with the logits.
    """

    steps = PerThread(lambda: torch.zeros(0, dtype=torch.int64))

    def __init__(
        self,
        network: nn.Module,
        *,
        timesteps: int,
        neuron: Neuron,
        schedule: str,
        depth: int,
        depths: Mapping[str, int],
        image_shape: tuple[int, ...],
        gradient: str = "proxy",
    ) -> None:
        super().__init__()
        self.network = network
        self.timesteps, self.neuron, self.schedule, self.depth = timesteps, neuron, schedule, depth
        self.depths = dict(depths)
        self.image_shape = image_shape
        self.gradient = gradient
        self.train(network.training)
        self.register_state_dict_post_hook(_without_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_prefix)  # type: ignore[no-untyped-call]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "gradient" and value not in get_args(Gradient):
            raise ConfigError(unknown("gradient", str(value), get_args(Gradient)))
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> "SpikingNetwork":
        """Set the flag of this object only; the layers stay in evaluation mode."""
        if mode and not self.training and has_fixed_weights(self.network):
            warnings.warn(FIXED_WEIGHTS, stacklevel=2)
        self.network.eval()
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Any:
        images = self._checked(images)
        with self._full_precision():
            return self._logits(images)

    def _logits(self, images: Tensor) -> Any:
        if not torch.is_grad_enabled() or self.gradient == "surrogate":
            return self._simulate(images).logits
        with torch.no_grad():
            result = self._simulate(images, keep_counts=True)
            rates = rates_of(self.network, result.counts)
        proxy = run_on_means(self.network, images, lambda name, n, x: with_values(proxy_activation(n, x), rates[name]))
        return map_outputs(with_values, proxy, result.logits)

    def simulate(self, images: Tensor, *, keep_counts: bool = False) -> SpikingResult:
        """Run, and return logits, steps and counts; with autograd enabled, gradients are surrogate gradients.

        Args:
            images: [B, C, H, W], normalised.
            keep_counts: return the net counts of every neuron.
        Raises:
            ConfigError: the images do not fit the network.
            ConversionError: an exact schedule in half precision.
        """
        images = self._checked(images)
        with self._full_precision():
            return self._simulate(images, keep_counts=keep_counts)

    def record(
        self, images: Tensor, *, layers: str | Sequence[str] | None = None, positions: Positions | None = None
    ) -> Recording:
        """Run, and return the spikes and membranes of neurons in every step.

        All of a large layer's steps are kept in memory: name the layers and positions to look at, or give few images.

        Args:
            images: as in `simulate`.
            layers: names of neuron layers, such as "stem.act", or patterns such as "stage1.*"; all unless given.
            positions: neurons to record, each an index into the layer's shape, such as (channel, row, column): the same ones
                of every layer, or a dictionary from layers to theirs. All neurons unless given.
        Raises:
            ConfigError: the images do not fit the network, or a layer or position that it does not have.
            ConversionError: an exact schedule in half precision.
        """
        images = self._checked(images)
        neurons = neurons_of(self.network)
        names = chosen_layers(layers, tuple(neurons), tuple(neurons))
        check_positions(positions, names)
        windows = Windows({name: neurons[name] for name in names}, self.depths, positions)
        with torch.no_grad(), self._full_precision():
            steps = self._simulate(images, watch=windows).steps
        longest = schedule_named(self.schedule).steps(self.timesteps, self.depth)
        return windows.recording(steps, timesteps=self.timesteps, longest=longest, neuron=self.neuron, schedule=self.schedule)

    @property
    def _evaluated(self) -> bool:
        return not self.training and not torch.compiler.is_compiling()

    def _full_precision(self) -> AbstractContextManager[None]:
        return full_float32() if self._evaluated else nullcontext()

    def _checked(self, images: Tensor) -> Tensor:
        # An image of NaN causes no spike, and would look like a black one.
        images = as_images(images, ranks=(len(self.image_shape) + 1,), channels=self.image_shape[0], finite=self._evaluated)
        return to_network(images, self.network)

    def _simulate(self, images: Tensor, *, keep_counts: bool = False, watch: Windows | None = None) -> SpikingResult:
        schedule, call = schedule_named(self.schedule), Call(self.timesteps, keep_counts=keep_counts, watch=watch)
        check_precision(schedule, self.network, images.device)
        with nullcontext() if torch.compiler.is_compiling() else quantized_once(self.network):
            if schedule.windows == 1:
                total = self._window(images, call, "drive")
                steps = torch.full((len(images),), schedule.steps(self.timesteps, self.depth))
            else:
                total, steps = self._go_on(images, call)
        self.steps = steps
        counts = {}
        if keep_counts:
            found = {name: call.state_of(neuron).count for name, neuron in neurons_of(self.network).items()}
            counts = {name: count for name, count in found.items() if count is not None}
        return SpikingResult(map_outputs(lambda x: x / self.timesteps, total), steps, counts)

    def _go_on(self, images: Tensor, call: Call) -> tuple[Any, Tensor]:
        """Run the window with the image, then windows without image and bias, if needed until no neuron fires.

        Returns:
            The summed currents of the outputs, and the steps taken [B].
        """
        T, schedule = self.timesteps, schedule_named(self.schedule)
        bias, total = self._rest(images, call), self._window(images, call, "drive")
        nothing = torch.zeros_like(images)
        done, longest = T, schedule.steps(T, self.depth)
        steps = torch.full((len(images),), T if schedule.windows is None else longest)
        while schedule.windows is None or done < longest:
            window = self._window(nothing, call, "drain")
            total = map_outputs(lambda sum_, current, rest: sum_ + current - T * rest, total, window, bias)
            done += T
            if schedule.windows is None:
                activity = call.activity().cpu()
                last = (activity * torch.arange(1, T + 1)[:, None]).amax(0)  # 0: silent throughout
                steps = torch.where(last > 0, done - T + last, steps)
                if not bool(activity.any(1).all()):  # after a step without a spike no neuron can fire
                    break
                if done > longest + 1 + T:
                    raise ConversionError(f"still firing after {done} steps, where {longest + 1} suffice: run it in float64")
        return total, steps

    def _rest(self, images: Tensor, call: Call) -> Any:
        """The outputs' currents in a step without image and spikes, [1, ...]; neurons store theirs."""
        with running(call.begin("rest")):
            return self.network(torch.zeros_like(images[:1]))

    def _window(self, images: Tensor, call: Call, stage: Stage) -> Any:
        """The outputs' currents, summed over a window."""
        folded = fold(images.unsqueeze(0).expand(self.timesteps, *images.shape))
        with running(call.begin(stage)):
            currents = self.network(folded)
        return map_outputs(lambda current: unfold(current, self.timesteps).sum(0), currents)

    def _apply(self, fn: Any, recurse: bool = True) -> "SpikingNetwork":
        # The type of a parameter after .half() or .to(dtype), before any is changed.
        if (parameter := next(self.parameters(), None)) is not None:
            with torch.no_grad():
                refuse_half(schedule_named(self.schedule), fn(parameter.new_zeros(())).dtype)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"T={self.timesteps}, neuron={self.neuron}, schedule={self.schedule}, depth={self.depth}"


def _without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    inner = f"{prefix}network."
    for key in [k for k in state if k.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _with_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    inner = f"{prefix}network."
    for key in [k for k in state if k.startswith(prefix) and not k.startswith(inner)]:
        state[inner + key.removeprefix(prefix)] = state.pop(key)
