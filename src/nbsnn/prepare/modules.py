"""Activations in canonical form: a ReLU that is clipped, and two ReLUs on the two signs of one current."""

from torch import Tensor, nn


class ClippedReLU(nn.ReLU):
    """min(max(x, 0), limit), as ReLU6 for a limit of 6. The threshold of its quantized form never exceeds the limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, input: Tensor) -> Tensor:
        return input.clamp(0, self.limit)

    def extra_repr(self) -> str:
        return f"limit={self.limit:g}"


class SignedActivation(nn.Module):
    """positive(x) − slope · negative(−x): an activation of both signs as two rectified ones on opposite currents.

    The slope is that of the function for x < 0: 1 for the identity, 0.01 for a leaky ReLU, −1 for |x|. A parameter [1] or [C],
    as of a PReLU, is registered as `weight`, as there.
    """

    def __init__(self, positive: nn.Module, negative: nn.Module, slope: float | nn.Parameter) -> None:
        super().__init__()
        self.positive, self.negative = positive, negative
        self.weight: nn.Parameter | None
        self.slope = None if isinstance(slope, Tensor) else slope
        self.register_parameter("weight", slope if isinstance(slope, Tensor) else None)

    @classmethod
    def identity(cls) -> "SignedActivation":
        """x = relu(x) − relu(−x)."""
        return cls(nn.ReLU(), nn.ReLU(), 1.0)

    def forward(self, input: Tensor) -> Tensor:
        return self.join(self.positive(input), self.negative(-input))

    def join(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The difference of the two sides, which are both ≥ 0."""
        if self.weight is not None:
            return positive - self.weight.view(1, -1, *(1 for _ in range(positive.dim() - 2))) * negative
        return positive - negative if self.slope == 1 else positive - (self.slope or 0.0) * negative

    @property
    def is_monotone(self) -> bool:
        """Whether larger inputs never give smaller outputs."""
        return bool((self.weight >= 0).all()) if self.weight is not None else (self.slope or 0) >= 0

    def extra_repr(self) -> str:
        return "" if self.slope is None else f"slope={self.slope:g}"
