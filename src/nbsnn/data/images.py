"""Image sets, and batches made of them. Here is the one in memory: cropped and flipped as whole tensors, no worker processes.

`Batches` decides which images come when, for every kind of set; a set decides how their pixels are had.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol, Self

import torch
from torch import Tensor

from nbsnn.distributed import World
from nbsnn.errors import DataError
from nbsnn.recipe import Padding


class LabelledImages(Protocol):
    """What `Batches` and the measurements need of a set: N images of one size with labels [N] int64."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel, in units of the full range 0..255 → 0..1; so is `std`."""

    @property
    def std(self) -> tuple[float, ...]: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    def __len__(self) -> int: ...

    def take(self, indices: Tensor | slice) -> Self:
        """The same set with some of its images."""

    def some(self, count: int | None) -> Self:
        """The same set with so many of its images, of all classes; all of them for None or 0."""

    def pixels(self, indices: Tensor | slice = ...) -> Tensor:
        """Some of the images as they are evaluated, [n, C, H, W] uint8."""

    def normalized(self, images: Tensor | None = None) -> Tensor:
        """Float images, (x/255 − mean)/std, [n, C, H, W] float32; all of the set's unless given as uint8."""

    def to(self, device: torch.device) -> Self:
        """The set on another device."""

    def stream(
        self, batches: Sequence[Tensor], world: World, *, train: bool, seeds: Sequence[int] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of batches of indices, as (images uint8, labels); augmented if there are `seeds`, one each.

        In training every share keeps its size.
        """


@dataclass(frozen=True)
class ImageSet:
    """Images [N, C, H, W] uint8 and labels [N] int64, with the constants that normalise them.

    `mean` and `std` [C] are in units of the full range 0..255 → 0..1; `padding` is what crops show beyond the border.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    padding: Padding = "black"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def pixels(self, indices: Tensor | slice = slice(None)) -> Tensor:
        """Some of the images, [n, C, H, W] uint8."""
        return self.images[indices]

    def take(self, indices: Tensor | slice) -> "ImageSet":
        """The same set with some of its images."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def some(self, count: int | None) -> "ImageSet":
        """The first so many images: their order is random. All of them for None or 0."""
        return self.take(slice(0, count or None))

    def normalized(self, images: Tensor | None = None) -> Tensor:
        """Float images, (x/255 − mean)/std, [N, C, H, W] float32."""
        return normalize(self.images if images is None else images, self.mean, self.std)

    def to(self, device: torch.device) -> "ImageSet":
        """The set on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def stream(
        self, batches: Sequence[Tensor], world: World, *, train: bool, seeds: Sequence[int] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `LabelledImages.stream`. A batch is augmented whole, then shared: its crops don't depend on the sharing."""
        for index, batch in enumerate(batches):
            chosen = _send(batch, self.images.device)
            images, labels = self.images[chosen], self.labels[chosen]
            if seeds:
                images = crop_and_flip(images, torch.Generator().manual_seed(seeds[index]), self.padding)
            if len(world.share(labels)):
                yield world.share(images), world.share(labels)


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x/255 − mean)/std of uint8 images [N, C, H, W], in float32."""
    scale, shift = _constants(tuple(mean), tuple(std), images.device)
    return images * scale - shift


@cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """1/(255·std) and mean/std, each [C, 1, 1]."""
    with torch.inference_mode(False):
        scale, shift = torch.tensor(std).mul(255).reciprocal(), torch.tensor(mean).div(torch.tensor(std))
        return scale.view(-1, 1, 1).to(device), shift.view(-1, 1, 1).to(device)


def _send(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, without waiting for what the device has to do before."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


@dataclass(frozen=True)
class Splits:
    """Training, validation (held out of training) and test images of one data set."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages


def split_validation(full: LabelledImages, test: LabelledImages, count: int, *, seed: int = 0) -> Splits:
    """Hold out `count` training images; the same ones for a given seed. With 0 the test set chooses the best epoch."""
    if count >= len(full):
        raise DataError(f"validation={count}: the training set has {len(full)} images; hold out fewer")
    order = torch.randperm(len(full), generator=torch.Generator().manual_seed(seed))
    validation = full.take(order[:count].sort().values) if count else test
    return Splits(full.take(order[count:].sort().values), validation, test)


@dataclass(frozen=True)
class Batches:
    """Batches (images [B, C, H, W] float32, labels [B] int64) of one pass over a set, or one process's share of each.

    For training, `seed` and `epoch` decide the order and every crop and flip, batch by batch: a run that resumes at a
    batch sees what the uninterrupted one saw. `batch_size` counts the images of all processes.
    """

    data: LabelledImages
    batch_size: int
    shuffle: bool = False
    augment: bool = False
    seed: int = 0
    epoch: int = 0
    world: World = field(default_factory=World)

    def __len__(self) -> int:
        full, rest = divmod(len(self.data), self.batch_size)
        # Batch norm cannot train on a single image, so a training pass drops a last batch of one; and processes that
        # average their gradients need equal shares, so together they drop every last batch that is not full.
        least = 1 if not self.shuffle else 2 if self.world.size == 1 else self.batch_size
        return full + (rest >= least)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.starting_at(0)

    def starting_at(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches from number `first` on."""
        order = torch.arange(len(self.data))
        if self.shuffle:
            order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self._seed(-1)))
        numbers = range(first, len(self))
        chosen = [order[index * self.batch_size : (index + 1) * self.batch_size] for index in numbers]
        seeds = [self._seed(index) for index in numbers] if self.augment else None
        for images, labels in self.data.stream(chosen, self.world, train=self.shuffle, seeds=seeds):
            yield self.data.normalized(images), labels

    def _seed(self, index: int) -> int:
        return ((self.seed * 1_000_003 + self.epoch) * 1_000_003 + index + 1) % 2**63


def evaluation_batches(data: LabelledImages, *, at_a_time: int = 500, world: World | None = None) -> Batches:
    """A set in order, to evaluate on: `at_a_time` images of CIFAR's size in a process's batch, fewer of larger ones."""
    group = world or World()
    return Batches(data, fewer_if_larger(at_a_time, *data.shape[1:]) * group.size, world=group)


def fewer_if_larger(count: int, height: int, width: int) -> int:
    """`count` images of CIFAR's size, or as many larger ones as have no more pixels; one at least."""
    return max(1, min(count, count * 32 * 32 // (height * width)))


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: Padding = "black") -> Tensor:
    """Crop at a random place of the padded image, flip half of the images: one gather for the whole batch.

    The padding is an eighth of the height: 4 pixels for CIFAR (He et al., 2016).

    Args:
        images: [B, C, H, W] uint8, anywhere.
        generator: on the CPU.
        padding: black, or the image mirrored at its border.
    Returns:
        [B, C, H, W] uint8.
    """
    count, channels, height, width = images.shape
    device = images.device
    pad = height // 8
    top, left = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.arange(width).expand(count, width)
    rows, columns = top + torch.arange(height), left + torch.where(flip, columns.flip(1), columns)
    if padding == "black":
        images = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    else:
        rows, columns = _mirrored(rows - pad, height), _mirrored(columns - pad, width)
    image = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    rows, columns = _send(rows, device), _send(columns, device)
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Places beyond 0..size−1, brought back by mirroring at the first and the last one, as often as it takes."""
    period = max(1, 2 * (size - 1))
    places = places.abs() % period
    return torch.minimum(places, period - places) if size > 1 else places
