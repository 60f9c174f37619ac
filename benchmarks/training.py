"""What quantization costs in training, and what the training loop costs beside the model: ratios taken in one run.

    python benchmarks/training.py [--nets cifar10/alexnet cifar10/resnet20] [--bits 4] [--repeats 9] [--compile]

Float and quantized steps alternate, and so do the loop's steps and bare steps of the model, so that a machine whose speed
drifts slows both; a ratio is the median of the pairs'. The plain loop is what one writes first: a DataLoader over single
images, cropped and flipped one by one, in this process.
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

import torch
import torch.nn.functional as F
from measure import machine, seconds
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

import nbsnn
from nbsnn.data.images import ImageSet, Splits, crop_and_flip
from nbsnn.recipe import OptimSpec, Phase
from nbsnn.recipes import load_recipe
from nbsnn.train.execution import Execution
from nbsnn.train.loop import fit
from nbsnn.train.observer import Observer
from nbsnn.train.optim import keep_positive_, make_optimizer


def step_of(net: torch.nn.Module, *, compiled: bool) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """The training step, as the training loop does it, of images and labels."""
    optimizer = make_optimizer(net, Phase(epochs=1, lr=0.01), OptimSpec())
    forward = torch.compile(net) if compiled else net

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(forward(images), labels).backward()
        optimizer.step()
        keep_positive_(net)

    return step


def measure(name: str, *, bits: int, batch: int, repeats: int, compiled: bool) -> dict[str, float | str]:
    """Median step times of float and quantized, and the median and spread of their paired ratios."""
    torch.manual_seed(0)
    plain = nbsnn.build_model(name)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    quantized = nbsnn.quantize(plain, nbsnn.QuantSpec(bits, bits), images=images)
    images = images.contiguous(memory_format=torch.channels_last)
    nets = [net.train().to(memory_format=torch.channels_last) for net in (plain, quantized)]
    steps = [partial(step_of(net, compiled=compiled), images, labels) for net in nets]
    for step in steps * 2:  # warm up
        step()
    pairs = [(seconds(steps[0]), seconds(steps[1])) for _ in track(range(repeats), description=name, transient=True)]
    ratios = [b / a for a, b in pairs]
    return {
        "net": name,
        "float_seconds": statistics.median(a for a, _ in pairs),
        "quantized_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


class _Pairs(Observer):
    """Times each step of the training loop, and a bare step of the model after it."""

    def __init__(self, bare: Callable[[], None]) -> None:
        self.bare, self.pairs, self.mark = bare, [], 0.0

    def on_phase(self, *_: object) -> None:
        self.mark = time.perf_counter()

    def on_step(self, *_: object) -> None:
        ours = time.perf_counter() - self.mark
        self.pairs.append((seconds(self.bare), ours))
        self.mark = time.perf_counter()


class _SingleImages(Dataset):
    """Images one by one, augmented one by one."""

    def __init__(self, data: ImageSet) -> None:
        self.data, self.generator = data, torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = crop_and_flip(self.data.images[index : index + 1], self.generator)
        return self.data.normalized(image)[0], self.data.labels[index]


def measure_loop(name: str, *, bits: int, batch: int, repeats: int, compiled: bool) -> list[dict[str, float | str]]:
    """For float and quantized: images/s of our loop and of the plain one, and the share of time outside the model of each."""
    count = batch * (repeats + 1)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    data = ImageSet(pixels, torch.randint(0, 10, (count,)), (0.5,) * 3, (0.25,) * 3, tuple("0123456789"))
    splits = Splits(data, data.take(slice(0, batch)), data.take(slice(0, batch)))
    recipe = load_recipe("cifar10/resnet20", [f"data.batch_size={batch}"])
    rows = []
    for form in ("float", "quantized"):
        torch.manual_seed(0)
        net = nbsnn.build_model(name)
        images = data.normalized(data.images[:batch]).contiguous(memory_format=torch.channels_last)
        net = net if form == "float" else nbsnn.quantize(net, nbsnn.QuantSpec(bits, bits), images=images)
        alone = copy.deepcopy(net).train().to(memory_format=torch.channels_last)
        ours = _Pairs(partial(step_of(alone, compiled=compiled), images, data.labels[:batch]))
        with tempfile.TemporaryDirectory() as folder:
            fit(net, splits, recipe, Phase(epochs=1, lr=0.01), out=Path(folder), observer=ours, execution=Execution(compiled))
        plain_step, plain = step_of(copy.deepcopy(net).train(), compiled=compiled), []
        for inputs, labels in _timed(DataLoader(_SingleImages(data), batch, shuffle=True), plain):
            plain_step(inputs.contiguous(memory_format=torch.channels_last), labels)
        bare_median = statistics.median(pair[0] for pair in ours.pairs[1:])
        loop, plain_median = statistics.median(b for _, b in ours.pairs[1:]), statistics.median(plain[1:])
        rows.append({
            "net": name, "form": form, "bare_images_per_second": batch / bare_median, "images_per_second": batch / loop,
            "plain_images_per_second": batch / plain_median,
            "outside_percent": 100 * statistics.median(1 - a / b for a, b in ours.pairs[1:]),
            "plain_outside_percent": 100 * (1 - bare_median / plain_median),
        })  # fmt: skip
    return rows


def _timed(loader: DataLoader, times: list[float]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The loader's batches; the time from asking for one until its step is done goes into `times`."""
    batches = iter(loader)
    while True:
        start = time.perf_counter()
        pair = next(batches, None)
        if pair is None:
            return
        yield pair
        times.append(time.perf_counter() - start)


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["cifar10/alexnet", "cifar10/resnet20"])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="torch.compile both networks")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    sizes = {"bits": args.bits, "batch": args.batch, "repeats": args.repeats, "compiled": args.compile}
    rows = [measure(net, **sizes) for net in args.nets]
    table = Table(
        title=f"Training step, batch {args.batch}, {args.bits} bits, {'compiled' if args.compile else 'eager'}, {machine()}"
    )
    for column in ("net", "float s", "quantized s", "ratio", "min", "max"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(str(row["net"]), *(f"{row[k]:.3f}" for k in list(row)[1:]))
    Console().print(table)
    loops = [row for net in args.nets for row in measure_loop(net, **sizes)]
    table = Table(title="The loop beside the model: images/s, and share of time outside the model in %")
    for column in ("net", "form", "bare step", "our loop", "plain loop", "ours outside %", "plain outside %"):
        table.add_column(column, justify="right")
    for row in loops:
        table.add_row(str(row["net"]), str(row["form"]), *(f"{row[k]:.1f}" for k in list(row)[2:]))
    Console().print(table)
    if args.json:
        report = {
            "kind": "training",
            "arguments": vars(args) | {"json": None},
            "machine": machine(),
            "rows": rows,
            "loops": loops,
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
