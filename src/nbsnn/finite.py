"""Errors for NaN and infinity in networks, images and logits.

Comparisons hide NaN: a membrane of NaN never reaches its threshold, and `NaN > 0` is false. So functions that compare, round,
    count or save values check them here first. Each check is one pass over a tensor; do not call it in a training loop.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from nbsnn.errors import NbsnnError
from nbsnn.hooks import hooked

NETWORK_REMEDY = "go back to a checkpoint from before it diverged, or train again with a lower learning rate"
IMAGES_REMEDY = "leave those images out or repair them, and check the mean and std they are normalised with"


def count_not_finite(values: Tensor) -> int:
    """How many values are NaN or infinite."""
    if not (values.is_floating_point() or values.is_complex()) or values.is_meta:
        return 0
    values = values.detach()
    # A value that is not finite makes the sum not finite, and a sum takes 1/30 of the time of isfinite; a sum may also
    # overflow.
    return 0 if bool(values.sum().isfinite()) else int((~values.isfinite()).sum())


def not_finite(name: str, values: Tensor) -> str | None:
    """ "NAME: 3 of 432 values are not finite (NaN or infinity)", or None if all are finite."""
    bad = count_not_finite(values)
    return f"{name}: {bad} of {values.numel()} values {_are(bad)} not finite (NaN or infinity)" if bad else None


def check_finite(name: str, values: Tensor, error: type[NbsnnError], *, remedy: str = NETWORK_REMEDY) -> None:
    """Raise `error` if a value is NaN or infinite."""
    if fault := not_finite(name, values):
        raise error(f"{fault}; {remedy}")


def check_network(network: nn.Module, error: type[NbsnnError], *, source: str = "", remedy: str = NETWORK_REMEDY) -> None:
    """Raise `error` if a network holds NaN or infinity; the message names the first such tensor and counts the others.

    Checks all parameters and buffers: weights, biases, thresholds, weight scales, norm statistics. Buffers of modules other
        than norms may hold infinity, for masks.

    Args:
        network: of any form.
        error: what to raise.
        source: origin of the network, such as a file name; the message begins with it.
        remedy: the end of the message.
    """
    faults = [fault for name, module in network.named_modules() for fault in _faults(name, module)]
    if faults:
        more = f" (and {len(faults) - 1} more of the network's tensors)" if len(faults) > 1 else ""
        raise error(f"{source}{': ' if source else ''}{faults[0]}{more}; {remedy}")


def _faults(name: str, module: nn.Module) -> list[str]:
    """A message for each tensor of a module (without its children) that is not finite."""
    prefix = f"{name}." if name else ""
    norm = module if isinstance(module, _NormBase) else None
    tensors: dict[str, Tensor] = {k: p for k, p in module.named_parameters(recurse=False) if not is_lazy(p)}
    tensors |= {k: b for k, b in module.named_buffers(recurse=False) if norm or (not b.is_meta and bool(b.isnan().any()))}
    found = [fault for key, tensor in tensors.items() if (fault := not_finite(prefix + key, tensor))]
    if norm and not found and norm.running_var is not None and not norm.running_var.is_meta:
        bad = int((norm.running_var + norm.eps <= 0).sum())
        if bad:
            count = norm.running_var.numel()
            found = [f"{prefix}running_var: {bad} of {count} variances {_are(bad)} not positive, their roots not finite"]
    return found


def check_images(images: Tensor, error: type[NbsnnError], *, name: str = "images") -> None:
    """Raise `error` if images [B, ...] hold NaN or infinity; says which ones."""
    if fault := not_finite(name, images):
        raise error(f"{fault}, {which(images)}; {IMAGES_REMEDY}")


def check_logits(
    logits: Tensor,
    error: type[NbsnnError],
    *,
    name: str = "logits",
    network: nn.Module | None = None,
    images: Tensor | None = None,
) -> None:
    """Raise `error` if logits [B, ...] hold NaN or infinity, although the network and its images do not.

    Args:
        logits: result of a network.
        error: what to raise.
        name: the start of the message.
        network, images: what computed the logits; run once more to find the layer where the first NaN or infinity appears.
    """
    if fault := not_finite(name, logits):
        place = first_not_finite(network, images) if network is not None and images is not None else None
        begins = f" (from {place} on)" if place else ""
        dtype = str(logits.dtype).removeprefix("torch.")
        raise error(f"{fault}, {which(logits)}{begins}; look for values too large for {dtype}, or a division by 0")


def which(values: Tensor) -> str:
    """Of values [B, ...], some not finite: "in 2 of 64 images, first at index 5"."""
    bad = (~values.detach().isfinite()).reshape(len(values), -1).any(1)
    return f"in {int(bad.sum())} of {len(bad)} images, first at index {int(bad.to(torch.uint8).argmax())}"


@torch.no_grad()
def first_not_finite(network: nn.Module, images: Tensor) -> str | None:
    """The first module whose output is not finite for some images; None if there is none."""
    found: list[str] = []
    handles = []
    for name, module in network.named_modules():

        def note(_m: nn.Module, _args: Any, output: Any, name: str = name) -> None:
            if not found and isinstance(output, Tensor) and count_not_finite(output):
                found.append(name or "the network itself")

        handles.append(module.register_forward_hook(note))
    with hooked(handles):
        network(images)
    return found[0] if found else None


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
