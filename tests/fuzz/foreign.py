"""The native kernel on another processor: compile it, run random networks there, and compare every bit with this machine's.

python tests/fuzz/foreign.py [--compiler aarch64-linux-gnu-g++] [--run qemu-aarch64] [--networks 20]

Debian has both programs in g++-aarch64-linux-gnu and qemu-user. No Python is needed on the other processor: the calls of the C
interface are recorded here and replayed there by `replay.cpp`, under --run (empty for a compiler of this machine).
"""

import argparse
import ctypes
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parent.parent.parent
NATIVE = ROOT / "src" / "nbsnn" / "integer" / "native"
sys.path.insert(0, str(ROOT / "tests"))

NEW, NODE, BRANCH, POOL, FINISH, RUN = range(1, 7)  # as in replay.cpp


class Recorder:
    """The extension, whose calls that build and run networks are also written as numbers."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library, self.numbers = library, array("q")
        self.positions, self.heads, self.nodes = 0, [], 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(self.library, name)
        return found

    def _write(self, kind: int, *numbers: int) -> None:
        self.numbers.extend([kind, *(int(n) for n in numbers)])

    def _array(self, kind: type, address: int, size: int) -> None:
        values = ctypes.cast(address, ctypes.POINTER(kind))
        self.numbers.append(size)
        self.numbers.extend(values[:size])

    def nbsnn_new(self, target: int, *rest: int) -> int:
        self.heads, self.nodes, self.image = [], 0, rest[1] * rest[2]
        self._write(NEW, *rest)
        return self.library.nbsnn_new(target, *rest)

    def nbsnn_add_node(self, net: int, head: int, *rest: int) -> int:
        *numbers, bias, size = rest
        self.positions = numbers[2]
        self.nodes += 1
        if head:
            self.heads.append(numbers[1] * numbers[2])
        self._write(NODE, head, *numbers)
        self._array(ctypes.c_int64, bias, size)
        return self.library.nbsnn_add_node(net, head, *rest)

    def nbsnn_add_branch(self, net: int, *rest: int) -> int:
        source, inputs, groups, taps, shift, start, origin, origins, multiplier, weight, size, is_digit = rest
        self._write(BRANCH, source, inputs, groups, taps, shift, is_digit)
        self._array(ctypes.c_uint32, start, taps * self.positions + 1)
        self._array(ctypes.c_uint32, origin, origins)
        self._array(ctypes.c_int64, multiplier, size // (taps * inputs) * groups)
        self._array(ctypes.c_int16, weight, size)
        return self.library.nbsnn_add_branch(net, *rest)

    def nbsnn_add_pool(self, net: int, *rest: int) -> int:
        source, lowest, positions, start, origin, origins = rest
        self.nodes += 1
        self._write(POOL, source, lowest, positions)
        self._array(ctypes.c_uint32, start, positions + 1)
        self._array(ctypes.c_uint32, origin, origins)
        return self.library.nbsnn_add_pool(net, *rest)

    def nbsnn_finish(self, net: int) -> int:
        self._write(FINISH)
        return self.library.nbsnn_finish(net)

    def nbsnn_run(self, net: int, images: int, floats: bool, *rest: Any) -> int:
        done: int = self.library.nbsnn_run(net, images, floats, *rest)
        batch, mode, threads, flight, _, sums, _, steps, spikes, *_ = rest
        self._write(RUN, batch, mode, threads, flight)
        self._array(ctypes.c_int32, images, batch * self.image)
        self._array(ctypes.c_int64, sums, batch * sum(self.heads))
        self._array(ctypes.c_int64, steps, batch)
        self._array(ctypes.c_int64, spikes, batch * self.nodes)
        return done


def record(path: Path, networks: int, seed: int) -> None:
    """Run random networks in every mode, batch and number of threads, and write the calls and their results."""
    from programs import KINDS, random_pixels, random_program
    from test_native import MODES, native, run

    from nbsnn.integer.backends import library

    found = library.loaded()
    if isinstance(found, str):
        sys.exit(f"no native backend here: {found}")
    recorder = Recorder(found)
    with mock.patch.object(library, "loaded", return_value=recorder):
        for number in range(networks):
            timesteps, channels = (3, 7, 1, 15)[number % 4], (8, 9, 40, 20, 64, 33)[number % 6]
            kinds = list(KINDS) if number % 3 == 0 else [KINDS[number % len(KINDS)], KINDS[(number + 3) % len(KINDS)]]
            weight = (3, 1, 4, 31, 127)[number % 5]
            program = random_program(kinds, timesteps=timesteps, seed=seed + number, channels=channels, weight=weight)
            for batch, threads in ((1, 1), (2, 2), (7, 1), (33, 2)):
                pixels = random_pixels(program, batch, seed=number)
                for mode in MODES:
                    run(native, program, pixels, mode, threads=threads)
    recorder.numbers.append(0)
    path.write_bytes(recorder.numbers.tobytes())


def sources() -> Iterator[Path]:
    """The files of the kernel, and the one that replays."""
    yield from sorted(NATIVE.glob("*.cpp"))
    yield Path(__file__).with_name("replay.cpp")


def main() -> None:
    """Compile, record, replay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default="aarch64-linux-gnu-g++")
    parser.add_argument("--run", default="qemu-aarch64", help="program that runs the other processor's programs")
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program, calls = Path(folder, "replay"), Path(folder, "calls")
        flags = ["-std=c++17", "-O3", "-Wall", "-static", "-pthread"]
        subprocess.run([args.compiler, *flags, "-o", program, *sources()], check=True)
        record(calls, args.networks, args.seed)
        sys.exit(subprocess.run([*args.run.split(), program, calls], check=False).returncode)


if __name__ == "__main__":
    main()
