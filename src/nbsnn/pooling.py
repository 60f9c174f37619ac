"""Pools that choose one value of each window: the maximum (torch's modules) or the minimum."""

from torch import Tensor, nn


class MinPool1d(nn.MaxPool1d):
    """The minimum of each window, [B, C, L] → [B, C, L']; arguments as of `nn.MaxPool1d`. Padding is never chosen."""

    def forward(self, input: Tensor) -> Tensor:
        pooled: Tensor = super().forward(-input)
        return -pooled


class MinPool2d(nn.MaxPool2d):
    """The minimum of each window, [B, C, H, W] → [B, C, H', W']; arguments as of `nn.MaxPool2d`. Padding is never chosen."""

    def forward(self, input: Tensor) -> Tensor:
        pooled: Tensor = super().forward(-input)
        return -pooled


class AdaptiveMinPool1d(nn.AdaptiveMaxPool1d):
    """The minimum of each window, for an output of the given size; arguments as of `nn.AdaptiveMaxPool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        pooled: Tensor = super().forward(-input)
        return -pooled


class AdaptiveMinPool2d(nn.AdaptiveMaxPool2d):
    """The minimum of each window, for an output of the given size; arguments as of `nn.AdaptiveMaxPool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        pooled: Tensor = super().forward(-input)
        return -pooled


MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)  # the min pools are subclasses
_FORWARDS = {cls.forward for cls in (*MAX_POOLS, MinPool1d, MinPool2d, AdaptiveMinPool1d, AdaptiveMinPool2d)}


def pool_oddity(pool: nn.Module) -> str | None:
    """Why a max or min pool cannot become a spiking one, for a message; None if it can."""
    if "forward" in vars(pool) or type(pool).forward not in _FORWARDS:
        return "has a forward of its own"
    if pool.return_indices:
        return "returns indices"
    return None


def pooled_axes(pool: nn.Module) -> int:
    """The number of axes that windows extend over: 1 or 2."""
    return 1 if isinstance(pool, (nn.MaxPool1d, nn.AdaptiveMaxPool1d)) else 2
