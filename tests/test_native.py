"""The native backend gives the bits of the torch backend: any program, mode, batch, thread count and instruction set."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from programs import KINDS, random_pixels, random_program

from nbsnn.errors import ConfigError
from nbsnn.integer.backends import native
from nbsnn.integer.backends import torch as engine_torch
from nbsnn.integer.taps import KernelBranch, digits_of

needs_native = pytest.mark.skipif(native.why_not() is not None, reason=f"no native backend: {native.why_not()}")
MODES = (None, ("unsigned", "fixed"), ("signed", "fixed"), ("signed", "settle"), ("unsigned", "barrier"))


def run(module, program, pixels, mode, **options):
    """Counts without a mode, otherwise spikes with this neuron and schedule."""
    if mode is None:
        return module.run_counts(program, pixels, keep_counts=True, **options)
    return module.run_spikes(program, pixels, neuron=mode[0], schedule=mode[1], keep_counts=True, **options)


def assert_same(got, expected):
    assert got.counts.keys() == expected.counts.keys() == expected.spikes.keys()
    for name in expected.counts:
        assert torch.equal(got.counts[name], expected.counts[name]), name
        assert torch.equal(got.spikes[name], expected.spikes[name]), name
    assert torch.equal(got.steps, expected.steps)
    for mine, other in zip(got.accumulators, expected.accumulators, strict=True):
        assert torch.equal(mine, other)


@needs_native
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize(
    ("kinds", "timesteps", "channels", "mixed", "weight"),
    [
        (["conv"], 3, 8, False, 3),
        (list(KINDS), 7, 9, False, 4),
        (list(KINDS), 3, 40, True, 1),
        (["strided", "identity", "pooled"], 15, 20, False, 10),
        (["conv", "projection"], 1, 16, False, 31),
        (["conv", "pointwise"], 4, 130, False, 2),
        (["conv", "projection"], 3, 12, False, 127),  # two digits of four bits
        (["strided", "conv"], 7, 70, False, 127),  # dot products of many words
        (["conv"], 7, 70, False, 7),  # whose sums fit 16 bits
        (["strided", "identity", "wide"], 7, 10, False, 32767),  # four
    ],
)
def test_native_is_torch_bit_for_bit(kinds, timesteps, channels, mixed, weight, mode):
    if mixed and mode and mode[1] == "fixed":
        timesteps = 3
    program = random_program(kinds, timesteps=timesteps, channels=channels, mixed=mixed, weight=weight)
    for batch in (1, 3, 37):  # 37: a full vector of images and a rest, on AVX2
        pixels = random_pixels(program, batch, seed=batch)
        expected = run(engine_torch, program, pixels, mode)
        assert sum(int(s.sum()) for s in expected.spikes.values()) > 0
        for target in native.targets():
            for threads in (1, 3):
                assert_same(run(native, program, pixels, mode, target=target, threads=threads), expected)


@needs_native
def test_long_lists_and_wide_layers():
    """More channels than a record holds, one position, every weight at its extreme: sums that would wrap int8 and int16."""
    size = 1060  # times 31 is beyond int16
    program = random_program(["pointwise"], timesteps=7, channels=size, size=2, weight=31, seed=3)
    stem, unit, *_ = program.units
    extreme = torch.full_like(unit.branches[0].weight, 31)
    branch = replace(unit.branches[0], weight=extreme, multiplier=torch.ones(size, dtype=torch.int32))
    changed = {
        stem.name: replace(stem, bias=torch.full((size,), 400_000, dtype=torch.int32)),  # fires in every step
        unit.name: replace(unit, branches=(branch,)),
    }
    program = replace(program, nodes=tuple(changed.get(n.name, n) for n in program.nodes))
    pixels = random_pixels(program, 13)
    for mode in MODES:
        expected, few = run(engine_torch, program, pixels, mode), run(engine_torch, program, pixels[:2], mode)
        for target in native.targets():
            assert_same(run(native, program, pixels, mode, target=target, threads=1), expected)
            assert_same(run(native, program, pixels[:2].contiguous(), mode, target=target, threads=1), few)


@needs_native
@pytest.mark.parametrize("timesteps", [3, 7, 15])
@pytest.mark.parametrize("weight", [1, 4, 9, 21])
@pytest.mark.parametrize("pattern", [(1,), (-1,), (1, -1), (1, 1, -1)], ids=str)
def test_sums_reach_the_bounds_of_a_byte(timesteps, weight, pattern):
    """Every neuron of the source fires in every step, every weight is at its extreme."""
    program = random_program(["conv"], timesteps=timesteps, channels=13, size=6, weight=weight)
    stem, unit, *_ = program.units
    (branch,) = unit.branches
    signs = torch.tensor(pattern).repeat(branch.weight.numel())[: branch.weight.numel()].reshape(branch.weight.shape)
    branch = replace(branch, weight=(weight * signs).to(torch.int8), multiplier=torch.full((13,), 3, dtype=torch.int32))
    changed = {
        stem.name: replace(stem, bias=torch.full((13,), 400_000, dtype=torch.int32)),
        unit.name: replace(unit, branches=(branch,)),
    }
    program = replace(program, nodes=tuple(changed.get(n.name, n) for n in program.nodes))
    pixels = random_pixels(program, 5)
    for mode in MODES:
        expected = run(engine_torch, program, pixels, mode)
        for target in native.targets():
            assert_same(run(native, program, pixels, mode, target=target, threads=1), expected)


@needs_native
def test_positive_and_negative_spikes_of_one_step_do_not_wrap_their_sum():
    """1,200 sources: weights of +31 fire in step 2, while those of -31 take a spike back; each half alone fits int16."""
    size, threshold = 1200, 2**12
    program = random_program(["pointwise", "pointwise"], timesteps=3, channels=size, size=2, weight=31)
    stem, first, second, *_ = program.units
    rising = torch.arange(size) < size // 2

    def changed(unit, weight, multiplier, bias):
        branch = replace(unit.branches[0], weight=weight.to(torch.int8), multiplier=multiplier.int())
        return replace(unit, branches=(branch,), bias=bias.int())

    from_one = torch.zeros(size, size, 1, 1)
    from_one[:, 0, 0, 0] = torch.where(rising, 1, -1)
    every = torch.where(rising, 31, -31).expand(size, size)[..., None, None]
    ones = torch.ones(size)
    nodes = {
        stem.name: changed(stem, torch.zeros_like(stem.branches[0].weight), ones, 0.3 * threshold * ones),  # fires in step 2
        first.name: changed(first, from_one, torch.where(rising, 1, 2) * threshold, torch.where(rising, 0, 0.6 * threshold)),
        second.name: changed(second, every, ones, torch.zeros(size)),
    }
    program = replace(program, nodes=tuple(nodes.get(n.name, n) for n in program.nodes))
    pixels = random_pixels(program, 13)
    for mode in MODES:
        expected = run(engine_torch, program, pixels, mode)
        for target in native.targets():
            assert_same(run(native, program, pixels, mode, target=target), expected)
    assert int(run(engine_torch, program, pixels, ("signed", "fixed")).counts[second.name].min()) > 0


@needs_native
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("weight", [1, 2, 7, 8, 31])
def test_layers_of_few_places_pack_their_weights(weight, mode):
    """Weights of 2, 4 or 8 bits in the kernel, into one place and, of one image, into four; 17 images are two tiles."""
    program = random_program(["strided", "strided"], timesteps=4, channels=130, weight=weight, hidden=300)
    for batch in (1, 17):
        pixels = random_pixels(program, batch)
        expected = run(engine_torch, program, pixels, mode)
        assert int(expected.spikes["hidden"].sum()) > 0
        for target in native.targets():
            assert_same(run(native, program, pixels, mode, target=target, threads=2), expected)


@needs_native
def test_heads_add_up_windows_whose_counts_exceed_16_bits():
    program = random_program([], timesteps=255, channels=6, size=17, window=17)
    bright = torch.full((2, *program.pixels.shape), program.pixels.high, dtype=torch.int32)
    stem = replace(program.units[0], bias=torch.full((6,), 2**12, dtype=torch.int32))  # fires in every step
    program = replace(program, nodes=(stem, *program.nodes[1:]))
    expected = run(engine_torch, program, bright, None)
    assert int(expected.counts["stem"].sum((2, 3)).max()) > 2**16
    for target in native.targets():
        assert_same(run(native, program, bright, None, target=target), expected)


@pytest.mark.parametrize(("largest", "parts"), [(31, 1), (32, 2), (127, 2), (503, 2), (504, 3), (32767, 4), (-32768, 4)])
def test_large_weights_are_as_few_digits_as_can_be(largest, parts):
    weight = np.array([[[largest, 0, -7]]], np.int16)
    start, multiplier = np.zeros(2, np.uint32), torch.tensor([3, 2**40, -5])
    digits = digits_of(KernelBranch(1, 1, 1, start, start[:0], weight, multiplier, 0))
    assert len(digits) == parts
    assert all(np.abs(d.weight).max() <= 31 for d in digits)
    total = sum(d.multiplier.numpy() * d.weight.astype(np.int64) for d in digits)
    assert (total == multiplier.numpy() * weight.astype(np.int64)).all()


@needs_native
def test_an_image_does_not_depend_on_its_batch_or_on_other_callers():
    program = random_program(["conv", "identity", "strided"], timesteps=3, channels=24)
    pixels = random_pixels(program, 50)
    whole = native.run_spikes(program, pixels, neuron="signed", schedule="settle", keep_counts=True)
    results = {}

    def work(i):
        results[i] = native.run_spikes(program, pixels[i : i + 1], neuron="signed", schedule="settle", keep_counts=True)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 17, 49)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, alone in results.items():
        assert all(torch.equal(alone.counts[name][0], whole.counts[name][i]) for name in whole.counts)
        assert alone.steps[0] == whole.steps[i]


@needs_native
@pytest.mark.parametrize("timesteps", [3, 64])
@pytest.mark.parametrize(
    ("groups", "channels", "limit", "bits"),
    [(1, 7, 3, 61.9), (2, 8, 3, 61.9), (1, 8, 200, 61.9), (1, 9, 3, 62.9), (2, 10, 3, 62.9)],
)
def test_the_image_is_convolved_exactly_up_to_the_limit(groups, channels, limit, bits, timesteps):
    """Products just below 2^62 fit double precision, those above take integers; a row of zeros has no multiplier.

    With 3 steps and one group, both are decided from single precision.
    """
    program = random_program(["conv"], timesteps=timesteps, channels=channels)
    stem, g = program.nodes[0], torch.Generator().manual_seed(3)
    weight = torch.randint(-limit, limit + 1, (channels, 2 // groups, 3, 3), generator=g)
    weight[1] = 0
    load = weight.abs().flatten(1).sum(1) * program.pixels.high
    multiplier = torch.where(load > 0, 2**bits / load.clamp_min(1), 0).floor().long()
    weight = weight.to(torch.int8 if limit < 128 else torch.int16)
    branch = replace(stem.branches[0], weight=weight, groups=groups, multiplier=multiplier, shift=50)
    program = replace(program, nodes=(replace(stem, branches=(branch,)), *program.nodes[1:]))
    pixels = random_pixels(program, 33)
    sign = weight[0].sign().repeat(groups, 1, 1)
    pixels[0, :, :3, :3] = torch.where(sign > 0, program.pixels.high, program.pixels.low).to(torch.int32)
    pixels[1] = -pixels[0].clamp(program.pixels.low, -program.pixels.low)
    for mode in MODES[:3]:
        assert_same(run(native, program, pixels, mode), run(engine_torch, program, pixels, mode))


@needs_native
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_integers_decide_what_single_precision_cannot(mode):
    """Currents a few 2^-28 around each tie of each step, where floats are 2^-26 to 2^-25 apart."""
    timesteps, height = 3, 2**28
    ties = [(2 * k - 1) * height // (2 * t) for t in range(1, timesteps + 1) for k in range(1, t + 1)]
    program = random_program(["conv"], timesteps=timesteps, channels=len(ties), size=4)
    stem = program.nodes[0]
    weight = torch.zeros_like(stem.branches[0].weight)
    weight[:, 0, 1, 1] = 1  # passes on the pixel
    branch = replace(stem.branches[0], weight=weight, multiplier=torch.full((len(ties),), 2**8), shift=8)
    stem = replace(stem, branches=(branch,), bias=torch.tensor(ties, dtype=torch.int32), fraction_bits=28)
    program = replace(program, nodes=(stem, *program.nodes[1:]))
    pixels = random_pixels(program, 9) % 9 - 4
    expected = run(engine_torch, program, pixels, mode)
    assert len(expected.counts[stem.name].unique()) > 1
    for target in native.targets():
        assert_same(run(native, program, pixels, mode, target=target), expected)


@needs_native
@pytest.mark.parametrize("size", [5, 8])
def test_an_image_is_read_by_several_branches_with_a_bias_per_place(size):
    program = random_program(["conv"], timesteps=3, channels=6, size=size)
    stem, g = program.nodes[0], torch.Generator().manual_seed(1)
    first = stem.branches[0]
    point = replace(first, weight=first.weight[:, :, 1:2, 1:2].contiguous(), padding=(0, 0))
    bias = torch.randint(-600, 900, stem.shape, generator=g).to(torch.int32)
    program = replace(program, nodes=(replace(stem, branches=(first, point), bias=bias), *program.nodes[1:]))
    pixels = random_pixels(program, 7)
    for mode in MODES:
        expected = run(engine_torch, program, pixels, mode)
        for target in native.targets():
            assert_same(run(native, program, pixels, mode, target=target), expected)


@needs_native
def test_threads_that_come_late_change_nothing():
    program = random_program(["conv", "identity"], timesteps=3, channels=8, size=4)
    for batch in (1, 5, 40):
        pixels = random_pixels(program, batch)
        expected = native.run_spikes(program, pixels, neuron="signed", schedule="settle", keep_counts=True, threads=1)
        for threads in (2, 3, 32) * 4:  # with 32 for so little work, most find it done
            assert_same(
                native.run_spikes(program, pixels, neuron="signed", schedule="settle", keep_counts=True, threads=threads),
                expected,
            )


@needs_native
def test_arguments_are_checked_before_the_kernel_sees_them():
    program = random_program(["conv"], timesteps=3)
    pixels = random_pixels(program, 2)
    with pytest.raises(ConfigError, match="contiguous int32 tensor on the CPU"):
        native.run_counts(program, pixels.float())
    with pytest.raises(ConfigError, match="contiguous int32 tensor on the CPU"):
        native.run_counts(program, pixels.transpose(2, 3))
    with pytest.raises(ConfigError, match=r"give \[B, 2, 6, 6\], B ≥ 1"):
        native.run_counts(program, pixels[:, :1].contiguous())
    with pytest.raises(ConfigError, match=r"give \[B, 2, 6, 6\], B ≥ 1"):
        native.run_counts(program, pixels[:0])
    with pytest.raises(ConfigError, match="the network takes -500 to 600"):
        native.run_counts(program, pixels + 2000)
    with pytest.raises(ConfigError, match="threads=0"):
        native.run_counts(program, pixels, threads=0)
    with pytest.raises(ConfigError, match="unknown target 'sse9'"):
        native.run_counts(program, pixels, target="sse9")


@needs_native
def test_the_environment_switches_the_engine_off():
    code = "from nbsnn.integer.backends import native; print(native.why_not())"
    environment = {"NBSNN_NATIVE": "0", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "switched off by NBSNN_NATIVE=0"


@needs_native
def test_the_environment_limits_the_instruction_sets(monkeypatch):
    program = random_program(["conv"], timesteps=3)
    first, *others = native.targets()
    monkeypatch.setenv("NBSNN_NATIVE", first)
    assert native.targets() == (first,)
    assert native.why_not() is None
    for other in others:
        with pytest.raises(ConfigError, match=f"unknown target '{other}'; known: {first}$"):
            native.run_counts(program, random_pixels(program, 1), target=other)
    monkeypatch.setenv("NBSNN_NATIVE", "sse9")
    assert native.why_not() == "unknown NBSNN_NATIVE 'sse9'; known: " + ", ".join(sorted((first, *others))) + "; unset it"


@pytest.fixture
def two_threads(threads_restored):
    torch.set_num_threads(2)


@needs_native
@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_threads_of_torch_compute_the_same(batch, mode, two_threads):
    program = random_program(["conv", "identity"], timesteps=3)
    pixels = random_pixels(program, batch)
    assert_same(run(native, program, pixels, mode, threads=2), run(native, program, pixels, mode, threads=1))


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(two_threads):
    program = random_program(["conv"], timesteps=3)
    pixels = random_pixels(program, 9)
    expected = native.run_counts(program, pixels, threads=2)
    child = os.fork()
    if not child:
        got = native.run_counts(program, pixels, threads=2)
        os._exit(0 if torch.equal(got.accumulators[0], expected.accumulators[0]) else 1)
    deadline = time.monotonic() + 20
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if done == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done[1] == 0
