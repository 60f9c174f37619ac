"""The quantizers: golden numbers, an oracle, and what must hold for every weight and activation."""

import numpy as np
import oracles
import pytest
import torch
from conftest import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from nbsnn.quant.functional import (
    WEIGHT_BITS,
    apot_levels,
    apot_numerators,
    apot_weight,
    quantize_activation,
    quantize_edge_weight,
    quantize_weight,
)
from nbsnn.quant.layers import QuantReLU, at_least

golden = np.load(GOLDEN / "quantizers.npz")
seeds = st.integers(0, 2**32 - 1)


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(a, b, tolerance=1e-6):
    return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("scale", [3.0, 1.7])
def test_weights_equal_the_golden_ones(bits, scale):
    ours = quantize_weight(torch.from_numpy(golden["weight"]), torch.tensor(scale), bits=bits)
    assert close(ours, golden[f"weight_{bits}bit_scale{scale}"])


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("threshold", [1.0, 2.5])
def test_activations_equal_the_golden_ones(bits, threshold):
    ours = quantize_activation(torch.from_numpy(golden["activation"]), torch.tensor(threshold), bits=bits)
    assert close(ours, golden[f"activation_{bits}bit_threshold{threshold}"])


def test_edge_weights_equal_the_golden_ones():
    ours = quantize_edge_weight(torch.from_numpy(golden["edge_weight"]), edge_range="max")
    assert close(ours, golden["edge_weight_8bit"])


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_levels_equal_the_golden_ones_and_the_oracle(bits):
    assert close(apot_levels(bits), golden[f"apot_levels_{bits}bit_weight"].astype(np.float64))
    assert close(apot_levels(bits), oracles.apot_magnitudes(bits), 1e-15)


def test_the_integer_magnitudes_of_the_design():
    assert [apot_numerators(b) for b in (2, 3, 4)] == [(0, 1), (0, 1, 2, 4), (0, 1, 2, 3, 4, 6, 8, 10)]


# ------------------------------------------------------------------------------------------------------------- oracles


@given(seeds, st.sampled_from([2, 3, 4, 5]), st.floats(0.5, 4))
def test_weights_equal_the_brute_force_oracle(seed, bits, scale):
    weight = normal(seed, 6, 5, 3, 3) * 0.3 + 0.1
    ours = quantize_weight(weight, torch.tensor(scale, dtype=torch.float64), bits=bits)
    assert close(ours, oracles.quantize_weight(weight.numpy(), scale, bits), 1e-9)


@given(seeds, st.sampled_from([2, 3, 4, 5, 6, 7, 8]), st.floats(0.01, 10))
def test_activations_equal_the_oracle(seed, bits, threshold):
    x = normal(seed, 200) * threshold
    ours = quantize_activation(x, torch.tensor(threshold, dtype=torch.float64), bits=bits)
    assert close(ours, oracles.quantize_activation(x.numpy(), threshold, bits), 1e-9)


@pytest.mark.parametrize("edge_range", ["max", "max_abs"])
def test_edge_weights_equal_the_oracle_in_both_ranges(edge_range):
    weight = normal(0, 30, 7)
    weight[3, 3] = -5.0  # the largest magnitude is negative
    extreme = float(weight.max() if edge_range == "max" else weight.abs().max())
    ours = quantize_edge_weight(weight, edge_range=edge_range)
    assert close(ours, oracles.quantize_edge(weight.numpy(), extreme), 1e-12)
    assert bool(((ours / (extreme / 127)).abs() <= 127 + 1e-9).all()) == (edge_range == "max_abs")


# ---------------------------------------------------------------------------------------------------------- properties


@given(seeds, st.sampled_from([2, 3, 4, 5]), st.floats(0.5, 4))
def test_a_weight_takes_at_most_2_to_the_b_values(seed, bits, scale):
    values = quantize_weight(normal(seed, 2000), torch.tensor(scale, dtype=torch.float64), bits=bits)
    assert len((values / scale * 480).round().unique()) <= 2**bits - 1  # ±0 coincide


@given(seeds, st.sampled_from([2, 3, 4, 5]))
def test_weight_quantization_is_odd(seed, bits):
    weight, scale = normal(seed, 300), torch.tensor(2.0, dtype=torch.float64)
    assert torch.equal(quantize_weight(-weight, scale, bits=bits), -quantize_weight(weight, scale, bits=bits))


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_weights_that_lie_on_the_grid_stay_there(bits):
    levels = apot_levels(bits)
    grid = torch.cat([-levels, levels])  # of mean 0; the scale that undoes the normalisation is 1/deviation
    scale = 1 / grid.std()
    assert close(quantize_weight(grid, scale, bits=bits), grid * scale, 1e-9)


@given(seeds, st.sampled_from([2, 3, 4, 8]), st.floats(0.1, 5))
def test_activation_quantization_is_idempotent(seed, bits, threshold):
    theta = torch.tensor(threshold)
    once = quantize_activation(normal(seed, 500, dtype=torch.float32) * threshold, theta, bits=bits)
    assert torch.equal(quantize_activation(once, theta, bits=bits), once)
    assert len(once.unique()) <= 2**bits


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_half_a_step_rounds_up(bits):
    levels = 2**bits - 1
    theta = torch.tensor(levels / 4)  # steps of ¼: halves are exact in binary
    ties = (torch.arange(levels) + 0.5) / 4
    assert torch.equal(quantize_activation(ties, theta, bits=bits), (torch.arange(levels) + 1) / 4)
    below = torch.nextafter(ties, torch.tensor(-1.0))[levels // 2 :]
    assert torch.equal(quantize_activation(below.double(), theta.double(), bits=bits), torch.arange(levels // 2, levels) / 4.0)


def test_the_tie_tolerance_moves_only_the_ties():
    theta = torch.tensor(0.75, dtype=torch.float64)
    x = torch.tensor([0.125 - 1e-6, 0.125 - 1e-4, 0.0, 2.0, -1.0], dtype=torch.float64)
    assert quantize_activation(x, theta, bits=2, tolerance=1e-5).tolist() == [0.25, 0.0, 0.0, 0.75, 0.0]


# ----------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_activation_gradients_have_the_closed_form(bits):
    levels = 2**bits - 1
    x = (normal(1, 400) * 1.5).requires_grad_()
    theta = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    y = quantize_activation(x, theta, bits=bits)
    grad = normal(2, 400)
    y.backward(grad)
    inside = ((x > 0) & (x < 1.3)).double().detach()
    above = (x >= 1.3).double()
    assert close(x.grad, grad * inside, 1e-12)
    count = (y.detach() / 1.3 * levels).round()
    expected = (grad * (inside * (count / levels - x.detach() / 1.3) + above)).sum()
    assert close(theta.grad, expected, 1e-9)


def test_the_threshold_gradient_equals_a_finite_difference_of_the_surrogate():
    x, theta, grad, eps = normal(3, 300), 1.1, normal(4, 300), 1e-6
    count = (quantize_activation(x, torch.tensor(theta, dtype=torch.float64), bits=3) / theta * 7).round()
    residue = (count - (x / theta).clamp(0, 1) * 7).detach()  # straight through: rounding adds a constant

    def surrogate(t):
        return (grad * ((x / t).clamp(0, 1) * 7 + residue) * t / 7).sum()

    parameter = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    (quantize_activation(x, parameter, bits=3) * grad).sum().backward()
    assert close(parameter.grad, (surrogate(theta + eps) - surrogate(theta - eps)) / (2 * eps), 1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_weight_gradients_have_the_closed_form(bits):
    weight = normal(5, 7, 11).requires_grad_()
    scale = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    values = quantize_weight(weight, scale, bits=bits)
    grad = normal(6, 7, 11)
    values.backward(grad)
    detached = weight.detach()
    unit = (detached - detached.mean()) / detached.std() / 1.2
    inside = (unit.abs() < 1).double()
    assert close(weight.grad, grad * inside / detached.std(), 1e-12)
    level = values.detach() / 1.2
    assert close(scale.grad, (grad * torch.where(inside > 0, level - unit, unit.sign())).sum(), 1e-9)
    assert 0 < inside.mean() < 1


def test_the_edge_gradient_passes_unchanged():
    weight, grad = normal(7, 4, 5).requires_grad_(), normal(8, 4, 5)
    quantize_edge_weight(weight).backward(grad)
    assert torch.equal(weight.grad, grad)


# ------------------------------------------------------------------------------------------------------------- layouts


LAYOUTS = {
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "a slice": lambda t: torch.cat([t, t], 3)[..., : t.shape[3]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", ["same", "contiguous", "expanded"])
def test_any_layout_gives_the_same_result_and_gradients(layout, grad_layout):
    def run(function, change):
        x = change(normal(9, 4, 6, 5, 3)).requires_grad_()
        scalar = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
        y = function(x, scalar, bits=3)
        grad = torch.ones(1, dtype=torch.float64).expand(y.shape) if grad_layout == "expanded" else normal(10, 4, 6, 5, 3)
        y.backward(change(grad) if grad_layout == "same" else grad)
        return y.detach(), x.grad, scalar.grad

    for function in (quantize_activation, quantize_weight):
        plain, laid_out = run(function, torch.Tensor.contiguous), run(function, LAYOUTS[layout])
        assert all(close(a, b, 1e-12) for a, b in zip(plain, laid_out, strict=True))


# ----------------------------------------------------------------------------------------------- thresholds below zero


@pytest.mark.parametrize("far", [-0.5, -100.0, -1e6, -1e30])
def test_a_threshold_thrown_below_zero_acts_as_the_floor(far):
    act = QuantReLU(3, 1.0)
    with torch.no_grad():
        act.threshold.fill_(far)
    y = act(torch.tensor([-1.0, 0.0, 0.0004, 0.002, 5.0]))
    assert y.isfinite().all()
    assert close(y, [0, 0, 0.001 * 3 / 7, 0.001, 0.001], 1e-6)


def test_a_threshold_below_the_floor_can_come_back():
    act = QuantReLU(2, 1.0)
    optimizer = torch.optim.SGD(act.parameters(), lr=1.0)
    with torch.no_grad():
        act.threshold.fill_(-2.0)
    (act(torch.tensor([3.0])) - 3.0).square().sum().backward()
    assert act.threshold.grad.isfinite()
    assert act.threshold.grad < 0
    optimizer.step()
    assert act.threshold > 0


def test_the_floor_leaves_what_is_above_it_alone():
    parameter = torch.tensor(0.25, requires_grad=True)
    at_least(parameter).backward()
    assert at_least(parameter) == 0.25
    assert parameter.grad == 1


@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_levels_are_the_same_with_and_without_the_table(bits, monkeypatch):
    weight = torch.randn(64, 16, 3, 3, generator=torch.Generator().manual_seed(bits))
    scale = torch.tensor(1.7)
    by_table = apot_weight(weight, scale, bits=bits)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    by_comparison = apot_weight(weight, scale, bits=bits)
    assert all(a.equal(b) for a, b in zip(by_table, by_comparison, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_shows(value):
    weight = torch.randn(8, 8)
    weight[3, 4] = value
    assert apot_weight(weight, torch.tensor(3.0), bits=3).values.isnan().all()
