"""Kill a training run at random moments, resume it each time, and compare its weights with those of an uninterrupted run.

    python benchmarks/kill_resume.py [--times 100] [--damage 20] [--seed 0]

The run is `nbsnn train` on digits, ResNet-20, with a float phase and a 2-bit phase with distillation, EMA of the weights,
recalibrated batch norm, and a training state after each step. A kill is SIGKILL after a random number of written states, so it
happens during steps, writes and changes of phase. When a run finishes, another one starts, until there were `--times` kills.

After `--damage` of the kills the newest training state is damaged, by flipping a bit or truncating it. The resumed run must
report that it uses the state before it, and end with the same weights.
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
from typing import NamedTuple

import torch
from digits_recipe import digits_recipe
from rich.console import Console
from rich.progress import Progress

from nbsnn.tensorfile import read_tensors

TABLES = """\
[optim]
schedule = "cosine"
recalibrate_batches = 2
[phase.32]
epochs = 1
ema_decay = 0.9
[phase.2]
epochs = 2
distill = 0.5
ema_decay = 0.9
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
    path.write_text(digits_recipe(TABLES, validation=1300, batch_size=16))
    return path


def run_whole(recipe: Path, out: Path, *options: str) -> str:
    """Run to the end; returns its output."""
    done = subprocess.run([*command(recipe, out), *options], check=True, capture_output=True, env=ENVIRONMENT)
    return done.stderr.decode()


class Killed(NamedTuple):
    """Outcome of a run: whether it was killed before its end, and its output."""

    killed: bool
    said: str


def run_and_kill(recipe: Path, out: Path, states: int) -> Killed:
    """Kill the run when it has written this many training states."""
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
    return Killed(process.returncode == -9, error)


def damage(out: Path, draws: random.Random) -> Path | None:
    """Flip a bit of the newest training state, or cut it short; None if there is no state before it to resume from."""
    for state in out.glob("*/training.safetensors"):
        if not state.with_name("training.previous.safetensors").is_file():
            continue
        content = bytearray(state.read_bytes())
        place = draws.randrange(len(content))
        if draws.random() < 0.5:
            content[place] ^= 1 << draws.randrange(8)
        else:
            content = content[:place]
        state.write_bytes(content)
        return state
    return None


def tells(said: str, state: Path) -> bool:
    """Whether a run reports that it resumes from the state before a damaged one."""
    return any(line.startswith(f"{state}: ") and "resuming from the state before it" in line for line in said.splitlines())


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
    """Kill, damage, resume, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100, help="kills")
    parser.add_argument("--damage", type=int, default=0, help="number of kills after which the newest state is damaged")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    args = parser.parse_args()
    draws, console = random.Random(args.seed), Console()
    kills = runs = wrong = damaged = unsaid = 0
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as progress:
        bar = progress.add_task("kills", total=max(args.times, args.damage))
        recipe, reference, victim = write_recipe(Path(folder)), Path(folder) / "reference", Path(folder) / "victim"
        run_whole(recipe, reference)
        while kills < args.times or damaged < args.damage:
            hurt: Path | None = None
            while kills < args.times or damaged < args.damage:
                # At least two states: one is written when a run starts, so before that there is no state to damage.
                run = run_and_kill(recipe, victim, draws.randint(1 if hurt is None else 2, LONGEST_WAIT))
                unsaid += hurt is not None and not tells(run.said, hurt)
                hurt = None
                if not run.killed:
                    break
                kills += 1
                progress.advance(bar)
                hurt = damage(victim, draws) if damaged < args.damage else None
                damaged += hurt is not None
            said = run_whole(recipe, victim)
            unsaid += hurt is not None and not tells(said, hurt)
            runs += 1
            wrong += bool(differences(reference, victim))
            shutil.rmtree(victim)
    console.print(f"{kills} kills in {runs} runs; {wrong} runs ended with other weights than the untouched one")
    if args.damage:
        console.print(
            f"{damaged} newest states were damaged; {damaged - unsaid} runs went on from the state before and said so"
        )
    sys.exit(1 if wrong or unsaid else 0)


if __name__ == "__main__":
    main()
