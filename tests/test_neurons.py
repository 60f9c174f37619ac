"""The integrate-and-fire neuron: golden spikes, an oracle, and the conservation of charge."""

import numpy as np
import oracles
import pytest
import torch
from conftest import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from nbsnn.spiking.functional import fold, integrate_and_fire, unfold

golden = np.load(GOLDEN / "neurons.npz")
rules = st.sampled_from([(False, None), (True, None), (True, 3), (True, 7), (False, 3)])  # signed, cap


def currents(seed, steps, neurons=40, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(steps, neurons, generator=generator, dtype=torch.float64) + 0.3) * spread


@pytest.mark.parametrize("steps", [3, 7, 15])
@pytest.mark.parametrize("threshold", [1.0, 1.6])
@pytest.mark.parametrize("neuron", ["signed", "unsigned"])
def test_spikes_equal_the_golden_ones_in_every_entry(steps, threshold, neuron):
    current = torch.from_numpy(golden[f"current_T{steps}"]).transpose(0, 1)
    spikes = integrate_and_fire(current, torch.tensor(threshold), signed=neuron == "signed")
    expected = golden[f"spikes_T{steps}_threshold{threshold}_{neuron}"]
    assert torch.equal(spikes.transpose(0, 1), torch.from_numpy(expected).float())


@given(st.integers(0, 10**6), st.integers(1, 20), st.floats(0.05, 5), rules)
def test_spikes_equal_the_oracle(seed, steps, threshold, rule):
    signed, cap = rule
    current = currents(seed, steps)
    spikes = integrate_and_fire(current, torch.tensor(threshold, dtype=torch.float64), signed=signed, cap=cap)
    for n in range(current.shape[1]):
        assert spikes[:, n].tolist() == oracles.integrate_and_fire(current[:, n].tolist(), threshold, signed=signed, cap=cap)


@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(0.05, 5), rules)
def test_charge_is_conserved(seed, steps, threshold, rule):
    """What is left in the membrane shows in what it takes to make the neuron fire once more."""
    signed, cap = rule
    theta = torch.tensor(threshold, dtype=torch.float64)
    current = currents(seed, steps)
    spikes = integrate_and_fire(current, theta, signed=signed, cap=cap)
    membrane, count = theta / 2 + current.sum(0) - theta * spikes.sum(0), spikes.sum(0)
    more = currents(seed + 1, 5)
    whole = integrate_and_fire(torch.cat([current, more]), theta, signed=signed, cap=cap)
    rest = integrate_and_fire(more, theta, signed=signed, cap=cap, membrane=membrane, count=count)
    assert torch.equal(whole, torch.cat([spikes, rest]))


@given(st.integers(0, 10**6), st.integers(1, 30), rules)
def test_counts_lie_between_zero_and_the_steps_or_the_cap(seed, steps, rule):
    signed, cap = rule
    spikes = integrate_and_fire(currents(seed, steps), torch.tensor(0.4, dtype=torch.float64), signed=signed, cap=cap)
    so_far = spikes.cumsum(0)
    assert set(spikes.unique().tolist()) <= ({-1, 0, 1} if signed else {0, 1})
    assert so_far.min() >= 0
    assert so_far.max() <= min(steps, cap or steps)


@pytest.mark.parametrize("steps", [3, 7, 15])
@pytest.mark.parametrize(("signed", "capped"), [(False, False), (True, False), (True, True), (False, True)])
def test_a_constant_current_is_exact_ties_included(steps, signed, capped):
    # With θ = T the current of one step is z itself; eighths are exact in binary, and every eighth total is an exact tie.
    z = torch.arange(-8, 8 * (steps + 2)) / 8
    theta = torch.tensor(float(steps))
    spikes = integrate_and_fire(z.expand(steps, -1), theta, signed=signed, cap=steps if capped else None)
    assert torch.equal(spikes.sum(0), (z + 0.5).floor().clamp(0, steps))


@given(st.integers(1, 20), st.floats(-2, 3), st.booleans())
def test_any_constant_current_is_exact(steps, z, signed):
    total = torch.tensor([z * steps], dtype=torch.float64)
    if abs((z * steps + 0.5) % 1) < 1e-6 or abs((z * steps + 0.5) % 1) > 1 - 1e-6:
        return  # a rounded tie has a test of its own, in exact numbers
    spikes = integrate_and_fire((total / steps).expand(steps, 1), torch.tensor(1.0, dtype=torch.float64), signed=signed)
    assert spikes.sum(0).item() == (total + 0.5).floor().clamp(0, steps).item()


def test_a_signed_neuron_cancels_a_spike_and_an_unsigned_one_does_not():
    current, theta = torch.tensor([[1.0], [-1.5], [0.0]]), torch.tensor(1.0)
    assert integrate_and_fire(current, theta, signed=True).flatten().tolist() == [1, -1, 0]
    assert integrate_and_fire(current, theta, signed=False).flatten().tolist() == [1, 0, 0]


def test_the_published_rule_retracts_a_thousandth_below_zero_and_the_settle_rule_at_once():
    theta = torch.tensor(1.0, dtype=torch.float64)
    slightly, clearly, zero = (torch.tensor([[1.0], [-0.5 - d]], dtype=torch.float64) for d in (5e-4, 2e-3, 0.0))
    last = [integrate_and_fire(x, theta, signed=True)[1].item() for x in (slightly, clearly, zero)]
    settle = [integrate_and_fire(x, theta, signed=True, cap=3)[1].item() for x in (slightly, clearly, zero)]
    assert last == [0, -1, 0]
    assert settle == [-1, -1, 0]


def test_the_arguments_are_left_alone():
    current, theta = currents(0, 5), torch.tensor(0.7, dtype=torch.float64)
    membrane, count = torch.full((40,), 0.2, dtype=torch.float64), torch.ones(40, dtype=torch.float64)
    before = [t.clone() for t in (current, theta, membrane, count)]
    integrate_and_fire(current, theta, signed=True, cap=3, membrane=membrane, count=count)
    assert all(torch.equal(a, b) for a, b in zip(before, (current, theta, membrane, count), strict=True))


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 4))
def test_unfolding_undoes_folding(steps, batch, channels):
    sequence = torch.randn(steps, batch, channels, 2)
    assert torch.equal(unfold(fold(sequence), steps), sequence)
    assert torch.equal(fold(sequence)[batch - 1], sequence[0, batch - 1])  # time-major
