"""What the hash of a recipe is taken over, so that the hashes of earlier versions stand."""

from typing import Any

from nbsnn.aliases import former_names

# Settings of the data that say where and how they are read.
NOT_DECIDING = ("root", "download", "loader", "workers", "on_corrupt", "classes")
_LATER: dict[str, dict[str, Any]] = {
    "optim": {"accumulate": 1, "lr_batch_size": 0, "freeze_norms": False, "temperature": 4.0, "recalibrate_batches": 0},
    "data": {"padding": "black"},
    "quant": {"weight_format": "apot"},
    "phase": {"distill": 0.0, "refit_scales": False, "ema_decay": 0.0},
}


def hashed(table: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What a hash is taken over, so that those of earlier runs stand: later settings where used, all by their first names."""
    return former_names(table, {k: v for k, v in settings.items() if _LATER[table].get(k, ...) != v})
