"""Fine-tuning for the fixed schedule: accuracy and time of the three methods on trained networks, as JSON.

    python benchmarks/finetune.py runs/r20/2bit/best.safetensors runs/r20/3bit/best.safetensors --root data

A row is written as soon as it is measured. A row in the file, for the same network with the same settings, is not measured
again, so an interrupted run can be continued.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import Rows, machine, trained_by
from rich.console import Console
from sections import finetune_section

import nbsnn
from nbsnn import console
from nbsnn.checkpoint import rebuild
from nbsnn.data import load_data
from nbsnn.data.images import Batches, ImageSet, Splits
from nbsnn.evaluation.comparison import spiking_form
from nbsnn.recipe import DataSpec
from nbsnn.spiking import neuron
from nbsnn.tensorfile import read_tensors
from nbsnn.training.finetune import finetune, images_to_see
from nbsnn.training.finetune_spec import FinetuneSpec

BATCH = 50  # images


def accuracy(network: torch.nn.Module, images: ImageSet, title: str) -> float:
    """Top-1 in percent."""
    with console.image_progress(len(images), title) as tell:
        return nbsnn.evaluate(network, Batches(images, BATCH), progress=lambda count: tell("", count)).top1


def measure(checkpoint: Path, spec: FinetuneSpec, splits: Splits, args: argparse.Namespace, results: Rows) -> None:
    """A row of one network and method: accuracies before and after on the same test images, and the time taken."""
    header, state = read_tensors(checkpoint)
    quantized = rebuild(header, state, source=str(checkpoint)).to(memory_format=torch.channels_last)
    bits, test = max(m.bits for m in quantized.modules() if hasattr(m, "bits")), splits.test.some(args.test)
    network = {"bits": bits} | trained_by(header, checkpoint)
    source = results.find(**network, method=None, test_images=len(test))
    if source is None:
        spiking = spiking_form(quantized, test, neuron=spec.neuron, schedule="fixed")
        source = results.add(network | {
            "timesteps": spiking.timesteps, "method": None, "neuron": spec.neuron, "test_images": len(test),
            "quantized_top1": accuracy(quantized, test, f"{bits} bits, quantized"),
            "spiking_top1": accuracy(spiking, test, f"{bits} bits, spiking"),
        })  # fmt: skip
    key = network | {"train_images": args.train, "held_out_images": args.held_out, "test_images": len(test)}
    key |= {"method": spec.method, "settings": spec.to_dict()}
    if results.find(**key):
        return
    train, held_out = splits.train.some(args.train), splits.validation.some(args.held_out)
    processor = time.process_time()
    with console.image_progress(images_to_see(quantized, train, held_out, spec), f"{bits} bits, {spec.method}") as tell:
        result = finetune(
            quantized, train, held_out, spec, progress=tell, on_change=lambda c, _: console.note(console.change_line(c))
        )
    processor = time.process_time() - processor
    if args.save:
        settings = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:6]
        name = f"{bits}bit-{network['recipe_hash']}-{spec.method}-{settings}.safetensors"
        nbsnn.save_checkpoint(args.save / name, result.spiking)
    after = accuracy(result.spiking, test, f"{bits} bits, {spec.method}, test")
    results.add(
        key | {"timesteps": result.spiking.timesteps, "quantized_top1": source["quantized_top1"],
               "spiking_top1_before": source["spiking_top1"], "spiking_top1": after,
               "gap": round(source["quantized_top1"] - after, 4), "processor_seconds": processor, "held_out": result.to_dict()}
    )  # fmt: skip


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, help="quantized networks trained on CIFAR-10")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of cifar-10-batches-py")
    parser.add_argument("--label", default="CIFAR-10", help="name of the data in the report")
    parser.add_argument("--methods", nargs="+", default=["calibrate", "end-to-end", "layerwise"])
    parser.add_argument("--train", type=int, default=5000, help="training images")
    parser.add_argument("--calibration-images", type=int, default=FinetuneSpec.calibration_images, help="for biases")
    parser.add_argument("--held-out", type=int, default=1000, help="held-out training images, to evaluate changes")
    parser.add_argument("--test", type=int, default=0, help="test images; 0 is all")
    parser.add_argument("--calibrate-first", action="store_true", help="end to end: start from the calibrated network")
    parser.add_argument("--force", action="store_true", help="layerwise: keep every layer, even if accuracy does not rise")
    parser.add_argument(
        "--weights", action=argparse.BooleanOptionalAction, help="train weights too, or not; as the method does"
    )
    parser.add_argument("--distillation", type=float, help="end to end: the teacher's share")
    parser.add_argument("--lr", type=float, default=0.0, help="learning rate; 0 is the method's default")
    parser.add_argument("--compile", action="store_true", help="compile the neuron's loop (the same bits, faster)")
    parser.add_argument("--save", type=Path, help="folder for the fine-tuned networks")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "finetune-resnet20.json")
    args = parser.parse_args()
    if args.compile:
        torch._dynamo.config.recompile_limit = 64  # a version for each shape and grad mode
        neuron.integrate_and_fire = torch.compile(neuron.integrate_and_fire, dynamic=False)
    results = Rows(args.json, {"kind": "finetune", "data": args.label, "machine": machine()})
    splits = load_data(DataSpec("cifar10", str(args.root)))
    for checkpoint in args.checkpoints:
        for method in args.methods:
            own: dict[str, dict[str, Any]] = {  # what only some of the methods have a use for
                "calibrate": {},
                "layerwise": {"lr": args.lr, "weights": args.weights, "force": args.force},
                "end-to-end": {"lr": args.lr, "weights": args.weights, "distillation": args.distillation,
                               "calibrate_first": args.calibrate_first},
            }  # fmt: skip
            spec = FinetuneSpec(
                method=method, batch_size=BATCH, calibration_images=args.calibration_images, **own.get(method, {})
            )
            measure(checkpoint, spec, splits, args, results)
    section = finetune_section(results.head | {"rows": results.read()})  # as it will stand on the page
    Console().print(section, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(console.exit_code(main))
