"""How many of the networks in pytorchcv go through unmodified: one small model of each family, and docs/coverage.md.

    pip install --no-deps pytorchcv==0.0.74
    python benchmarks/coverage.py [--families resnet vgg] [--jobs 2] [--seconds 300] [--memory 6] [--again stopped] [--page]

Each family's smallest model runs with random weights, and norms calibrated on random images, through `nbsnn.check`,
`quantize`, the schedules `fixed`, `barrier` and `settle` in float64, `lower`, and both engines on both backends of the integer
network, in a process of its own. Nothing is downloaded. Rows are added to a JSON file one by one, so that an interrupted run
is continued by the same command; --again measures rows of an outcome once more.
"""

import argparse
import json
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from coverage_models import families
from coverage_page import page, summary
from coverage_stages import run
from measure import Rows, machine
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nbsnn.files import write_text

RESULTS = Path(__file__).parent / "results" / "coverage.json"
PAGE = Path(__file__).parent.parent / "docs" / "coverage.md"


class Job:
    """A model that runs in a process; its row so far."""

    def __init__(self, names: list[str], known: dict[str, Any], args: argparse.Namespace) -> None:
        context = multiprocessing.get_context("fork")  # torch is imported once; the parent computes nothing
        self.connection, other = context.Pipe(duplex=False)
        self.row: dict[str, Any] = known | {"outcome": None}
        self.process = context.Process(target=_child, args=(names, known, args.memory, other))
        self.process.start()
        other.close()
        self.end = time.monotonic() + args.seconds

    def receive(self, seconds: float) -> bool:
        """Read what has arrived; whether the process has ended, or its time is over."""
        try:
            while self.connection.poll():
                self.row |= self.connection.recv()
            if time.monotonic() < self.end and self.row["outcome"] is None:
                return False
            reason = f"takes longer than {seconds:g} s"
        except EOFError:
            reason = "the process died"
        if self.row["outcome"] is None:
            self.row |= {"outcome": "stopped", "reason": reason}
        self.process.kill()
        self.process.join()
        return True


def _child(names: list[str], row: dict[str, Any], memory: float, connection: Connection) -> None:
    run(names, row, memory, connection.send)


def measure(waiting: list[tuple[list[str], dict[str, Any]]], rows: Rows, args: argparse.Namespace, console: Console) -> None:
    """Run all models, `jobs` at a time."""
    running: list[Job] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(waiting))
        queue = list(waiting)
        while queue or running:
            while queue and len(running) < args.jobs:
                running.append(Job(*queue.pop(0), args))
            wait([job.connection for job in running], timeout=0.5)
            for job in list(running):
                if job.receive(args.seconds):
                    running.remove(job)
                    rows.add(job.row)
                    progress.advance(task)
                    console.print(_line(job.row), highlight=False, markup=False, soft_wrap=True)
            names = ", ".join(f"{job.row['family']} ({job.row.get('stage', '')})" for job in running)
            progress.update(task, description=names, refresh=True)


def _line(row: dict[str, Any]) -> str:
    where = f" at {row['stage']}: {row.get('reason', '')}" if row["outcome"] != "through" else ""
    return f"{row['family']:24} {row.get('model', '')!s:28} {row['outcome']}{where}"


def main() -> None:
    """Measure what is missing, print a summary, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", metavar="FAMILY", help="files of pytorchcv/models; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--seconds", type=float, default=600, help="time limit of a model")
    parser.add_argument("--memory", type=float, default=6, help="memory limit of a model, in GiB")
    parser.add_argument(
        "--again", nargs="+", default=[], choices=["through", "refused", "stopped"], help="outcomes to measure again"
    )
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="write docs/coverage.md")
    args = parser.parse_args()
    known = families()
    unknown = set(args.families or ()) - set(known)
    if unknown:
        parser.error(f"no such families: {', '.join(sorted(unknown))}")
    head = {"kind": "coverage", "machine": machine(threads=1), "package": "pytorchcv 0.0.74", "families": len(known)}
    rows, console = Rows(args.json, head), Console(width=None if sys.stdout.isatty() else 120)
    chosen = args.families or list(known)
    earlier = {row["family"]: row for row in rows.read()}
    again = {name for name, row in earlier.items() if name in chosen and row["outcome"] in args.again}
    if again:
        kept = [row for name, row in earlier.items() if name not in again]
        write_text(args.json, json.dumps(head | {"rows": kept}, indent=1) + "\n")
    search = {name: {key: row[key] for key in ("model", "image") if key in row} for name, row in earlier.items()}
    waiting = [
        (known[name], {"family": name} | search.get(name, {})) for name in chosen if name in again or name not in earlier
    ]
    measure(waiting, rows, args, console)
    console.print(summary(rows.read()), highlight=False, markup=False)
    if args.page:
        write_text(PAGE, page(head, rows.read()))


if __name__ == "__main__":
    main()
