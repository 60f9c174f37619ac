"""Progressive training: 32 → 4 → 3 → 2 bits, where each phase starts from the result of the one before."""

import copy
import logging
from dataclasses import replace

from torch import Tensor, nn

from nbsnn.errors import ConfigError
from nbsnn.quant.calibrate import calibrate_, refit_scales_
from nbsnn.quant.layers import QuantReLU, WeightQuantizer
from nbsnn.quant.plans import read_plan
from nbsnn.quant.quantize import quantize, set_bits_
from nbsnn.quant.unpacking import has_fixed_weights, unpack
from nbsnn.recipe import FLOAT_BITS, QuantSpec, Recipe

logger = logging.getLogger(__name__)

CALIBRATION_IMAGES = 512


def next_form(previous: nn.Module, recipe: Recipe, bits: int, images: Tensor) -> nn.Module:
    """The network that the phase with these bits trains, as a new object.

    Args:
        previous: result of the phase before; float or quantized.
        recipe: determines whether the bits also apply to weights.
        bits: of the phase; 32 is float.
        images: [B, C, H, W] normalized training images, to initialize the thresholds of a float network.
    """
    refit = recipe.phase[str(bits)].refit_scales
    if has_fixed_weights(previous):
        logger.warning("the start is a packed network: it is unpacked to float weights at the same levels")
        previous = unpack(previous)
    if not read_plan(previous):
        if bits == FLOAT_BITS:
            return copy.deepcopy(previous)
        refit = refit and recipe.quant.norms == "recalibrate"  # scales of weights that keep theirs are of least error already
        quantized = quantize(previous, recipe.spec(bits), images=None if refit else images)
        if refit:
            refit_scales_(quantized)
            calibrate_(quantized, images)
        return quantized
    if bits == FLOAT_BITS:
        raise ConfigError("phase 32 must be the first: a quantized network does not become float again")
    inner = any(isinstance(m, WeightQuantizer) and not m.format.edge for m in previous.modules())
    if not inner and recipe.spec(bits).weight_bits != FLOAT_BITS:
        raise ConfigError(
            "the start has float weights between its edges, and keeps them; start from a float net, or set quant.weights=float"
        )
    quantized = set_bits_(copy.deepcopy(previous), weight_bits=bits if inner else None, act_bits=bits)
    _set_bits_by_name_(quantized, recipe.spec(bits))
    if refit:
        refit_scales_(quantized)  # not thresholds: learned ones are better than those of least error
    return quantized


def _set_bits_by_name_(quantized: nn.Module, spec: QuantSpec) -> None:
    """Give layers that `spec.layers` names their own bits again."""
    for name, module in quantized.named_modules():
        if isinstance(module, WeightQuantizer) and not module.format.edge:
            bits = spec.bits_of("weight_bits", name)
            module.format = module.format if bits == FLOAT_BITS else replace(module.format, bits=bits)
        elif isinstance(module, QuantReLU):
            module.bits = spec.bits_of("act_bits", name)
