"""Time of each form of a network on this machine: float, quantized, spiking, and the engines of the integer network.

    python benchmarks/inference.py [--nets cifar10/alexnet ...] [--bits 2 3] [--batches 100 1] [--repeats 5] [--threads 2]
                                   [--quick] [--no-compile] [--sweep] [--peer spikingjelly]
                                   [--json benchmarks/results/inference.json]

Contenders run in turns, so that a drift of the machine's speed affects all of them; a ratio is the median over the repeats of a
contender's time over that repeat's faster float net, eager or compiled; small batches run several times in a row.

Quantized weights are those of a bundled network, if there is one, or of `--checkpoint NET=FILE`; otherwise random, with batch
norms and thresholds calibrated on the bundled images. The JSON tells which. Float nets have random weights: their speed is the
    same.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import rivals
import sweep
import torch
from measure import machine, seconds
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

import nbsnn
from nbsnn.data.sets.sample import load_sample
from nbsnn.integer.backends import native
from nbsnn.integer.network import IntegerNetwork
from nbsnn.training.execution import has_bf16
from nbsnn.zoo import PREFIX, list_zoo

NETS = ("cifar10/alexnet", "cifar10/vgg11", "cifar10/resnet20", "cifar10/resnet18")
PAIRS = (("unsigned", "fixed"), ("signed", "fixed"), ("signed", "settle"), ("unsigned", "barrier"))
SLOW = ("quantized", "spiking", *rivals.PEERS)  # float simulations: three repeats at most


def make(net: str, bits: int, images: Tensor, checkpoint: Path | None, mean: list[float], std: list[float]):  # type: ignore[no-untyped-def]
    """The float and the quantized net, the integer network, and where the weights are from."""
    torch.manual_seed(0)
    plain = nbsnn.build_model(net).eval()
    bundled = f"{net}-w{bits}a{bits}"
    if checkpoint or bundled in list_zoo():
        quantized = nbsnn.load_checkpoint(checkpoint or PREFIX + bundled)
        source = f"quantized ones trained ({checkpoint.name if checkpoint else bundled}), float ones random"
    else:
        weight_bits = 32 if net == "cifar10/resnet18" else bits  # published with float weights
        quantized = nbsnn.quantize(plain, nbsnn.QuantSpec(weight_bits=weight_bits, act_bits=bits), images=images)
        source = "random, batch norms and thresholds calibrated on the bundled images"
    quantized = quantized.eval()
    return plain, quantized, nbsnn.lower(quantized, images, mean=mean, std=std), source


def contenders(  # type: ignore[no-untyped-def]
    plain, quantized, network: IntegerNetwork, images: Tensor, *, compiled: bool, quick: bool, peers: list[str]
) -> dict[str, Callable[[], object]]:
    """Name → one pass over the images."""
    last = images.contiguous(memory_format=torch.channels_last)
    plain = plain.to(memory_format=torch.channels_last)
    runs: dict[str, Callable[[], object]] = {"float eager": lambda: plain(last)}
    if compiled:
        fast = torch.compile(plain)
        runs["float compiled"] = lambda: fast(last)
    if has_bf16(torch.device("cpu")):

        def bf16() -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return plain(last)

        runs["bf16"] = bf16
    int8 = rivals.dense_int8(plain, images)
    runs["dense int8"] = lambda: int8(last)
    if compiled and (fast_int8 := rivals.compiled(int8, last)) is not None:
        runs["dense int8 compiled"] = lambda: fast_int8(last)
    if not quick:
        spiking = nbsnn.to_spiking(quantized, images[:1])
        runs["quantized"] = lambda: quantized(images)
        runs["spiking"] = lambda: spiking(images)
    if "spikingjelly" in peers:
        peer = rivals.spikingjelly(plain, network.timesteps)
        runs["spikingjelly"] = lambda: peer(images)
    runs["counts"] = lambda: network.run(images)
    for neuron, schedule in PAIRS:
        runs[f"spikes {neuron} {schedule}"] = partial(network.run, images, engine="spikes", neuron=neuron, schedule=schedule)
    return runs


def interleaved(
    runs: dict[str, Callable[[], object]], repeats: int, tick: Callable[[str], None], *, in_a_row: int = 1
) -> dict[str, list[float]]:
    """Seconds of each contender in each repeat, after a warm-up; float simulations at most three times.

    With `in_a_row` > 1 a turn is that many calls, of which the median is taken: torch's threads spin for some milliseconds
    after a call, which would slow short calls of the next contender.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            if name in SLOW and repeat > 3:
                continue
            tick(name)
            turn = [seconds(run) for _ in range(in_a_row)]
            if repeat:
                times[name].append(statistics.median(turn))
    return times


def figures(times: dict[str, list[float]], batch: int) -> dict[str, dict[str, float]]:
    """Median, spread, images a second, and ratio to the stronger float net of the same repeat."""
    floats = [seconds for name, seconds in times.items() if name.startswith("float")]
    base = [min(pair) for pair in zip(*floats, strict=True)]
    return {
        name: {
            "seconds": statistics.median(s),
            "fastest": min(s),
            "slowest": max(s),
            "images_per_second": batch / statistics.median(s),
            "ratio": statistics.median(a / b for a, b in zip(s, base, strict=False)),
        }
        for name, s in times.items()
    }


def work(network: IntegerNetwork, images: Tensor) -> dict[str, dict[str, float]]:
    """Activity and steps for each neuron and schedule."""
    out = {}
    for neuron, schedule in PAIRS:
        result = network.simulate(images, engine="spikes", neuron=neuron, schedule=schedule)
        out[f"{neuron} {schedule}"] = {
            "activity_percent": 100 * sweep.activity(network, result),
            "steps": float(result.steps.double().mean()),
        }
    return out


def swept(plain: nn.Module, network: IntegerNetwork, images: Tensor, repeats: int) -> Iterator[dict[str, float]]:
    """Seconds of unsigned spikes at several activities, by events alone (few images at a time) and by bit planes.

    Also those of torch's dense int8, which do not depend on activity: measured once, on all images.
    """
    few = images[:8]
    int8, last = rivals.dense_int8(plain, images), images.contiguous(memory_format=torch.channels_last)
    dense = interleaved({"int8": lambda: int8(last)}, repeats, lambda _: None)["int8"]
    unsigned = network.using(engine="spikes", neuron="unsigned", schedule="fixed", backend="native")
    for share, changed in sweep.at_activities(unsigned, few):
        runs: dict[str, Callable[[], object]] = {"events": partial(changed.run, few), "planes": partial(changed.run, images)}
        times = interleaved(runs, repeats, lambda _: None)
        yield {
            "activity_percent": 100 * share,
            "events_seconds_per_image": statistics.median(times["events"]) / len(few),
            "planes_seconds_per_image": statistics.median(times["planes"]) / len(images),
            "int8_seconds_per_image": statistics.median(dense) / len(images),
        }


SHOWN = ("counts", *(f"spikes {neuron} {schedule}" for neuron, schedule in PAIRS))


def summaries(rows: list[dict]) -> Iterator[Table]:  # type: ignore[type-arg]
    """Times over those of the faster float net, and of the faster int8 one, and milliseconds an image by batch."""
    for title, base in (("over fp32", "float"), ("over torch's int8", "dense int8")):
        table = Table(title=f"{title}, the faster of eager and compiled")
        for column in ("net", "T", "batch", *SHOWN):
            table.add_column(column, justify="right")
        for row in rows:
            f = row["figures"]
            least = min(value["seconds"] for name, value in f.items() if name.startswith(base))
            table.add_row(
                row["net"], str(row["timesteps"]), str(row["batch"]), *(f"{f[n]['seconds'] / least:.2f}" for n in SHOWN)
            )
        yield table
    batches = sorted({row["batch"] for row in rows})
    table = Table(title="ms an image, by batch")
    for column in ("net", "T", "", *map(str, batches)):
        table.add_column(column, justify="right")
    for net, steps in dict.fromkeys((row["net"], row["timesteps"]) for row in rows):
        found = {row["batch"]: row["figures"] for row in rows if (row["net"], row["timesteps"]) == (net, steps)}
        for name in ("float eager", "dense int8", *SHOWN):
            cells = (f"{1e3 * found[b][name]['seconds'] / b:.3f}" if b in found else "-" for b in batches)
            table.add_row(net, str(steps), name, *cells)
    yield table


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3])
    parser.add_argument("--batches", nargs="+", type=int, default=[100, 1], help="such as 1 8 16 32 64 100 128")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--checkpoint", nargs="*", default=[], metavar="NET=FILE")
    parser.add_argument("--quick", action="store_true", help="leave out the float simulations, which are slow")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled float net")
    parser.add_argument("--sweep", action="store_true", help="activity from 2 to 50 percent, on the first net")
    parser.add_argument("--peer", nargs="*", default=[], choices=rivals.PEERS, help="other software, where it is installed")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if missing := rivals.missing(args.peer):
        parser.error(f"--peer {missing[0]}: it is not installed; pip install {missing[0]}")
    if args.sweep and (obstacle := native.why_not()):
        parser.error(f"--sweep compares two ways of the native backend, which cannot run: {obstacle}; leave it out")
    torch.set_num_threads(args.threads)
    sample = load_sample().test
    if wrong := [batch for batch in args.batches if not 1 <= batch <= len(sample)]:
        parser.error(f"--batches {wrong[0]}: the sample has {len(sample)} images; give 1 to {len(sample)}")
    images = sample.normalized(sample.images[: max(100, *args.batches)])  # the first hundred calibrate
    mean, std = (list(map(float, x)) for x in (sample.mean, sample.std))
    files = dict(pair.split("=", 1) for pair in args.checkpoint)
    here = machine(args.threads, native=[] if native.why_not() else list(native.targets()))
    words = " ".join(sys.argv[1:]).partition(" --json")[0]
    report = {"kind": "inference", "command": f"python benchmarks/inference.py {words}", "machine": here,
              "repeats": args.repeats, "rows": [], "sweep": []}  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 140)

    def keep(part: str, figures: dict[str, object]) -> None:
        report[part].append(figures)
        if args.json:  # write now: the next network may take long
            args.json.write_text(json.dumps(report, indent=1) + "\n")

    with torch.inference_mode(), Progress(console=console, transient=True) as progress:
        for net in args.nets:
            for bits in args.bits:
                with torch.inference_mode(False), torch.no_grad():
                    plain, quantized, network, source = make(
                        net, bits, images[:100], Path(files[net]) if net in files else None, mean, std
                    )
                for batch in args.batches:
                    part = images[:batch]
                    runs = contenders(
                        plain, quantized, network, part, compiled=not args.no_compile, quick=args.quick, peers=args.peer
                    )
                    task = progress.add_task(net, total=len(runs) * (args.repeats + 1))

                    def tell(name: str, task=task, net=net) -> None:  # type: ignore[no-untyped-def]
                        progress.update(task, advance=1, description=f"{net} {name}")

                    times = interleaved(runs, args.repeats, tell, in_a_row=max(1, min(10, 64 // batch)))
                    row = {"net": net, "timesteps": network.timesteps, "batch": batch, "weights": source,
                           "figures": figures(times, batch), "work": work(network, part)}  # fmt: skip
                    keep("rows", row)
                    progress.remove_task(task)
                    console.print(table_of(row))
                if args.sweep and net == args.nets[0]:
                    points = list(swept(plain, network, images[:32], 3))
                    keep("sweep", {"net": net, "timesteps": network.timesteps, "points": points})
    console.print(f"{here['processor']}, {here['cpu']}, {here['threads']} threads; native {', '.join(here['native'])}")
    for table in summaries(report["rows"]):
        console.print(table)


def table_of(row: dict) -> Table:  # type: ignore[type-arg]
    """One configuration, a line per contender."""
    table = Table(title=f"{row['net']}, T = {row['timesteps']}, batch {row['batch']}; weights {row['weights']}")
    for column in ("", "ms", "fastest", "slowest", "images/s", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for name, f in row["figures"].items():
        times = (f"{1e3 * f[k]:.1f}" for k in ("seconds", "fastest", "slowest"))
        table.add_row(name, *times, f"{f['images_per_second']:.0f}", f"{f['ratio']:.2f}")
    return table


if __name__ == "__main__":
    main()
