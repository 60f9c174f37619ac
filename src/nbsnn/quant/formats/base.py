"""The interface of weight formats: quantization, integers and codes of quantized weights, and the entry in a file's header."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor

from nbsnn.errors import ConfigError, shown, unknown
from nbsnn.naming import add_named
from nbsnn.quant.functional import SMALLEST_SCALE
from nbsnn.settings import typed

WEIGHT_FORMATS: dict[str, type["WeightFormat"]] = {}


@dataclass(frozen=True)
class WeightFormat(ABC):
    """How the weight of one layer is quantized. A subclass is a frozen dataclass with a `name`, which registers it.

    Quantized weights are integer multiples of a *step* and have at most 2^bits codes. `scale` is the layer's `weight_scale`, a
    learnable tensor, or None if `first_scale` returns None. Unit and step hold one number, [], or one per output channel,
    [O, 1, ...].

    Attributes:
        bits: of a code.
        fixed: the layer's weight holds quantized values, as in a packed network, and is not trained.
        widths: supported bits.
        edge: a format of first and last layers, whose bits do not change with `set_bits_` and the phases of training.
        scales: what `QuantSpec.scale` may be, the default first: one scale for the layer ("tensor"), or one for each output
            channel ("channel").
        smallest_scale: minimum of `weight_scale` in training.
        per_channel: whether there is one unit per output channel.
        denominator: steps in a unit.
    """

    bits: int
    fixed: bool = field(default=False, kw_only=True)

    name: ClassVar[str]
    widths: ClassVar[tuple[int, ...]]
    edge: ClassVar[bool] = False
    scales: ClassVar[tuple[str, ...]] = ("tensor",)
    smallest_scale: ClassVar[float] = SMALLEST_SCALE

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in vars(cls):
            add_named(WEIGHT_FORMATS, "weight format", cls.name, cls)

    def __post_init__(self) -> None:
        check_width("edge_bits" if self.edge else "weight_bits", self.bits, self.widths)

    @classmethod
    def for_layer(cls, bits: int, *, normed: bool, scale: str | None = None) -> Self:
        """The format of an inner layer.

        Args:
            bits: of a code.
            normed: a batch norm follows it directly, and compensates for the scale of the quantized weight.
            scale: one of `scales`, or None for the default.
        """
        return cls(bits)

    @property
    def per_channel(self) -> bool:
        return False

    @property
    def denominator(self) -> int:
        return 1

    @property
    def label(self) -> str:
        """A short description for tables."""
        return self.name

    # ------------------------------------------------------------------------------------------------------ arithmetic

    def first_scale(self, weight: Tensor) -> Tensor | None:
        """The initial `weight_scale`; None if the layer has no such parameter."""
        return None

    def best_scale(self, weight: Tensor) -> Tensor | None:
        """The scale of least squared error for this weight; None if the layer has no scale."""
        return None

    @abstractmethod
    def quantize(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        """The quantized weight, of the weight's shape; gradients flow to weight and scale."""

    @abstractmethod
    def measure_unit(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        """The unit of a float weight: the last factor in the quantizer.

        Without a scale, the quantized weight must have the same unit as the weight that it was computed from; with a scale, the
        unit has the shape of the scale.
        """

    def unit(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        """The unit of a layer's weight; for a fixed weight with a scale, it is stored in the scale."""
        return scale.detach() if self.fixed and scale is not None else self.measure_unit(weight.detach(), scale)

    def step(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        """The weight that the integer 1 represents, float64."""
        return self.unit(weight, scale).double() / self.denominator

    @property
    def rounds(self) -> bool:
        """Whether `rounded` is defined, so that rounding can be learned."""
        return type(self).rounded is not WeightFormat.rounded

    def rounded(self, weight: Tensor, unit: Tensor) -> Tensor:
        """The nearest quantized values for a given unit, which is broadcast to the weight; without gradient.

        Define it if the unit can be chosen: if `float_weight` finds a weight for any such values and unit.
        """
        raise NotImplementedError

    def float_weight(self, values: Tensor, unit: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """A float weight and its scale that quantize to these values, bit for bit; None if none is found.

        The default returns the values, which is right without a scale if quantization is idempotent.
        """
        return values.clone(), None

    # ----------------------------------------------------------------------------------------------------------- files

    def codes(self, values: Tensor, unit: Tensor) -> Tensor:
        """Quantized values as codes in [0, 2^bits), int64; by default multiples of the unit, plus 2^(bits−1).

        Raises:
            ValueError: a value has no code; says why.
        """
        half = 2 ** (self.bits - 1)
        codes: Tensor = (values / unit).round().long() + half
        if bool((codes < 0).any()) or bool((codes >= 2 * half).any()):
            raise ValueError(f"a weight is beyond the {self.bits} bits of its format ({self.label})")
        return codes

    def values(self, codes: Tensor, unit: Tensor) -> Tensor:
        """The inverse of `codes`, with the quantizer's last multiplication: equal bit for bit."""
        whole: Tensor = (codes - 2 ** (self.bits - 1)).to(unit)
        return whole * unit

    def header(self) -> dict[str, Any]:
        """What a file's header holds of it."""
        return {"format": self.name, **asdict(self)}


def weight_format(name: str) -> type[WeightFormat]:
    """A format by name.

    Raises:
        ConfigError: not known.
    """
    if not isinstance(name, str) or name not in WEIGHT_FORMATS:  # it may come from a file
        raise ConfigError(f"{unknown('weight format', name, WEIGHT_FORMATS)} (one of your own must be imported first)")
    return WEIGHT_FORMATS[name]


def check_width(key: str, bits: Any, widths: tuple[int, ...], *, note: str = "") -> None:
    """Raise an error for a width without a quantizer."""
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in widths:
        given = shown(repr(bits) if isinstance(bits, str) else bits)
        raise ConfigError(f"{key}={given}: choose one of {', '.join(map(str, widths))}{note}")


def read_weight_format(entry: Mapping[str, Any]) -> WeightFormat:
    """The format of an entry in a header; see `WeightFormat.header`.

    Entries without `format` are of the first two formats: those with an `edge_range` are edge layers, the others APoT.

    Raises:
        ConfigError: an unknown format, or fields that it does not have.
    """
    given = dict(entry)
    if "format" not in given:
        given["format"] = "apot" if given.get("edge_range") is None else "edge_uniform"
        given = {key: value for key, value in given.items() if value is not None}
    kind = weight_format(given.pop("format"))
    read: WeightFormat = typed(given, kind, "")
    return read
