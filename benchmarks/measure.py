"""Helpers of benchmarks: time a call, describe the machine, and store rows in a file."""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nbsnn.errors import ConfigError
from nbsnn.files import write_text
from nbsnn.tensorfile import Header


def seconds(run: Callable[[], object], times: int = 1) -> float:
    """Seconds of a call, as the mean of `times` consecutive calls, including the work on CUDA."""
    wait_for_device()
    start = time.perf_counter()
    for _ in range(times):
        run()
    wait_for_device()
    return (time.perf_counter() - start) / times


def wait_for_device() -> None:
    """Synchronize CUDA, if it is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def machine(threads: int | None = None, **more: object) -> dict[str, object]:
    """Instruction set, threads (torch's unless given), versions, and other facts about the machine."""
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(), "processor": _processor(),
        "threads": threads or torch.get_num_threads(), **more, "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip


def _processor() -> str:
    """The processor's name, where the system tells it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def trained_by(header: Header, checkpoint: Path) -> dict[str, Any]:
    """The recipe of a trained network and its epoch in the last phase, which distinguish networks of the same bits."""
    found = {"recipe_hash": header["recipe_hash"], "epoch": header["metrics"].get("epoch")}
    if None in found.values():
        raise ConfigError(f"{checkpoint}: its header names no recipe or no epoch; give a checkpoint written by nbsnn train")
    return found


class Rows:
    """The rows of a JSON file that a benchmark adds to; rows in the file are not measured again.

    `head` holds the other fields of the file.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path, self.head = path, head

    def read(self) -> list[dict[str, Any]]:
        """Read the file; another process may have added to it."""
        rows: list[dict[str, Any]] = json.loads(self.path.read_text())["rows"] if self.path.is_file() else []
        return rows

    def find(self, **wanted: Any) -> dict[str, Any] | None:
        """The row with these values, if there is one."""
        return next((row for row in self.read() if all(row.get(key) == value for key, value in wanted.items())), None)

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Append a row and write the file."""
        write_text(self.path, json.dumps(self.head | {"rows": [*self.read(), row]}, indent=1) + "\n")
        return row
