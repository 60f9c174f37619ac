"""The native backend: the ctypes binding of the C++ kernel in `integer/native/`.

All indices used in C++ are computed and checked here, and checked again in C++.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nbsnn.errors import ConfigError, unknown
from nbsnn.extension import pool_of_torch
from nbsnn.integer.backends import library
from nbsnn.integer.backends.base import Backend, Request, register
from nbsnn.integer.backends.handles import Handle, address_of, addresses_of, build_handle
from nbsnn.integer.backends.library import Target, check_result, target_numbers, targets, why_not
from nbsnn.integer.nodes import Head
from nbsnn.integer.pixels import fits_single, to_integers
from nbsnn.integer.program import Outcome, Program, Rows
from nbsnn.spiking.schedules import Neuron, schedule_named

# Synapses of a step's spikes, or of a bit of counts, that are worth another thread: one of torch's, and one that has to
# be started (half a millisecond of work).
PRODUCTS_PER_THREAD = (3 * 10**7, 2 * 10**8)
FLIGHT = 20  # images that a thread computes together, so that weights of linear layers are read once for all
COUNTS_MODE = 4  # the mode of `run_counts`; those of `run_spikes` are the schedules'


def run_counts(
    program: Program,
    pixels: Tensor,
    *,
    keep_counts: bool = False,
    target: Target | None = None,
    threads: int | None = None,
    floats: bool = False,
) -> Outcome:
    """The quantized network in integers; see `Outcome` for arguments and result.

    Args:
        target: instruction set; the best of this processor unless given.
        threads: workers; `torch.get_num_threads()` unless given, or fewer where the call has little to do.
        floats: `pixels` are images for which `takes_floats` holds.
    """
    return _run(program, pixels, COUNTS_MODE, keep_counts, target, threads, floats=floats)


def run_spikes(
    program: Program,
    pixels: Tensor,
    *,
    neuron: Neuron,
    schedule: str,
    keep_counts: bool = False,
    target: Target | None = None,
    threads: int | None = None,
    floats: bool = False,
) -> Outcome:
    """Step by step, by events or bit planes (docs/kernel.md); see `Outcome` and `run_counts` for arguments and result."""
    found = schedule_named(schedule)
    if neuron not in found.native:
        raise ConfigError(f"the native backend does not know {neuron} neurons under schedule={schedule!r}; use backend='torch'")
    outcome = _run(program, pixels, found.native[neuron], keep_counts, target, threads, floats=floats)
    if found.order == "in turn":
        outcome.steps.fill_(found.steps(program.timesteps, program.depth))  # the kernel counts the steps of a window
    return outcome


def node_seconds(
    program: Program, pixels: Tensor, mode: int, *, target: Target | None = None, threads: int = 1
) -> dict[str, float]:
    """Seconds that a run spends in each unit and max pool, and in the heads (together, under their name).

    Args:
        mode: COUNTS_MODE, or a schedule's, of `Schedule.native`.
        threads: with several, of the thread that leads.
    """
    handle = _handle(program, target)
    names = [*(node.name for node in program.sending), *(head.name for head in handle.heads)]
    nanoseconds = torch.zeros(len(names), dtype=torch.int64)
    _run(program, pixels, mode, False, target, threads, nanoseconds)
    seconds = dict.fromkeys(names, 0.0)
    for name, taken in zip(names, nanoseconds.tolist(), strict=True):
        seconds[name] += taken / 1e9
    return seconds


def bytes_per_image(program: Program) -> int:
    """Bytes for the pixels, as doubles and integers, here and in the kernel; the kernel bounds its neurons in flight itself."""
    return 16 * torch.Size(program.pixels.shape).numel()


def _run(
    program: Program,
    pixels: Tensor,
    mode: int,
    keep_counts: bool,
    target: Target | None,
    threads: int | None,
    nanoseconds: Tensor | None = None,
    floats: bool = False,
) -> Outcome:
    """Run; with `nanoseconds` [nodes of the kernel] int64, add the time of each node to it."""
    handle = _handle(program, target)
    if not floats:
        _check_pixels(program, pixels)
    batch, heads, sending = len(pixels), handle.heads, program.sending
    pool = pool_of_torch()
    workers = _worthwhile_threads(program, handle, batch, mode, pool) if threads is None else threads
    if not 1 <= workers <= 1024:
        raise ConfigError(f"threads={workers}: give a number from 1 to 1024")
    counts = {u.name: torch.empty(batch, *u.shape, dtype=torch.int32) for u in program.units} if keep_counts else {}
    kept = addresses_of([*(counts.get(n.name) for n in sending), *(None for _ in heads)]) if counts else handle.no_counts
    sums, each = _sums(heads, batch)
    result = torch.empty(batch, *program.head.shape) if handle.result else None
    steps = torch.empty(batch, dtype=torch.int64)
    spikes = torch.empty(len(sending) + len(heads), batch, dtype=torch.int64)
    done = handle.lib.nbsnn_run(
        handle.address, pixels.data_ptr(), floats, batch, mode, workers, FLIGHT, kept, sums.data_ptr(), address_of(result),
        steps.data_ptr(), spikes.data_ptr(), address_of(nanoseconds), pool if workers <= torch.get_num_threads() else None,
    )  # fmt: skip
    check_result(done)
    if done:
        raise _refusal(program, pixels)
    return Outcome(_mapped(program, each) if handle.maps else each, steps, Rows(spikes, handle.units), counts, result=result)


def _sums(heads: Sequence[Head], batch: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Memory for the accumulators of the kernel's heads, one after the other, and each one's."""
    if len(heads) == 1:
        sums = torch.empty(batch, *heads[0].shape, dtype=torch.int64)
        return sums, (sums,)
    sizes = [batch * math.prod(head.shape) for head in heads]
    sums = torch.empty(sum(sizes), dtype=torch.int64)
    return sums, tuple(part.view(batch, *head.shape) for head, part in zip(heads, torch.split(sums, sizes), strict=True))


def _worthwhile_threads(program: Program, handle: Handle, batch: int, mode: int, pool: int | None) -> int:
    """Torch's number of threads, or fewer where the call has little to do."""
    lanes = program.timesteps.bit_length() if mode == COUNTS_MODE else program.timesteps
    return max(1, min(torch.get_num_threads(), batch * lanes * handle.products // PRODUCTS_PER_THREAD[pool is None]))


def _mapped(program: Program, sums: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The accumulators of all heads' branches, of those of the kernel's heads."""
    branches = [(branch, head.shape) for head in program.heads for branch in head.branches]
    return tuple(
        branch.after.apply(total).reshape(-1, *shape) if branch.after else total
        for (branch, shape), total in zip(branches, sums, strict=True)
    )


def takes_floats(program: Program, images: object) -> bool:
    """Whether a run takes images in place of integers: plain float32 ones [B, *shape] that single precision rounds exactly."""
    return (
        type(images) is Tensor
        and images.dtype is torch.float32
        and images.is_cpu
        and images.layout is torch.strided
        and images.is_contiguous()
        and images.shape[1:] == program.pixels.shape
        and len(images) > 0
        and program.prepared("fits single", lambda: fits_single(program.pixels))
    )


def _check_pixels(program: Program, pixels: Tensor) -> None:
    if pixels.dtype != torch.int32 or pixels.device.type != "cpu" or not pixels.is_contiguous():
        raise ConfigError(f"pixels are {pixels.dtype} on {pixels.device}: give a contiguous int32 tensor on the CPU")
    if tuple(pixels.shape[1:]) != program.pixels.shape or not len(pixels):
        raise ConfigError(
            f"pixels of shape {tuple(pixels.shape)}: give [B, {', '.join(map(str, program.pixels.shape))}], B ≥ 1"
        )


def _refusal(program: Program, pixels: Tensor) -> ConfigError:
    """The error for pixels that the kernel refused.

    Raises:
        LoweringError: they are images.
    """
    pixels = to_integers(program.pixels, pixels) if pixels.is_floating_point() else pixels
    low, high = (int(x) for x in torch.aminmax(pixels))
    return ConfigError(f"pixels from {low} to {high}: the network takes {program.pixels.low} to {program.pixels.high}")


def _handle(program: Program, target: Target | None) -> Handle:
    """The program in the extension, made once per instruction set; the best one for None."""
    lib = library.loaded()
    if isinstance(lib, str):
        raise ConfigError(f"no native backend: {lib}; use backend='torch'")
    known = targets()
    chosen = target or known[-1]
    if chosen not in known:
        raise ConfigError(unknown("target", chosen, known))
    return program.prepared(("native", chosen), lambda: build_handle(lib, program, target_numbers()[chosen]))


def _obstacle(request: Request) -> str | None:
    if request.device.type != "cpu":
        return f"the network is on {request.device}; move it with .to('cpu')"
    if request.engine == "spikes" and request.neuron not in schedule_named(request.schedule).native:
        return f"the kernel has no {request.neuron} neurons under schedule={request.schedule!r}"
    if request.engine == "spikes" and request.keep_fired and request.neuron == "signed":
        return "the kernel does not return the spikes of each signed neuron"  # an unsigned one has fired its count
    return why_not()


NATIVE = register(Backend("native", run_counts, run_spikes, bytes_per_image, _obstacle))
