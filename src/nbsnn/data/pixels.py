"""8-bit pixels as tensors: normalized, cropped and flipped, a whole batch at a time."""

from functools import cache

import torch
from torch import Tensor

from nbsnn.errors import ConfigError
from nbsnn.recipe import Padding


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x/255 − mean)/std of uint8 images [N, C, H, W], in float32."""
    if images.dtype != torch.uint8:  # floats would be normalized twice
        raise ConfigError(f"images to normalize have type {images.dtype}; give 8-bit pixels, torch.uint8")
    scale, shift = _constants(tuple(mean), tuple(std), images.device)
    return images * scale - shift


@cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """1/(255·std) and mean/std, each [C, 1, 1]."""
    with torch.inference_mode(False):
        scale, shift = torch.tensor(std).mul(255).reciprocal(), torch.tensor(mean).div(torch.tensor(std))
        return scale.view(-1, 1, 1).to(device), shift.view(-1, 1, 1).to(device)


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to a device without synchronizing with it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: Padding = "black", *, flip: bool = True) -> Tensor:
    """Crop at a random position of the padded image and flip half of the images, with one gather for the whole batch.

    The padding is an eighth of the height: 4 pixels for CIFAR (He et al., 2016).

    Args:
        images: [B, C, H, W] uint8, on any device.
        generator: on the CPU.
        padding: black, or the image reflected at its border.
        flip: False leaves images as they are.
    Returns:
        [B, C, H, W] uint8.
    """
    count, channels, height, width = images.shape
    device = images.device
    pad = height // 8
    top, left = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    mirrored = (torch.rand(count, 1, generator=generator) < 0.5) & flip
    columns = torch.arange(width).expand(count, width)
    rows, columns = top + torch.arange(height), left + torch.where(mirrored, columns.flip(1), columns)
    if padding == "black":
        images = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    else:
        rows, columns = _mirrored(rows - pad, height), _mirrored(columns - pad, width)
    image = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    rows, columns = send(rows, device), send(columns, device)
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Reflect indices outside 0..size−1 at the first and the last index, repeatedly if needed."""
    period = max(1, 2 * (size - 1))
    places = places.abs() % period
    return torch.minimum(places, period - places) if size > 1 else places
