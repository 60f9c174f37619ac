"""Checks of images, labels and loaders passed to any function, with the same rules and messages everywhere."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.arguments import described_kind
from nbsnn.errors import ConfigError, NbsnnError
from nbsnn.finite import check_images

MOST_GATHERED = 1024  # images of a loader
_SHAPES = {2: "[B, F]", 3: "[B, C, L]", 4: "[B, C, H, W]"}
_PLANE_LAYERS = (
    nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d
)  # fmt: skip
_LINE_LAYERS = (
    nn.Conv1d, nn.ConvTranspose1d, nn.AvgPool1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d
)  # fmt: skip


def as_images(
    value: object,
    name: str = "images",
    *,
    network: nn.Module | None = None,
    ranks: Collection[int] | None = None,
    channels: int | None = None,
    least: int = 1,
    pixels: bool = False,
    finite: bool = False,
    error: type[NbsnnError] = ConfigError,
) -> Tensor:
    """Check a batch of images for a network; the error says in one line what was given and what to give.

    Args:
        value: the caller's argument, which should be a float tensor.
        name: of the argument, for the message.
        network: the network that takes the images.
        ranks: numbers of axes that are allowed; unless given, those that `network` takes: 4 where it has a layer for planes,
            such as Conv2d, 3 or 2 where it has one for lines, such as Conv1d, else 2, 3 or 4 ([B, F], [B, C, L], [B, C, H, W]).
        channels: size of axis 1.
        least: images.
        pixels: also accept 8-bit pixels (uint8), which are returned unchanged.
        finite: raise an error for NaN and infinity.
        error: class of the exception.
    Returns:
        `value` itself; `to_network` moves it to the network's device.
    """
    allowed = (4,) if ranks is None and network is None else ranks or _ranks_of(network)
    if not isinstance(value, Tensor):
        raise error(f"{name} is {described_kind(value)}; give a tensor {_shapes_of(allowed)}{_remedy(value, name)}")
    if value.layout is not torch.strided:
        raise error(f"{name} is a tensor of layout {value.layout}; give a dense one: {name}.to_dense()")
    if value.dtype == torch.uint8 and not pixels:
        raise error(f"{name} has 8-bit pixels; give floats, normalized as in training: ({name} / 255 - mean) / std")
    if not value.is_floating_point() and value.dtype != torch.uint8:
        also = ", or 8-bit pixels (torch.uint8)" if pixels else ""
        raise error(f"{name} has type {value.dtype}; give floats, normalized as in training{also}")
    if value.dim() not in allowed:
        single = value.dim() == 3 and 4 in allowed
        remedy = f"one image as {name}[None], grey ones as {name}[:, None]" if single else f"reshape {name} to that"
        raise error(f"{name} has shape {list(value.shape)}; give a batch {_shapes_of(allowed)}: {remedy}")
    if channels is not None and value.shape[1] != channels:
        wanted = ", ".join(["B", str(channels), "H", "W"][: value.dim()])
        raise error(f"{name} has shape {list(value.shape)}; the network takes [{wanted}]")
    if len(value) < least or not value.numel():
        wanted = f"at least {least} images" if least > 1 else "one image or more"
        raise error(f"{name} has shape {list(value.shape)}; give {wanted}, {_shapes_of(allowed)}")
    if finite:
        check_images(value, error, name=name)
    return value


def _shapes_of(ranks: Collection[int]) -> str:
    """For messages."""
    return " or ".join(_SHAPES[rank] for rank in sorted(ranks, reverse=True))


def gathered(
    value: object, name: str = "images", *, network: nn.Module | None = None, error: type[NbsnnError] = ConfigError
) -> Any:
    """The images of a loader, or of any iterable of batches, as one tensor; other values are returned unchanged.

    A batch is a tensor of images, or a tuple or list that begins with one: labels are ignored. At most 1,024 images are read,
    and no batch after them.

    Raises:
        error: a batch holds no images for the network, or there is none.
    """
    if isinstance(value, (Tensor, str, bytes, Mapping)) or not isinstance(value, Iterable) or hasattr(value, "normalized"):
        return value
    if isinstance(value, (tuple, list)) and not _are_batches(value, _ranks_of(network)):
        return value
    batches: list[Tensor] = []
    for batch in value:
        first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if type(batch).__module__ == "numpy" or isinstance(batch, (str, float, int)):
            return value
        batches.append(as_images(first, f"a batch of {name}", network=network, error=error))
        if batches[-1].shape[1:] != batches[0].shape[1:]:
            sizes = " and ".join(str(list(b.shape[1:])) for b in (batches[0], batches[-1]))
            raise error(f"{name} holds images of shapes {sizes}; resize them to one shape")
        if sum(map(len, batches)) >= MOST_GATHERED:
            break
    if not batches:
        raise error(f"{name} yields no batch; give a tensor of images, or a DataLoader that was not read to its end")
    return torch.cat([batch.detach() for batch in batches])[:MOST_GATHERED]


def _are_batches(values: Sequence[object], ranks: Collection[int]) -> bool:
    firsts = [v[0] if isinstance(v, (tuple, list)) and v else v for v in values]
    return bool(firsts) and all(isinstance(first, Tensor) and first.dim() in ranks for first in firsts)


def to_network(images: Tensor, network: nn.Module) -> Tensor:
    """Images on the device of a network's parameters, in their floating-point type."""
    parameter = next((p for p in network.parameters() if p.is_floating_point()), None)
    return images if parameter is None else images.to(parameter.device, parameter.dtype)


@contextmanager
def in_one_line(images: Tensor) -> Iterator[None]:
    """Turn torch's errors about images into one line that names their shape.

    Raises:
        ConfigError: instead of torch's own error; out-of-memory errors are not changed.
    """
    try:
        yield
    except NbsnnError:
        raise
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(f"the network does not run on images of shape {list(images.shape)}: {reason}") from error


def check_normalization(mean: object, std: object, channels: int, *, error: type[NbsnnError] = ConfigError) -> None:
    """Raise an error unless mean and std have one finite number per channel, positive for std."""
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != channels:
            raise error(f"{name}={values!r}: give {channels} numbers, one for each channel, of pixels scaled to 0..1")
        for value in values:
            fine = isinstance(value, (int, float)) and math.isfinite(value) and (name == "mean" or value > 0)
            if not fine or isinstance(value, bool):
                wanted = "finite numbers" if name == "mean" else "positive finite numbers"
                raise error(f"{name} holds {value!r}; give {wanted}, of pixels scaled to 0..1")


def as_labels(
    value: object, name: str = "labels", *, count: int, classes: int | None = None, error: type[NbsnnError] = ConfigError
) -> Tensor:
    """Check labels: [count] integers from 0, below `classes` if given."""
    if not isinstance(value, Tensor):
        raise error(f"{name} is {described_kind(value)}; give a tensor [{count}] of class numbers: torch.as_tensor({name})")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        one_hot = f": {name}.argmax(1) if they are one-hot" if value.dim() == 2 else ""
        raise error(f"{name} has type {value.dtype}; give class numbers, torch.int64{one_hot}")
    if value.shape != (count,):
        raise error(f"{name} has shape {list(value.shape)} for {count} images; give one class number for each, [{count}]")
    low, high = (int(edge) for edge in value.aminmax()) if count else (0, 0)
    if low < 0 or (classes is not None and high >= classes):
        wrong = low if low < 0 else high
        known = f"0 to {classes - 1}" if classes is not None else "from 0 on"
        at = int((value == wrong).nonzero()[0])
        raise error(f"{name}[{at}] is {wrong}; give class numbers {known}")
    return value


def require_type(value: object, kind: type | tuple[type, ...], name: str, wanted: str) -> None:
    """Raise an error for an argument of another type, saying what was given and what is expected."""
    if not isinstance(value, kind):
        raise ConfigError(f"{name} is {described_kind(value)}; give {wanted}")


def as_batches(loader: object, name: str = "loader", *, network: nn.Module | None = None) -> Iterator[tuple[Tensor, object]]:
    """Batches (images, labels) of a loader, the images checked by `as_images`; without a network, 8-bit pixels pass too.

    Raises:
        ConfigError: the loader does not yield batches of images and labels.
    """
    wanted = f"give batches (images, labels): a DataLoader, a list of pairs, or nbsnn.Batches({name}, 100) of an image set"
    if isinstance(loader, (Tensor, Mapping, str)) or not isinstance(loader, Iterable):
        raise ConfigError(f"{name} is {described_kind(loader)}; {wanted}")
    for batch in loader:
        if isinstance(loader, tuple) and isinstance(batch, Tensor):
            raise ConfigError(f"{name} is one batch, a tuple of tensors; give a list of batches: [{name}]")
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ConfigError(f"a batch of {name} is {described_kind(batch)}; {wanted}")
        pixels = network is None
        yield as_images(batch[0], "images", network=network, ranks=_SHAPES if pixels else None, pixels=pixels), batch[1]


def _ranks_of(network: nn.Module | None) -> Collection[int]:
    kinds = (_LINE_LAYERS, _PLANE_LAYERS)
    found = [any(isinstance(m, kind) for m in network.modules()) for kind in kinds] if network is not None else [False, True]
    ranks = [rank for rank, there in zip((3, 4), found, strict=True) if there]
    return [2, 3] if ranks == [3] else ranks or _SHAPES  # a network may make lines of rows


def _remedy(value: Any, name: str) -> str:
    """Code that makes a tensor of images from `value`, after a colon; empty if unknown."""
    if type(value).__module__ == "numpy":
        return f": torch.from_numpy({name})"
    if hasattr(value, "normalized"):  # an image set
        return f": {name}.normalized()"
    if isinstance(value, (list, tuple)) and value:
        first, second = value[0], value[1] if len(value) > 1 else None
        if isinstance(first, (list, tuple)) and first and isinstance(first[0], Tensor):
            return f": torch.cat([batch[0] for batch in {name}])"
        if isinstance(first, Tensor):
            if isinstance(second, Tensor) and second.dim() == 1 < first.dim():
                return f": {name}[0]"  # a batch with its labels
            return f": torch.{'stack' if first.dim() in (1, 3) else 'cat'}({name})"
        if type(first).__module__ == "numpy":
            return f": torch.stack([torch.from_numpy(image) for image in {name}])"
        return f": torch.tensor({name})" if isinstance(first, (list, tuple, float, int)) else ""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping, list, tuple)):  # a DataLoader
        return f": next(iter({name}))[0]"
    return ""
