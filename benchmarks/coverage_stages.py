"""One model through every stage of the package, in a process of its own with limits of time and memory."""

import resource
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from coverage_models import build, image_shape, inexact, smallest, usual_shape
from torch import Tensor, nn

import nbsnn
from nbsnn.errors import NbsnnError

STAGES = ("build", "check", "quantize", "fixed", "barrier", "lower", "integer", "settle")
SPEC = nbsnn.QuantSpec(weight_bits=4, act_bits=2)
CALIBRATION = 8  # images
OUT_OF_MEMORY = "can't allocate memory"  # in torch's errors
Report = Callable[[dict[str, Any]], None]


def run(names: list[str], row: dict[str, Any], memory: float, report: Report) -> None:
    """`measure` with a limit of memory, for a process of its own.

    Args:
        memory: GiB that the process may allocate.
    """
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30),) * 2)
    measure(names, row, report)
    report(row | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024})


def measure(names: list[str], row: dict[str, Any], report: Report) -> None:
    """Put the smallest of some models through every stage, and add the figures to a row.

    Args:
        row: may hold `model` and `image` of an earlier run.
        report: receives the row at the start of every stage.
    """
    row |= {"stage": "build", "seconds": {}}
    try:
        _stages(names, row, report)
        row |= {"outcome": "through", "stage": None}
    except Refused as error:
        row |= {"outcome": "refused", "reason": str(error)}
    except NbsnnError as error:
        row |= {"outcome": "stopped", "reason": "out of memory" if OUT_OF_MEMORY in str(error) else str(error)}
    except Exception as error:  # a defect, or memory
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {last.filename.rpartition('/')[2]}:{last.lineno}: {str(error)[:300]}"
        is_memory = isinstance(error, MemoryError) or OUT_OF_MEMORY in str(error)
        row |= {"outcome": "stopped", "reason": "out of memory" if is_memory else where}


class Refused(Exception):
    """`nbsnn.check` refuses the model."""


class Stage:
    """Notes the stage that is running, and its time."""

    def __init__(self, name: str, row: dict[str, Any], report: Report) -> None:
        self.name, self.row, self.report = name, row, report

    def __enter__(self) -> None:
        self.row["stage"] = self.name
        self.report(dict(self.row))
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.row["seconds"][self.name] = round(time.perf_counter() - self.start, 2)


def _stages(names: list[str], row: dict[str, Any], report: Report) -> None:
    with Stage("build", row, report):
        row["model"] = row.get("model") or smallest(names)
        shape = row["image"] = row.get("image") or image_shape(row["model"])
        torch.manual_seed(0)
        net = build(row["model"], tuple(shape[1:]) if shape else None).eval()
        row["parameters"] = sum(p.numel() for p in net.parameters())
        images = torch.randn(CALIBRATION, *(shape or usual_shape(net)))
        compared = images[: 2 if images.shape[-1] <= 64 else 1]
        if shape:
            calibrate_norms_(net, images)
            row["inexact"] = inexact(net, images[:2])
    with Stage("check", row, report):
        findings = nbsnn.check(net, images[:1])
        row["findings"] = {s: sum(f.status == s for f in findings) for s in sorted({f.status for f in findings})}
        refused = [f for f in findings if f.status == "refused"]
        if any(OUT_OF_MEMORY in f.what for f in refused):
            raise MemoryError
        if refused:
            raise Refused("; ".join(dict.fromkeys(f.what for f in refused)))
    with Stage("quantize", row, report):
        quantized = nbsnn.quantize(net, SPEC, images=images).eval()
    for schedule in ("fixed", "barrier"):
        with Stage(schedule, row, report):
            _simulate(quantized, schedule, compared, row)
    with Stage("lower", row, report):
        network = nbsnn.lower(quantized, images[:1])
    with Stage("integer", row, report):
        row |= compare_engines(network, compared)
        if row["integer_differing"]:
            raise NbsnnError(f"{row['integer_differing']} counts differ between engines or backends")
    with Stage("settle", row, report):
        _simulate(quantized, "settle", compared, row)


@torch.no_grad()
def calibrate_norms_(net: nn.Module, images: Tensor) -> None:
    """The statistics of every batch norm, as means over batches of random images."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in images.split(max(2, len(images) // 2)):
        net(batch.clone())
    net.eval()


def _simulate(quantized: nn.Module, schedule: str, images: Tensor, row: dict[str, Any]) -> None:
    double = quantized.double()
    spiking = nbsnn.to_spiking(double, images[:1].double(), schedule=schedule)
    fidelity = nbsnn.measure_fidelity(double, spiking, images.double())
    quantized.float()
    row["neurons"] = sum(layer.neurons for layer in fidelity.layers)
    row[schedule] = {"differing": fidelity.differing, "off": round(fidelity.off, 2), "steps": int(fidelity.steps.max())}
    if schedule != "fixed" and fidelity.differing:
        worst = next(layer for layer in fidelity.layers if layer.differing)
        raise NbsnnError(f"{fidelity.differing} of {row['neurons']} neurons differ under {schedule}, the first in {worst.name}")


def compare_engines(network: nbsnn.IntegerNetwork, images: Tensor) -> dict[str, int]:
    """Counts that differ from those of engine `counts`, over engines, backends and schedules (`fixed`: of two backends)."""
    wanted = network.simulate(images, keep_counts=True).counts
    differing = 0
    for backend in ("native", "torch"):
        runs = [network.counts(images, backend=backend)]
        runs += [_spikes(network, images, schedule, backend) for schedule in ("settle", "barrier")]
        differing += sum(int((run[name] != count).sum()) for run in runs for name, count in wanted.items())
    fixed = [_spikes(network, images, "fixed", backend) for backend in ("native", "torch")]
    differing += sum(int((fixed[0][name] != count).sum()) for name, count in fixed[1].items())
    return {"integer_neurons": sum(count.numel() for count in wanted.values()), "integer_differing": differing}


def _spikes(network: nbsnn.IntegerNetwork, images: Tensor, schedule: str, backend: str) -> dict[str, Tensor]:
    return network.simulate(images, engine="spikes", schedule=schedule, backend=backend, keep_counts=True).counts
