"""Whether a rewritten network computes the same as the original."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.errors import NbsnnError, QuantizationError
from nbsnn.surgery import evaluation_mode
from nbsnn.tracing import tensors_in

_REMEDY = (
    "avoid operations in place on views, code that counts images, and tensors computed outside torch's functions, or quantize "
    "it with prepare=False"
)
_TOLERANCE = 1e-5  # of the largest value, or of 1


@torch.no_grad()
def check_same(original: nn.Module, rewritten: nn.Module, images: Tensor) -> None:
    """Raise an error unless both networks have the same outputs on two images: the first one and its negative.

    A difference in single precision is compared in double precision too, as sums may be in another order.

    Raises:
        QuantizationError: the outputs differ.
    """
    pair = torch.cat([images[:1], -images[:1].flip(-1)])
    try:
        error = difference(original, rewritten, pair)
    except NbsnnError:
        raise
    except Exception as caught:
        reason = (str(caught) or type(caught).__name__).splitlines()[0].replace(";", ",")
        raise QuantizationError(f"the network cannot be rewritten: the result does not run ({reason}); {_REMEDY}") from caught
    if error > _TOLERANCE and images.dtype != torch.float64:
        error = difference(copy.deepcopy(original).double(), copy.deepcopy(rewritten).double(), pair.double())
    if not error <= _TOLERANCE:
        raise QuantizationError(f"the network cannot be rewritten: the result would be off by {error:.3g}; {_REMEDY}")


@torch.no_grad()
def difference(first: nn.Module, second: nn.Module, images: Tensor) -> float:
    """The largest difference between the outputs of two networks in evaluation mode, over the largest value (at least 1)."""
    with evaluation_mode(first, second), torch.autocast(images.device.type, enabled=False):
        wanted, found = outputs(first(images.clone())), outputs(second(images.clone()))
    if len(wanted) != len(found) or any(a.shape != b.shape for a, b in zip(wanted, found, strict=True)):
        return float("inf")
    errors = [
        float((a.double() - b.double()).abs().max()) / max(1.0, float(a.double().abs().max()))
        for a, b in zip(wanted, found, strict=True) if a.numel()
    ]  # fmt: skip
    return max(errors, default=0.0)


def outputs(tree: Any) -> list[Tensor]:
    """The tensors that a network returns."""
    return list(tensors_in(tree))


def uses_what_was_overwritten(net: nn.Module, images: Tensor) -> bool:
    """Whether a network would compute something else if its ReLUs did not work in place."""
    in_place = [module for module in net.modules() if isinstance(module, nn.ReLU) and module.inplace]
    if not in_place:
        return False
    apart = copy.deepcopy(net)
    for module in apart.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return difference(net, apart, torch.cat([images[:1], -images[:1].flip(-1)])) > _TOLERANCE
