"""Batch norm statistics: recalibrated on images, replaced without changing the function, or frozen in training."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nbsnn.errors import ConfigError, DataError
from nbsnn.finite import check_finite, check_images
from nbsnn.hooks import hooked, input_of
from nbsnn.precision import full_float32
from nbsnn.sums import channel_sums
from nbsnn.surgery import evaluation_mode


@full_float32()
@torch.no_grad()
def recalibrate_norms_(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running averages of every batch norm by the statistics of its input over some batches.

    Running averages lag behind the weights, the more the coarser the weights' grid is (Nagel et al., ICML 2022). All other
    layers are in evaluation mode, so dropout is off. Statistics are summed in float64: torch sums channels-last tensors in
    float32, and the variance of a large batch would be off by 10^-5, the mean by more.

    Args:
        net: changed in place; modes are restored. Without any batch nothing changes.
        batches: [B, C, H, W] normalised images, augmented as in training; each batch has the same weight.
    """
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    seen: dict[nn.Module, list[Tensor]] = {}  # [2, C] float64 of each batch: mean and variance

    def collect(norm: nn.Module, args: Any, kwargs: Any) -> None:
        count, total, squares = channel_sums(input_of(args, kwargs))
        mean = total / count
        variance = (squares - total * mean).clamp_min(0) / (count - 1)  # with Bessel's correction, as in torch
        seen.setdefault(norm, []).append(torch.stack([mean, variance]))

    try:
        with hooked(norm.register_forward_pre_hook(collect, with_kwargs=True) for norm in norms), evaluation_mode(net):
            for images in batches:
                for norm in norms:
                    norm.momentum = 0.0  # running statistics do not change until the end
                    norm.train()
                net(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    for norm in norms:
        if norm in seen and norm.running_mean is not None and norm.running_var is not None:
            mean, variance = torch.stack(seen[norm]).mean(0)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.num_batches_tracked.fill_(len(seen[norm]))  # type: ignore[union-attr]


@full_float32()
@torch.no_grad()
def match_norms_(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give every norm the statistics of its input, without changing what the network computes in evaluation mode.

    Training normalizes by the statistics of the batch: a norm that starts as the identity, or whose input comes from strides
        instead of pools, would compute something else from the first batch on. So μ', σ' of the input replace μ, σ,
    and w' = w·σ'/σ, b' = b + w·(μ' − μ)/σ compensate for it.

    Args:
        net: changed in place; modes and hooks are restored.
        batches: [B, C, H, W] normalised images, a few hundred in total; each batch is read once.
    Raises:
        ConfigError: `batches` holds something other than images, or fewer than two images.
        DataError: images, or the input of a norm, are not finite.
    """
    norms = {name: module for name, module in net.named_modules() if isinstance(module, _BatchNorm)}
    sums: dict[nn.Module, Tensor] = {}  # [3, C] float64: how many values, their sum, their squares' sum

    def collect(norm: nn.Module, args: Any, kwargs: Any) -> None:
        sums[norm] = sums.get(norm, 0) + channel_sums(input_of(args, kwargs))

    count, device = 0, next(net.parameters()).device
    with hooked(norm.register_forward_pre_hook(collect, with_kwargs=True) for norm in norms.values()), evaluation_mode(net):
        for batch in batches:
            if not isinstance(batch, Tensor) or batch.dim() != 4:
                raise ConfigError("match_norms_ takes batches of images [B, C, H, W]; pass [images], without the labels")
            check_images(batch, DataError)
            count += len(batch)
            net(batch.to(device))
    if count < 2:
        raise ConfigError(f"match_norms_ got {count} image(s), too few for a variance; give it two or more, better hundreds")
    for name, norm in norms.items():
        check_finite(f"sums over the input of {name}", sums[norm], DataError, remedy="check the weights before it")
    for norm in norms.values():
        _set_statistics_(norm, *sums[norm])


def _set_statistics_(norm: _BatchNorm, count: Tensor, total: Tensor, squares: Tensor) -> None:
    """New running statistics [C] from sums over `count` values; weight and bias compensate for them."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = total / count
    var = (squares / count - mean.square()).clamp_min(0)  # not Bessel's: it is what training mode divides by
    slope = norm.weight.to(mean) / (norm.running_var.to(mean) + norm.eps).sqrt()
    norm.bias.copy_(norm.bias.to(mean) + slope * (mean - norm.running_mean.to(mean)))
    norm.weight.copy_(slope * (var + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)


def freeze_norms_(model: nn.Module) -> None:
    """Let norm layers use their running statistics without updating them, also in training; their weights are still trained."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
