"""The native backend: the ctypes binding of the C++ kernel in `integer/native/`.

All indices used in C++ are computed and checked here, and checked again in C++.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

from nbsnn.errors import ConfigError, unknown
from nbsnn.extension import pool_of_torch
from nbsnn.integer.backends import library
from nbsnn.integer.backends.base import Backend, Request, register
from nbsnn.integer.backends.library import Target, check_result, target_numbers, targets, why_not
from nbsnn.integer.frozen import thawed
from nbsnn.integer.nodes import IMAGE, Head, MaxPool, Unit
from nbsnn.integer.program import Outcome, Program, Rows
from nbsnn.integer.taps import KernelBranch, base_of, digits_of, kernel_branch_of, windows_of
from nbsnn.integer.work import work_of
from nbsnn.spiking.schedules import Neuron, schedule_named

# Synapses of a step's spikes, or of a bit of counts, that are worth another thread: one of torch's, and one that has to
# be started (half a millisecond of work).
PRODUCTS_PER_THREAD = (3 * 10**7, 2 * 10**8)
FLIGHT = 8  # images that a thread computes together, so that weights of linear layers are read once for all
COUNTS_MODE = 4  # the mode of `run_counts`; those of `run_spikes` are the schedules'


def run_counts(
    program: Program, pixels: Tensor, *, keep_counts: bool = False, target: Target | None = None, threads: int | None = None
) -> Outcome:
    """The quantized network in integers; see `Outcome` for arguments and result.

    Args:
        target: instruction set; the best of this processor unless given.
        threads: workers; `torch.get_num_threads()` unless given, or fewer where the call has little to do.
    """
    return _run(program, pixels, COUNTS_MODE, keep_counts, target, threads)


def run_spikes(
    program: Program,
    pixels: Tensor,
    *,
    neuron: Neuron,
    schedule: str,
    keep_counts: bool = False,
    target: Target | None = None,
    threads: int | None = None,
) -> Outcome:
    """Step by step, by events or bit planes (docs/kernel.md); see `Outcome` and `run_counts` for arguments and result."""
    found = schedule_named(schedule)
    if neuron not in found.native:
        raise ConfigError(f"the native backend does not know {neuron} neurons under schedule={schedule!r}; use backend='torch'")
    outcome = _run(program, pixels, found.native[neuron], keep_counts, target, threads)
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


@dataclass(frozen=True, eq=False)
class _Handle:
    """A network inside the extension, freed with this object, and what every run of it needs.

    Attributes:
        address, lib: of the network.
        heads: the kernel's heads.
        units: unit → its index among the kernel's nodes.
        no_counts: a null pointer per node, for runs that do not return counts.
        products: synapses of an image.
        edges: the least and the greatest pixel.
        maps: whether a head has a map of places that the kernel leaves out.
    """

    address: int
    lib: ctypes.CDLL
    heads: tuple[Head, ...]
    units: dict[str, int]
    no_counts: "ctypes.Array[ctypes.c_void_p]"
    products: int
    edges: tuple[int, int]
    maps: bool

    def __post_init__(self) -> None:
        finalize(self, self.lib.nbsnn_free, self.address)


def _run(
    program: Program,
    pixels: Tensor,
    mode: int,
    keep_counts: bool,
    target: Target | None,
    threads: int | None,
    nanoseconds: Tensor | None = None,
) -> Outcome:
    """Run; with `nanoseconds` [nodes of the kernel] int64, add the time of each node to it."""
    handle = _handle(program, target)
    _check_pixels(program, handle, pixels)
    batch, heads, sending = len(pixels), handle.heads, program.sending
    pool = pool_of_torch()
    workers = _worthwhile_threads(program, handle, batch, mode, pool) if threads is None else threads
    if not 1 <= workers <= 1024:
        raise ConfigError(f"threads={workers}: give a number from 1 to 1024")
    counts = {u.name: torch.empty(batch, *u.shape, dtype=torch.int32) for u in program.units} if keep_counts else {}
    kept = _addresses([*(counts.get(n.name) for n in sending), *(None for _ in heads)]) if counts else handle.no_counts
    sums = [torch.empty(batch, *head.shape, dtype=torch.int64) for head in heads]
    steps = torch.empty(batch, dtype=torch.int64)
    spikes = torch.zeros(len(sending) + len(heads), batch, dtype=torch.int64)
    done = handle.lib.nbsnn_run(
        handle.address, _address(pixels), batch, mode, workers, FLIGHT, kept, _addresses([*sums]), _address(steps),
        _address(spikes), None if nanoseconds is None else _address(nanoseconds),
        pool if workers <= torch.get_num_threads() else None,
    )  # fmt: skip
    check_result(done)
    return Outcome(_mapped(program, sums) if handle.maps else tuple(sums), steps, Rows(spikes, handle.units), counts)


def _worthwhile_threads(program: Program, handle: _Handle, batch: int, mode: int, pool: int | None) -> int:
    """Torch's number of threads, or fewer where the call has little to do."""
    lanes = program.timesteps.bit_length() if mode == COUNTS_MODE else program.timesteps
    return max(1, min(torch.get_num_threads(), batch * lanes * handle.products // PRODUCTS_PER_THREAD[pool is None]))


def _kernel_heads(program: Program) -> tuple[Head, ...]:
    """A head of the kernel for each branch of each head, without the map of places behind it."""
    return tuple(
        Head((*head.shape[:1], *branch.after.size) if branch.after else head.shape, (replace(branch, after=None),), head.bias)
        for head in program.heads
        for branch in head.branches
    )


def _mapped(program: Program, sums: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The accumulators of all heads' branches, of those of the kernel's heads."""
    branches = [(branch, head.shape) for head in program.heads for branch in head.branches]
    return tuple(
        branch.after.apply(total).reshape(-1, *shape) if branch.after else total
        for (branch, shape), total in zip(branches, sums, strict=True)
    )


def _check_pixels(program: Program, handle: _Handle, pixels: Tensor) -> None:
    if pixels.dtype != torch.int32 or pixels.device.type != "cpu" or not pixels.is_contiguous():
        raise ConfigError(f"pixels are {pixels.dtype} on {pixels.device}: give a contiguous int32 tensor on the CPU")
    if tuple(pixels.shape[1:]) != program.pixels.shape or not len(pixels):
        raise ConfigError(
            f"pixels of shape {tuple(pixels.shape)}: give [B, {', '.join(map(str, program.pixels.shape))}], B ≥ 1"
        )
    if not handle.lib.nbsnn_within(_address(pixels), pixels.numel(), *handle.edges):
        low, high = (int(x) for x in torch.aminmax(pixels))
        raise ConfigError(f"pixels from {low} to {high}: the network takes {program.pixels.low} to {program.pixels.high}")


def _handle(program: Program, target: Target | None) -> _Handle:
    """The program in the extension, made once per instruction set; the best one for None."""
    lib = library.loaded()
    if isinstance(lib, str):
        raise ConfigError(f"no native backend: {lib}; use backend='torch'")
    known = targets()
    chosen = target or known[-1]
    if chosen not in known:
        raise ConfigError(unknown("target", chosen, known))
    return program.prepared(("native", chosen), lambda: _build(lib, program, target_numbers()[chosen]))


def _build(lib: ctypes.CDLL, program: Program, target: int) -> _Handle:
    channels, *sides = program.pixels.shape
    bound = max(-program.pixels.low, program.pixels.high)
    address = lib.nbsnn_new(target, program.timesteps, channels, math.prod(sides), bound)
    if not address:
        check_result(-1)
    heads = _kernel_heads(program)
    nodes: tuple[Unit | MaxPool | Head, ...] = (*program.sending, *heads)
    units = {node.name: i for i, node in enumerate(program.sending) if isinstance(node, Unit)}
    edges = max(program.pixels.low, -(2**31)), min(program.pixels.high, 2**31 - 1)  # pixels have 32 bits
    maps = any(branch.after for head in program.heads for branch in head.branches)
    handle = _Handle(address, lib, heads, units, _addresses([None for _ in nodes]), work_of(program).products, edges, maps)
    index = {IMAGE: -1} | {node.name: i for i, node in enumerate(program.sending)}
    for node in nodes:
        if isinstance(node, MaxPool):
            start, origin = windows_of(program, node)
            check_result(lib.nbsnn_add_pool(
                address, index[base_of(program, node.source)], int(node.lowest), len(start) - 1, start.ctypes.data,
                origin.ctypes.data, len(origin),
            ))  # fmt: skip
            continue
        positions = int(np.prod(node.shape[1:], dtype=np.int64))
        unit = node if isinstance(node, Unit) else None
        levels, bits, retract = (unit.levels, unit.fraction_bits, unit.retract) if unit else (1, 1, 0)
        wide = unit.wide if unit else True
        bias = thawed(node.bias).to(torch.int64).contiguous() if unit else torch.zeros(node.shape[0], dtype=torch.int64)
        check_result(lib.nbsnn_add_node(
            address, int(unit is None), int(wide), node.shape[0], positions, levels, bits, retract, _address(bias), bias.numel()
        ))  # fmt: skip
        for branch in node.branches:
            source, read = index[base_of(program, branch.source)], kernel_branch_of(program, branch, node.shape)
            for number, part in enumerate(digits_of(read) if unit and source >= 0 else [read]):
                _add_branch(lib, address, source, part, is_digit=number > 0)
    check_result(lib.nbsnn_finish(address))
    return handle


def _add_branch(lib: ctypes.CDLL, net: int, source: int, s: KernelBranch, *, is_digit: bool) -> None:
    multiplier = s.multiplier.to(torch.int64).contiguous() if not s.multiplier.is_floating_point() else torch.zeros(
        len(s.multiplier), dtype=torch.int64)  # fmt: skip
    check_result(lib.nbsnn_add_branch(
        net, source, s.inputs, s.groups, s.taps, s.shift, s.start.ctypes.data, s.origin.ctypes.data, len(s.origin),
        _address(multiplier), s.weight.ctypes.data, s.weight.size, int(is_digit),
    ))  # fmt: skip


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr()


def _addresses(tensors: list[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def _obstacle(request: Request) -> str | None:
    if request.device.type != "cpu":
        return f"the network is on {request.device}; move it with .to('cpu')"
    if request.engine == "spikes" and request.neuron not in schedule_named(request.schedule).native:
        return f"the kernel has no {request.neuron} neurons under schedule={request.schedule!r}"
    if request.engine == "spikes" and request.keep_fired and request.neuron == "signed":
        return "the kernel does not return the spikes of each signed neuron"  # an unsigned one has fired its count
    return why_not()


NATIVE = register(Backend("native", run_counts, run_spikes, bytes_per_image, _obstacle))
