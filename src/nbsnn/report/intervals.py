"""Confidence intervals of accuracies."""

from math import sqrt

_Z = 1.959964  # standard deviations of a normal distribution, for 95 %


def wilson(hits: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, in percent (Wilson, JASA 22, 1927): fits also near 0 and 100 % and for few images."""
    if not images:
        return 0.0, 100.0
    share, spread = hits / images, _Z**2 / images
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * sqrt(share * (1 - share) / images + spread / (4 * images)) / (1 + spread)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)
