"""Images as integers: the grid that a lowered network takes them on, and the conversion to it."""

from collections.abc import Sequence
from functools import cache
from math import log2

import torch
from torch import Tensor

from nbsnn.errors import ConfigError, LoweringError
from nbsnn.inputs import as_images, check_normalization
from nbsnn.integer.frozen import thawed
from nbsnn.integer.nodes import Pixels
from nbsnn.shapes import per_channel

PIXEL_BITS = 20  # fraction bits of a pixel: an early count changed by rounding changes later ones
FINE_PIXEL_BITS = 28  # if membranes have 64 bits, and pixels stay below LARGEST_PIXEL
LARGEST_PIXEL = 2**29  # with more bits than PIXEL_BITS
IMAGE_RANGE = 8.0  # largest |value| of a normalized image, unless mean and std give it exactly


def pixel_grid(shape: tuple[int, ...], mean: Sequence[float] | None, std: Sequence[float] | None, *, most: float = 0) -> Pixels:
    """The grid for images of a shape; with the mean and std of their normalization, for 8-bit pixels too.

    Args:
        most: with the fraction bits up to FINE_PIXEL_BITS for which no pixel is larger; 0 for PIXEL_BITS, the fewest.
    Raises:
        ConfigError: one of `mean` and `std` without the other, or not one value per channel.
    """
    if mean is None or std is None:
        if mean is not None or std is not None:
            raise ConfigError("mean and std go together; give both, or neither for float images only")
        bits = _fraction_bits(IMAGE_RANGE, most)
        extreme = int(IMAGE_RANGE * 2**bits)
        return Pixels(shape, bits, -extreme, extreme)
    check_normalization(mean, std, shape[0])
    bits = _fraction_bits(max(max(abs(m), abs(1 - m)) / s for m, s in zip(mean, std, strict=True)), most)
    table = pixel_table(mean, std, bits)
    return Pixels(shape, bits, min(int(table.min()), 0), max(int(table.max()), 0), table)


def _fraction_bits(largest: float, most: float) -> int:
    """For pixels up to `largest`; see `pixel_grid`."""
    return PIXEL_BITS if most < largest else max(PIXEL_BITS, min(FINE_PIXEL_BITS, int(log2(most / largest))))


def pixel_table(mean: Sequence[float], std: Sequence[float], fraction_bits: int) -> Tensor:
    """[C, 256] int32: 8-bit pixels after normalization, in fixed point.

    Normalized in single precision with the same operations as in image sets, so an image gives the same integers as bytes and
    as floats.
    """
    scale = torch.tensor(std).mul(255).reciprocal().view(-1, 1)
    shift = torch.tensor(mean).div(torch.tensor(std)).view(-1, 1)
    normalized = torch.arange(256, dtype=torch.uint8) * scale - shift
    whole: Tensor = (normalized.double() * 2**fraction_bits).round()
    return whole.to(torch.int32)


def slack_of(pixels: Pixels) -> int:
    """How far beyond the grid a float may be: other operations, as in (x/255 - mean)/std, give another last place."""
    return int(2 ** max(pixels.fraction_bits - PIXEL_BITS, 0))


def fits_single(pixels: Pixels) -> bool:
    """Whether single precision has the integers of floats: those up to 2^24; a product with a power of two is exact."""
    return max(-pixels.low, pixels.high) + slack_of(pixels) < 2**24


def to_integers(pixels: Pixels, images: Tensor) -> Tensor:
    """Images on the network's grid, [B, C, H, W] int32, contiguous.

    Args:
        images: [B, C, H, W] uint8, or normalized floats, which are rounded; in any memory format.
    Raises:
        LoweringError: wrong shape, out of range, not finite, or 8-bit pixels for a network without mean and std.
    """
    if tuple(images.shape[1:]) != pixels.shape:
        raise LoweringError(f"images of shape {list(images.shape)}; the network takes [B, {', '.join(map(str, pixels.shape))}]")
    if images.dtype == torch.uint8:
        if pixels.table is None:
            raise LoweringError("8-bit images, but the network was lowered without mean and std; give them to nbsnn.lower")
        index = images + _first_entries(pixels.shape[0], len(pixels.shape) - 1, images.device)
        looked_up: Tensor = thawed(pixels.table).view(-1).index_select(0, index.flatten())
        return looked_up.view(images.shape)  # contiguous, also where the images are channels last
    slack = slack_of(pixels)
    low, high = pixels.low - slack, pixels.high + slack
    exact = images.dtype != torch.float64 and fits_single(pixels)
    whole: Tensor = images.to(torch.float32 if exact else torch.float64) * 2**pixels.fraction_bits
    least, most = (float(edge) for edge in torch.aminmax(whole.round_()))
    if not (low <= least and most <= high):  # so is NaN
        as_images(images, ranks=(images.dim(),), finite=True, error=LoweringError)
        edges = (edge / 2**pixels.fraction_bits for edge in (pixels.low, pixels.high))
        known = "normalize them with the mean and std of nbsnn.lower"
        remedy = "give nbsnn.lower their mean and std" if pixels.table is None else known
        raise LoweringError(f"images reach beyond [{', '.join(map('{:.3g}'.format, edges))}]; {remedy}")
    if least < pixels.low or most > pixels.high:
        whole.clamp_(pixels.low, pixels.high)
    return whole.to(torch.int32).contiguous()


@cache
def _first_entries(channels: int, trailing: int, device: torch.device) -> Tensor:
    """[C, 1, ...] int32: where each channel's entries begin in a flattened table."""
    return per_channel(256 * torch.arange(channels, dtype=torch.int32, device=device), trailing)
