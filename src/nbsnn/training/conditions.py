"""What affects the bits of a run's weights besides its recipe; stored in the training state, compared on resume.

The recipe's hash does not cover how and where a run is executed. Precision and training images affect weights as much as a
learning rate: a run is not resumed if they changed. Other conditions change the rounding of sums, the decoding of files, or the
shares of batches in norm layers: one line names those that changed.
"""

import hashlib
import logging
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from nbsnn import fused
from nbsnn.data.images import LabelledImages, Splits
from nbsnn.device import cpu_model
from nbsnn.distributed import warn, world
from nbsnn.errors import CheckpointError
from nbsnn.precision import product_precision
from nbsnn.training.execution import Execution

logger = logging.getLogger(__name__)

_MEASURED_FILES = 1000  # of a set, about; on a network drive a look at each of a million takes minutes

Conditions = dict[str, str]

_REMEDIES = {  # of the conditions that must not change
    "precision": "use the same precision ({then})",
    "images": "use the same images",
    "image files": "use the same files",
    "first epoch": "use the same first epoch (first_epoch={then})",
}


def conditions_of(splits: Splits, execution: Execution, device: torch.device) -> Conditions:
    """The conditions of a run, as short strings by name."""
    return {
        "precision": "float32" if execution.autocast is None else "bf16",
        "convolutions": "TF32" if execution.tf32 else "as precision says",
        "products": product_precision(),
        "algorithms": "deterministic" if torch.are_deterministic_algorithms_enabled() else "any",
        "images": f"{_fingerprint(splits.train)} {_fingerprint(splits.validation)}",
        "image files": _file_sizes(splits),
        "decoder": str(getattr(splits.train, "loading", "none")).partition(",")[0],
        "Pillow": _version("pillow") if hasattr(splits.train, "paths") else "none",
        "compiled": "yes" if execution.compiled else "no",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **(_of_gpu() if device.type == "cuda" else _of_cpu() if device.type == "cpu" else {}),
        "processes": str(world().size),
        "torch": torch.__version__,
        "nbsnn": metadata.version("nbsnn"),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _of_cpu() -> Conditions:
    tiny = torch.tensor(2.0**-130)
    return {
        "processor": cpu_model()[:100],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "oneDNN": "on" if torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled else "off",  # type: ignore[no-untyped-call]
        "quantizers": "torch" if fused.obstacle() else "C++",
        "denormals": "kept" if bool(tiny * 1 > 0) else "flushed to zero",
        "threads": str(torch.get_num_threads()),
    }


def _of_gpu() -> Conditions:
    return {"instructions": "none", "threads": "any", "cuDNN": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]


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


def _file_sizes(splits: Splits) -> str:
    """12-digit hash of the sizes of some of the image files, which shows that a tree was resized; "none" without files."""
    parts = [getattr(part, "paths", ()) for part in (splits.train, splits.validation)]
    chosen = [path for paths in parts for path in paths[:: max(1, len(paths) // _MEASURED_FILES)]]
    sizes = [Path(path).stat().st_size if Path(path).is_file() else -1 for path in chosen]
    return hashlib.sha256(repr(sizes).encode()).hexdigest()[:12] if chosen else "none"


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
