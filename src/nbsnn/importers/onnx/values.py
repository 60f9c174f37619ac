"""What the inputs of an ONNX node can be: constants, integers at a scale, signals, and signals behind QuantizeLinear."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Constant = NDArray[Any]
SAME = 1e-3  # relative difference of scales that are meant to be equal


@dataclass(frozen=True)
class Bend:
    """The function of an activation that is not quantized yet: slope · x below 0, then clipped to [low, high].

    Attributes:
        slope: scalar, or [C].
    """

    low: float = -np.inf
    high: float = np.inf
    slope: Constant = field(default_factory=lambda: np.ones(()))

    @property
    def is_identity(self) -> bool:
        return bool(self.low == -np.inf and self.high == np.inf and (self.slope == 1).all())

    @property
    def is_monotone(self) -> bool:
        return self.low >= 0 or bool((self.slope >= 0).all())


@dataclass(frozen=True)
class Current:
    """gain · step + shift, of a value that depends on the image; what is not applied yet is applied when it is read.

    Attributes:
        step: the name of the step, or `INPUT`.
        gain, shift: numbers, before the bend.
        bend: None, or that of an activation whose quantizer is still to come.
        moves: steps, kind and options, of the bent value that only move or choose values; its activation comes before them.
        moved: the shape behind the moves, without the batch.
        floored: the gain before a Floor that rounds to a grid, 0 without.
    """

    step: str
    gain: float = 1.0
    shift: float = 0.0
    bend: Bend | None = None
    moves: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    moved: tuple[int, ...] | None = None
    floored: float = 0.0


@dataclass(frozen=True)
class Whole:
    """Integers, at a scale: a weight or a bias behind DequantizeLinear.

    Attributes:
        integers: without the zero point.
        scale: [1], or [n] along `axis`.
        name: of the tensor in the file.
    """

    integers: Constant
    scale: Constant
    axis: int
    name: str

    @property
    def numbers(self) -> Constant:
        """The real numbers, float64."""
        shape = [1] * self.integers.ndim
        if self.scale.size > 1:
            shape[self.axis] = self.scale.size
        return self.integers.astype(np.float64) * self.scale.astype(np.float64).reshape(shape)


@dataclass(frozen=True)
class Levels:
    """A signal behind QuantizeLinear: integers from low to high, of which `zero` is 0."""

    signal: Current
    scale: float
    zero: int
    low: int
    high: int


@dataclass(frozen=True)
class Grid:
    """The values that a step can have: multiples of `scale` from −down to up."""

    scale: float
    down: int
    up: int
