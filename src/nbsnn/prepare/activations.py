"""Activations of any kind, written as a module, a function or a method: each becomes one nn.ReLU, ClippedReLU or
SignedActivation of its own.
"""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from nbsnn.prepare.modules import ClippedReLU, SignedActivation
from nbsnn.prepare.rewriting import Rewriting, function_of

_ZEROS = {"zeros", "zeros_like", "new_zeros"}


@dataclass(frozen=True)
class Rectifier:
    """f(x) = min(max(x, 0), high) − slope · min(max(−x, 0), low); slope may be a parameter, read by a node."""

    high: float = math.inf
    slope: "float | fx.Node | nn.Parameter" = 0.0
    low: float = math.inf

    @property
    def one_sided(self) -> bool:
        return isinstance(self.slope, float) and self.slope == 0


def of_module(module: nn.Module) -> Rectifier | None:
    """The function of an activation module; None for another module."""
    if isinstance(module, ClippedReLU):
        return Rectifier(module.limit)
    if isinstance(module, SignedActivation):
        return None
    if isinstance(module, nn.Hardtanh):  # ReLU6 is a subclass
        return _clip(module.min_val, module.max_val)
    if isinstance(module, nn.ReLU):
        return Rectifier()
    if isinstance(module, nn.LeakyReLU):
        return Rectifier(slope=float(module.negative_slope))
    if isinstance(module, nn.PReLU):
        return Rectifier(slope=module.weight)
    if isinstance(module, nn.RReLU):
        return Rectifier(slope=(module.lower + module.upper) / 2)
    if isinstance(module, nn.Threshold):
        return Rectifier() if module.threshold == 0 and module.value == 0 else None
    return None


def of_function(rewriting: Rewriting, node: fx.Node) -> tuple[Rectifier, fx.Node] | None:
    """The function of a call that is an activation, and its input; None for another call."""
    name = function_of(node).removesuffix("_")
    args, kwargs = node.args, node.kwargs
    if not args and "input" not in kwargs:
        return None
    if (compared := _by_comparison(name, args)) is not None:
        return compared
    x = args[0] if args else kwargs["input"]
    if not isinstance(x, fx.Node) or not x.meta.get("data"):
        return _maximum(args[1], x) if name == "maximum" and isinstance(x, fx.Node) and len(args) > 1 else None
    found = _rectifier(name, args[1:], kwargs)
    if found is None and name in ("maximum", "max") and len(args) + len(kwargs) == 2:
        return _maximum(x, args[1] if len(args) > 1 else kwargs.get("other"))
    return None if found is None else (found, x)


def _rectifier(name: str, rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Rectifier | None:
    def given(position: int, key: str, default: Any) -> Any:
        return rest[position] if len(rest) > position else kwargs.get(key, default)

    if name == "relu":
        return Rectifier()
    if name == "relu6":
        return Rectifier(6.0)
    if name == "abs" or name == "absolute":
        return Rectifier(slope=-1.0)
    if name == "hardtanh":
        return _clip(given(0, "min_val", -1.0), given(1, "max_val", 1.0))
    if name in ("clamp", "clip"):
        return _clip(given(0, "min", None), given(1, "max", None))
    if name == "clamp_min":
        return _clip(given(0, "min", None), None)
    if name == "leaky_relu":
        return Rectifier(slope=float(given(0, "negative_slope", 0.01)))
    if name == "prelu":
        weight = given(0, "weight", None)
        return Rectifier(slope=weight) if isinstance(weight, fx.Node) and weight.op == "get_attr" else None
    if name == "rrelu" and not given(2, "training", False):
        return Rectifier(slope=(given(0, "lower", 1 / 8) + given(1, "upper", 1 / 3)) / 2)
    if name == "threshold" and given(0, "threshold", None) == 0 and given(1, "value", None) == 0:
        return Rectifier()
    return None


def _clip(low: Any, high: Any) -> Rectifier | None:
    """clamp(x, low, high) for low ≤ 0 < high."""
    high = math.inf if high is None else high
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or low > 0 or high <= 0:
        return None
    return Rectifier(float(high)) if low == 0 else Rectifier(float(high), 1.0, float(-low))


def _maximum(x: Any, other: Any) -> tuple[Rectifier, fx.Node] | None:
    """maximum(x, 0)."""
    if not isinstance(x, fx.Node) or not isinstance(other, fx.Node) or not x.meta.get("data"):
        return None
    return (Rectifier(), x) if _is_zero(other) else None


def _by_comparison(name: str, args: tuple[Any, ...]) -> tuple[Rectifier, fx.Node] | None:
    """x · (x > 0), or where(x > 0, x, 0 or a · x)."""
    if name == "mul" and len(args) == 2:
        for x, mask in (args, args[::-1]):
            if isinstance(x, fx.Node) and _is_positive(mask, x):
                return Rectifier(), x
    if name == "where" and len(args) == 3 and _is_positive(args[0], args[2], "lt", "le"):
        args = (args[0], args[2], args[1])  # the other way round
    elif name in ("masked_fill", "written") and len(args) == 3 and _is_positive(args[1], args[0], "lt", "le"):
        return (Rectifier(), args[0]) if _is_zero(args[2]) else None
    elif name != "where" or len(args) != 3 or not _is_positive(args[0], args[1]):
        return None
    x, other = args[1:]
    if isinstance(x, fx.Node):
        if _is_zero(other):
            return Rectifier(), x
        if isinstance(other, fx.Node) and function_of(other) in ("mul", "rmul") and x in other.args:
            slope = other.args[1 - other.args.index(x)]
            return (Rectifier(slope=float(slope)), x) if isinstance(slope, (int, float)) else None
    return None


def _is_positive(mask: Any, x: Any, *comparisons: str) -> bool:
    """Whether a node is x > 0 (or x ≥ 0, as both are 0 at 0), also as numbers; or another comparison with 0."""
    while isinstance(mask, fx.Node) and function_of(mask) in ("float", "to", "type", "type_as", "double"):
        mask = mask.args[0]
    compares = isinstance(mask, fx.Node) and function_of(mask) in (comparisons or ("gt", "ge"))
    return compares and isinstance(x, fx.Node) and mask.args[0] is x and _is_zero(mask.args[1])


def _is_zero(value: Any) -> bool:
    if isinstance(value, fx.Node):
        return function_of(value) in _ZEROS or bool(value.meta.get("zero", False))
    return isinstance(value, (int, float)) and value == 0


def replace_activations(rewriting: Rewriting) -> None:
    """Give each place that has an activation a module of its own."""
    seen: set[nn.Module] = set()
    for node in list(rewriting.graph.nodes):
        if node.op == "call_module":
            _replace_module(rewriting, node, seen)
            if isinstance(rewriting.module(node), nn.Hardsigmoid) and not rewriting.is_kept(str(node.target)):
                _replace_shifted(rewriting, node)
        elif node.op in ("call_function", "call_method"):
            found = of_function(rewriting, node)
            if found is not None:
                rectifier, x = found
                path = _register(rewriting, node.meta["scope"], build(rectifier, rewriting, node), seen)
                rewriting.replace(node, rewriting.call(path, x, at=node))
                rewriting.changed(node, f"{function_of(node)}() became {rewriting.describe(path)}")
            else:
                _replace_extreme(rewriting, node)
                _replace_shifted(rewriting, node)


_EXTREMES = {"maximum": 1, "max": 1, "minimum": -1, "min": -1}


def _replace_extreme(rewriting: Rewriting, node: fx.Node) -> None:
    """Replace max(a, b) by b + relu(a − b), and min(a, b) by a − relu(a − b)."""
    name = function_of(node)
    both = (*node.args, *(node.kwargs[key] for key in ("other",) if key in node.kwargs))
    if name not in _EXTREMES or len(both) != 2 or not all(isinstance(x, fx.Node) for x in both) or not node.meta.get("data"):
        return
    first, second = sorted(both, key=lambda x: not x.meta.get("data"))  # type: ignore[union-attr]
    path = rewriting.add(node.meta["scope"], "act", nn.ReLU())
    gap = rewriting.function(operator.sub, (first, second), at=node)
    rectified = rewriting.call(path, gap, at=node)
    if _EXTREMES[name] > 0:
        result = rewriting.function(operator.add, (second, rectified), at=node)
    else:
        result = rewriting.function(operator.sub, (first, rectified), at=node)
    what = f"{name}() of two became a sum with {rewriting.describe(path)} of their difference, which is quantized"
    rewriting.changed(node, what, status="approximated")
    rewriting.replace(node, result)


def _replace_shifted(rewriting: Rewriting, node: fx.Node) -> None:
    """Replace clamp(x, a, b) by a + clamp(x − a, 0, b − a), min(x, b) by b − relu(b − x), and hardsigmoid by its parts."""
    name, x, scale = function_of(node).removesuffix("_"), node.args[0] if node.args else None, 1.0
    low, high = _bounds(name, node)
    if name == "hardsigmoid" or node.op == "call_module":
        name = "hardsigmoid"
        low, high, scale = -3.0, 3.0, 1 / 6
    numbers = all(bound is None or isinstance(bound, (int, float)) for bound in (low, high))
    if not isinstance(x, fx.Node) or not x.meta.get("data") or not numbers or (low is None and high is None):
        return
    if low is None:
        at, sign, limit = high, -1, math.inf
    else:
        at, sign, limit = low, 1, math.inf if high is None else high - low
    if limit <= 0:
        return
    path = rewriting.add(node.meta["scope"], "act", _one_side(limit))
    gap = rewriting.function(operator.sub, (x, at) if sign > 0 else (at, x), at=node)
    rectified = rewriting.call(path, gap, at=node)
    if scale == 1:
        result = rewriting.function(operator.add if sign > 0 else operator.sub, (at, rectified), at=node)
    else:
        result = rewriting.function(operator.mul, (rectified, scale), at=node)
    rewriting.changed(node, f"{name}() became {rewriting.describe(path)} of a shifted signal")
    rewriting.replace(node, result)


def _bounds(name: str, node: fx.Node) -> tuple[Any, Any]:
    """The bounds of a call that clips; None for none."""
    names = {"clamp": ("min", "max"), "clip": ("min", "max"), "clamp_min": ("min",), "clamp_max": ("max",)}.get(name, ())
    given = dict(zip(names, node.args[1:], strict=False)) | {key: node.kwargs[key] for key in names if key in node.kwargs}
    return given.get("min"), given.get("max")


def _register(rewriting: Rewriting, scope: str, new: nn.Module, seen: set[nn.Module]) -> str:
    """Register the module of a call: in place of a subclass of ReLU whose forward makes the call, or under a new name."""
    old = rewriting.net.get_submodule(scope)
    if scope and isinstance(old, nn.ReLU) and old not in seen and not _is_called(rewriting, scope):
        rewriting.put(scope, new)
        seen.add(new)
        return scope
    return rewriting.add(scope, "act", new)


def _is_called(rewriting: Rewriting, path: str) -> bool:
    return any(n.op == "call_module" and n.target == path for n in rewriting.graph.nodes)


def _replace_module(rewriting: Rewriting, node: fx.Node, seen: set[nn.Module]) -> None:
    module, path = rewriting.module(node), str(node.target)
    rectifier = of_module(module)
    if rewriting.is_kept(path):
        return
    kind = type(module).__name__
    if rectifier is not None and not _is_plain(module):
        if module in seen:
            made = rewriting.add_beside(path, build(rectifier, rewriting, node))
            rewriting.retarget(node, made)
            rewriting.changed(node, f"{kind} in another place became {rewriting.describe(made)}")
            return
        new = build(rectifier, rewriting, node)
        seen.add(new)
        rewriting.put(path, new)
        rewriting.changed(node, f"{kind} became {rewriting.describe(path)}")
    elif rectifier is not None or isinstance(module, SignedActivation):
        if module in seen:
            made = rewriting.add_beside(path, rewriting.clone(module))
            rewriting.retarget(node, made)
            rewriting.changed(node, f"{kind} is called in several places; here it became {made}")
        seen.add(module)


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, (nn.ReLU, ClippedReLU))


def build(rectifier: Rectifier, rewriting: Rewriting, node: fx.Node) -> nn.Module:
    """The module of a rectifier in canonical form, in the mode of the network."""
    if rectifier.one_sided:
        return _one_side(rectifier.high)
    slope = rectifier.slope
    if isinstance(slope, fx.Node):
        value = rewriting.tensor(slope)
        slope = value if isinstance(value, nn.Parameter) else nn.Parameter(value.clone(), requires_grad=False)
    return SignedActivation(_one_side(rectifier.high), _one_side(rectifier.low), slope)


def _one_side(limit: float) -> nn.ReLU:
    return nn.ReLU() if math.isinf(limit) else ClippedReLU(limit)
