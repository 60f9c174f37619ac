"""Rewrite any network into the form that can be quantized: the same function, on the same parameters."""

import logging
from collections.abc import Collection

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import QuantizationError
from nbsnn.inputs import as_images, to_network
from nbsnn.precision import full_float32
from nbsnn.prepare.activations import replace_activations
from nbsnn.prepare.assignments import call_writes
from nbsnn.prepare.borders import zero_borders
from nbsnn.prepare.constants import repeat_constants
from nbsnn.prepare.findings import Finding
from nbsnn.prepare.graph import is_leaf, record, writes
from nbsnn.prepare.modules import ClippedReLU, SignedActivation
from nbsnn.prepare.pools import PoolMover, call_pools
from nbsnn.prepare.program import Preparation, preparation_of, with_forward_
from nbsnn.prepare.refusals import refuse_the_rest
from nbsnn.prepare.rewriting import Rewriting
from nbsnn.prepare.signals import Inserter
from nbsnn.prepare.stacks import name_squeezed_axes, sum_stacks
from nbsnn.prepare.training import call_dropout
from nbsnn.prepare.verify import check_same, uses_what_was_overwritten
from nbsnn.prepare.weights import call_layers
from nbsnn.surgery import fold_computed_weights_
from nbsnn.wrappers import as_network, copied

__all__ = [
    "ClippedReLU",
    "Finding",
    "Preparation",
    "SignedActivation",
    "changes_of",
    "check_not_quantized",
    "inspect_network",
    "preparation_of",
    "prepare",
    "rewrite",
]

logger = logging.getLogger(__name__)


@checked_arguments
@full_float32()
@torch.inference_mode(mode=False)
def prepare(net: nn.Module, example: Tensor) -> nn.Module:
    """A network with the same function, on the same parameters under the same names, in a form that can be quantized.

    Args:
        net: any network of one input; it is not changed. Its class, attributes and training mode stay.
        example: [B, ...], an image or more; the first one runs through the network.
    Returns:
        A copy. If something had to be rewritten, `preparation.changes` says what; it is logged too. Batches may have any size.
    Raises:
        QuantizationError: the network does not run on such images, its code depends on their values, or the rewritten network
            computes something else. What spikes cannot represent stays as it is; `nbsnn.check` lists it.
    """
    net = as_network(net, QuantizationError)
    example = as_images(example, "example", network=net, finite=True, error=QuantizationError)
    check_not_quantized(net)
    copy = copied(net)
    fold_computed_weights_(copy)
    prepared = rewrite(copy, to_network(example, copy))
    for change in changes_of(prepared):
        logger.info("prepared: %s", change)
    return prepared


def check_not_quantized(net: nn.Module) -> None:
    """Raise an error for a quantized or a spiking network: it was prepared before it was quantized."""
    if any("threshold" in module._parameters or hasattr(module, "quantized_weight") for module in net.modules()):
        raise QuantizationError("the network is quantized already; give the float network that it was made from")


def changes_of(net: nn.Module) -> tuple[Finding, ...]:
    """What was rewritten in a network of any form."""
    found = preparation_of(net)
    return found.changes if found else ()


def rewrite(net: nn.Module, images: Tensor, *, keep: Collection[str] = (), activations: bool = True) -> nn.Module:
    """The prepared form of a network of plain weights without wrappers; the network itself if nothing has to be changed.

    Args:
        images: [B, ...] on the network's device.
        keep: name patterns of layers that stay as they are.
        activations: False rewrites weights alone.
    Raises:
        QuantizationError: as `prepare`.
    """
    rewriting = passes(net, images, keep=keep, activations=activations)
    if rewriting is None:
        return net
    if not rewriting.changes:
        return _without_overwriting(rewriting, net, images) if activations else net
    if rewriting.refused:
        raise QuantizationError(f"the network cannot be rewritten: {rewriting.refused[0]}")
    return finish(rewriting, net, images, keep=keep, activations=activations)


def _without_overwriting(rewriting: Rewriting, net: nn.Module, images: Tensor) -> nn.Module:
    """A network in canonical form as it is, unless its ReLUs overwrite what it uses: quantized activations do not."""
    if not uses_what_was_overwritten(net, images):
        return net
    what = "a ReLU overwrites what is used later; its result is used there instead"
    rewriting.is_recorded = True
    rewriting.changes.append(Finding("", None, what, "changed"))
    try:
        return finish(rewriting, net, images)
    except QuantizationError:  # a part of it is overwritten; the audit says where
        return net


def inspect_network(net: nn.Module, images: Tensor, *, keep: Collection[str] = ()) -> tuple[list[Finding], nn.Module]:
    """What preparing a network changes and what spikes cannot represent of it, and the tree of the rewritten network.

    Args:
        net: as for `rewrite`.
    Raises:
        QuantizationError: it does not run on such images, or the rewritten network computes something else.
    """
    rewriting = passes(net, images, keep=keep)
    if rewriting is None:
        return [], net
    refuse_the_rest(rewriting)
    if rewriting.changes and not rewriting.refused:
        finish(rewriting, net, images, keep=keep)
    return [*rewriting.refused, *rewriting.changes], rewriting.net


def passes(net: nn.Module, images: Tensor, *, keep: Collection[str] = (), activations: bool = True) -> Rewriting | None:
    """Record a copy of a network and rewrite it; None if the network is a single layer."""
    if is_leaf(net):
        return None
    copy = copied(net)
    rewriting = Rewriting(copy, record(copy, images), keep)
    repeat_constants(rewriting)
    call_writes(rewriting)
    name_squeezed_axes(rewriting)
    call_layers(rewriting)
    if not activations:
        return rewriting
    replace_activations(rewriting)
    call_pools(rewriting)
    sum_stacks(rewriting)
    zero_borders(rewriting)
    inserter = Inserter(rewriting)
    PoolMover(rewriting, inserter).run()
    inserter.run()
    return rewriting


def finish(
    rewriting: Rewriting, original: nn.Module, images: Tensor, *, keep: Collection[str] = (), activations: bool = True
) -> nn.Module:
    """The rewritten network, once it is known to compute the same.

    Raises:
        QuantizationError: it does not.
    """
    net = rewriting.net
    for name, tensor in rewriting.constants.items():
        net.register_buffer(name, tensor, persistent=False)
    if rewriting.is_recorded:
        call_dropout(rewriting)
        rewriting.graph.eliminate_dead_code(writes)
        for module in net.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # the graph says which values are used
        net = with_forward_(net, rewriting.graph)
    net.preparation = Preparation(  # type: ignore[assignment]
        tuple(images.shape[1:]), tuple(rewriting.changes), rewriting.fixed_size, tuple(keep), activations
    )
    check_same(original, net, images)
    return net
