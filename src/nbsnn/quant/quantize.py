"""From a float network to a quantized one, by a plan: which layer gets which format.

The plan is a dictionary of formats that a checkpoint's header can carry, to rebuild the very same network.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.errors import ConfigError, QuantizationError, unknown
from nbsnn.finite import check_network
from nbsnn.inputs import as_images, to_network
from nbsnn.quant.calibrate import calibrate_, half_normal_threshold
from nbsnn.quant.formats import EdgeUniform, WeightFormat, read_weight_format, weight_format
from nbsnn.quant.layers import QuantConv2d, QuantLinear, QuantReLU, WeightQuantizer
from nbsnn.quant.normed import normed_layers
from nbsnn.recipe import FLOAT_BITS, QuantSpec, check_bits
from nbsnn.surgery import replace_modules_

_OTHER_WEIGHT_LAYERS = (nn.Conv1d, nn.Conv3d, nn.modules.conv._ConvTransposeNd, nn.Bilinear, nn.RNNBase)


@dataclass(frozen=True)
class ActFormat:
    """How an activation is quantized: to 2^bits − 1 steps."""

    bits: int

    def __post_init__(self) -> None:
        check_bits("act_bits", self.bits, allow_float=False)

    def header(self) -> dict[str, Any]:
        """What a file's header holds of it."""
        return {"bits": self.bits, "edge_range": None, "fixed": False}  # as files have held it from the first version


Plan = dict[str, WeightFormat | ActFormat]


def plan_formats(model: nn.Module, spec: QuantSpec, *, shape: tuple[int, ...] | None = None) -> Plan:
    """The format of each layer of a float network. The first and last weight layers, in order of registration, are edges.

    Args:
        shape: of an image, to find out which layers a batch norm follows; unless given, common sizes are tried.
    """
    modules = dict(model.named_modules())
    for name in spec.skip:
        if not any(fnmatch(known, name) for known in modules):
            raise QuantizationError(f"QuantSpec.skip: {unknown('layer', name, [n for n in modules if n])}")
    chosen = {n: m for n, m in modules.items() if not any(fnmatch(n, pattern) for pattern in spec.skip)}
    weights = [n for n, m in modules.items() if type(m) in (nn.Conv2d, nn.Linear)]
    edges = {weights[0], weights[-1]} if weights else set()
    inner = weight_format(spec.weight_format)
    normed = normed_layers(model, weights, shape) if spec.weight_bits != FLOAT_BITS else set()
    plan: Plan = {}
    for name, module in chosen.items():
        if type(module) in (nn.Conv2d, nn.Linear):
            if name in edges and spec.edge_bits != FLOAT_BITS:
                plan[name] = EdgeUniform(spec.edge_bits, spec.edge_range)
            elif name not in edges and spec.weight_bits != FLOAT_BITS:
                plan[name] = inner.for_layer(spec.weight_bits, normed=name in normed)
        elif isinstance(module, _OTHER_WEIGHT_LAYERS) and spec.weight_bits != FLOAT_BITS:
            raise QuantizationError(
                f"{name or 'the network'} is a {type(module).__name__}, which has no quantized form; "
                f"leave it in float with QuantSpec(skip=({name!r},)) or use Conv2d/Linear"
            )
        elif type(module) is nn.ReLU and spec.act_bits != FLOAT_BITS:
            plan[name] = ActFormat(spec.act_bits)
    return plan


def apply_plan_(model: nn.Module, plan: Plan) -> nn.Module:
    """Swap the planned layers for their quantized forms; returns the root."""
    modules = dict(model.named_modules())
    replacements: dict[nn.Module, nn.Module] = {}
    for name, fmt in plan.items():
        if name not in modules:
            raise QuantizationError(unknown("layer", name, modules))
        module = modules[name]
        if isinstance(module, nn.Conv2d) and isinstance(fmt, WeightFormat):
            replacements[module] = QuantConv2d.from_float(module, fmt)
        elif isinstance(module, nn.Linear) and isinstance(fmt, WeightFormat):
            replacements[module] = QuantLinear.from_float(module, fmt)
        elif isinstance(module, nn.ReLU) and isinstance(fmt, ActFormat):
            act = QuantReLU(fmt.bits, half_normal_threshold(fmt.bits), inplace=module.inplace)
            parameter = next(model.parameters(), act.threshold)
            act = act.to(parameter)
            replacements[module] = act.train(module.training)
        else:
            raise QuantizationError(f"{name} is a {type(module).__name__}; only Conv2d, Linear and ReLU are quantized")
    return replace_modules_(model, replacements)


def read_plan(model: nn.Module) -> Plan:
    """The formats that a quantized network has now."""
    plan: Plan = {}
    for name, module in model.named_modules():
        if isinstance(module, WeightQuantizer):
            plan[name] = module.format
        elif isinstance(module, QuantReLU):
            plan[name] = ActFormat(module.bits)
    return plan


def plan_from_header(model: nn.Module, entries: Mapping[str, Any]) -> Plan:
    """The plan that a file's header holds for a float network; see the formats' `header`.

    Raises:
        QuantizationError: an entry that describes no format of its layer; names it.
    """
    modules = dict(model.named_modules())
    plan: Plan = {}
    for name, entry in entries.items():
        try:
            plan[name] = _read_act_format(entry) if isinstance(modules.get(name), nn.ReLU) else read_weight_format(entry)
        except ConfigError as error:
            raise QuantizationError(f"{name}: {error}") from None
    return plan


def _read_act_format(entry: Mapping[str, Any]) -> ActFormat:
    read = ActFormat(entry["bits"])
    if read.header() != {"edge_range": None, "fixed": False, **entry}:
        raise ConfigError("an activation has neither a weight format nor fixed weights")
    return read


@torch.inference_mode(mode=False)  # within inference mode, parameters of the result could never be trained
def quantize(model: nn.Module, spec: QuantSpec, *, images: Tensor | None = None) -> nn.Module:
    """The quantized form of a float network, as a new object.

    Args:
        model: made of Conv2d, Linear, ReLU *modules* and anything linear between them.
        spec: bits of weights, activations and edge layers; 32 leaves a layer alone.
        images: [B, C, H, W], a few hundred training images. With them thresholds start where they lose least, and the
            norm statistics are estimated anew; without them thresholds suit unit-variance currents and statistics
            wait for training.
    Raises:
        QuantizationError: nothing to quantize, quantized before, a layer without a quantized form, or numbers that are not
            finite in the network, in the images, or on the way from one to the other.
    """
    if images is not None:
        images = as_images(images, network=model, least=2, finite=True, error=QuantizationError)
    if read_plan(model):
        raise QuantizationError("the network is quantized already; change its bits with nbsnn.set_bits_")
    plan = plan_formats(model, spec, shape=None if images is None else tuple(images.shape[1:]))
    if not plan:
        raise QuantizationError(
            f"nothing to quantize with weight_bits={spec.weight_bits}, act_bits={spec.act_bits}: the network has no "
            "Conv2d, Linear or nn.ReLU module that these bits apply to"
        )
    check_network(model, QuantizationError)
    quantized = apply_plan_(copy.deepcopy(model), plan)
    if images is not None:
        calibrate_(quantized, to_network(images, quantized))
    return quantized


def set_bits_(
    quantized: nn.Module, *, weight_bits: int | None = None, act_bits: int | None = None, only: Iterable[str] = ("*",)
) -> nn.Module:
    """Change the bits of inner weights and of activations in place, keeping all that was learned; edges stay.

    Args:
        quantized: result of `quantize`.
        weight_bits: what the layers' format comes in (APoT: 2 to 5), or None to leave as they are.
        act_bits: 2 to 8, or None.
        only: name patterns of the layers to change, such as "stage1.*".
    Raises:
        QuantizationError: no such layer, fixed weights, or numbers that are not finite.
    """
    check_bits("act_bits", act_bits, allow_float=False)
    check_network(quantized, QuantizationError)
    patterns = tuple(only)
    named = [(n, m) for n, m in quantized.named_modules() if any(fnmatch(n, p) for p in patterns)]
    weights = [m for _, m in named if isinstance(m, WeightQuantizer) and not m.format.edge]
    acts = [m for _, m in named if isinstance(m, QuantReLU)]
    formats = [m.format if weight_bits is None else replace(m.format, bits=weight_bits) for m in weights]
    for kind, bits, layers in (("weight_bits", weight_bits, weights), ("act_bits", act_bits, acts)):
        if bits is not None and not layers:
            raise QuantizationError(f"{kind}={bits}: no such quantized layer matches {patterns}; call nbsnn.quantize first")
    if weight_bits is not None and any(layer.fixed for layer in weights):
        raise QuantizationError(
            f"weight_bits={weight_bits}: the weights of a packed network are fixed; start from the checkpoint it was made from"
        )
    for layer, fmt in zip(weights, formats, strict=True):
        layer.format = fmt
    for act in acts:
        act.bits = act_bits or act.bits
    return quantized
