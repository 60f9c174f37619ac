"""Decoding and augmentation by NVIDIA DALI, on the CPU or on the GPU.

Every pass builds a pipeline for the files of its batches, in order. As for every loader, the order, the shares of processes and
the point where a resumed run continues are determined outside. DALI draws the crops.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbsnn.data.decode import CROP_AREA, CROP_RATIO, RESIZE, open_picture
from nbsnn.errors import DataError

INSTALL = "pip install nvidia-dali-cuda120  (or -cuda130), or use the torch loader (data.loader=torch)"
_LOOK_AHEAD = 4  # batches that DALI may have started when it stops at a corrupt file


def is_installed() -> bool:
    """Whether nvidia-dali is installed; it is not imported."""
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False


@dataclass(frozen=True)
class Files:
    """Image files with random crops and flips (`augment`), or with center crops.

    `note_bad` is called with files that are not images, and the reason; with `keep_size` other files of the batch replace them.
    """

    paths: Sequence[str]
    size: int
    augment: bool
    keep_size: bool
    note_bad: Callable[[Mapping[str, str]], None]

    def decode(
        self, batches: list[list[int]], *, device: torch.device, workers: int, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (images [B, 3, size, size] uint8 on `device`, indices [B] int64) for lists of indices.

        A file that is not an image stops DALI: it is found with Pillow and removed, and a new pipeline continues.

        Raises:
            DataError: DALI is not installed, fails for another reason than a corrupt file, or a batch with `keep_size` has no
                image left.
        """
        if not is_installed():
            raise DataError(f"the DALI loader needs nvidia-dali: {INSTALL}")
        left = [batch for batch in batches if batch]
        while left:
            try:
                for images, indices in self._run(left, device, workers, seed + len(left)):
                    left = left[1:] if self.keep_size else _without(left, len(indices))
                    yield images, indices
            except RuntimeError as error:
                left = self._without_bad(left, error)

    def _run(self, batches: list[list[int]], device: torch.device, workers: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

        order = list(chain.from_iterable(batches))
        pipeline = self._pipeline(order, max(map(len, batches)), device, workers, seed)
        iterator = DALIGenericIterator(
            pipeline, ["images", "indices"], reader_name="files", last_batch_policy=LastBatchPolicy.PARTIAL, auto_reset=False
        )
        for (batch,) in iterator:
            yield batch["images"], batch["indices"].flatten().long().cpu()

    def _pipeline(self, order: list[int], batch_size: int, device: torch.device, workers: int, seed: int) -> Any:
        from nvidia.dali import fn, pipeline_def, types

        on_gpu = device.type == "cuda"
        decoder = "mixed" if on_gpu else "cpu"

        @pipeline_def(  # type: ignore[untyped-decorator]
            batch_size=batch_size, num_threads=max(1, workers), seed=seed % 2**31,
            device_id=(device.index or 0) if on_gpu else None,
        )  # fmt: skip
        def pipeline() -> Any:
            files, indices = fn.readers.file(files=[self.paths[i] for i in order], labels=order, name="files")
            if self.augment:
                images = fn.decoders.image_random_crop(
                    files, device=decoder, random_area=list(CROP_AREA), random_aspect_ratio=list(CROP_RATIO), num_attempts=10
                )
                images = fn.resize(images, size=[self.size, self.size], interp_type=types.INTERP_TRIANGULAR)
                images = fn.flip(images, horizontal=fn.random.coin_flip())
            else:
                images = fn.decoders.image(files, device=decoder)
                images = fn.resize(images, resize_shorter=round(RESIZE * self.size), interp_type=types.INTERP_TRIANGULAR)
                images = fn.crop(images, crop=(self.size, self.size))
            return fn.transpose(images, perm=[2, 0, 1]), indices

        return pipeline()

    def _without_bad(self, batches: list[list[int]], error: RuntimeError) -> list[list[int]]:
        """The batches without the corrupt files among the next ones, which are passed to `note_bad`."""
        reasons = {}
        for index in chain.from_iterable(batches[:_LOOK_AHEAD]):
            try:
                open_picture(Path(self.paths[index]), self.paths[index])
            except DataError as reason:
                reasons[index] = str(reason)
        if not reasons:
            line = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
            raise DataError(f"DALI failed: {line.strip()}; try the torch loader (data.loader=torch)") from error
        self.note_bad({self.paths[index]: reason for index, reason in reasons.items()})
        cleaned = [[index for index in batch if index not in reasons] for batch in batches]
        if self.keep_size:
            if not all(cleaned):
                raise DataError(f"a training batch without an image: {next(iter(reasons.values()))}")
            cleaned = [
                good + [good[i % len(good)] for i in range(len(batch) - len(good))]
                for good, batch in zip(cleaned, batches, strict=True)
            ]
        return [batch for batch in cleaned if batch]


def _without(batches: list[list[int]], count: int) -> list[list[int]]:
    """The rest of consecutive batches after their first `count` members."""
    while batches and count >= len(batches[0]):
        count -= len(batches[0])
        batches = batches[1:]
    return [batches[0][count:], *batches[1:]] if batches and count else batches
