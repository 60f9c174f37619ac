"""Calibration without training: shift each channel's bias so that spikes come closest to the quantized activation.

Under the schedule "fixed" errors have one direction: current that arrives late leaves a membrane above its threshold, the count
is too low, and the deficit accumulates over layers. A slightly larger bias compensates for it on average. The shift is found
per channel by simulating the neuron, from the first layer to the last, so that earlier units are already corrected.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.errors import ConversionError
from nbsnn.hooks import hooked, input_of
from nbsnn.precision import full_float32
from nbsnn.progress import ImageProgress
from nbsnn.shapes import per_channel
from nbsnn.spiking.functional import integrate_and_fire, unfold
from nbsnn.surgery import tap
from nbsnn.training.proxy import SpikingProxy, TunedUnit

_COARSE = (0.0, 0.03, -0.03, 0.06, -0.06, 0.1, -0.1, 0.15, -0.15, 0.2, -0.2, 0.3, 0.4)  # counts over the whole window
_FINE = (0.0, 0.01, -0.01, 0.02, -0.02)  # around the best of them
_BLOCK = 32  # images at a time in the search


@full_float32()
@torch.no_grad()
def shift_biases_(
    pair: SpikingProxy,
    teacher: nn.Module,
    images: Tensor,
    units: list[TunedUnit],
    *,
    progress: ImageProgress | None = None,
) -> dict[str, Tensor]:
    """Change the biases of the pair's network in place, in one pass from the first unit to the last.

    Args:
        pair: the spiking network to calibrate.
        teacher: the quantized network whose activations are the target.
        images: [B, C, H, W], a few hundred training images; all activations of a layer are in memory at a time.
        units: result of `find_units`; the first one has a constant current and is exact, so it is not changed.
        progress: called with each unit's name and the number of images.
    Returns:
        TunedUnit name → shift of the current [channels], in units of the activation; "" is the head.
    Raises:
        ConversionError: a unit has no bias of its own per channel.
    """
    chosen = {unit.name: unit for unit in units[1:]}
    for unit in chosen.values():
        if unit.bias is None:
            raise ConversionError(
                f"{unit.name or 'the head'} has no bias per channel to calibrate; use the method layerwise or end-to-end"
            )
    targets, logits = _activations(teacher, [name for name in chosen if name], images)
    shifts: dict[str, Tensor] = {}

    def calibrate(name: str) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
            given = input_of(args, kwargs)
            current = unfold(given, pair.timesteps)
            height = pair.neurons[name].height()
            signed = pair.spiking.neuron == "signed"
            shifts[name] = least_error_shift(current, targets.pop(name), height, signed=signed)
            if progress:
                progress(name, len(images))
            return (given + per_channel(shifts[name], given.dim() - 2),), {}

        return hook

    with hooked(pair.neurons[name].register_forward_pre_hook(calibrate(name), with_kwargs=True) for name in chosen if name):
        answer = pair.spiking(images)
    if "" in chosen:
        shifts[""] = (logits - answer).double().mean(0).to(logits)
    for name, shift in shifts.items():
        unit = chosen[name]
        assert unit.bias is not None
        unit.parameters[unit.bias].add_(shift)
    return shifts


def least_error_shift(current: Tensor, target: Tensor, threshold: Tensor, *, signed: bool) -> Tensor:
    """The constant per channel that, added to the current of every step, minimizes the squared error of the rates.

    Args:
        current: [T, B, C, ...], in units of the activation.
        target: [B, C, ...] target activations.
        threshold: scalar θ.
        signed: kind of the neurons.
    Returns:
        [C]; the least squared error over the images among steps of 1/100 count, from −0.22 to 0.42 counts over the
        window; for equal errors the one closest to 0.
    """
    best = torch.zeros(current.shape[2]).to(current)
    for offsets in (_COARSE, _FINE):
        candidates = best + torch.tensor(offsets).to(best)[:, None] * (threshold / len(current))
        errors = torch.zeros_like(candidates, dtype=torch.float64)
        blocks = zip(torch.split(current, _BLOCK, dim=1), torch.split(target, _BLOCK), strict=True)
        for part, wanted in blocks:
            for index, shift in enumerate(candidates):
                spikes = integrate_and_fire(part + per_channel(shift, part.dim() - 3), threshold, signed=signed)
                error = (spikes.mean(0) * threshold - wanted).square()
                errors[index] += error.transpose(0, 1).flatten(1).sum(1)
        first = errors.sort(dim=0, stable=True).indices[:1]
        best = candidates.gather(0, first)[0]
    return best


def _activations(teacher: nn.Module, names: list[str], images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    modules: Mapping[str, nn.Module] = dict(teacher.named_modules())
    with tap({name: modules[name] for name in names}) as seen:
        logits: Tensor = teacher(images)
    return {name: outputs[0] for name, outputs in seen.items()}, logits
