"""Rows of tables from the figures of a report, for the terminal."""

from typing import Any

ACCURACY_COLUMNS = ("form", "images", "top-1 %", "95 % interval", "agrees %", "neurons off %", "steps, max")


def accuracy_rows(figures: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns, and a row for each form that was measured."""
    rows: list[tuple[str, ...]] = []
    for row in figures["accuracy"] or ():
        steps = "-" if row["steps"] is None else f"{row['steps']:.1f}, {row['max_steps']}"
        rows.append((row["name"], str(row["images"]), f"{row['top1']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}",
                     _or_dash(row["agreement"], ".2f"), _or_dash(row["off"], ".3f"), steps))  # fmt: skip
    return ACCURACY_COLUMNS, rows


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
