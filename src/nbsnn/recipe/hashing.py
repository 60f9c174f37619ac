"""The content of a recipe's hash, chosen so that hashes of earlier versions do not change."""

from typing import Any

from nbsnn.aliases import former_names

# Settings of the data that say where and how they are read.
NOT_DECIDING = ("root", "download", "loader", "workers", "on_corrupt", "classes")
# Computed from the training images: what they are follows from those.
COMPUTED = {"mean": (), "std": ()}
_LATER: dict[str, dict[str, Any]] = {
    "optim": {"accumulate": 1, "lr_batch_size": 0, "freeze_norms": False, "temperature": 4.0, "recalibrate_batches": 0},
    "model": {"args": {}},
    "data": {
        "padding": "black",
        "image_size": 0,
        "channels": 3,
        "center": 0.875,
        "crop_area": 0.1,
        "flip": True,
        "normalization": "imagenet",
        "mean": (),
        "std": (),
        "split": 0.0,
    },
    "quant": {"weight_format": "apot", "layers": {}, "edges": None, "scale": None, "norms": "recalibrate"},
    "phase": {"distill": 0.0, "refit_scales": False, "ema_decay": 0.0},
}


def hashed(table: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The content of a hash: later settings only if used, and all under their first names, so earlier hashes do not change."""
    return former_names(table, {k: v for k, v in settings.items() if _LATER[table].get(k, ...) != v})
