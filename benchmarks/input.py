"""Speed of reading photographs: DALI on the CPU, DALI on the GPU if there is one, and the torch loader, in one run.

    python benchmarks/input.py TREE [--threads 2] [--batch 32] [--images 512] [--repeats 5] [--json FILE]

TREE is `train/<class>/*.JPEG` and `val/<class>/*.JPEG`; its files are repeated until there are `--images`.
Every loader has as many threads (DALI) or worker processes (torch). They run in turns, so that a drift of the machine's speed
affects all of them; a ratio is the median over the repeats of a loader's speed over the torch loader's in the same repeat. The
first pass, which reads files from disk and loads libraries, is not timed. Then the validation pipelines are
compared: pixels in levels of 255, and the logits of an AlexNet with fixed random weights.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from measure import machine, wait_for_device
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import nbsnn
from nbsnn.data.dali import is_installed
from nbsnn.data.images import Batches, Splits
from nbsnn.data.photos import Loading, PhotoSet
from nbsnn.data.trees import load_tree


def loaders() -> dict[str, torch.device]:
    """Loader → device of its batches."""
    found = {"torch": torch.device("cpu")}
    if is_installed():
        found["dali_cpu"] = torch.device("cpu")
        if torch.cuda.is_available():
            found["dali"] = torch.device("cuda")
    return found


def stretched(data: PhotoSet, count: int) -> PhotoSet:
    """The set's files, repeated until there are `count`."""
    return data.take(torch.arange(count) % len(data))


def images_per_second(data: PhotoSet, batch: int, *, train: bool, epoch: int) -> float:
    """Over one pass."""
    start, seen = time.perf_counter(), 0
    for images, _ in Batches(data, batch, shuffle=train, augment=train, epoch=epoch):
        seen += len(images)
    wait_for_device()
    return seen / (time.perf_counter() - start)


def speeds(splits: Splits, args: argparse.Namespace, progress: Progress) -> list[dict[str, float | str]]:
    """A row for each loader and kind of pass."""
    rows = []
    for train in (True, False):
        sets = {}
        for name, device in loaders().items():
            part = stretched(splits.train if train else splits.test, args.images)
            sets[name] = replace(part, loading=Loading(name, args.threads), device=device)
        task = progress.add_task("training" if train else "validation", total=len(sets) * (args.repeats + 1))
        found: dict[str, list[float]] = {name: [] for name in sets}
        for repeat in range(args.repeats + 1):
            for name, data in sets.items():
                speed = images_per_second(data, args.batch, train=train, epoch=repeat)
                progress.advance(task)
                if repeat:
                    found[name].append(speed)
        rows += [
            {
                "pass": "training" if train else "validation", "loader": name,
                "images_per_second": statistics.median(values), "slowest": min(values), "fastest": max(values),
                "ratio": statistics.median(a / b for a, b in zip(values, found["torch"], strict=True)),
            }
            for name, values in found.items()
        ]  # fmt: skip
    return rows


@torch.inference_mode()
def parity(data: PhotoSet, threads: int) -> dict[str, float]:
    """How far the validation images of DALI on the CPU are from the torch loader's, and the logits of a fixed network."""
    torch.manual_seed(0)
    net = nbsnn.build_model("imagenet/alexnet").eval()
    net(data.take(slice(0, 2)).normalized())
    scale = 255 * torch.tensor(data.std).view(3, 1, 1)
    differences, largest, logits, spread = [], 0.0, 0.0, 0.0
    pairs = zip(*(Batches(replace(data, loading=Loading(n, threads)), 8) for n in ("torch", "dali_cpu")), strict=True)
    for (first, _), (second, _) in pairs:
        levels = ((first - second) * scale).abs()
        differences.append(float(levels.mean()))
        largest = max(largest, float(levels.max()))
        a, b = net(first), net(second)
        logits, spread = max(logits, float((a - b).abs().max())), max(spread, float(a.abs().max()))
    return {
        "images": len(data), "mean_levels": statistics.mean(differences), "largest_levels": largest,
        "largest_logit_difference": logits, "largest_logit": spread,
    }  # fmt: skip


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, metavar="TREE")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    splits, console = load_tree(args.tree), Console()
    with Progress(console=console, transient=True) as progress:
        rows = speeds(splits, args, progress)
    table = Table(title=f"Photographs to batches of {args.batch}, {args.threads} threads or worker processes")
    for column in ("pass", "loader", "images/s", "slowest", "fastest", "over torch"):
        table.add_column(column, justify="left" if column in ("pass", "loader") else "right")
    for row in rows:
        numbers = (f"{row[k]:.0f}" for k in ("images_per_second", "slowest", "fastest"))
        table.add_row(str(row["pass"]), str(row["loader"]), *numbers, f"{row['ratio']:.2f}")
    console.print(table)
    same = parity(splits.test, args.threads) if is_installed() else None
    console.print(same or "DALI is not installed: only the torch loader was measured")
    if args.json:
        here = machine(args.threads, gpu=torch.cuda.is_available())
        report = {"kind": "input", "machine": here, "batch": args.batch, "images": args.images, "rows": rows, "parity": same}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
