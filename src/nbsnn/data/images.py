"""Image sets held in memory, and batches made of them: shuffled, cropped and flipped as whole tensors, no worker processes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbsnn.errors import DataError


@dataclass(frozen=True)
class ImageSet:
    """Images [N, C, H, W] uint8 and labels [N] int64, with the constants that normalise them.

    `mean` and `std` [C] are in units of the full range 0..255 → 0..1.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor | slice) -> "ImageSet":
        """The same set with some of its images."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def normalized(self, images: Tensor | None = None) -> Tensor:
        """Float images, (x/255 − mean)/std, [N, C, H, W] float32."""
        images = self.images if images is None else images
        scale = torch.tensor(self.std, device=images.device).mul(255).reciprocal().view(-1, 1, 1)
        shift = torch.tensor(self.mean, device=images.device).div(torch.tensor(self.std, device=images.device)).view(-1, 1, 1)
        return images * scale - shift

    def to(self, device: torch.device) -> "ImageSet":
        """The set on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """Training, validation (held out of training) and test images of one data set."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet


def split_validation(full: ImageSet, test: ImageSet, count: int, *, seed: int = 0) -> Splits:
    """Hold out `count` training images; the same ones for a given seed. With 0 the test set chooses the best epoch."""
    if count >= len(full):
        raise DataError(f"validation={count}: the training set has {len(full)} images; hold out fewer")
    order = torch.randperm(len(full), generator=torch.Generator().manual_seed(seed))
    validation = full.take(order[:count].sort().values) if count else test
    return Splits(full.take(order[count:].sort().values), validation, test)


@dataclass(frozen=True)
class Batches:
    """Batches (images [B, C, H, W] float32, labels [B] int64) of one pass over a set.

    For training, `seed` and `epoch` decide the order and every crop and flip, batch by batch: a run that resumes at a
    batch sees what the uninterrupted one saw.
    """

    data: ImageSet
    batch_size: int
    shuffle: bool = False
    augment: bool = False
    seed: int = 0
    epoch: int = 0

    def __len__(self) -> int:
        full, rest = divmod(len(self.data), self.batch_size)
        # Batch norm cannot train on a single image, so a training pass drops a last batch of one.
        return full + (rest > (1 if self.shuffle else 0))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.starting_at(0)

    def starting_at(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches from number `first` on."""
        order = torch.arange(len(self.data))
        if self.shuffle:
            order = torch.randperm(len(self.data), generator=self._generator(-1))
        for index in range(first, len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size].to(self.data.images.device)
            images = self.data.images[chosen]
            if self.augment:
                images = crop_and_flip(images, self._generator(index))
            yield self.data.normalized(images), self.data.labels[chosen]

    def _generator(self, index: int) -> torch.Generator:
        key = (self.seed * 1_000_003 + self.epoch) * 1_000_003 + index + 1
        return torch.Generator().manual_seed(key % 2**63)


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pad with black, crop at a random place, flip half of the images: one gather for the whole batch.

    The padding is an eighth of the height: 4 pixels for CIFAR (He et al., 2016).

    Args:
        images: [B, C, H, W] uint8, anywhere.
        generator: on the CPU.
    Returns:
        [B, C, H, W] uint8.
    """
    count, channels, height, width = images.shape
    device = images.device
    pad = height // 8
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    top, left = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.arange(width).expand(count, width)
    rows = (top + torch.arange(height)).to(device)
    columns = (left + torch.where(flip, columns.flip(1), columns)).to(device)
    image = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
