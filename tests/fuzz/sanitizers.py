"""Random integer networks and quantizers through the C++ built with sanitizers, compared with torch bit by bit.

python tests/fuzz/sanitizers.py --seconds 120        # AddressSanitizer with UBSan, then ThreadSanitizer, 120 seconds each
python tests/fuzz/sanitizers.py --only thread --seed 7

Both extensions are compiled into a copy of the package in a temporary folder, so that the installed one stays as it is. Exits
with 1 after a report of a sanitizer or a difference, which names the seed of the network.
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

ROOT = Path(__file__).parent.parent.parent
SANITIZERS = {"address": ("address,undefined", "libasan.so"), "thread": ("thread", "libtsan.so")}
# Threads of torch are not compiled for ThreadSanitizer, which then cannot see how they wait for each other.
SUPPRESSED = "race:libtorch\nrace:libgomp\nrace:libc10\n"


def build(folder: Path, sanitizer: str) -> dict[str, str]:
    """Compile the extensions into a copy of the package; returns the environment that a child process runs it with."""
    flags, runtime = SANITIZERS[sanitizer]
    shutil.copytree(ROOT / "src" / "nbsnn", folder / "nbsnn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    package = folder / "nbsnn"
    extensions = ((package / "integer", "native", []), (package / "fused", "", ["-ffp-contract=off"]))
    options = ["-std=c++17", "-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={flags}", "-shared", "-fPIC", "-pthread"]
    if sanitizer == "address":
        options.append("-fno-sanitize-recover=undefined")
    for home, sources, extra in extensions:
        target = home / "_native.abi3.so"
        subprocess.run(["g++", *options, *extra, "-o", target, *sorted((home / sources).glob("*.cpp"))], check=True)
    library = subprocess.run(["g++", f"-print-file-name={runtime}"], capture_output=True, text=True, check=True).stdout.strip()
    rules = folder / "suppressed.txt"
    rules.write_text(SUPPRESSED)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "tests")]), "LD_PRELOAD": library, "OMP_NUM_THREADS": "1",
        "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": f"suppressions={rules} halt_on_error=1", "PYTHONMALLOC": "malloc",
    }  # fmt: skip


def run_networks(seed: int, seconds: float) -> int:
    """Compare random networks until the time is up; returns how many. Runs inside the child process."""
    import torch
    from programs import KINDS, random_pixels, random_program
    from test_fused import check_random
    from test_native import MODES, assert_same, engine_torch, native, run

    torch.set_num_threads(1)
    end, tries = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        choose = random.Random(seed + tries)
        timesteps = choose.choice((1, 2, 3, 4, 7, 15))
        mixed = choose.random() < 0.3
        mode = choose.choice(MODES[:1] + MODES[3:] if mixed else MODES)
        program = random_program(
            choose.choices(KINDS, k=choose.randint(1, 4)), timesteps=timesteps, seed=seed + tries, mixed=mixed,
            channels=choose.choice((4, 6, 8, 16, 34)) if choose.random() < 0.8 else 130,
            size=choose.randint(6, 9), weight=choose.choice((1, 3, 10, 31, 127, 32767)),
        )  # fmt: skip
        pixels = random_pixels(program, choose.choice((1, 2, 3, 5, 8, 13, 37, 70)), seed=seed + tries)
        threads, target = choose.randint(1, 4), choose.choice(native.targets())
        try:
            check_random(seed + tries, threads=threads)
            assert_same(
                run(native, program, pixels, mode, target=target, threads=threads), run(engine_torch, program, pixels, mode)
            )
        except Exception as error:
            raise SystemExit(f"seed {seed + tries}: {mode}, {target}, {threads} threads: {error!r}") from error
        tries += 1
    return tries


def main() -> int:
    """Build, run, and say how many networks were compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for each sanitizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(SANITIZERS), help="one sanitizer alone")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        sys.stdout.write(str(run_networks(args.seed, args.seconds)))
        return 0
    failed = False
    for sanitizer in [args.only] if args.only else SANITIZERS:
        with tempfile.TemporaryDirectory() as folder:
            env = build(Path(folder), sanitizer)
            words = [sys.executable, __file__, "--child", "--seed", str(args.seed), "--seconds", str(args.seconds)]
            done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        bad = done.returncode != 0 or "ERROR: " in done.stderr or "WARNING: ThreadSanitizer" in done.stderr
        said = done.stderr[-6000:] if bad else f"{done.stdout.strip()} networks, nothing to report"
        sys.stdout.write(f"{sanitizer}: {said}\n")
        failed = failed or bad
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
