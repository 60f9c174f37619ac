"""Exported files against the engine: bits and classes that differ, sizes, and images per second beside ours.

    python benchmarks/export.py --root data [--nets cifar10/resnet20-w2a2 ...] [--bits 1000] [--classes 10000]
                                [--rate 200] [--json benchmarks/results/export.json]

`--root` holds CIFAR-10's python release (`nbsnn train --download` fetches it). Integer files and C, compiled by gcc -O3, are
compared bit for bit with the engine `counts` on `--bits` test images; QDQ files with the quantized network in float32 on
`--classes`. An image is far if a logit differs by more than 1e-4: then a current lay so near to the middle of two levels that
the order of a sum decided, and float64 tells which of the two is off.
Rates are of one thread, in batches of 50, the fastest of three runs of `--rate` images taken in turns, ours with the
engine `counts`; 0 leaves them out.
"""

import argparse
import copy
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from measure import machine
from torch import Tensor

import nbsnn
from nbsnn.recipe import DataSpec

NETS = ("cifar10/resnet20-w2a2", "cifar10/resnet20-w3a3", "cifar10/alexnet-w2a2", "cifar10/alexnet-w3a3")
BATCH, FAR = 50, 1e-4

Run = Callable[[Tensor], np.ndarray]


def onnx_run(path: Path) -> Run:
    """A file in onnxruntime, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})[0]


def c_run(folder: Path, network: nbsnn.IntegerNetwork, data: nbsnn.LabelledImages) -> tuple[Run, dict[str, int]]:
    """The network in C, compiled with -O3, on the images' 8-bit pixels, which it is called with by their numbers."""
    size = nbsnn.export_c(folder / "net.h", network)
    strict = ("-std=c99", "-O3", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["gcc", *strict, "-o", folder / "net", folder / "net_main.c"], check=True)

    def run(numbers: Tensor) -> np.ndarray:
        pixels = data.pixels(numbers).contiguous().numpy().tobytes()
        done = subprocess.run([folder / "net"], input=pixels, capture_output=True, check=True)
        return np.array([line.split() for line in done.stdout.decode().splitlines()]).astype(np.float32)

    return run, {"c flash": size.flash, "c ram": size.ram}


def in_batches(run: Run, images: Tensor) -> np.ndarray:
    return np.concatenate([run(batch) for batch in images.split(BATCH)]) if len(images) else np.zeros((0, 0), np.float32)


def rates(runs: dict[str, tuple[Run, Tensor]]) -> dict[str, float]:
    """Images per second of each, the fastest of three runs taken in turns."""
    fastest = dict.fromkeys(runs, float("inf"))
    for _ in range(3):
        for name, (run, images) in runs.items():
            start = time.perf_counter()
            in_batches(run, images)
            fastest[name] = min(fastest[name], (time.perf_counter() - start) / len(images))
    return {name: round(1 / seconds, 1) for name, seconds in fastest.items()}


@torch.no_grad()
def compared(quantized: torch.nn.Module, run: Run, images: Tensor) -> dict[str, int]:
    """Classes and logits of a QDQ file beside PyTorch's in float32, and which of the two is off where they differ."""
    ours, theirs = in_batches(lambda x: quantized(x).numpy(), images), in_batches(run, images)
    far = np.abs(ours - theirs).max(1) > FAR
    exact = in_batches(lambda x: copy.deepcopy(quantized).double()(x.double()).numpy(), images[torch.from_numpy(far)])

    def off(logits: np.ndarray) -> int:
        return int((np.abs(logits[far] - exact).max(1) > FAR).sum()) if len(exact) else 0

    other = int((theirs[far].argmax(1) != exact.argmax(1)).sum()) if len(exact) else 0
    return {
        "images": len(images), "classes that differ": int((ours.argmax(1) != theirs.argmax(1)).sum()),
        "images with a far logit": int(far.sum()), "of these, the file is far from float64": off(theirs),
        "PyTorch in float32 is far from float64": off(ours),
        "classes of the file that differ from float64": other,
    }  # fmt: skip


@torch.no_grad()
def measure(name: str, data: nbsnn.LabelledImages, folder: Path, *, bits: int, classes: int, rate: int) -> dict[str, object]:
    quantized = nbsnn.load_checkpoint(f"zoo:{name}")
    images = data.normalized(data.pixels(slice(0, max(bits, classes, rate))))
    network = nbsnn.lower(quantized, images[:1], mean=data.mean, std=data.std)
    files = {profile: folder / f"{profile}.onnx" for profile in ("qdq", "integer")}
    sizes = {f"onnx {profile}": nbsnn.export_onnx(quantized if profile == "qdq" else network, file)
             for profile, file in files.items()}  # fmt: skip
    runs = {profile: onnx_run(file) for profile, file in files.items()}
    in_c, memory = c_run(folder, network, data)
    sizes |= memory | {"json": nbsnn.export_json(folder / "net.json", network)}
    found: dict[str, object] = {"bytes": sizes}
    if bits:
        ours, theirs = network.run(images[:bits]).numpy(), in_batches(runs["integer"], images[:bits])
        found["integer"] = {"images": bits, "logits that differ": int((ours != theirs).sum())}
        found["c"] = {"images": bits, "logits that differ": int((ours != in_batches(in_c, torch.arange(bits))).sum())}
    if classes:
        found["qdq"] = compared(quantized, runs["qdq"], images[:classes])
    if rate:
        some = images[:rate]
        timed = {name: (run, some) for name, run in (("onnx qdq", runs["qdq"]), ("onnx integer", runs["integer"]))}
        timed |= {"c": (in_c, torch.arange(min(rate, BATCH)))}
        timed |= {"ours": (lambda x: network.run(x).numpy(), some), "torch": (lambda x: quantized(x).numpy(), some[:BATCH])}
        found["images per second"] = rates(timed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--bits", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/export.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = nbsnn.load_data(DataSpec("cifar10", root=str(given.root))).test
    known = json.loads(given.json.read_text()) if given.json.exists() else {}
    for name in given.nets:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(name, data, Path(folder), bits=given.bits, classes=given.classes, rate=given.rate)
        known.setdefault("machine", machine())
        known.setdefault("nets", {}).setdefault(name, {}).update(found)
        given.json.write_text(json.dumps(known, indent=2) + "\n")
        print(name, json.dumps(found), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
