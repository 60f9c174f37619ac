"""What affects the bits of a run's weights besides its recipe; stored in the training state, compared on resume.

The recipe's hash does not cover how and where a run is executed. Precision and training images affect weights as much as a
learning rate: a run is not resumed if they changed. Other conditions change the rounding of sums, or the shares of batches in
    norm layers: one line names those that changed.
"""

import hashlib
import logging
from collections.abc import Mapping
from importlib import metadata
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from nbsnn.data.images import LabelledImages, Splits
from nbsnn.distributed import warn, world
from nbsnn.errors import CheckpointError
from nbsnn.training.execution import Execution

logger = logging.getLogger(__name__)

Conditions = dict[str, str]

_REMEDIES = {  # of the conditions that must not change
    "precision": "use the same precision ({then})",
    "images": "use the same images",
    "first epoch": "use the same first epoch (first_epoch={then})",
}


def conditions_of(splits: Splits, execution: Execution, device: torch.device) -> Conditions:
    """The conditions of a run, as short strings by name."""
    return {
        "precision": "float32" if execution.autocast is None else "bf16",
        "convolutions": "TF32" if execution.tf32 else "as precision says",
        "algorithms": "deterministic" if torch.are_deterministic_algorithms_enabled() else "any",
        "images": f"{_fingerprint(splits.train)} {_fingerprint(splits.validation)}",
        "decoder": str(getattr(splits.train, "loading", "none")).partition(",")[0],
        "compiled": "yes" if execution.compiled else "no",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "instructions": torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else "none",
        "threads": str(torch.get_num_threads()) if device.type == "cpu" else "any",
        "processes": str(world().size),
        "torch": torch.__version__,
        "nbsnn": metadata.version("nbsnn"),
    }


def compare_conditions(then: Mapping[str, str], now: Mapping[str, str], where: Any) -> None:
    """Compare the conditions of a training state with those of the run that resumes it, or that starts from its network.

    Args:
        then: of the state; empty if it is from an earlier version.
        now: of the run.
        where: the folder of the state, for messages.
    Raises:
        CheckpointError: precision, images or first epoch differ. Other changes are logged in one line.
    """
    if not then:
        warn(logger, "%s: from an earlier version of nbsnn, which did not store precision and images; they may differ",
                       where)  # fmt: skip
        return
    changed = [name for name in now if name in then and then[name] != now[name]]
    for name in changed:
        if name in _REMEDIES:
            raise CheckpointError(
                f"{where} holds a run with {name} {then[name]}, and this one has {now[name]}; "
                f"{_REMEDIES[name].format(then=then[name])}, choose another folder, or overwrite it (overwrite=True)"
            )
    if changed:
        words = ", ".join(f"{name} {now[name]} (was {then[name]})" for name in changed)
        warn(logger, "%s: resumes with %s; the weights will not equal those of an uninterrupted run bit for bit", where, words)


def _fingerprint(images: LabelledImages) -> str:
    """12-digit hash of a set: labels, classes, normalization; pixels in memory, or names of files."""
    digest = hashlib.sha256(repr((tuple(images.classes), tuple(images.mean), tuple(images.std), images.shape)).encode())
    digest.update(_bytes(images.labels))
    pixels, paths = getattr(images, "images", None), getattr(images, "paths", ())
    if isinstance(pixels, Tensor):
        digest.update(_bytes(pixels))
    for path in paths:
        digest.update("/".join(PurePath(path).parts[-2:]).encode(errors="surrogateescape"))  # not the folder's location
    return digest.hexdigest()[:12]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
