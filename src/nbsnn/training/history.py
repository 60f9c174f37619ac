"""What a phase of training leaves behind: two checkpoints, and its log as CSV and as JSON lines."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbsnn.checkpoint import recipe_of
from nbsnn.errors import CheckpointError
from nbsnn.files import write_text
from nbsnn.recipe import Recipe
from nbsnn.tensorfile import read_tensors
from nbsnn.training.observer import Epoch
from nbsnn.training.state import BEST_FILE, LAST_FILE, STATE_FILE

_LINES = "log.jsonl"


@dataclass(frozen=True)
class FitResult:
    """Paths of the checkpoints and the log of a finished phase."""

    best: Path
    last: Path
    history: list[Epoch]

    @property
    def best_epoch(self) -> Epoch:
        """The latest of those with the highest accuracy on the validation images, whose network `best` holds."""
        return max(self.history, key=lambda row: (row.top1, row.epoch))

    @property
    def best_is_last(self) -> bool:
        """Whether both files hold the same network."""
        return self.best_epoch.epoch == self.history[-1].epoch


def finished_phase(recipe: Recipe, bits: int, out: Path, start: str | None = None) -> FitResult | None:
    """The result of the phase with these bits, if it ran to its end in `out` under this recipe; later phases may differ.

    Args:
        start: as in `fit`: a phase of a run with another start does not count. Any one does unless given.
    """
    best, last = out / BEST_FILE, out / LAST_FILE
    if (out / STATE_FILE).exists() or not last.is_file():
        return None
    header, _ = read_tensors(last)
    its = recipe_of(header)
    if its is None or str(bits) not in its.phase or its.until(bits).hash != recipe.until(bits).hash:
        return None
    if header["metrics"].get("epoch") != recipe.phase[str(bits)].epochs:
        return None
    if start is not None and header["metrics"].get("start", "") != start:
        return None
    rows = read_history(out)
    if not rows:
        raise CheckpointError(
            f"{out / _LINES}: missing beside its checkpoints; restore it, or train the phase anew (--overwrite)"
        )
    return FitResult(best, last, [Epoch(**row) for row in rows])


def read_history(out: Path) -> list[dict[str, Any]]:
    """What `write_history` wrote; nothing if there is no log."""
    log = out / _LINES
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def write_history(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the epochs so far, each a dictionary of `Epoch`'s fields, to `log.csv` and `log.jsonl`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "log.csv", text.getvalue())
    write_text(out / _LINES, "".join(json.dumps(row) + "\n" for row in rows))
