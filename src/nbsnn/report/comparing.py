"""Reports side by side: what fell by more than a margin."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nbsnn.errors import ConfigError
from nbsnn.files import check_readable
from nbsnn.recipe import FLOAT_BITS

_SCRIPT = re.compile(r'<script type="application/json" id="figures">(.*?)</script>', re.DOTALL)


@dataclass(frozen=True)
class Standing:
    """One form of one report: accuracy with its interval (None if not known), neurons off in percent, on how many images."""

    top1: float
    images: int
    low: float | None = None
    high: float | None = None
    off: float | None = None


@dataclass(frozen=True)
class ReportComparison:
    """Result of `compare_reports`.

    Attributes:
        names: of the reports, the first one being what the others are compared with.
        forms: form → its standing in each report, None where a report lacks it.
        sizes: quantity → its value in each report.
        fallen: what fell by more than the margins, one line each.
        remarks: what makes the comparison weaker, one line each.
    """

    names: tuple[str, ...]
    forms: dict[str, tuple[Standing | None, ...]]
    sizes: dict[str, tuple[float | None, ...]]
    fallen: tuple[str, ...]
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"kind": "comparison"} | asdict(self)


def read_report(path: Path) -> dict[str, Any] | None:
    """The figures in an HTML or JSON file written by `nbsnn report`; None for a file of another kind.

    Raises:
        CheckpointError: the file cannot be read.
        ConfigError: an HTML or JSON file that nbsnn did not write, or a damaged one.
    """
    if path.suffix.lower() not in (".html", ".htm", ".json"):
        return None
    check_readable(path, "report")
    try:
        text = path.read_text(encoding="utf-8")
        found = _SCRIPT.search(text)
        figures = json.loads(found[1] if found else text)
    except (ValueError, RecursionError):
        figures = None
    if not isinstance(figures, dict) or figures.get("kind") not in ("report", "accuracy"):
        raise ConfigError(f"{path}: is not a report of nbsnn, or is damaged; write it again with nbsnn report")
    return figures


def compare_reports(
    names: Sequence[str], reports: Sequence[dict[str, Any]], *, margin: float = 0.0, off_margin: float = 0.0
) -> ReportComparison:
    """Compare reports with the first one, form by form.

    Args:
        names: of the reports.
        reports: figures of `nbsnn.write_report`, of `nbsnn report --out`, at least two.
        margin: points of accuracy that a form may fall by.
        off_margin: points by which the share of neurons off may rise.
    """
    if len(reports) < 2:
        raise ConfigError("compare takes two or more runs, checkpoints or reports")
    standings = [standings_of(figures) for figures in reports]
    known = list(dict.fromkeys(form for each in standings for form in each))
    forms = {form: tuple(each.get(form) for each in standings) for form in known}
    fallen, remarks = [], []
    for form, (first, *others) in forms.items():
        for name, other in zip(names[1:], others, strict=True):
            if first is None or other is None:
                continue
            if first.top1 - other.top1 > margin:
                fallen.append(f"{form}: {other.top1:.2f} % in {name}, {first.top1 - other.top1:.2f} points below {names[0]}")
            if first.off is not None and other.off is not None and other.off - first.off > off_margin:
                fallen.append(f"{form}: {other.off:.3f} % of neurons off in {name}, {first.off:.3f} % in {names[0]}")
            if first.images != other.images:
                remarks.append(f"{form}: {first.images} images in {names[0]}, {other.images} in {name}")
    for name, figures in zip(names[1:], reports[1:], strict=True):
        if _data_of(figures) != _data_of(reports[0]):
            remarks.append(f"data: {_data_of(reports[0])} in {names[0]}, {_data_of(figures)} in {name}")
    for name, each in zip(names, standings, strict=True):
        if not each:
            remarks.append(f"{name}: has no accuracies")
    return ReportComparison(tuple(names), forms, _sizes(reports), tuple(fallen), tuple(remarks))


def standings_of(figures: dict[str, Any]) -> dict[str, Standing]:
    """Form → its standing, from the figures of a report of either kind."""
    if figures["kind"] == "report":
        return {
            row["name"]: Standing(row["top1"], row["images"], row["low"], row["high"], row["off"])
            for row in figures["accuracy"] or ()
        }
    found = {}
    for phase in figures["phases"]:
        title = "float" if phase["bits"] == FLOAT_BITS else f"{phase['bits']} bits"
        found[title] = Standing(phase["best_top1"], figures["test_images"])
        for row in phase.get("spiking", ()):
            found[f"{title}, {row['neuron']} {row['schedule']}"] = Standing(
                row["top1"], phase["spiking_images"], off=row["off"]
            )
    return found


def _data_of(figures: dict[str, Any]) -> str | None:
    data = figures.get("data")
    return data["name"] if isinstance(data, dict) else data


def _sizes(reports: Sequence[dict[str, Any]]) -> dict[str, tuple[float | None, ...]]:
    words = {"parameters": "parameters", "timesteps": "T", "packed_bytes": "bytes of weights at their bits"}
    sizes: dict[str, tuple[float | None, ...]] = {
        text: tuple((figures.get("network") or {}).get(key) for figures in reports) for key, text in words.items()
    }
    ways = list(dict.fromkeys(way["name"] for figures in reports for way in figures.get("energy") or ()))
    for name in ways:
        found = [next((w for w in figures.get("energy") or () if w["name"] == name), None) for figures in reports]
        sizes[f"synaptic additions per image, {name}"] = tuple(way and way["per_image"]["additions"] for way in found)
    return {text: values for text, values in sizes.items() if any(value is not None for value in values)}
