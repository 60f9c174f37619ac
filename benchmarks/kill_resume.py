"""Kills a real training run at random moments, lets it go on each time, and compares its weights with an untouched run's.

    python benchmarks/kill_resume.py [--times 100] [--seed 0]

The run is `nbsnn train` on digits, ResNet-20, a float phase and a 2-bit one that it teaches, with averaged weights, norm
statistics taken anew, and a training state after each step. A kill is SIGKILL after a random number of states were written,
so it strikes in the middle of steps, of writing, and of changing phases. When a run survives to its end, the next one starts
anew, until there were `--times` kills.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from nbsnn.tensorfile import read_tensors

RECIPE = """
[model]
name = "cifar10/resnet20"
in_channels = 1
image_size = 8
[data]
name = "digits"
validation = 1300
batch_size = 16
[optim]
schedule = "cosine"
norm_batches = 2
[phase.32]
epochs = 1
average = 0.9
[phase.2]
epochs = 2
distill = 0.5
average = 0.9
"""
PHASES = ("32bit", "2bit")
LONGEST_WAIT = 9  # states
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # one thread: the network is tiny


def command(recipe: Path, out: Path) -> list[str]:
    """The training run."""
    words = ["-m", "nbsnn", "train", "--recipe", str(recipe), "--out", str(out), "--save-every", "0", "--device", "cpu"]
    return [sys.executable, *words]


def write_recipe(folder: Path) -> Path:
    """The short recipe, as a file."""
    path = folder / "short.toml"
    path.write_text(RECIPE)
    return path


def run_whole(recipe: Path, out: Path, *options: str) -> None:
    """Run to the end."""
    subprocess.run([*command(recipe, out), *options], check=True, capture_output=True, env=ENVIRONMENT)


def run_and_kill(recipe: Path, out: Path, states: int) -> bool:
    """Kill the run when it has written so many training states; False if it ended before."""
    process = subprocess.Popen(command(recipe, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT)
    seen: set[int] = set()
    while process.poll() is None and len(seen) < states:
        seen.update(_stamps(out))
        time.sleep(0.001)
    if process.poll() is None:
        process.kill()
    error = process.communicate()[1].decode()
    if process.returncode not in (0, -9):
        raise RuntimeError(error)
    return process.returncode == -9


def _stamps(out: Path) -> set[int]:
    stamps = set()
    for state in out.glob("*/training.safetensors"):
        try:
            stamps.add(state.stat().st_mtime_ns)
        except FileNotFoundError:  # a phase ended in between
            continue
    return stamps


def differences(first: Path, second: Path) -> list[str]:
    """Names of the tensors that are not equal bit for bit, over all phases' best and last checkpoints."""
    names = []
    for phase in PHASES:
        for file in ("best.safetensors", "last.safetensors"):
            a, b = (read_tensors(folder / phase / file)[1] for folder in (first, second))
            names += [f"{phase}/{file}: {key}" for key in a if key not in b or not torch.equal(a[key], b[key])]
    return names


def main() -> None:
    """Kill, resume, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100, help="kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    moments, console = random.Random(args.seed), Console()
    kills = runs = wrong = 0
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as progress:
        bar = progress.add_task("kills", total=args.times)
        recipe, reference, victim = write_recipe(Path(folder)), Path(folder) / "reference", Path(folder) / "victim"
        run_whole(recipe, reference)
        while kills < args.times:
            while kills < args.times and run_and_kill(recipe, victim, moments.randint(1, LONGEST_WAIT)):
                kills += 1
                progress.advance(bar)
            run_whole(recipe, victim)
            runs += 1
            wrong += bool(differences(reference, victim))
            shutil.rmtree(victim)
    console.print(f"{kills} kills in {runs} runs; {wrong} runs ended with other weights than the untouched one")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
