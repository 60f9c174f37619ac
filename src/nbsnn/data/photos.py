"""Image sets too large for memory: files are decoded batch by batch, by Pillow in worker processes or by DALI.

Order, shares and seeds come from `Batches`, so both loaders give the same photographs in the same batches.
"""

import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nbsnn.data import dali
from nbsnn.data.decode import PUBLISHED, Framing, center_crop, random_crop, require_pillow
from nbsnn.data.images import check_set_
from nbsnn.data.pixels import normalize
from nbsnn.distributed import World
from nbsnn.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loading:
    """How files are decoded: loader, number of workers, and what happens to a corrupt file."""

    loader: Literal["auto", "torch", "dali", "dali_cpu"] = "auto"
    workers: int = 4
    on_corrupt: Literal["skip", "refuse"] = "skip"

    def __str__(self) -> str:
        if self.uses_dali:
            return f"NVIDIA DALI{' on the CPU' if self.loader == 'dali_cpu' else ''}, {self.workers} threads"
        return f"Pillow, {self.processes} worker processes"

    @property
    def processes(self) -> int:
        """The workers of the Pillow loader: at most the cores of this process, because more are slower."""
        return min(self.workers, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    @property
    def uses_dali(self) -> bool:
        """Whether DALI is requested, or is installed and the loader is "auto"."""
        return self.loader in ("dali", "dali_cpu") or (self.loader == "auto" and dali.is_installed())


@dataclass(frozen=True)
class PhotoSet:
    """N image files with labels [N] int64, as images [N, C, size, size]; see `LabelledImages`.

    `skipped` maps names of files that could not be read to the reason; sets made from this one share it.
    """

    paths: Sequence[str]
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    size: int = 224
    loading: Loading = field(default_factory=Loading)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    skipped: dict[str, str] = field(default_factory=dict)
    framing: Framing = PUBLISHED

    def __post_init__(self) -> None:
        check_set_(self, len(self.paths), self.framing.channels)
        if self.framing != PUBLISHED and self.loading.loader in ("dali", "dali_cpu"):
            raise DataError(f"data.loader={self.loading.loader}: reads color photographs in the published crops; choose torch")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.framing.channels, self.size, self.size

    def take(self, indices: Tensor | slice) -> "PhotoSet":
        """The same set with some of its files."""
        chosen = torch.arange(len(self))[indices]
        return replace(self, paths=[self.paths[i] for i in chosen.tolist()], labels=self.labels[chosen])

    def some(self, count: int | None) -> "PhotoSet":
        """`count` files, evenly spaced because they are sorted by class; all of them for None or 0."""
        chosen = min(count or len(self), len(self))
        return self.take(torch.arange(chosen) * len(self) // max(chosen, 1))

    def pixels(self, indices: Tensor | slice = slice(None)) -> Tensor:
        """Decode some of the images without augmentation, [n, C, size, size] uint8.

        A corrupt file is replaced by the next image.

        Raises:
            DataError: none of them is an image.
        """
        return torch.stack([self._readable(i) for i in torch.arange(len(self))[indices].tolist()])

    def _readable(self, index: int) -> Tensor:
        for offset in range(len(self)):
            path = self.paths[(index + offset) % len(self)]
            try:
                return center_crop(path, size=self.size, framing=self.framing)
            except DataError as error:
                self.note_bad({path: str(error)})
        raise DataError(f"none of {len(self)} files is an image that can be read, {self.paths[0]} for one")

    def normalized(self, images: Tensor | None = None) -> Tensor:
        """Float images, (x/255 − mean)/std, [n, C, size, size] float32; all of the set's unless given as uint8."""
        return normalize(self.pixels() if images is None else images, self.mean, self.std)

    def to(self, device: torch.device) -> "PhotoSet":
        """The set with batches on another device."""
        return replace(self, device=device)

    def stream(
        self, batches: Sequence[Tensor], world: World, *, train: bool, seeds: Sequence[int] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `LabelledImages.stream`. A corrupt file is logged and counted in `skipped`.

        In training another image of its batch replaces it, so the batch size stays the same; in evaluation it is dropped.

        Raises:
            DataError: a training share without a single image.
        """
        shares = [world.share(batch).tolist() for batch in batches]
        require_pillow()
        if self.loading.uses_dali and self.framing == PUBLISHED:
            yield from self._stream_dali(shares, world, seeds, train=train)
            return
        starts = [len(batch) * world.rank // world.size for batch in batches]
        keys = [
            [(i, None if seeds is None else seeds[b] * 100_003 + start + at) for at, i in enumerate(share)]
            for b, (share, start) in enumerate(zip(shares, starts, strict=True))
        ]
        pin = self.device.type == "cuda"
        files = _Files(self.paths, self.size, self.framing)
        loader = DataLoader(
            files, batch_sampler=[batch for batch in keys if batch], num_workers=self.loading.processes,
            collate_fn=partial(_collate, keep_size=train), pin_memory=pin, worker_init_fn=_leave_signals_to_the_trainer,
        )  # fmt: skip
        for images, chosen, bad in loader:
            self.note_bad(bad)
            if len(images):
                yield images.to(self.device, non_blocking=pin), self.labels[chosen].to(self.device)
            elif train:
                raise DataError(f"a training batch without an image: {next(iter(bad.values()))}")

    def _stream_dali(
        self, shares: list[list[int]], world: World, seeds: Sequence[int] | None, *, train: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        files = dali.Files(self.paths, self.size, augment=seeds is not None, keep_size=train, note_bad=self.note_bad)
        device = torch.device("cpu") if self.loading.loader == "dali_cpu" else self.device
        seed = (seeds[0] if seeds else 0) + 7919 * world.rank
        for images, chosen in files.decode(shares, device=device, workers=self.loading.workers, seed=seed):
            yield images.to(self.device), self.labels[chosen].to(self.device)

    def note_bad(self, reasons: Mapping[str, str]) -> None:
        """Count corrupt files and log each once; with on_corrupt="refuse", raise an error for the first."""
        for path, reason in reasons.items():
            if self.loading.on_corrupt == "refuse":
                raise DataError(f"{reason}; remove it, or set data.on_corrupt=skip")
            if path not in self.skipped:
                self.skipped[path] = reason
                logger.warning("skipped %s (%d so far)", reason, len(self.skipped))


_Item = tuple[Tensor | None, int, str, str]  # pixels, index; or None, index, path and reason


class _Files(Dataset[_Item]):
    def __init__(self, paths: Sequence[str], size: int, framing: Framing) -> None:
        self.paths, self.size, self.framing = paths, size, framing

    def __getitem__(self, key: tuple[int, int | None]) -> _Item:
        index, seed = key
        path = self.paths[index]
        try:
            if seed is None:
                return center_crop(path, size=self.size, framing=self.framing), index, path, ""
            return random_crop(path, size=self.size, seed=seed, framing=self.framing), index, path, ""
        except DataError as error:
            return None, index, path, str(error)


def _collate(items: list[_Item], *, keep_size: bool) -> tuple[Tensor, Tensor, dict[str, str]]:
    good = [(pixels, index) for pixels, index, _, _ in items if pixels is not None]
    bad = {path: reason for pixels, _, path, reason in items if pixels is None}
    if good and keep_size:
        good += [good[i % len(good)] for i in range(len(items) - len(good))]
    if not good:
        return torch.empty(0), torch.empty(0, dtype=torch.int64), bad
    return torch.stack([pixels for pixels, _ in good]), torch.tensor([index for _, index in good]), bad


def _leave_signals_to_the_trainer(_: int) -> None:
    """Ignore signals in workers: a signal to the whole group must not end them before the trainer has saved its state."""
    for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])):
        signal.signal(number, signal.SIG_IGN)
