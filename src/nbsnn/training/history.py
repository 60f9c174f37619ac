"""The output of a phase: two checkpoints, its log as CSV and as JSON lines, and its last training state."""

import csv
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from nbsnn.checkpoint import recipe_of
from nbsnn.errors import CheckpointError
from nbsnn.files import write_text
from nbsnn.recipe import Recipe
from nbsnn.tensorfile import Header, read_header, read_tensors
from nbsnn.training.folder import BEST_FILE, FINISHED_FILE, LAST_FILE, has_unfinished
from nbsnn.training.observer import Epoch

logger = logging.getLogger(__name__)

_TABLE, _LINES = "log.csv", "log.jsonl"


@dataclass(frozen=True)
class FitResult:
    """Paths of the checkpoints and the log of a finished phase; `best_epoch` is the epoch of the network in `best`."""

    best: Path
    last: Path
    history: list[Epoch]
    best_epoch: Epoch

    @property
    def best_is_last(self) -> bool:
        """Whether both files hold the same network."""
        return self.best_epoch.epoch == self.history[-1].epoch


def result_of(best: Path, last: Path, rows: Sequence[dict[str, Any]]) -> FitResult:
    """The result of a phase from its checkpoints and the rows of its log, at least one.

    The best epoch is the latest of those with the highest accuracy on the validation images, unless its network was lost, so
    the epoch is read from `best`.
    """
    history = [Epoch(**row) for row in rows]
    kept = (read_header(best) or {}).get("metrics", {}).get("epoch")
    ranked = sorted(history, key=lambda row: (row.epoch == kept, row.top1, row.epoch))
    return FitResult(best, last, history, ranked[-1])


def finished_phase(recipe: Recipe, bits: int, out: Path, start: str | None = None) -> FitResult | None:
    """The result of the phase with these bits, if it has finished in `out` with this recipe; later phases may differ.

    Also None if a checkpoint is damaged but the last training state exists, from which `fit` restores it.

    Args:
        start: as in `fit`: a phase of a run with another start is ignored. Unless given, any start is accepted.
    Raises:
        CheckpointError: a checkpoint or the log is damaged or missing and cannot be restored.
    """
    best, last = out / BEST_FILE, out / LAST_FILE
    if has_unfinished(out) or not last.is_file():
        return None
    try:
        header, _ = read_tensors(last)
        if not _is_of(header, recipe, bits, start):
            return None
        rows, kept = _rows_of(out, recipe.phase[str(bits)].epochs), read_tensors(best)[0]
        if not is_of_run(kept, recipe, bits, rows) or kept["metrics"].get("epoch") not in [row["epoch"] for row in rows]:
            raise CheckpointError(f"{best}: holds a network of another run; restore it from a copy")
        return result_of(best, last, rows)
    except CheckpointError as error:
        if (out / FINISHED_FILE).is_file():
            logger.warning("%s; resuming from %s, which restores it", error, out / FINISHED_FILE)
            return None
        raise CheckpointError(f"{error}; or delete {out} to train that phase again") from None


def _is_of(header: Header, recipe: Recipe, bits: int, start: str | None) -> bool:
    """Whether a checkpoint is from the last epoch of a phase."""
    if "metrics" not in header:  # not a trained network
        return False
    its, metrics = recipe_of(header), header["metrics"]
    if its is None or str(bits) not in its.phase or its.until(bits).hash != recipe.until(bits).hash:
        return False
    if metrics.get("epoch") != recipe.phase[str(bits)].epochs:
        return False
    return start is None or metrics.get("start", "") == start


def is_of_run(header: Header, recipe: Recipe, bits: int, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a checkpoint can be the best of a phase: its recipe, of any number of epochs, and its accuracy in the log."""
    its, metrics, name = recipe_of(header) if "metrics" in header else None, header.get("metrics", {}), str(bits)
    if its is None or name not in its.phase:
        return False
    as_long = replace(recipe.phase[name], epochs=its.phase[name].epochs)  # it may have been given more epochs since
    if its.until(bits).hash != replace(recipe, phase=recipe.phase | {name: as_long}).until(bits).hash:
        return False
    found = [row["top1"] for row in rows if row["epoch"] == metrics.get("epoch")]
    return not found or metrics.get("validation_top1", found[0]) in found


def _rows_of(out: Path, epochs: int) -> list[dict[str, Any]]:
    """The log of a finished phase, from its last training state if it exists, or else from the log files."""
    state = read_header(out / FINISHED_FILE)
    kept = state["history"] if state and state.get("epoch") == epochs else []
    rows = kept or read_history(out, until=epochs)
    if not rows:
        raise CheckpointError(f"{out / _LINES}: damaged or missing, and so is {_TABLE}; restore one of them from a copy")
    return rows


def read_history(out: Path, *, until: int) -> list[dict[str, Any]]:
    """The epochs up to `until` in the files of `write_history`, from the first file that has them all; else none."""
    for name, parse in _PARSERS:
        rows = _rows(out / name, parse)
        epochs = [row["epoch"] for row in rows]
        if epochs == sorted(set(epochs)) and until in epochs:
            return rows[: epochs.index(until) + 1]
    return []


def read_log(out: Path) -> list[dict[str, Any]]:
    """The epochs of a phase so far, finished or not: those of the longer log; none if both are missing or damaged."""
    return max((_rows(out / name, parse) for name, parse in _PARSERS), key=len)


def foreign_logs(out: Path) -> list[Path]:
    """Files with the names of logs that were not written by `write_history`."""
    return [out / name for name, parse in _PARSERS if (out / name).exists() and not _rows(out / name, parse)]


def write_history(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the epochs so far, each a dictionary of the fields of `Epoch`, to `log.csv` and `log.jsonl`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / _TABLE, text.getvalue())
    write_text(out / _LINES, "".join(json.dumps(row) + "\n" for row in rows))


def _rows(log: Path, parse: Callable[[str], Iterable[Any]]) -> list[dict[str, Any]]:
    """The epochs in a log; none if it is missing, or was not written by `write_history`."""
    try:
        return [asdict(_epoch(row)) for row in parse(log.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _parse_lines(text: str) -> Iterator[Any]:
    yield from (json.loads(line) for line in text.splitlines())


def _parse_table(text: str) -> Iterator[Any]:
    yield from csv.DictReader(text.splitlines())


def _epoch(row: Any) -> Epoch:
    """An epoch from a row of a log.

    Raises:
        ValueError, TypeError, KeyError: it has other columns, or a value that is not a number.
    """
    names = [f.name for f in fields(Epoch)]
    if set(row) != set(names):
        raise ValueError(f"columns {list(row)}")
    return Epoch(int(row["epoch"]), *(float(row[name]) for name in names[1:]))


_PARSERS: tuple[tuple[str, Callable[[str], Iterable[Any]]], ...] = ((_LINES, _parse_lines), (_TABLE, _parse_table))
