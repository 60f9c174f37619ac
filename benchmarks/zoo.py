"""Accuracy of each bundled network on a whole test set, as `nbsnn eval zoo:NAME --engine counts` measures it.

python benchmarks/zoo.py --root data --label "CIFAR-10 (JPEG q75)" --json benchmarks/results/zoo.json
"""

import argparse
import hashlib
import json
from pathlib import Path

from measure import machine
from rich.console import Console

import nbsnn
from nbsnn import pipeline
from nbsnn.data.images import evaluation_batches
from nbsnn.data.sets.cifar10 import load_cifar10
from nbsnn.tensorfile import read_tensors
from nbsnn.zoo import PREFIX, list_zoo, locate


def fingerprint(name: str) -> str:
    """12-digit hash of a bundled file, to check that figures belong to it."""
    return hashlib.sha256(locate(PREFIX + name).read_bytes()).hexdigest()[:12]


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of CIFAR-10")
    parser.add_argument("--label", default="CIFAR-10", help="name of the data in the report")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    test = load_cifar10(args.root).test
    rows, console = [], Console()
    for name in list_zoo():
        header, _ = read_tensors(Path(PREFIX + name))
        network = pipeline.integer_form(nbsnn.load_checkpoint(PREFIX + name), test)
        report = nbsnn.evaluate(network, evaluation_batches(test))
        rows.append({"name": name, "file": fingerprint(name), "bytes": locate(PREFIX + name).stat().st_size,
                     "recipe_hash": header["recipe_hash"], "timesteps": network.timesteps, **header["metrics"],
                     "test_top1": report.top1, "images_per_second": report.images_per_second})  # fmt: skip
        console.print(f"{name}: {report.top1:.2f} % of {report.images} images, {report.images_per_second:.0f} images/s")
    if args.json:
        figures = {"kind": "zoo", "data": args.label, "test_images": len(test), "machine": machine(), "rows": rows}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
