"""Sums are right at any length, and alike in any order; so a weight takes the same level on every machine."""

import hashlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nbsnn.norms import recalibrate_norms_
from nbsnn.quant.functional import WEIGHT_BITS, apot_weight, quantize_activation, quantize_edge_weight, quantize_weight
from nbsnn.sums import channel_sums, dot, moments, norm, total
from nbsnn.training.execution import has_compiler

CPU = torch.device("cpu")


def weights():
    # By NumPy: torch's normal numbers depend on the instruction set.
    return torch.from_numpy(np.random.default_rng(0).normal(0.001, 0.02, (96, 64, 3, 3)).astype(np.float32))


def levels(weight):
    """Every format's values of a weight, as one tensor in the order of its indices."""
    scale = torch.tensor(1.7)
    every = [
        apot_weight(weight, scale, bits=bits, own_scale=own_scale).values for bits in WEIGHT_BITS for own_scale in (False, True)
    ]
    return torch.stack([*every, quantize_edge_weight(weight), quantize_edge_weight(weight, edge_range="max")]).contiguous()


# ------------------------------------------------------------------------------------------------------------- exactness


def test_the_deviation_of_a_hundred_million_weights_is_right():
    """Case 5: VGG-16's first linear layer has 102,760,448 weights; a float32 norm is 1 % off there."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(25088, 4096, generator=generator).mul_(0.02)
    mean = sum(block.double().sum() for block in weight.split(512)) / weight.numel()
    deviation = (sum((block.double() - mean).square().sum() for block in weight.split(512)) / (weight.numel() - 1)).sqrt()
    seen = moments(weight)
    assert float(seen.deviation) == pytest.approx(float(deviation), rel=1e-12)
    assert float(seen.mean) == pytest.approx(float(mean), rel=1e-9)
    assert float(apot_weight(weight[:64], torch.tensor(3.0), bits=2).deviation) == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3, -1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_moments_are_right_far_from_zero_too(offset, dtype):
    values = (weights() + offset).to(dtype)
    exact, seen = values.double(), moments(values)
    assert float(seen.mean) == pytest.approx(float(exact.mean()), rel=1e-12)
    assert float(seen.deviation) == pytest.approx(float(exact.std()), rel=1e-7, abs=1e-12)
    assert float(seen.root_mean_square) == pytest.approx(float(exact.square().mean().sqrt()), rel=1e-9)


@pytest.mark.parametrize("outlier", [1e6, -3e7])
def test_an_outlier_in_front_costs_no_digits(outlier):
    values = weights()
    values[0, 0, 0, 0] = outlier
    assert float(moments(values).deviation) == pytest.approx(float(values.double().std()), rel=1e-9)


def test_one_weight_or_a_constant_has_no_deviation():
    assert moments(torch.tensor(3.0)).deviation == 0
    assert moments(torch.full((7, 5), 0.1)).deviation == 0
    assert moments(torch.full((7, 5), 0.1)).root_mean_square == pytest.approx(0.1)


def test_sums_of_products_are_right_where_all_have_one_sign():
    a, b = torch.rand(3_000_001), torch.rand(3_000_001)
    assert float(dot(a, b)) == pytest.approx(float((a.double() * b.double()).sum()), rel=1e-6)
    assert float(total(a)) == pytest.approx(float(a.double().sum()), rel=1e-7)
    assert float(norm([a, b[:5]])) == pytest.approx(float(torch.cat([a, b[:5]]).double().norm()), rel=1e-6)
    alike = torch.full((3_000_000,), 1.07), torch.full((3_000_000,), 0.37)  # each rounding errs in the same direction
    assert float(dot(*alike)) == pytest.approx(3e6 * float(alike[0][0].double() * alike[1][0].double()), rel=1e-6)
    assert float(total(alike[0])) == pytest.approx(3e6 * float(alike[0][0].double()), rel=1e-6)
    low = a.bfloat16(), b.bfloat16()
    assert float(dot(*low)) == pytest.approx(float((low[0].double() * low[1].double()).sum()), rel=1e-6)
    assert float(total(low[0])) == pytest.approx(float(low[0].double().sum()), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_thresholds_and_scales_are_those_of_float64(dtype):
    """A million activations, with gradients that do not cancel; with autocast activations come in bfloat16."""
    torch.manual_seed(0)
    grad = torch.rand(1_000_000).to(dtype)

    def gradient(function, x, start, grad):
        scalar = torch.tensor(start, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, requires_grad=True)
        function(x.requires_grad_(), scalar).backward(grad)
        return float(scalar.grad)

    x = torch.randn(1_000_000).to(dtype)
    ours, exact = (gradient(lambda x, s: quantize_activation(x, s, bits=4), x.to(t), 1.5, grad.to(t))
                   for t in (dtype, torch.float64))  # fmt: skip
    assert ours == pytest.approx(exact, rel=1e-4 if dtype == torch.float32 else 0.01)  # but for values next to a tie
    if dtype == torch.float32:
        ours, exact = (gradient(lambda w, s: quantize_weight(w, s, bits=3), x.detach().to(t), 1.5, grad.to(t))
                       for t in (dtype, torch.float64))  # fmt: skip
        assert ours == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_recalibrated_norm_statistics_are_those_of_float64(layout):
    images = (torch.randn(64, 3, 32, 32) + 30).contiguous(memory_format=layout)
    exact = images.double()
    sums = channel_sums(images)
    assert sums[0].tolist() == [64 * 1024] * 3
    torch.testing.assert_close(sums[1:], torch.stack([exact.sum((0, 2, 3)), exact.square().sum((0, 2, 3))]))
    norm = nn.BatchNorm2d(3)
    recalibrate_norms_(norm, [images[:32], images[32:]])
    parts = exact.split(32)
    variance = torch.stack([p.var((0, 2, 3)) for p in parts]).mean(0)
    mean = torch.stack([p.mean((0, 2, 3)) for p in parts]).mean(0)
    torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-7, atol=0)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-7, atol=0)
    assert norm.num_batches_tracked == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_leave_what_they_add_alone(dtype):
    """A norm that is recalibrated would else normalise the squares of its input, in float64."""
    images, other = torch.randn(4, 3, 5, 5).to(dtype), torch.randn(4, 3, 5, 5).to(dtype)
    before = images.clone(), other.clone()
    channel_sums(images), moments(images), total(images), dot(images, other), norm([images])
    assert images.equal(before[0])
    assert other.equal(before[1])


# ------------------------------------------------------------------------------------------------- the same everywhere


def test_levels_do_not_depend_on_threads_or_memory_format():
    weight = weights()
    wanted, before = levels(weight), torch.get_num_threads()
    views = {
        "channels last": weight.contiguous(memory_format=torch.channels_last),
        "transposed": weight.transpose(0, 1).contiguous().transpose(0, 1),
        "a slice": torch.cat([weight, weight], 1)[:, : weight.shape[1]],
    }
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for name, view in views.items():
                assert levels(view).equal(wanted), (threads, name)
    finally:
        torch.set_num_threads(before)


def test_levels_do_not_depend_on_the_instruction_set():
    code = (
        "import sys; sys.path.insert(0, 'tests'); import hashlib, torch; from test_sums import levels, weights\n"
        "print(torch.backends.cpu.get_cpu_capability(), hashlib.sha256(levels(weights()).numpy()).hexdigest())"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True)
    kind, digest = done.stdout.split()
    assert kind in ("DEFAULT", "NO")
    assert digest == hashlib.sha256(levels(weights()).numpy()).hexdigest()


@pytest.mark.skipif(not has_compiler(CPU), reason="no C++ compiler here")
def test_levels_do_not_depend_on_the_compiler():
    scale, weight = torch.tensor(1.7), weights()

    def quantized(w, s):
        return torch.stack(
            [quantize_weight(w, s, bits=3), quantize_weight(w, s, bits=4, own_scale=True), quantize_edge_weight(w)]
        )

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of torch's own modules, which the compiler imports
        assert torch.compile(quantized)(weight, scale).equal(quantized(weight, scale))
