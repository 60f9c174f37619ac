"""What every benchmark does: time a call, say on which machine, and keep rows in a file."""

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
    """Of one call; of `times` calls that follow one another, the mean. CUDA has done its work when it ends."""
    wait_for_device()
    start = time.perf_counter()
    for _ in range(times):
        run()
    wait_for_device()
    return (time.perf_counter() - start) / times


def wait_for_device() -> None:
    """Let CUDA finish what it was asked for, where it is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def machine(threads: int | None = None, **more: object) -> dict[str, object]:
    """Instruction set, threads (torch's unless given), versions, and what else a benchmark wants said of the machine."""
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(), "threads": threads or torch.get_num_threads(), **more,
        "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip


def trained_by(header: Header, checkpoint: Path) -> dict[str, Any]:
    """What tells a trained network from others of the same bits: its recipe, and which epoch of its last phase it is from."""
    found = {"recipe_hash": header["recipe_hash"], "epoch": header["metrics"].get("epoch")}
    if None in found.values():
        raise ConfigError(f"{checkpoint}: its header names no recipe or no epoch; take a checkpoint that nbsnn train wrote")
    return found


class Rows:
    """The rows of a JSON file that a benchmark adds to: what stands there is not measured again.

    `head` is what the file says beside them.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path, self.head = path, head

    def read(self) -> list[dict[str, Any]]:
        """What stands in the file; another process may have added to it."""
        rows: list[dict[str, Any]] = json.loads(self.path.read_text())["rows"] if self.path.is_file() else []
        return rows

    def find(self, **wanted: Any) -> dict[str, Any] | None:
        """The row with these values, if there is one."""
        return next((row for row in self.read() if all(row.get(key) == value for key, value in wanted.items())), None)

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Append a row and write the file."""
        write_text(self.path, json.dumps(self.head | {"rows": [*self.read(), row]}, indent=1) + "\n")
        return row
