"""docs/coverage.md from the rows of coverage.py."""

from collections import Counter
from typing import Any

from coverage_stages import SPEC, STAGES

HEAD = """# Coverage

Written by `python benchmarks/coverage.py --page`; do not edit. One small model of each family of {package}, unmodified, with
random weights, on the smallest square images that it runs on: `nbsnn.check`, `quantize` ({weights}-bit weights, {acts}-bit
activations), the schedules `fixed`, `barrier` and `settle` in float64, `lower`, and both engines on both backends.

A model has one thread, and limits of time and memory; the machine did other work meanwhile, so *seconds* are upper bounds.
Rows are measured one by one and kept, so that a page may hold rows of several versions of the code.{commits}

* *through*: no neuron differs from the quantized network under `barrier` and `settle`, and all counts of the integer network
  are the same bits in both engines and backends. *steps*: of the slowest image under `settle`; *fixed*: neurons in percent that
  differ from the quantized network after T steps.
* *refused*: `nbsnn.check` says before quantization what spikes cannot represent. *not exact in spikes* is an independent list:
  the functions of the image that the network calls and that are neither affine nor a rectifier nor a pool.
"""


def summary(rows: list[dict[str, Any]]) -> str:
    """Counts of outcomes, and of the stages at which models stop."""
    exact = [row for row in rows if row.get("inexact") == []]
    outcomes = Counter(row["outcome"] for row in rows)
    stops = Counter(row["stage"] for row in rows if row["outcome"] == "stopped")
    stopped = ", ".join(f"{stops[stage]} at {stage}" for stage in STAGES if stops[stage])
    return (
        f"{len(rows)} families: {outcomes['through']} through, {outcomes['refused']} refused by check, {outcomes['stopped']} "
        f"stopped{f' ({stopped})' if stopped else ''}. Of the {len(exact)} made of kinds that can be exact, "
        f"{sum(row['outcome'] == 'through' for row in exact)} go through."
    )


def page(head: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The page as Markdown."""
    rows = sorted(rows, key=lambda row: row["family"])
    of = {outcome: [row for row in rows if row["outcome"] == outcome] for outcome in ("through", "refused", "stopped")}
    commits = f" These are of commits {head['commits']}." if "commits" in head else ""
    top = HEAD.format(package=head["package"], weights=SPEC.weight_bits, acts=SPEC.act_bits, commits=commits)
    parts = [top, summary(rows) + "\n"]
    if len(rows) < head.get("families", 0):
        parts.append(f"{head['families'] - len(rows)} families have not been measured yet.\n")
    if of["through"]:
        columns = ("family", "model", "image", "parameters", "neurons", "steps", "fixed", "seconds")
        parts += ["## Through\n", _table(columns, [_through(row) for row in of["through"]])]
    if of["refused"]:
        columns = ("family", "model", "refused because of", "not exact in spikes")
        cells = [
            (row["family"], _code(row), row["reason"], ", ".join(row.get("inexact", ["does not run on an image"])))
            for row in of["refused"]
        ]
        parts += ["## Refused by check\n", _table(columns, cells)]
    if of["stopped"]:
        columns = ("family", "model", "stage", "reason")
        cells = [(row["family"], _code(row), row["stage"], row["reason"]) for row in of["stopped"]]
        parts += ["## Stopped\n", _table(columns, cells)]
    return "\n".join(parts)


def _through(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["family"], _code(row), "×".join(map(str, row["image"])), f"{row['parameters']:,}", f"{row['neurons']:,}",
        str(row["settle"]["steps"]), f"{row['fixed']['off']:.1f}", f"{sum(row['seconds'].values()):.0f}",
    )  # fmt: skip


def _code(row: dict[str, Any]) -> str:
    return f"`{row['model']}`" if "model" in row else ""


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *(tuple(_cell(cell) for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 300 else text[:297] + "..."
