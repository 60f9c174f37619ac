"""Convert a float network to a quantized one, and change its bits.

The formats of its layers are a plan, a dictionary that a checkpoint's header stores, to rebuild the same network.
"""

import logging
from collections.abc import Collection, Iterable
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import ConfigError, QuantizationError, unknown
from nbsnn.finite import check_network
from nbsnn.inputs import as_images, gathered, require_type, to_network
from nbsnn.precision import full_float32
from nbsnn.prepare import changes_of, rewrite
from nbsnn.progress import LayerProgress
from nbsnn.quant.audit import audit
from nbsnn.quant.calibrate import calibrate_
from nbsnn.quant.formats import WeightFormat
from nbsnn.quant.layers import QuantReLU, WeightQuantizer
from nbsnn.quant.normed import normed_layers
from nbsnn.quant.overview import overview_of
from nbsnn.quant.planning import check_float, is_to_be_converted
from nbsnn.quant.plans import ActFormat as ActFormat
from nbsnn.quant.plans import Plan as Plan
from nbsnn.quant.plans import apply_plan_ as apply_plan_
from nbsnn.quant.plans import make_plain_
from nbsnn.quant.plans import plan_formats as plan_formats
from nbsnn.quant.plans import read_plan as read_plan
from nbsnn.quant.reconstruct import reconstruct_
from nbsnn.recipe import FLOAT_BITS, QuantSpec, as_patterns, check_bits
from nbsnn.surgery import evaluation_mode
from nbsnn.wrappers import as_network, copied, unwrap

logger = logging.getLogger(__name__)

_FEW_IMAGES = 32


@checked_arguments
@full_float32()
@torch.inference_mode(mode=False)  # within inference mode, parameters of the result could never be trained
def quantize(
    model: nn.Module,
    spec: QuantSpec,
    *,
    images: Tensor | Iterable[Any] | None = None,
    example: Tensor | None = None,
    prepare: bool = True,
    method: Literal["calibrate", "reconstruct"] = "calibrate",
    progress: LayerProgress | None = None,
) -> nn.Module:
    """The quantized form of a float network, as a new object.

    Wrappers (DataParallel, torch.compile) are removed, and weights that are computed in each call (weight norm, spectral norm,
    pruning) become plain ones. If it is given images or an example, the network is first prepared, as by `nbsnn.prepare`.

    Args:
        model: any network that `nbsnn.check` does not refuse; without images and example, one made of weight layers, ReLU
            *modules* and anything linear between them.
        spec: bits of weights, activations and edge layers; 32 leaves a layer in float.
        images: [B, C, H, W] (or as the network takes them), a few hundred training images, or a DataLoader or other iterable of
            batches, whose labels are ignored and of which the first 1,024 images are used. With them thresholds are initialized
            to minimize the error, and the result approximates the float network, with its batch norm statistics or with new
            ones (`spec.norms`). Without them the result is a start for training: thresholds fit currents of unit variance,
            and weights before a batch norm are normalized.
        example: [B, C, H, W], one image, if no images are given. One of the two is traced through the network: edges are the
            weight layers that read the image or produce the output, a warning names layers that are never called, and errors of
            `to_spiking` are raised here, before any training, unless `spec.skip` names the layer. With neither, edges are the
            first and the last registered weight layer, and only modules are checked, not `forward`.
        prepare: False leaves the network's code as it is, and raises an error for what that code does not allow.
        method: what is done with the images. "calibrate" initializes thresholds; "reconstruct" also fits weights, with learned
            rounding, and biases to the outputs of the float network, layer by layer, for use without training. It takes
            minutes, and more memory: all images are in flight at once.
        progress: of "reconstruct": told the name of each fitted layer, how many are fitted, and how many there are.
    Raises:
        QuantizationError: nothing to quantize, a network that is already quantized, a layer without a quantized form, or values
            that are not finite in the network, the images or the currents.
        ConversionError: activations are quantized, and the network has an operation that spikes cannot represent.
    """
    model = as_network(model, QuantizationError)
    require_type(spec, QuantSpec, "spec", "nbsnn.QuantSpec(weight_bits=..., act_bits=...)")
    if images is not None:
        images = gathered(images, network=model, error=QuantizationError)
        images = as_images(images, network=model, least=2, finite=True, error=QuantizationError)
        if bool((images == images[:1]).all()):
            raise QuantizationError(
                "images are all alike, and thresholds and norm statistics would start from one image; give different training "
                "images, or only example=images[:1]"
            )
    _check_method(method, spec, images)
    if example is not None:
        example = as_images(example, "example", network=model, finite=True, error=QuantizationError)
    if read_plan(model):
        raise QuantizationError(
            "the network is quantized already; change its bits with nbsnn.set_bits_, or start from the float network"
        )
    check_float(model)
    check_network(model, QuantizationError)
    net = copied(model)
    make_plain_(net)
    sample = images if images is not None else example
    sample = None if sample is None else to_network(sample, net)
    if prepare and sample is not None:
        quantizes = any(bits.act_bits not in (None, FLOAT_BITS) for bits in (spec, *spec.layers.values()))
        net = rewrite(net, sample, keep=spec.skip, activations=quantizes)
        for change in changes_of(net):
            logger.info("prepared: %s", change)
    keep = images is not None and spec.norms == "keep"
    reference = copied(net) if method == "reconstruct" else None
    plan = plan_formats(net, spec, sample, own_scale=keep)
    if not plan:
        raise QuantizationError(_nothing(spec))
    convert = is_to_be_converted(net, spec)
    quantized = apply_plan_(net, plan)
    if sample is not None and convert:
        with evaluation_mode(quantized):
            audit(quantized, sample)
    if images is not None:
        if len(images) < _FEW_IMAGES:
            measured = "thresholds" if keep else "thresholds and batch norm statistics"
            logger.warning("%d images are few to measure %s with; give a few hundred", len(images), measured)
        images = to_network(images, quantized)
        with torch.autocast(images.device.type, enabled=False):  # as in the dry runs
            if reference is None:
                calibrate_(quantized, images, norms=not keep)
            else:
                weights = [name for name, fmt in plan.items() if isinstance(fmt, WeightFormat)]
                normed = normed_layers(reference, weights, images)
                reconstruct_(quantized, reference, images, normed=normed, progress=progress)
    quantized.summary = overview_of(quantized, spec)  # type: ignore[assignment]
    logger.info("%s", quantized.summary)
    return quantized


def _check_method(method: str, spec: QuantSpec, images: Tensor | None) -> None:
    if method not in ("calibrate", "reconstruct"):
        raise ConfigError(f"{unknown('method', method, ('calibrate', 'reconstruct'))}")
    if method == "reconstruct" and images is None:
        raise ConfigError("method='reconstruct' needs images; give a few hundred, without labels")
    if method == "reconstruct" and spec.norms != "keep":
        raise ConfigError("method='reconstruct' fits the float network with the statistics of its norms; leave norms='keep'")


def _nothing(spec: QuantSpec) -> str:
    bits = f"weight_bits={spec.weight_bits}, edge_bits={spec.edge_bits}, act_bits={spec.act_bits}"
    if {spec.weight_bits, spec.edge_bits, spec.act_bits} == {FLOAT_BITS}:
        return f"nothing to quantize with {bits}; choose fewer bits"
    return f"nothing to quantize with {bits}, skip={spec.skip}: no convolution, nn.Linear or nn.ReLU is left; skip fewer layers"


@checked_arguments
def set_bits_(
    quantized: nn.Module, *, weight_bits: int | None = None, act_bits: int | None = None, only: str | Iterable[str] = "*"
) -> nn.Module:
    """Change the bits of inner weights and of activations in place; parameters and edge layers do not change.

    Args:
        quantized: result of `quantize`.
        weight_bits: widths of the layers' format (APoT: 2 to 5), or None to leave them unchanged.
        act_bits: 1 to 8, or None.
        only: name patterns of the layers to change, such as "stage1.*".
    Raises:
        QuantizationError: no such layer, fixed weights, or values that are not finite.
    """
    if act_bits is not None:
        check_bits("act_bits", act_bits, allow_float=False)
    require_type(quantized, nn.Module, "quantized", "the result of nbsnn.quantize")
    network = unwrap(quantized)
    check_network(network, QuantizationError)
    inner = {n: m for n, m in network.named_modules() if isinstance(m, WeightQuantizer) and not m.format.edge}
    acts = {n: m for n, m in network.named_modules() if isinstance(m, QuantReLU)}
    patterns = as_patterns(only, "only")
    for pattern in patterns:
        if (inner or acts) and not any(fnmatch(name, pattern) for name in (*inner, *acts)):
            raise QuantizationError(f"only: {unknown('layer', pattern, (*inner, *acts))}")
    chosen = _matching("weight_bits", weight_bits, inner, patterns, network)
    chosen_acts = _matching("act_bits", act_bits, acts, patterns, network)
    if any(inner[name].fixed for name in chosen):
        raise QuantizationError(
            f"weight_bits={weight_bits}: the weights of a packed network are fixed; change those of nbsnn.unpack(network)"
        )
    formats = {n: inner[n].format if weight_bits is None else replace(inner[n].format, bits=weight_bits) for n in chosen}
    for name, fmt in formats.items():
        inner[name].format = fmt
    for name in chosen_acts:
        acts[name].bits = act_bits or acts[name].bits
    return quantized


def _matching(kind: str, bits: int | None, layers: Collection[str], patterns: tuple[str, ...], network: nn.Module) -> list[str]:
    """Layers by pattern that support these bits; raises an error if bits are given and there is no layer."""
    found = [name for name in layers if any(fnmatch(name, pattern) for pattern in patterns)]
    if bits is None:
        return []
    if not found and not read_plan(network):
        raise QuantizationError(f"{kind}={bits}: the network is not quantized; call nbsnn.quantize first")
    if not layers:
        raise QuantizationError(
            f"{kind}={bits}: no layer that it could change is quantized; quantize the float network with {kind}={bits}"
        )
    if not found:
        raise QuantizationError(f"{kind}={bits}: {unknown('layer', ', '.join(patterns), layers)}")
    return found
