"""SGD with the parameter groups of quantized networks, and learning-rate schedules as pure functions."""

import math

import torch
from torch import Tensor, nn

from nbsnn.quant.functional import SMALLEST_SCALE
from nbsnn.quant.layers import QuantReLU, WeightQuantizer
from nbsnn.recipe import OptimSpec, Phase
from nbsnn.spiking.neuron import IFNeuron


def make_optimizer(model: nn.Module, phase: Phase, spec: OptimSpec) -> torch.optim.SGD:
    """SGD with three parameter groups: weights (including norms and biases), thresholds, and weight scales.

    Weight decay applies to all of them, as published; for a threshold it trades clipping against resolution.
    """
    thresholds, scales = _thresholds(model), _scales(model)
    special = {id(p) for p in (*thresholds, *scales)}
    weights = [p for p in model.parameters() if id(p) not in special]
    groups = [
        {"params": weights, "factor": 1.0},
        {"params": thresholds, "factor": spec.threshold_lr},
        {"params": scales, "factor": spec.scale_lr},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(groups, lr=phase.lr, momentum=spec.momentum, nesterov=spec.nesterov, weight_decay=phase.weight_decay)


def learning_rate(progress: float, spec: OptimSpec) -> float:
    """The factor on the phase's learning rate at a fraction `progress` in [0, 1) of its steps."""
    if progress < spec.warmup:
        return max(progress / spec.warmup, 1e-3)
    if spec.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (progress - spec.warmup) / (1 - spec.warmup)))
    return float(spec.lr_gamma ** sum(progress >= milestone for milestone in spec.milestones))


def set_learning_rate_(optimizer: torch.optim.SGD, lr: float) -> None:
    """Set the learning rate of each group to its multiple of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


@torch.no_grad()
def keep_positive_(model: nn.Module) -> None:
    """Clamp thresholds and scales to their minimum in use, and thresholds to the limit of a clipped activation."""
    small: dict[float, list[Tensor]] = {SMALLEST_SCALE: list(_thresholds(model))}
    for layer in _scaled(model):
        assert layer.weight_scale is not None
        small.setdefault(layer.format.smallest_scale, []).append(layer.weight_scale)
    for smallest, parameters in small.items():
        if parameters:
            torch._foreach_clamp_min_(parameters, smallest)
    for module in model.modules():
        if isinstance(module, (QuantReLU, IFNeuron)) and module.limit is not None:
            module.threshold.clamp_(max=module.limit)


def _thresholds(model: nn.Module) -> list[nn.Parameter]:
    return [m.threshold for m in model.modules() if isinstance(m, (QuantReLU, IFNeuron))]


def _scaled(model: nn.Module) -> list[WeightQuantizer]:
    return [m for m in model.modules() if isinstance(m, WeightQuantizer) and m.weight_scale is not None]


def _scales(model: nn.Module) -> list[nn.Parameter]:
    return [m.weight_scale for m in _scaled(model) if m.weight_scale is not None]
