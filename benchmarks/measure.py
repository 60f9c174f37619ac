"""What every benchmark does: time a call, and say on which machine."""

import platform
import time
from collections.abc import Callable

import torch


def seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def machine(threads: int | None = None, **more: object) -> dict[str, object]:
    """Instruction set, threads (torch's unless given), versions, and what else a benchmark wants said of the machine."""
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(), "threads": threads or torch.get_num_threads(), **more,
        "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip
