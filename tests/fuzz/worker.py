"""A process that makes tries, each decided by its seed, and writes a line of JSON about each."""

import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from fuzz import files, lines, networks, recipes, runs
from fuzz.corpus import Corpus
from fuzz.oracle import Failure

MOST_BYTES = 2**30  # that a try may take
Try = Callable[[random.Random, Corpus, Path], str]  # returns its outcome, "refused" or "accepted"; raises Failure
TRIES: list[tuple[int, Try]] = [
    (45, files.damaged),
    (20, files.other_header),
    (12, files.other_tensors),
    (5, files.other_layout),
    (3, files.other_archive),
    (8, recipes.random_recipe),
    (2, runs.damaged_run),
    (4, networks.random_network),
    (7, lines.random_line),
]


def one_try(seed: int, corpus: Corpus, only: list[str]) -> tuple[str, str]:
    """The outcome of a try, and what was wrong."""
    random_ = random.Random(seed)
    tries = [(weight, attempt) for weight, attempt in TRIES if not only or attempt.__name__ in only]
    attempt = random_.choices([attempt for _, attempt in tries], [weight for weight, _ in tries])[0]
    torch.manual_seed(seed)
    before = _peak(reset=True)
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        try:
            outcome = attempt(random_, corpus, Path(folder))
        except Failure as failure:
            return "failure", f"{attempt.__name__}: {failure}"
        except Exception:
            return "failure", f"{attempt.__name__}: {traceback.format_exc(limit=-12)}"
    more = _peak() - before
    if more > MOST_BYTES:
        return "failure", f"{attempt.__name__}: took {more / 2**20:.0f} MiB"
    return f"{attempt.__name__} {outcome}", ""


def _peak(*, reset: bool = False) -> int:
    """Bytes of memory that the process had at most since the last reset; Linux alone knows how to reset it."""
    with contextlib.suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _prepare(folder: Path) -> Corpus:
    torch.set_num_threads(1)
    corpus = Corpus(folder)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * MOST_BYTES,) * 2)  # so that a mistake costs this process alone
    return corpus


def replay(seed: int, only: list[str]) -> int:
    """Make one try, and print what it came to."""
    with tempfile.TemporaryDirectory() as folder:
        outcome, what = one_try(seed, _prepare(Path(folder)), only)
    sys.stdout.write(f"seed {seed}: {outcome}\n{what}\n")
    return 1 if outcome == "failure" else 0


def main() -> None:
    """Try seed after seed, until killed."""
    seed, patience, only = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    told = os.fdopen(os.dup(1), "w", buffering=1)  # what tries print to standard output goes nowhere
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        corpus = _prepare(Path(folder))
        while True:
            faulthandler.dump_traceback_later(patience, exit=True)
            outcome, what = one_try(seed, corpus, only)
            faulthandler.cancel_dump_traceback_later()
            told.write(json.dumps({"seed": str(seed), "outcome": outcome, "what": what}) + "\n")
            seed += 1


if __name__ == "__main__":
    main()
