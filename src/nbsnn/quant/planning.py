"""Which layers of a float network are quantized, which of them are edges, and errors before anything is trained.

No layer stays in float silently: a weight or an activation without a quantized form raises an error that names it, unless
    `QuantSpec.skip` does.
"""

import logging
from dataclasses import dataclass
from fnmatch import fnmatch

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nbsnn.errors import QuantizationError, unknown
from nbsnn.prepare.modules import ClippedReLU
from nbsnn.quant.flow import WEIGHT_LAYERS, Flow
from nbsnn.quant.layers import WEIGHTS
from nbsnn.quant.operations import refused_module
from nbsnn.recipe import FLOAT_BITS, QuantSpec
from nbsnn.tracing import check_one_input

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layers:
    """Names of layers, in order of registration; `edges` are weight layers, skipped ones included."""

    weights: tuple[str, ...]
    activations: tuple[str, ...]
    edges: frozenset[str]


def check_float(model: nn.Module) -> None:
    """Raise an error for a network whose weights cannot be quantized yet, or that has several inputs.

    Raises:
        QuantizationError: names the layer.
    """
    check_one_input(model, QuantizationError)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            layer = name.rpartition(".")[0] or "the network"
            raise QuantizationError(f"{layer} is lazy: it has no shape yet; run the network on one image first")
        if isinstance(tensor, nn.Parameter) and not tensor.is_floating_point():
            raise QuantizationError(f"{name} has type {tensor.dtype}; build its layer with dtype=torch.float32")


def choose_layers(model: nn.Module, spec: QuantSpec, flow: Flow | None = None) -> Layers:
    """The layers that `spec` quantizes.

    Args:
        model: float network.
        spec: bits, and layers to skip.
        flow: of an image through the network. With it, edges are the weight layers that read the image or produce the output;
            without it, the first and the last registered one.
    Raises:
        QuantizationError: a layer has no quantized form, or spikes cannot represent it; names the layer and the remedy.
    """
    skipped = _skipped(model, spec)
    replaced = _replaced(model, flow)
    named = {name: module for name, module in model.named_modules() if module not in skipped and name not in replaced}
    weights = [name for name, module in model.named_modules() if isinstance(module, WEIGHTS) and name not in replaced]
    activations = [name for name, module in named.items() if isinstance(module, nn.ReLU)]
    _check_named(model, spec)
    if any(bits.weight_bits not in (None, FLOAT_BITS) for bits in (spec, *spec.layers.values())):
        for name, module in named.items():
            _check_weights(name, module, spec, flow)
        if flow is not None:
            _check_loose(flow, spec)
    if any(bits.act_bits not in (None, FLOAT_BITS) for bits in (spec, *spec.layers.values())):
        for name, module in named.items():
            if flow is None or name in flow.seen:
                _check_between(name, module)
        if not any(isinstance(module, nn.ReLU) for module in model.modules()):
            raise QuantizationError(
                "the network has no nn.ReLU that act_bits could apply to; write self.act = nn.ReLU() for each activation and "
                f"call it, give images or an example for activations that are functions, or quantize weights alone with "
                f"act_bits={FLOAT_BITS}"
            )
    edges = {*weights[:1], *weights[-1:]} if flow is None else (flow.first | flow.last) & set(weights)
    if spec.edges is not None:
        names = module_names(model)
        edges = {n for n in weights if any(fnmatch(a, p) for a in names[model.get_submodule(n)] for p in spec.edges)}
    chosen = [name for name in weights if name in named]
    if flow is not None:
        idle = [name for name in (*chosen, *activations) if name not in flow.seen]
        if idle:
            logger.warning("never called on an image in evaluation, and quantized as inner layers: %s", ", ".join(idle))
    by = "name" if spec.edges is not None else "registration" if flow is None else "data flow"
    logger.info("edge layers, by %s: %s", by, ", ".join(sorted(edges)))
    return Layers(tuple(chosen), tuple(activations), frozenset(edges))


def is_to_be_converted(model: nn.Module, spec: QuantSpec) -> bool:
    """False if activations stay in float, or if `skip` names an activation, or a pool or norm that spikes cannot represent."""
    skipped = _skipped(model, spec)
    acts = [found for module, found in module_names(model).items() if isinstance(module, nn.ReLU)]
    in_float = any(spec.bits_of("act_bits", *names) == FLOAT_BITS for names in acts or [()])
    return not in_float and not any(isinstance(m, nn.ReLU) or refused_module(m) for m in skipped)


def module_names(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """All names of each module: its own, more of them if it is held in several places, and those of layers with its weight.

    A prepared network has new layers on the weights of others, which are meant by the others' names too.
    """
    names: dict[nn.Module, tuple[str, ...]] = {}
    owners: dict[Tensor, tuple[str, ...]] = {}
    weights = {module: module._parameters.get("weight") for module in model.modules() if isinstance(module, WEIGHTS)}
    for name, module in model.named_modules(remove_duplicate=False):
        names[module] = (*names.get(module, ()), name)
        weight = weights.get(module)
        if weight is not None:
            owners[weight] = (*owners.get(weight, ()), name)
    shared = {module: owners[weight] for module, weight in weights.items() if weight is not None}
    return {module: tuple(dict.fromkeys((*found, *shared.get(module, ())))) for module, found in names.items()}


def _replaced(model: nn.Module, flow: Flow | None) -> set[str]:
    """Layers that are never called because a prepared network calls others, with the same weight or one computed from it."""
    if flow is None:
        return set()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, WEIGHTS) and "weight" in m._parameters}
    called = {id(m.weight) for name, m in layers.items() if name in flow.seen}
    return {name for name, m in layers.items() if name not in flow.seen and (id(m.weight) in called or _has_own_forward(m))}


def _has_own_forward(module: nn.Module) -> bool:
    return any(_oddity(module, base) is not None for base in WEIGHTS if isinstance(module, base))


def _check_named(model: nn.Module, spec: QuantSpec) -> None:
    """Raise an error for a pattern of `layers` or `edges` without a layer that it could apply to."""
    found = module_names(model)
    weights = [name for module, names in found.items() if isinstance(module, WEIGHTS) for name in names]
    acts = [name for module, names in found.items() if isinstance(module, nn.ReLU) for name in names]
    for pattern in spec.edges or ():
        if not any(fnmatch(name, pattern) for name in weights):
            raise QuantizationError(f"QuantSpec.edges: {unknown('weight layer', pattern, weights)}")
    for pattern, bits in spec.layers.items():
        kinds = {"layer": [*weights, *acts]}
        if bits.weight_bits is None or bits.act_bits is None:
            kinds = {"weight layer": weights} if bits.act_bits is None else {"activation": acts}
        for kind, names in kinds.items():
            if not any(fnmatch(name, pattern) for name in names):
                raise QuantizationError(f"QuantSpec.layers: {unknown(kind, pattern, names)}")


def _skipped(model: nn.Module, spec: QuantSpec) -> set[nn.Module]:
    """Modules that a pattern of `skip` matches, by any of their names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    names = [name for name in (*modules, *dict(model.named_parameters())) if name]
    for pattern in spec.skip:
        if not any(fnmatch(name, pattern) for name in names):
            raise QuantizationError(f"QuantSpec.skip: {unknown('layer', pattern, filter(None, modules))}")
    return {module for name, module in modules.items() if _matches(name, spec)}


def _matches(name: str, spec: QuantSpec) -> bool:
    return any(fnmatch(name, pattern) for pattern in spec.skip)


def _check_weights(name: str, module: nn.Module, spec: QuantSpec, flow: Flow | None) -> None:
    """Raise an error for a module with a weight that would stay in float."""
    place, kind = name or "the network", type(module).__name__
    skip = f", or leave it in float with QuantSpec(skip=({name!r},))" if name else ""
    base = next((base for base in WEIGHTS if isinstance(module, base)), None)
    if base is None and isinstance(module, WEIGHT_LAYERS):
        raise QuantizationError(f"{place} is a {kind}, which has no quantized form; use nn.Conv2d or nn.Linear{skip}")
    if base is not None:
        if oddity := _oddity(module, base):
            raise QuantizationError(f"{place} is a {kind} {oddity}; use nn.{base.__name__} itself{skip}")
        return
    if flow is not None or (type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, _HOLDERS)):
        return
    for key, parameter in module.named_parameters(recurse=False):
        full = f"{name}.{key}" if name else key
        if sum(size > 1 for size in parameter.shape) > 1 and not _matches(full, spec):
            raise QuantizationError(
                f"{full} of shape {list(parameter.shape)} is no weight of a convolution or nn.Linear, and would stay in float; "
                f"hold it in such a layer, or leave it in float with QuantSpec(skip=({full!r},))"
            )


_HOLDERS = (nn.ParameterList, nn.ParameterDict)


def _check_loose(flow: Flow, spec: QuantSpec) -> None:
    """Raise an error for a parameter that multiplies currents outside a weight layer, as in `F.conv2d(x, self.kernel)`."""
    for parameter, function in flow.loose.items():
        if not _matches(parameter, spec):
            if isinstance(flow.layer_of(parameter), WEIGHT_LAYERS):
                raise QuantizationError(f"{parameter} is used in {function}() without a call of its layer; call the layer")
            raise QuantizationError(
                f"{parameter} is used in {function}() outside a convolution or nn.Linear, and would stay in float; hold it in "
                f"such a layer and call that, or leave it in float with QuantSpec(skip=({parameter!r},))"
            )


def _check_between(name: str, module: nn.Module) -> None:
    """Raise an error for a module that spikes cannot represent."""
    place = name or "the network"
    base = ClippedReLU if isinstance(module, ClippedReLU) else nn.ReLU
    if isinstance(module, nn.ReLU) and (oddity := _oddity(module, base)):
        raise QuantizationError(f"{place} is a {type(module).__name__} {oddity}; use nn.ReLU itself")
    if (refusal := refused_module(module)) is not None:
        raise QuantizationError(f"{refusal.what} at {place}; {refusal.remedy}")


def _oddity(module: nn.Module, base: type[nn.Module]) -> str | None:
    """Why a layer cannot be replaced by the quantized form of its base class, for a message."""
    cls = type(module)
    if "forward" in vars(module):
        return "whose forward was replaced"
    if any(getattr(cls, method, None) is not getattr(base, method, None) for method in ("forward", "_conv_forward")):
        return "with a forward of its own"
    own = {*module._parameters, *module._buffers, *module._modules} - {"weight", "bias"}
    if own:
        return f"that holds more than a weight and a bias ({', '.join(sorted(own))})"
    if isinstance(getattr(module, "weight", None), Tensor) and "weight" not in module._parameters:
        return "whose weight is not a parameter of its own"
    return None
