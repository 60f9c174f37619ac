"""Plans: the format of each layer by name. They are made for a float network, applied, read back and stored."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nbsnn.errors import ConfigError, QuantizationError, unknown
from nbsnn.prepare.modules import ClippedReLU
from nbsnn.quant.calibrate import half_normal_threshold
from nbsnn.quant.flow import follow
from nbsnn.quant.formats import EdgeUniform, WeightFormat, read_weight_format
from nbsnn.quant.layers import QUANTIZED_FORMS, WEIGHTS, QuantReLU, WeightQuantizer
from nbsnn.quant.normed import normed_layers
from nbsnn.quant.planning import choose_layers, module_names
from nbsnn.recipe import FLOAT_BITS, QuantSpec, check_bits
from nbsnn.surgery import fold_computed_weights_, replace_modules_

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActFormat:
    """How an activation is quantized: to 2^bits − 1 steps."""

    bits: int

    def __post_init__(self) -> None:
        check_bits("act_bits", self.bits, allow_float=False)

    def header(self) -> dict[str, Any]:
        """Its entry in a file's header."""
        return {"bits": self.bits, "edge_range": None, "fixed": False}  # same in files of all versions


Plan = dict[str, WeightFormat | ActFormat]


def plan_formats(model: nn.Module, spec: QuantSpec, example: Tensor | None = None, *, own_scale: bool = False) -> Plan:
    """The format of each layer of a float network; errors as in `choose_layers`.

    Args:
        own_scale: all quantized weights keep the scale of the float ones, also those before a batch norm.
        example: [B, ...], images whose first one is traced, to find the edges and the layers that a batch norm follows.
    """
    layers = choose_layers(model, spec, None if example is None else follow(model, example))
    names = {found[0]: found for found in module_names(model).values()}
    bits = {name: spec.bits_of("weight_bits", *names[name]) for name in layers.weights}
    normed: set[str] = set()
    if not own_scale and any(width != FLOAT_BITS for width in bits.values()):
        normed = normed_layers(model, layers.weights, example)
    plan: Plan = {}
    for name, width in bits.items():
        if name in layers.edges and not spec.names_weight_bits(*names[name]):
            if spec.edge_bits != FLOAT_BITS:
                plan[name] = EdgeUniform(spec.edge_bits, spec.edge_range)
        elif width != FLOAT_BITS:
            scale = {} if spec.scale is None else {"scale": spec.scale}
            plan[name] = spec.format_of(width).for_layer(width, normed=name in normed, **scale)
    for name in layers.activations:
        if (width := spec.bits_of("act_bits", *names[name])) != FLOAT_BITS:
            plan[name] = ActFormat(width)
    return {name: plan[name] for name, _ in model.named_modules() if name in plan}


def apply_plan_(model: nn.Module, plan: Plan) -> nn.Module:
    """Replace the planned layers by their quantized forms, and computed weights by plain ones; returns the root."""
    make_plain_(model)
    modules = dict(model.named_modules())
    replacements: dict[nn.Module, nn.Module] = {}
    for name, fmt in plan.items():
        if name not in modules:
            raise QuantizationError(unknown("layer", name, modules))
        module = modules[name]
        base = next((kind for kind in WEIGHTS if isinstance(module, kind)), None)
        if base is not None and isinstance(fmt, WeightFormat):
            replacements[module] = QUANTIZED_FORMS[base].from_float(module, fmt)
        elif isinstance(module, nn.ReLU) and isinstance(fmt, ActFormat):
            limit = module.limit if isinstance(module, ClippedReLU) else None
            first = min(half_normal_threshold(fmt.bits), limit or math.inf)
            act = QuantReLU(fmt.bits, first, inplace=module.inplace, limit=limit)
            parameter = next(model.parameters(), act.threshold)
            act = act.to(parameter)
            replacements[module] = act.train(module.training)
        else:
            raise QuantizationError(f"{name} is a {type(module).__name__}; only convolutions, Linear and ReLU are quantized")
    return replace_modules_(model, replacements)


def make_plain_(model: nn.Module) -> None:
    """Make plain parameters of weights that are computed in each call, and warn of each."""
    for name in fold_computed_weights_(model):
        logger.warning("%s was computed in each call; it is a plain parameter now", name)


def read_plan(model: nn.Module) -> Plan:
    """The current formats of a quantized network."""
    plan: Plan = {}
    for name, module in model.named_modules():
        if isinstance(module, WeightQuantizer):
            plan[name] = module.format
        elif isinstance(module, QuantReLU):
            plan[name] = ActFormat(module.bits)
    return plan


def plan_from_header(model: nn.Module, entries: Mapping[str, Any]) -> Plan:
    """The plan in a file's header for a float network; see the formats' `header`.

    Raises:
        QuantizationError: an entry is not a format of its layer; names the layer.
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
