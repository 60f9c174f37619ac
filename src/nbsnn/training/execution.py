"""How a training step runs on this machine: compiled or eager, and in which type; detected at run time.

None of this is part of a recipe: it changes the speed, and results only by rounding errors.
"""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from nbsnn.device import cpu_flags
from nbsnn.distributed import world
from nbsnn.errors import ConfigError
from nbsnn.precision import convolutions_in_tf32

COMPILE_CHOICES = ("auto", "on", "off")
PRECISION_CHOICES = ("auto", "float32", "bf16")

# Images after which compiling pays. On two cores it took 40 to 90 s for a CIFAR ResNet-20 and saved a third of a step: a few
# epochs of CIFAR-10. On CUDA, where a replayed step takes 3 to 6 ms, it can only pay after a hundred.
_COMPILE_PAYS = {"cpu": 200_000, "cuda": 5_000_000}


@dataclass(frozen=True)
class Execution:
    """Settings of a step. The default is plain eager float32.

    `cuda_graph`: steps are replayed as a CUDA graph. `tf32`: float32 convolutions use TF32 in training; for messages only.
    """

    compiled: bool = False
    autocast: torch.dtype | None = None
    reason: str = "as asked"
    cuda_graph: bool = False
    tf32: bool = False

    def precision(self, device: torch.device) -> AbstractContextManager[object]:
        """The context in which the forward pass runs."""
        return nullcontext() if self.autocast is None else torch.autocast(device.type, dtype=self.autocast)

    def __str__(self) -> str:
        dtype = "float32" if self.autocast is None else f"{str(self.autocast).removeprefix('torch.')} autocast"
        if self.tf32 or self.autocast:
            dtype += " (" + ("convolutions in TF32, " if self.tf32 else "") + "evaluated in full float32)"
        graph = ", replayed as a CUDA graph" if self.cuda_graph else ""
        return f"{dtype}, channels last, {'compiled' if self.compiled else 'eager'} ({self.reason}){graph}"


def pick_execution(device: torch.device, images: int, *, compile: str = "auto", precision: str = "auto") -> Execution:
    """Choose the execution for a device and a phase that trains on `images` images in total (epochs times the size of the set).

    Raises:
        ConfigError: unknown choice, or compilation is requested and there is no C++ compiler.
    """
    check_choices(compile, precision)
    # Not on CUDA: in bfloat16 a replayed step of a quantized ResNet-20 took 8 % less time on an H200, and activations had only
    # 8 bits before rounding. Convolutions in float32 run in TF32 there.
    bf16 = precision == "bf16" or (precision == "auto" and has_bf16(device))
    compiler = has_compiler(device)
    lacking = "no Triton" if device.type == "cuda" else "no C++ compiler"
    if compile == "on" and not compiler:
        which = "" if device.type == "cuda" else " (g++ or clang++)"
        raise ConfigError(f"compile=on: {lacking} was found{which}; install it, or use compile=off")
    compiled = compile == "on" or (compile == "auto" and compiler and images >= _COMPILE_PAYS.get(device.type, 0))
    if compile != "auto":
        reason = "as asked"
    elif not compiler:
        reason = f"{lacking} here"
    else:
        reason = "long enough for compiling to pay" if compiled else "too short for compiling to pay"
    cuda = device.type == "cuda"
    return Execution(
        compiled, torch.bfloat16 if bf16 else None, reason, cuda_graph=cuda and world().size == 1,
        tf32=cuda and not bf16 and convolutions_in_tf32(),
    )  # fmt: skip


def check_choices(compile: str, precision: str) -> None:
    """Raise an error for anything but the choices of `pick_execution`."""
    for key, value, allowed in (("compile", compile, COMPILE_CHOICES), ("precision", precision, PRECISION_CHOICES)):
        if value not in allowed:
            raise ConfigError(f"{key}={value}: choose {', '.join(allowed[:-1])} or {allowed[-1]}")


@contextmanager
def one_order_of_sums() -> Iterator[None]:
    """Context manager: cuDNN uses deterministic kernels only, so a run on a GPU repeats bit for bit."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def has_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 in hardware; emulated, it is half as fast as float32."""
    return device.type == "cpu" and bool({"amx_bf16", "avx512_bf16"} & cpu_flags())


def has_compiler(device: torch.device) -> bool:
    """Whether the requirement of torch.compile is installed: Triton on CUDA, a C++ compiler on the CPU."""
    if device.type == "cuda":
        old = torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (7, 0)
        return find_spec("triton") is not None and not old
    return device.type == "cpu" and any(shutil.which(name) for name in ("g++", "clang++"))
