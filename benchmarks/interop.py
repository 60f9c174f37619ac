"""Networks in other software: NIR's profile "exact" in nirtorch, and its profile "if" in the importers of other simulators.

    python benchmarks/interop.py exact [--nets zoo:cifar10/resnet20-w2a2 ... own] [--images 50] [--json FILE]
    python benchmarks/interop.py importers [--environments DIR] [--simulators ...] [--nets ...] [--images 50] [--json FILE]
    python benchmarks/interop.py tables

`exact` compares every spike of every neuron in every step with the integer network's, under `fixed` (signed) and `settle`.
`importers` runs each simulator in DIR/<name>/bin/python, as `make test-interop` makes them, on files as they are and after
`nbsnn.interop.patch`: the share of counts that differ from our unsigned simulator's, and the accuracy. Images are of the
bundled sample. `own:2` is a random network with skips, concatenation, average and max
pools and activations of 2 bits; importers get it with average pools alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from interop_worker import SIMULATORS
from measure import Rows, machine
from step_spikes import on_grid, step_spikes
from torch import Tensor, nn

import nbsnn
from nbsnn.interop import run_nir

RESULTS = Path(__file__).parent / "results"
NETS = (
    "zoo:cifar10/resnet20-w2a2", "zoo:cifar10/resnet20-w3a3", "zoo:cifar10/alexnet-w2a2", "zoo:cifar10/alexnet-w3a3", "own:2",
    "own:3",
)  # fmt: skip
AT_A_TIME = 10  # images


class OwnNet(nn.Module):
    """Skips, a projection, concatenation, average and max pools, on CIFAR-10's images."""

    def __init__(self, *, max_pool: bool) -> None:
        super().__init__()

        def unit(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs))

        self.stem, self.left, self.right = unit(3, 12, 3, 2), unit(12, 12, 3), unit(12, 8, 5)
        self.skip, self.merge, self.last = unit(12, 16, 1), unit(20, 16, 3), unit(16, 16, 3)
        self.acts = nn.ModuleList(nn.ReLU() for _ in range(5))
        self.first_pool = nn.MaxPool2d(2) if max_pool else nn.AvgPool2d(2)
        self.pool, self.head = nn.AvgPool2d(2), nn.Linear(16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first_pool(self.acts[0](self.stem(x)))
        left, right = self.acts[1](self.left(x) + x), self.acts[2](self.right(x))
        x = self.acts[3](self.merge(torch.cat([left, right], 1)) + self.skip(x))
        x = self.pool(self.acts[4](self.last(x) + x))
        return self.head(x.flatten(1))


def lowered(name: str, images: Tensor, *, max_pool: bool = True) -> nbsnn.IntegerNetwork:
    """The integer network of a bundled network, or of "own:2"."""
    kind, _, rest = name.partition(":")
    if kind == "zoo":
        network = nbsnn.load_checkpoint(name).eval()
    else:
        torch.manual_seed(0)
        network = nbsnn.quantize(OwnNet(max_pool=max_pool).train(), nbsnn.QuantSpec(int(rest), int(rest)), images=images).eval()
    data = nbsnn.load_data("sample").test
    return nbsnn.lower(network, images[:1], mean=data.mean, std=data.std)


def exact(name: str, schedule: str, images: Tensor) -> dict[str, Any]:
    """Compare all spikes of one network under one schedule with those of its file in nirtorch."""
    network, profile = lowered(name, images), "exact-settle" if schedule == "settle" else "exact"
    row: dict[str, Any] = {"net": name, "T": network.timesteps, "schedule": schedule, "images": len(images)}
    row |= {"neuron_steps": 0, "spikes": 0, "differing": 0, "logits_differing": 0, "steps": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.nir"
        start = time.perf_counter()
        row["bytes"] = nbsnn.export_nir(network, path, profile)
        row["export_seconds"] = round(time.perf_counter() - start, 1)
        for part in images.split(AT_A_TIME):
            spikes, logits = step_spikes(network, part, neuron="signed", schedule=schedule)
            steps = len(next(iter(spikes.values())))
            run = run_nir(path, on_grid(network, part), timesteps=network.timesteps, steps=steps, watch=tuple(spikes))
            row["steps"] = max(row["steps"], steps)
            row["logits_differing"] += int((run.output[-1].float() != logits).sum())
            for unit, ours in spikes.items():
                row["neuron_steps"] += ours.numel()
                row["spikes"] += int(ours.abs().sum())
                row["differing"] += int((run.values[unit] != ours).sum())
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def importers(name: str, images: Tensor, labels: Tensor, environments: Path, simulators: list[str]) -> list[dict[str, Any]]:
    """What each simulator makes of one network, as its importer returns it and patched."""
    network = lowered(name, images, max_pool=False)
    ours = network.simulate(images, engine="spikes", neuron="unsigned", schedule="fixed", keep_counts=True)
    quantized = network.simulate(images, keep_counts=True)
    rows = [_row(name, network, "nbsnn", "unsigned", ours.counts, ours.logits, ours.counts, quantized.counts, labels)]
    for simulator in simulators:
        for patched in (False, True):
            done = _simulated(network, images, simulator, environments, patched=patched)
            form = "patched" if patched else "as imported"
            if isinstance(done, str):
                rows.append({"net": name, "T": network.timesteps, "simulator": simulator, "form": form, "fails": done})
                continue
            rows.append(_row(name, network, simulator, form, *done, ours.counts, quantized.counts, labels))
    return rows


def _row(name: str, network: nbsnn.IntegerNetwork, simulator: str, form: str, counts: dict[str, Tensor], logits: Tensor,
         ours: dict[str, Tensor], quantized: dict[str, Tensor], labels: Tensor) -> dict[str, Any]:  # fmt: skip
    neurons = sum(count.numel() for count in ours.values())

    def off(others: dict[str, Tensor]) -> float:
        return sum(int((counts[unit] != other).sum()) for unit, other in others.items()) / neurons

    return {
        "net": name, "T": network.timesteps, "simulator": simulator, "form": form, "images": len(labels), "neurons": neurons,
        "differing_from_unsigned": off(ours), "differing_from_quantized": off(quantized),
        "top1": 100 * float((logits.argmax(1) == labels).double().mean()),
    }  # fmt: skip


def _simulated(network: nbsnn.IntegerNetwork, images: Tensor, simulator: str, environments: Path, *, patched: bool) -> Any:
    """Counts and logits, or why it fails."""
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder)
        network.save(given / "net.safetensors")
        torch.save(on_grid(network, images), given / "images.pt")
        worker = Path(__file__).parent / "interop_worker.py"
        python = environments / simulator / "bin" / "python"
        words = [str(python), str(worker), simulator, folder, "patched" if patched else "as imported"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
        found = torch.load(given / "found.pt", weights_only=True)
        if found["logits"].shape != (len(images), *network.program.head.shape):
            return f"returns values of shape {list(found['logits'].shape)}, not those of the output node"
        return found["counts"], found["logits"]


def exact_table() -> list[str]:
    """The rows of docs/nir.md on the profile "exact"."""
    names = ("network", "T", "schedule", "steps", "neurons · steps", "spikes", "differ", "logits that differ", "file, MB")
    lines = [_line(names), "|" + "---|" * len(names)]
    for row in Rows(RESULTS / "interop-exact.json", {}).read():
        numbers = [f"{row[key]:,}" for key in ("neuron_steps", "spikes", "differing", "logits_differing")]
        cells = [_short(row["net"]), row["T"], f"`{row['schedule']}`", row["steps"], *numbers, f"{row['bytes'] / 1e6:.1f}"]
        lines.append(_line(cells))
    return lines


def importers_table() -> list[str]:
    """The rows of docs/nir.md on the profile "if"."""
    rows = Rows(RESULTS / "interop-importers.json", {}).read()
    found = {(row["simulator"], row["form"], row["net"]): _cell(row) for row in rows}
    nets = list(dict.fromkeys(row["net"] for row in rows))
    lines = [_line(["simulator", *map(_short, nets)]), "|" + "---|" * (len(nets) + 1)]
    for simulator, form in dict.fromkeys((row["simulator"], row["form"]) for row in rows):
        lines.append(_line([f"{simulator}, {form}", *(found.get((simulator, form, net), "not run") for net in nets)]))
    return lines


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _short(net: str) -> str:
    return net.removeprefix("zoo:cifar10/")


def _cell(row: dict[str, Any]) -> str:
    if "fails" in row:
        return "fails"
    off = row["differing_from_unsigned"]
    return f"{f'{100 * off:.3g} %' if off else '0'}, {row['top1']:.0f} %"


def main() -> None:
    """Measure, and write rows to the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("exact", "importers", "tables"))
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--environments", type=Path, default=Path(".interop"))
    parser.add_argument("--simulators", nargs="+", default=list(SIMULATORS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.what == "tables":
        print("\n".join([*exact_table(), "", *importers_table()]))  # noqa: T201
        return
    data = nbsnn.load_data("sample").test
    images = data.normalized(data.pixels(slice(0, args.images)))
    labels = torch.as_tensor(data.labels)[: args.images]
    rows = Rows(args.json or RESULTS / f"interop-{args.what}.json", {"kind": f"interop {args.what}", "machine": machine()})
    for net in args.nets:
        if args.what == "importers" and not rows.find(net=net):
            for row in importers(net, images, labels, args.environments, args.simulators):
                print(json.dumps(rows.add(row)), flush=True)  # noqa: T201
        for schedule in ("fixed", "settle") if args.what == "exact" else ():
            if not rows.find(net=net, schedule=schedule):
                print(json.dumps(rows.add(exact(net, schedule, images))), flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
