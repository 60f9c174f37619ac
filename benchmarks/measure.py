"""What every benchmark does: time a call, and say on which machine."""

import platform
import time
from collections.abc import Callable

import torch


def seconds(run: Callable[[], object], times: int = 1) -> float:
    """Of one call; of `times` calls that follow one another, the mean. CUDA has done its work when it ends."""
    _wait()
    start = time.perf_counter()
    for _ in range(times):
        run()
    _wait()
    return (time.perf_counter() - start) / times


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def machine(threads: int | None = None, **more: object) -> dict[str, object]:
    """Instruction set, threads (torch's unless given), versions, and what else a benchmark wants said of the machine."""
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(), "threads": threads or torch.get_num_threads(), **more,
        "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip
