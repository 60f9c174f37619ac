"""The bits of a quantized network, for each kind of layer and by name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any, Literal

from nbsnn.errors import ConfigError, shown, unknown
from nbsnn.quant.formats import WeightFormat, check_width, weight_format

FLOAT_BITS = 32
PHASE_BITS = (2, 3, 4, 5)  # of quantized phases of training
_BITS = {"act_bits": (1, 2, 3, 4, 5, 6, 7, 8), "edge_bits": (8,)}
_DEFAULT_FORMATS = ("apot", "uniform")  # the first that has the bits


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
class LayerBits:
    """Bits of the layers that a pattern of `QuantSpec.layers` matches; None leaves those of the rest of the spec."""

    weight_bits: int | None = None
    act_bits: int | None = None

    @classmethod
    def from_plain(cls, value: Any, key: str) -> "LayerBits":
        """From a number, for weights and activations alike, or from a table of the two.

        Raises:
            ConfigError: neither of them, or a width that no format has.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            value = int(value) if isinstance(value, str) and value.isdigit() else value
            if value == 1 and not isinstance(value, bool):
                raise ConfigError(f'{key}=1: weights have at least 2 bits; for activations alone give {{"act_bits": 1}}')
            value = {"weight_bits": value, "act_bits": value}
        for name in value:
            if name not in ("weight_bits", "act_bits"):
                raise ConfigError(f"{key}: {unknown('key', name, ('weight_bits', 'act_bits'))}")
        given = {k: int(v) if isinstance(v, str) and v.isdigit() else v for k, v in value.items() if v is not None}
        if not given:
            raise ConfigError(f'{key} is empty; give bits, such as 4 or {{"weight_bits": 8, "act_bits": 4}}')
        for name, bits in given.items():
            check_bits(f"{key}.{name}", bits, widths=_BITS["act_bits"] if name == "act_bits" else tuple(range(2, 9)))
        return cls(**given)


def layer_table(value: Any, key: str) -> dict[str, LayerBits]:
    """Pattern → bits; a table in a table, as a dotted key of TOML gives it, is a pattern with a dot.

    Raises:
        ConfigError: not such a table.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={shown(value)}: give a table of patterns, such as {{'stage3.*': 4}}")
    table: dict[str, LayerBits] = {}
    for pattern, bits in value.items():
        if not isinstance(pattern, str):
            raise ConfigError(f"{key} holds {shown(pattern)}; give names of layers or patterns, such as {{'stage3.*': 4}}")
        if isinstance(bits, Mapping) and bits and not any(_is_kind(name) for name in bits):
            table |= {f"{pattern}.{rest}": found for rest, found in layer_table(bits, f"{key}.{pattern}").items()}
        else:
            table[pattern] = LayerBits.from_plain(bits, f"{key}.{pattern}")
    return table


def _is_kind(name: Any) -> bool:
    """Whether a key is meant as the name of bits, misspelled or not, rather than as the rest of a pattern."""
    return bool(get_close_matches(str(name), ("weight_bits", "act_bits"), cutoff=0.7))


@dataclass(frozen=True)
class QuantSpec:
    """Bits of inner weights, activations and edge (first and last) layers; 32 leaves a layer in float.

    Attributes:
        weight_bits: of inner weights, 2 to 8.
        act_bits: of activations, 1 to 8.
        edge_bits: 8 or 32.
        edge_range: the grid of edge layers reaches the largest magnitude ("max_abs") or, as in the reference checkpoints, the
            maximum ("max").
        skip: name patterns of layers to leave in float.
        weight_format: of inner weights: "apot" (2 to 5 bits), "uniform" (2 to 8 bits) or one of your own; by default "apot" at
            2 to 5 bits and "uniform" at 6 to 8.
        layers: name pattern → bits of these layers, a number or {"weight_bits": ..., "act_bits": ...}; the last pattern that
            matches a layer counts, also for an edge layer, which then has the format of inner weights.
        edges: name patterns of the edge layers; by default the layers that read the image or produce the output.
        scale: of inner weights, one for a layer ("tensor") or one for each output channel ("channel"); by default "channel" for
            "uniform", and "tensor" for "apot", which has no other.
        norms: the statistics of batch norms when `quantize` is given images: "keep" leaves them as they are, and quantized
            weights keep the scale of the float ones; "recalibrate" measures them again on the images, and weights before a
            batch norm are normalized, as in training from scratch.
    """

    weight_bits: int = 4
    act_bits: int = 4
    edge_bits: int = 8
    edge_range: Literal["max_abs", "max"] = "max_abs"
    skip: tuple[str, ...] = ()
    weight_format: str | None = None
    layers: Mapping[str, Any] = field(default_factory=dict, hash=False)
    edges: tuple[str, ...] | None = None
    scale: Literal["tensor", "channel"] | None = None
    norms: Literal["keep", "recalibrate"] = "keep"

    def __post_init__(self) -> None:
        object.__setattr__(self, "skip", as_patterns(self.skip, "QuantSpec.skip"))
        object.__setattr__(self, "layers", layer_table(self.layers, "layers"))
        if self.edges is not None:
            object.__setattr__(self, "edges", as_patterns(self.edges, "QuantSpec.edges"))
        for kind, chosen, allowed in (
            ("edge_range", self.edge_range, ("max_abs", "max")), ("scale", self.scale, ("tensor", "channel", None)),
            ("norms", self.norms, ("keep", "recalibrate")),
        ):  # fmt: skip
            if chosen not in allowed:
                raise ConfigError(f"{kind}={chosen!r}: choose {' or '.join(filter(None, allowed))}")
        widths = weight_format(self.weight_format).widths if self.weight_format is not None else tuple(range(2, 9))
        check_bits("weight_bits", self.weight_bits, widths=widths)
        for kind in ("act_bits", "edge_bits"):
            check_bits(kind, getattr(self, kind))
        for pattern, bits in self.layers.items():
            if bits.weight_bits is not None:
                check_bits(f"layers.{pattern}.weight_bits", bits.weight_bits, widths=widths)
        for width in {self.weight_bits, *(bits.weight_bits for bits in self.layers.values())} - {FLOAT_BITS, None}:
            assert width is not None
            self._check_scale(width)

    def bits_of(self, kind: Literal["weight_bits", "act_bits"], *names: str) -> int:
        """The bits of an inner weight layer or of an activation by its name, or names."""
        bits: int = getattr(self, kind)
        for pattern, given in self.layers.items():
            if getattr(given, kind) is not None and any(fnmatch(name, pattern) for name in names):
                bits = getattr(given, kind)
        return bits

    def names_weight_bits(self, *names: str) -> bool:
        """Whether a pattern of `layers` gives weight bits to a layer of this name, or these names."""
        given = [pattern for pattern, bits in self.layers.items() if bits.weight_bits is not None]
        return any(fnmatch(name, pattern) for name in names for pattern in given)

    def format_of(self, weight_bits: int) -> type[WeightFormat]:
        """The format of inner weights of so many bits."""
        if self.weight_format is not None:
            return weight_format(self.weight_format)
        formats = [weight_format(name) for name in _DEFAULT_FORMATS]
        return next(fmt for fmt in formats if weight_bits in fmt.widths)

    def _check_scale(self, weight_bits: int) -> None:
        fmt = self.format_of(weight_bits)
        if self.scale is not None and self.scale not in fmt.scales:
            other = ", or choose weight_format='uniform'" if fmt.name == "apot" else ""
            raise ConfigError(f"scale={self.scale!r}: weights in {fmt.name} have scale={fmt.scales[0]!r}; leave it out{other}")
