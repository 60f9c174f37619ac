"""Cost of quantization in training, and of the training loop relative to the model: ratios within one run.

    python benchmarks/training.py [--nets cifar10/alexnet cifar10/resnet20] [--bits 4] [--repeats 9] [--compile] [--device cuda]

Float and quantized steps alternate, and so do steps of the loop and bare steps of the model, so that a drift of the machine's
speed affects both; a ratio is the median over pairs. The plain loop is a simple one: a DataLoader over single images, cropped
and flipped one by one, in this process.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import machine, seconds, wait_for_device
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track
from sections import training_section
from torch.utils.data import DataLoader, Dataset

import nbsnn
from nbsnn.data.images import ImageSet, Splits
from nbsnn.data.pixels import crop_and_flip
from nbsnn.recipe import OptimSpec, Phase
from nbsnn.recipes import load_recipe
from nbsnn.training.execution import Execution
from nbsnn.training.loop import fit
from nbsnn.training.loss import Loss
from nbsnn.training.observer import Epoch, Observer
from nbsnn.training.options import FitOptions
from nbsnn.training.step import Step

STEPS = {"cpu": 1, "cuda": 60}  # timed together: a GPU's kernels are shorter than a read of the clock
WARM_UP = 5  # a graph is captured on the fourth step


def step_of(net: torch.nn.Module, batch: int, execution: Execution) -> Callable[[torch.Tensor, torch.Tensor], object]:
    """The training step, as the training loop does it, of images and labels."""
    phase, spec = Phase(epochs=1, lr=0.01), OptimSpec()
    loss = Loss(spec, phase, execution, None, next(net.parameters()).device)
    step = Step(net, spec=spec, phase=phase, execution=execution, loss=loss, batch=batch)
    return partial(step, lr=phase.lr)


def forms(
    name: str, bits: int, batch: int, device: torch.device
) -> tuple[dict[str, torch.nn.Module], tuple[torch.Tensor, ...]]:
    """The float and the quantized network, in training mode, and a batch of random images and labels."""
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    plain = nbsnn.build_model(name)
    nets = {"float": plain, "quantized": nbsnn.quantize(plain, nbsnn.QuantSpec(bits, bits), images=images)}
    nets = {form: net.train().to(device).to(memory_format=torch.channels_last) for form, net in nets.items()}
    return nets, (images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device))


def measure(name: str, *, bits: int, batch: int, repeats: int, device: torch.device, execution: Execution) -> dict[str, Any]:
    """Median step times of float and quantized, and the median and spread of their paired ratios."""
    nets, pair = forms(name, bits, batch, device)
    steps = [partial(step_of(net, batch, execution), *pair) for net in nets.values()]
    for step in steps * WARM_UP:
        step()
    times = STEPS[device.type]
    progress = track(range(repeats), description=name, transient=True)
    pairs = [(seconds(steps[0], times), seconds(steps[1], times)) for _ in progress]
    ratios = [b / a for a, b in pairs]
    return {
        "float_seconds": statistics.median(a for a, _ in pairs),
        "quantized_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


class _Pairs(Observer):
    """Times the steps of each epoch of the training loop, and as many bare steps of the model after it."""

    def __init__(self, bare: Callable[[], object], steps: int) -> None:
        self.bare, self.steps, self.pairs = bare, steps, []

    def on_epoch(self, row: Epoch) -> None:
        self.pairs.append((seconds(self.bare, self.steps), row.seconds / self.steps))


class _SingleImages(Dataset):
    """Images one by one, augmented one by one."""

    def __init__(self, data: ImageSet) -> None:
        self.data, self.generator = data, torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = crop_and_flip(self.data.images[index : index + 1], self.generator)
        return self.data.normalized(image)[0], self.data.labels[index]


def measure_loop(
    name: str, *, bits: int, batch: int, repeats: int, device: torch.device, execution: Execution
) -> list[dict[str, Any]]:
    """For float and quantized: images/s of our loop and of the plain one, and the share of time outside the model of each."""
    steps = STEPS[device.type]
    pixels = torch.randint(0, 256, (batch * steps, 3, 32, 32), dtype=torch.uint8)
    data = ImageSet(pixels, torch.randint(0, 10, (batch * steps,)), (0.5,) * 3, (0.25,) * 3, tuple("0123456789"))
    splits = Splits(data, data.take(slice(0, batch)), data.take(slice(0, batch)))
    recipe = load_recipe("cifar10/resnet20", [f"data.batch_size={batch}"])
    nets, pair = forms(name, bits, batch, device)
    rows = []
    for form, net in nets.items():
        bare = partial(step_of(copy.deepcopy(net), batch, execution), *pair)
        for _ in range(WARM_UP):
            bare()
        ours, phase = _Pairs(bare, steps), Phase(epochs=repeats + WARM_UP, lr=0.01)
        plain_step, plain = step_of(copy.deepcopy(net), batch, Execution(execution.compiled, execution.autocast)), []
        with tempfile.TemporaryDirectory() as folder:
            fit(net, splits, recipe, phase, out=Path(folder), options=FitOptions(device, execution), observer=ours)
        singles = DataLoader(_SingleImages(data), batch, shuffle=True)
        for inputs, labels in _timed((p for _ in range(-(-(repeats + 1) // steps)) for p in singles), plain):
            plain_step(inputs.to(device).contiguous(memory_format=torch.channels_last), labels.to(device))
        pairs = ours.pairs[WARM_UP:]
        bare_median = statistics.median(a for a, _ in pairs)
        loop, plain_median = statistics.median(b for _, b in pairs), statistics.median(plain[1:])
        rows.append({
            "form": form, "bare_images_per_second": batch / bare_median, "images_per_second": batch / loop,
            "plain_images_per_second": batch / plain_median,
            "outside_percent": 100 * statistics.median(1 - a / b for a, b in pairs),
            "plain_outside_percent": 100 * (1 - bare_median / plain_median),
        })  # fmt: skip
    return rows


def _timed(batches: Iterator[tuple[torch.Tensor, ...]], times: list[float]) -> Iterator[tuple[torch.Tensor, ...]]:
    """The batches; the time from asking for one until its step is done goes into `times`."""
    while True:
        start = time.perf_counter()
        pair = next(batches, None)
        if pair is None:
            return
        yield pair
        wait_for_device()
        times.append(time.perf_counter() - start)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["cifar10/alexnet", "cifar10/resnet20"])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="torch.compile both networks")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--no-graph", action="store_true", help="on CUDA, launch kernel by kernel instead of replaying a graph")
    parser.add_argument("--json", type=Path, help="add the figures to those of this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    recorded = device.type == "cuda" and not args.no_graph
    execution = Execution(args.compile, torch.bfloat16 if args.precision == "bf16" else None, cuda_graph=recorded)
    how = f"{args.precision}, {'compiled' if args.compile else 'eager'}{', CUDA graph' if recorded else ''}"
    sizes = {"bits": args.bits, "batch": args.batch, "repeats": args.repeats, "device": device, "execution": execution}
    here = machine(gpu=torch.cuda.get_device_name()) if device.type == "cuda" else machine()
    rows = [{"net": net, "how": how} | measure(net, **sizes) for net in args.nets]
    loops = [{"net": net, "how": how} | row for net in args.nets for row in measure_loop(net, **sizes)]
    figures = {"kind": "training", "bits": args.bits, "batch": args.batch, "repeats": args.repeats, "machine": here}
    Console().print(Markdown(training_section(figures | {"rows": rows, "loops": loops})))  # as it will stand on the page
    if args.json:
        before = json.loads(args.json.read_text()) if args.json.is_file() else figures | {"rows": [], "loops": []}
        others = [key for key in figures if before[key] != figures[key]]
        if others:
            parser.error(f"{args.json}: its figures were taken with another {', '.join(others)}; choose another file")
        figures |= {"rows": [*before["rows"], *rows], "loops": [*before["loops"], *loops]}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
