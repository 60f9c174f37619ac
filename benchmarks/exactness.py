"""AlexNet and VGG-16 at 224×224 on real photographs: exactness, time and memory of the exact schedules.

    python benchmarks/exactness.py TREE [--nets imagenet/alexnet imagenet/vgg16] [--bits 4 3 2] [--images 2] [--json FILE]

For each network and width: quantized from fresh weights with thresholds and norms calibrated on photographs of TREE
(`train/<class>/*.JPEG`, `val/<class>/*.JPEG`), then compared neuron by neuron with its spiking form under `settle` and
`barrier` in float64, and as an integer network, `counts` with `spikes`. Each runs in a separate process, to measure its peak
memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from measure import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import nbsnn
from nbsnn.data.images import LabelledImages
from nbsnn.data.photos import Loading
from nbsnn.data.trees import load_tree

CALIBRATION = 16  # photographs
EXACT = ("settle", "barrier")


def simulated(quantized: torch.nn.Module, images: Tensor, schedule: str) -> dict[str, float]:
    """Neurons off, steps, and seconds an image, in float64."""
    quantized = quantized.double()
    spiking = nbsnn.to_spiking(quantized, images[:1].double(), schedule=schedule)
    start = time.perf_counter()
    fidelity = nbsnn.measure_fidelity(quantized, spiking, images)
    seconds = (time.perf_counter() - start) / len(images)
    neurons = sum(layer.neurons for layer in fidelity.layers)
    return {"neurons": neurons, "differing": fidelity.differing, "steps": int(fidelity.steps.max()), "seconds": seconds}


def in_integers(quantized: torch.nn.Module, data: LabelledImages, images: Tensor) -> dict[str, float]:
    """Counts that differ between `counts` and `spikes`, and seconds an image of each."""
    network = nbsnn.lower(quantized.float(), images[:1], mean=data.mean, std=data.std)
    network.run(images[:1])  # weights are laid out on first use
    start = time.perf_counter()
    counts = network.counts(images)
    figures = {"counts_seconds": (time.perf_counter() - start) / len(images), "integer_differing": 0}
    figures["integer_neurons"] = sum(count.numel() for count in counts.values())
    for schedule in EXACT:
        start = time.perf_counter()
        seen = network.simulate(images, engine="spikes", schedule=schedule, keep_counts=True).counts
        figures[f"{schedule}_spikes_seconds"] = (time.perf_counter() - start) / len(images)
        figures["integer_differing"] += sum(int((counts[name] != seen[name]).sum()) for name in counts)
    return figures


def measure(tree: Path, net: str, bits: int, count: int) -> dict[str, object]:
    """Measure one network and width in this process."""
    splits = load_tree(tree, loading=Loading("torch", workers=0))
    torch.manual_seed(0)
    images = splits.test.normalized(splits.test.pixels(slice(0, count)))
    calibration = splits.train.normalized(splits.train.pixels(slice(0, CALIBRATION)))
    start = time.perf_counter()
    quantized = nbsnn.quantize(nbsnn.build_model(net), nbsnn.QuantSpec(bits, bits), images=calibration).eval()
    row: dict[str, object] = {"net": net, "bits": bits, "images": count, "quantize_seconds": time.perf_counter() - start}
    row |= in_integers(quantized, splits.test, images)
    row["integer_peak_mib"] = _peak()
    row |= {schedule: simulated(quantized, images, schedule) for schedule in EXACT}
    return row | {"peak_mib": _peak()}


def _peak() -> int:
    """Peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, metavar="TREE")
    parser.add_argument("--nets", nargs="+", default=["imagenet/alexnet", "imagenet/vgg16"])
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3, 2])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here, row by row")
    parser.add_argument("--one", action="store_true", help="measure the first net and width here, and print JSON")
    args = parser.parse_args()
    if args.one:
        sys.stdout.write(json.dumps(measure(args.tree, args.nets[0], args.bits[0], args.images)))
        return
    rows, console = [], Console(width=None if sys.stdout.isatty() else 120)
    for net, bits in track([(n, b) for n in args.nets for b in args.bits], console=console, transient=True):
        words = [str(args.tree), "--nets", net, "--bits", str(bits), "--images", str(args.images), "--one"]
        done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout))
        if args.json:
            args.json.write_text(json.dumps({"kind": "exactness", "machine": machine(), "rows": rows}, indent=1) + "\n")
    table = Table(title="Neurons off, and seconds an image")
    for column in ("net", "bits", "settle: off", "steps", "s", "barrier: off", "steps", "s", "integer: off", "counts s", "MiB"):
        table.add_column(column, justify="left" if column == "net" else "right", no_wrap=True)
    for row in rows:
        cells = [cell for s in EXACT for cell in (str(row[s]["differing"]), str(row[s]["steps"]), f"{row[s]['seconds']:.1f}")]
        last = (str(row["integer_differing"]), f"{row['counts_seconds']:.2f}", str(row["peak_mib"]))
        table.add_row(row["net"], str(row["bits"]), *cells, *last)
    console.print(table)


if __name__ == "__main__":
    main()
