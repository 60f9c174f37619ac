"""Image sets and batches. The set in memory is cropped and flipped as whole tensors, without worker processes.

`Batches` determines the order of images for every kind of set; a set determines how their pixels are loaded.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, get_args, runtime_checkable

import torch
from torch import Tensor

from nbsnn.data.pixels import crop_and_flip, normalize, send
from nbsnn.distributed import World
from nbsnn.errors import ConfigError, DataError
from nbsnn.inputs import as_labels, check_normalization
from nbsnn.recipe import Padding


@runtime_checkable
class LabelledImages(Protocol):
    """Interface of image sets for `Batches` and measurements: N images of one size with labels [N] int64."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, in units of the full range 0..255 → 0..1; the same holds for `std`."""

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
        """The same set with `count` of its images, of all classes; all of them for None or 0."""

    def pixels(self, indices: Tensor | slice = ...) -> Tensor:
        """Some of the images without augmentation, [n, C, H, W] uint8."""

    def normalized(self, images: Tensor | None = None) -> Tensor:
        """Float images, (x/255 − mean)/std, [n, C, H, W] float32; all of the set's unless given as uint8."""

    def to(self, device: torch.device) -> Self:
        """The set on another device."""

    def stream(
        self, batches: Sequence[Tensor], world: World, *, train: bool, seeds: Sequence[int] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of batches of indices, as (images uint8, labels); augmented if there are `seeds`, one each.

        In training every share has its full size.
        """


@dataclass(frozen=True)
class ImageSet:
    """Images [N, C, H, W] uint8 and labels [N] int64, with the constants that normalize them.

    `mean` and `std` [C] are in units of the full range 0..255 → 0..1; `padding` is what crops show beyond the border, and
    `flip` whether half of them are mirrored.

    Raises:
        ConfigError: fields of other types or shapes, or labels that are not an index of `classes`.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    padding: Padding = "black"
    flip: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.images, Tensor) or self.images.dtype != torch.uint8 or self.images.dim() != 4:
            found = self.images
            given = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ConfigError(f"ImageSet: images is {given}; give 8-bit pixels [N, C, H, W], a tensor of torch.uint8")
        if self.padding not in get_args(Padding):
            raise ConfigError(f"ImageSet: padding={self.padding!r}; choose {' or '.join(get_args(Padding))}")
        check_set_(self, len(self.images), self.images.shape[1])
        if self.labels.device != self.images.device:
            raise ConfigError(f"ImageSet: images are on {self.images.device} and labels on {self.labels.device}; move one")

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
        """The first `count` images, whose order is random; all of them for None or 0."""
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
        """As `LabelledImages.stream`. A batch is augmented before it is shared between processes."""
        for index, batch in enumerate(batches):
            chosen = send(batch, self.images.device)
            images, labels = self.images[chosen], self.labels[chosen]
            if seeds:
                images = crop_and_flip(images, torch.Generator().manual_seed(seeds[index]), self.padding, flip=self.flip)
            if len(world.share(labels)):
                yield world.share(images), world.share(labels)


def check_set_(data: LabelledImages, count: int, channels: int) -> None:
    """Check labels, classes and constants for `count` images, and convert them to int64 and tuples, in place.

    Raises:
        ConfigError: names the field and what to give.
    """
    kind = type(data).__name__
    names = data.classes
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{kind}: classes is {names!r:.60}; give the names of the classes, a tuple of texts")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ConfigError(f"{kind}: classes holds {twice!r} twice; give each class a different name")
    check_normalization(data.mean, data.std, channels)
    labels = as_labels(data.labels, f"{kind}: labels", count=count, classes=len(names))
    for field_name, value in (("labels", labels.long()), ("classes", tuple(names)),
                              ("mean", tuple(map(float, data.mean))), ("std", tuple(map(float, data.std)))):  # fmt: skip
        object.__setattr__(data, field_name, value)  # frozen from here on


@dataclass(frozen=True)
class Splits:
    """Training, validation (held out of training) and test images of one data set.

    Raises:
        ConfigError: a part is not an image set, or parts differ in shape, classes or normalization.
    """

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            require_set(getattr(self, part), f"Splits: {part}")
            for field_name in ("shape", "classes", "mean", "std"):
                first, own = getattr(self.train, field_name), getattr(getattr(self, part), field_name)
                if first != own:
                    raise ConfigError(f"Splits: {part} has {field_name} {own!r:.80}, but train {first!r:.80}; make them equal")


def require_set(value: object, name: str) -> None:
    """Raise an error for anything but a set of labelled images, such as a DataLoader."""
    if not isinstance(value, LabelledImages):
        remedy = f"nbsnn.ImageSet(images, labels, mean, std, classes) of all images, or a part of nbsnn.load_data({'...'!r})"
        raise ConfigError(f"{name} is {'None' if value is None else f'a {type(value).__name__}'}; give an image set: {remedy}")


def split_validation(full: LabelledImages, test: LabelledImages, count: int, *, seed: int = 0) -> Splits:
    """Hold out `count` training images, always the same ones. With 0 the test set chooses the best epoch."""
    if count and not 0 <= count < len(full):
        raise DataError(f"validation={count}: the training set has {len(full)} images; hold out fewer")
    order = torch.randperm(len(full), generator=torch.Generator().manual_seed(seed))
    validation = full.take(order[:count].sort().values) if count else test
    return Splits(full.take(order[count:].sort().values), validation, test)


@dataclass(frozen=True)
class Batches:
    """Batches (images [B, C, H, W] float32, labels [B] int64) of one pass over a set, or one process's share of each.

    For training, `seed` and `epoch` determine the order and every crop and flip, batch by batch, so a resumed run uses the same
    images as an uninterrupted one. `batch_size` counts the images of all processes. With `pixels`, images are the set's 8-bit
    pixels, uint8, for integer networks.
    """

    data: LabelledImages
    batch_size: int
    shuffle: bool = False
    augment: bool = False
    seed: int = 0
    epoch: int = 0
    world: World = field(default_factory=World)
    pixels: bool = False

    def __post_init__(self) -> None:
        require_set(self.data, "Batches: data")
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ConfigError(f"Batches: batch_size={self.batch_size!r}; give an integer from 1")

    def __len__(self) -> int:
        full, rest = divmod(len(self.data), self.batch_size)
        # Batch norm cannot train on a single image, so a training pass drops a last batch of one. Processes that average their
        # gradients need equal shares, so they drop any last batch that is not full.
        least = 1 if not self.shuffle else 2 if self.world.size == 1 else self.batch_size
        return full + (rest >= least)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.starting_at(0)

    def starting_at(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches from index `first` on."""
        order = torch.arange(len(self.data))
        if self.shuffle:
            order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self._seed(-1)))
        numbers = range(first, len(self))
        chosen = [order[index * self.batch_size : (index + 1) * self.batch_size] for index in numbers]
        seeds = [self._seed(index) for index in numbers] if self.augment else None
        for images, labels in self.data.stream(chosen, self.world, train=self.shuffle, seeds=seeds):
            yield images if self.pixels else self.data.normalized(images), labels

    def _seed(self, index: int) -> int:
        return ((self.seed * 1_000_003 + self.epoch) * 1_000_003 + index + 1) % 2**63


def evaluation_batches(
    data: LabelledImages, *, at_a_time: int = 500, world: World | None = None, pixels: bool = False
) -> Batches:
    """Batches of a set in order, for evaluation: `at_a_time` images of CIFAR's size per process, fewer of larger ones."""
    group = world or World()
    return Batches(data, fewer_if_larger(at_a_time, *data.shape[1:]) * group.size, world=group, pixels=pixels)


def fewer_if_larger(count: int, *sides: int) -> int:
    """`count` for images of CIFAR's size, or the number of larger images with as many pixels; at least one."""
    return max(1, min(count, count * 32 * 32 // math.prod(sides)))
