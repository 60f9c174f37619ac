"""Random files, recipes and command lines against the library and `nbsnn.cli.main`, for a given time or number of tries.

    make fuzz SECONDS=600
    PYTHONPATH=tests python -m fuzz --tries 20000 --seed 7 --workers 2
    PYTHONPATH=tests python -m fuzz --replay 7000123          # one try again, with all that it does and says

A try fails with an exception that is not the package's, an error of more than one line, an exit code other than 0, 2 and 130,
more than a gibibyte of memory, no end within `--patience` seconds, a damaged file that loads as something else, an input that
is overwritten unasked, or two engines that differ. Every failure is printed with the seed that repeats it. Exits with 1 if
there was one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

STRIDE = 1_000_003  # between the seeds of workers
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}


class Worker:
    """A process that makes one try after the other, and is started anew where it dies."""

    def __init__(self, first: int, patience: float, only: list[str]) -> None:
        self.seed, self.patience, self.only = first, patience, only
        self.start()

    def start(self) -> None:
        """Go on with the seed that is next."""
        words = ["-m", "fuzz.worker", str(self.seed), str(self.patience), *self.only]
        self.tried = False  # since it was started
        here = Path(__file__).parents[1]
        self.said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (it lives as long as the process)
        self.process = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=self.said, text=True, cwd=here, env=ENVIRONMENT
        )

    def read(self) -> dict[str, str] | None:
        """What the next try came to; a process that ended is a failure of the try that it was in."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            result: dict[str, str] = json.loads(line)
            self.seed += 1
            self.tried = True
            return result
        code = self.process.wait()
        self.said.seek(0)
        what = f"the process ended with {code}:\n{self.said.read()[-4000:]}"
        result = {"seed": str(self.seed), "outcome": "failure", "what": what}
        if not self.tried:
            raise SystemExit(f"no try could be made: {what}")
        self.seed += 1
        self.start()
        return result


def say(text: str) -> None:
    """A line, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--tries", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--patience", type=float, default=20.0, help="seconds that a try may take")
    parser.add_argument("--only", nargs="*", default=[], help="kinds of tries, such as random_line; replay with the same")
    parser.add_argument("--replay", type=int, help="make the one try with this seed, and tell all of it")
    args = parser.parse_args()
    if args.replay is not None:
        from fuzz.worker import replay

        return replay(args.replay, args.only)
    workers = [Worker(args.seed + index * STRIDE, args.patience, args.only) for index in range(args.workers)]
    selector, began, counts, failures = DefaultSelector(), time.monotonic(), Counter[str](), []

    def watch(worker: Worker) -> None:
        assert worker.process.stdout is not None
        selector.register(worker.process.stdout, EVENT_READ, worker)

    for worker in workers:
        watch(worker)
    told = 0
    while sum(counts.values()) < args.tries and time.monotonic() - began < args.seconds:
        for key, _ in selector.select(timeout=1):
            worker = key.data
            result = worker.read()
            if worker.process.stdout is not key.fileobj:  # it was started anew
                selector.unregister(key.fileobj)
                watch(worker)
            counts[result["outcome"]] += 1
            if result["outcome"] == "failure":
                failures.append(result)
                say(f"\nseed {result['seed']}: {result['what']}")
        if sum(counts.values()) - told >= 500:
            told = sum(counts.values())
            say(f"{told} tries in {time.monotonic() - began:.0f} s, {len(failures)} failed")
    for worker in workers:
        worker.process.kill()
        worker.process.wait()
    say(f"{sum(counts.values())} tries in {time.monotonic() - began:.0f} s")
    for name, count in sorted(counts.items()):
        say(f"{count:7} {name}")
    if failures:
        say(f"repeat with --replay: {' '.join(f['seed'] for f in failures)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
