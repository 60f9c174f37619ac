"""The fused passes give the bits of torch's operations, and sums in double precision, for any size, layout and thread count."""

import os
import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import nbsnn
from nbsnn import fused
from nbsnn.quant.functional import apot_weight, quantize_activation, quantize_weight
from nbsnn.sums import dot, moments

needs_fused = pytest.mark.skipif(fused.obstacle() is not None, reason=f"no fused passes: {fused.obstacle()}")
SIZES = (1, 2, 15, 16, 17, 4099, 70_001)  # the last one is shared by threads


@contextmanager
def in_torch():
    """Without the extension."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_library", lambda: None)
        yield


@contextmanager
def ways():
    """All instruction sets of this processor, with 1 and 2 threads, of torch's pool and of the extension's own."""
    library, before = fused._library(), torch.get_num_threads()

    def each():
        for target in range(3):
            if library.nbsnn_fused_use(target):
                for threads, pool in ((1, None), (2, None), (2, fused.pool_of_torch())):
                    torch.set_num_threads(threads)
                    library.nbsnn_fused_pool(pool)
                    yield target, threads, pool

    try:
        yield each()
    finally:
        torch.set_num_threads(before)
        library.nbsnn_fused_pool(fused.pool_of_torch())
        best = [target for target in range(3) if library.nbsnn_fused_use(target)][-1]
        library.nbsnn_fused_use(best)


def results(function, x, start, grad, **options):
    """Value, gradient of the tensor, gradient of the scalar."""
    x, scalar = x.clone(memory_format=torch.preserve_format).requires_grad_(), torch.tensor(start, requires_grad=True)
    y = function(x, scalar, **options)
    y.backward(grad)
    return y.detach(), x.grad, scalar.grad


def same(a, b):
    return torch.equal(a.nan_to_num(77), b.nan_to_num(77)) and torch.equal(a.isnan(), b.isnan())


def values(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) + 0.4, torch.randn(*shape, generator=generator)


CALLS = [
    *((quantize_activation, {"bits": bits, "tolerance": tolerance}) for bits, tolerance in ((2, 0.0), (4, 1e-3), (8, 0.0))),
    *((quantize_weight, {"bits": bits, "own_scale": own}) for bits in (2, 3, 4, 5) for own in (False, True)),
]


def check_random(seed, *, threads):
    """One random size and call, with threads of the extension, which sanitizers can see."""
    choose, library = random.Random(seed), fused._library()
    x, grad = values(choose.choice((1, 17, 4099, 70_001, choose.randint(1, 200_000))), seed=seed)
    function, options = choose.choice(CALLS)
    with in_torch():
        wanted = results(function, x, 1.37, grad, **options)
    library.nbsnn_fused_use(choose.randint(0, 2))
    library.nbsnn_fused_pool(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_threads", lambda numbers: threads)
        ours = results(function, x, 1.37, grad, **options)
    assert same(ours[0], wanted[0])
    assert same(ours[1], wanted[1])
    assert float(ours[2]) == pytest.approx(float(wanted[2]), rel=1e-4, abs=1e-6 * len(x))


@needs_fused
@pytest.mark.parametrize("size", SIZES)
def test_values_and_masks_are_bits_of_torch_and_the_same_everywhere(size):
    x, grad = values(size)
    for function, options in CALLS if size < 5000 else CALLS[1::4]:
        with in_torch():
            y, inside, of_scalar = results(function, x, 1.37, grad, **options)
        found = set()
        with ways() as each:
            for way in each:
                ours = results(function, x, 1.37, grad, **options)
                assert same(ours[0], y), (function, options, way)
                assert same(ours[1], inside), (function, options, way)
                assert float(ours[2]) == pytest.approx(float(of_scalar), rel=1e-4, abs=1e-6 * size)
                found.add(float(ours[2]))
        assert len(found) == 1, (function, options)


@needs_fused
@pytest.mark.parametrize("fill", [None, 1.07])
def test_sums_are_those_of_double_precision(fill):
    a, b = values(300_007) if fill is None else (torch.full((300_007,), fill), torch.full((300_007,), 0.37))
    exact = a.double() * b.double()
    with ways() as each:
        for _ in each:
            assert float(dot(a, b)) == pytest.approx(float(exact.sum()), rel=1e-12, abs=1e-12 * float(exact.abs().sum()))
            seen = moments(a)
            assert float(seen.mean) == pytest.approx(float(a.double().mean()), rel=1e-12)
            assert float(seen.deviation) == pytest.approx(float(a.double().std()), rel=1e-12, abs=1e-12)


@needs_fused
def test_the_gradient_of_a_threshold_is_right_where_no_term_cancels():
    x, grad = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0)), torch.full((1_000_000,), 0.3)
    *_, ours = results(quantize_activation, x, 0.5, grad, bits=4)
    q, scaled = (x.double() / 0.5).clamp(max=1), x.double() * 15 / 0.5
    exact = (grad.double() * torch.where(q == 1, 1.0, (scaled + 0.5).floor() / 15 - q)).sum()
    assert float(ours) == pytest.approx(float(exact), rel=1e-6)


@needs_fused
@pytest.mark.parametrize("function", [quantize_activation, quantize_weight])
def test_other_layouts_are_alike(function):
    x, grad = values(8, 6, 5, 5)
    x, last = x[:, :4].contiguous(), torch.channels_last
    grad = grad[:, :4]  # not dense
    wanted = results(function, x, 1.37, grad.contiguous(), bits=4)
    for form in (x, x.contiguous(memory_format=last), x.transpose(0, 1).contiguous().transpose(0, 1)):
        for of in (grad, grad.contiguous(), grad.contiguous(memory_format=last)):
            y, inside, of_scalar = results(function, form, 1.37, of, bits=4)
            assert same(y, wanted[0])
            assert same(inside, wanted[1])
            assert float(of_scalar) == pytest.approx(float(wanted[2]), rel=1e-5)
    assert results(function, x.contiguous(memory_format=last), 1.37, grad, bits=4)[0].is_contiguous(memory_format=last)


@needs_fused
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_shows_as_in_torch(bad):
    for where in ("x", "grad"):
        for function in (quantize_activation, quantize_weight):
            x, grad = values(100)
            (x if where == "x" else grad)[7] = bad
            ours = results(function, x, 1.37, grad, bits=3)
            with in_torch():
                wanted = results(function, x, 1.37, grad, bits=3)
            for mine, theirs in zip(ours, wanted, strict=True):
                assert torch.equal(mine.isfinite(), theirs.isfinite()), (where, function)


@needs_fused
def test_equal_weights_and_a_single_one_are_those_of_torch():
    for weight in (torch.full((40_000,), 0.1), torch.tensor(3.0), torch.zeros(5), torch.zeros(0, 3)[:0]):
        if weight.numel():
            ours = apot_weight(weight, torch.tensor(1.5), bits=3)
            with in_torch():
                assert all(map(same, ours, apot_weight(weight, torch.tensor(1.5), bits=3)))
    assert quantize_activation(torch.zeros(0, 3), torch.tensor(1.0), bits=2).shape == (0, 3)


class Seen(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def test_who_watches_the_operations_sees_them():
    x, _ = values(64)
    with Seen() as seen:
        quantize_activation(x, torch.tensor(1.3), bits=4)
        apot_weight(x, torch.tensor(1.7), bits=3)
        dot(x, x)
    assert {"floor", "var_mean", "sum"} <= seen.names


@needs_fused
def test_activations_are_bits_of_torch_without_fused_multiply_add_too():
    code = (
        "import sys; sys.path.insert(0, 'tests'); import torch; from test_fused import *\n"
        "x, grad = values(1_000_000)\n"
        "for bits, threshold in ((2, 0.9), (3, 1.1), (4, 1.37), (8, 2.3)):\n"
        "    ours = quantize_activation(x, torch.tensor(threshold), bits=bits)\n"
        "    with in_torch(): assert ours.equal(quantize_activation(x, torch.tensor(threshold), bits=bits))\n"
        "print(fused._rounding_of_torch())"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("0", "1")


def test_without_the_extension_there_is_a_reason(monkeypatch):
    fused._loaded.cache_clear()
    monkeypatch.setenv("NBSNN_NATIVE", "0")
    try:
        assert fused.obstacle() == "switched off by NBSNN_NATIVE=0"
        assert fused.sum_of_products(torch.ones(3), torch.ones(3)) is None
    finally:
        fused._loaded.cache_clear()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_compiled_network_stays_one_graph(layout):
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(3, 3)).train().to(memory_format=layout)
    found = torch._dynamo.explain(quantized)(torch.randn(2, 2, 8, 8).contiguous(memory_format=layout))
    assert (found.graph_count, found.graph_break_count) == (1, 0)


@needs_fused
@pytest.mark.parametrize("size", SIZES)
def test_numbers_that_are_multiples_of_one_of_them_become_counts(size):
    counts = torch.from_numpy(np.random.default_rng(size).integers(0, 201, size))
    counts[-1] = 1  # often the only one
    for step in (0.37, 1.0, 1 / 3):
        x = counts.float() * step
        with ways() as each:
            for _ in each:
                found, unit = fused.counts(x)
                assert torch.equal(found, counts.to(torch.uint8))
                assert unit == float(torch.tensor(step))
                for place, wrong in (
                    (-1, -step),
                    (0, 1.5 * step),
                    (size // 2, float("nan")),
                    (-1, float("inf")),
                    (0, 201 * step),
                ):
                    other = x.clone()
                    other[place] = wrong
                    assert size == 1 or fused.counts(other, 200) is None
    zeros, _ = fused.counts(torch.zeros(size))
    assert not zeros.any()
