"""What quantization costs in training: step time of the quantized network over the float one's, in one run.

    python benchmarks/training.py [--nets cifar10/alexnet cifar10/resnet20] [--bits 4] [--repeats 9] [--compile]

Float and quantized steps alternate, so that a machine whose speed drifts slows both; the ratio is the median of the pairs'.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table

import nbsnn
from nbsnn.recipe import OptimSpec, Phase
from nbsnn.train.optim import keep_positive_, make_optimizer


def step_of(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, *, compiled: bool) -> Callable[[], None]:
    """One training step, as the training loop does it."""
    optimizer = make_optimizer(net, Phase(epochs=1, lr=0.01), OptimSpec())
    forward = torch.compile(net) if compiled else net

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(forward(images), labels).backward()
        optimizer.step()
        keep_positive_(net)

    return step


def seconds(step: Callable[[], None]) -> float:
    """Of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(name: str, *, bits: int, batch: int, repeats: int, compiled: bool) -> dict[str, float | str]:
    """Median step times of float and quantized, and the median and spread of their paired ratios."""
    torch.manual_seed(0)
    plain = nbsnn.build_model(name)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    quantized = nbsnn.quantize(plain, nbsnn.QuantSpec(bits, bits), images=images)
    images = images.contiguous(memory_format=torch.channels_last)
    nets = [net.train().to(memory_format=torch.channels_last) for net in (plain, quantized)]
    steps = [step_of(net, images, labels, compiled=compiled) for net in nets]
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
    rows = [measure(net, bits=args.bits, batch=args.batch, repeats=args.repeats, compiled=args.compile) for net in args.nets]
    machine = {"cpu": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(),
               "python": platform.python_version(), "torch": torch.__version__}  # fmt: skip
    table = Table(
        title=f"Training step, batch {args.batch}, {args.bits} bits, {'compiled' if args.compile else 'eager'}, {machine}"
    )
    for column in ("net", "float s", "quantized s", "ratio", "min", "max"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(str(row["net"]), *(f"{row[k]:.3f}" for k in list(row)[1:]))
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args) | {"json": None}, "machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
