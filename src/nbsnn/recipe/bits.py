"""The bits of a quantized network, for each kind of layer."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from nbsnn.errors import ConfigError, shown
from nbsnn.quant.formats import check_width, weight_format

FLOAT_BITS = 32
PHASE_BITS = (2, 3, 4, 5)  # of quantized phases of training
_BITS = {"act_bits": (2, 3, 4, 5, 6, 7, 8), "edge_bits": (8,)}


def check_bits(kind: str, bits: Any, *, allow_float: bool = True, widths: tuple[int, ...] = ()) -> None:
    """Raise an error for a width without a quantizer. `widths`: other than those of this kind."""
    note = f" ({FLOAT_BITS} leaves a layer in float)" if allow_float else ""
    check_width(kind, bits, (widths or _BITS[kind]) + ((FLOAT_BITS,) if allow_float else ()), note=note)


def as_patterns(value: Any, name: str) -> tuple[str, ...]:
    """Name patterns of layers: one, or several; a string is one pattern, not one per character."""
    patterns = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ConfigError(f"{name} holds {shown(pattern)}; give names of layers or patterns, such as ('stage1.*',)")
    return patterns


@dataclass(frozen=True)
class QuantSpec:
    """Bits of inner weights, activations and edge (first and last) layers; 32 leaves a layer in float.

    `edge_range` is the largest magnitude ("max_abs") or, as in the reference checkpoints, the maximum ("max");
    `skip` holds name patterns of layers to leave in float; `weight_format` names the format of inner weights, which determines
    the valid bits (APoT: 2 to 5).
    """

    weight_bits: int = 4
    act_bits: int = 4
    edge_bits: int = 8
    edge_range: Literal["max_abs", "max"] = "max_abs"
    skip: tuple[str, ...] = ()
    weight_format: str = "apot"

    def __post_init__(self) -> None:
        object.__setattr__(self, "skip", as_patterns(self.skip, "QuantSpec.skip"))
        check_bits("weight_bits", self.weight_bits, widths=weight_format(self.weight_format).widths)
        for kind in ("act_bits", "edge_bits"):
            check_bits(kind, getattr(self, kind))
        if self.edge_range not in ("max_abs", "max"):
            raise ConfigError(f"edge_range={self.edge_range!r}: choose max_abs or max")
