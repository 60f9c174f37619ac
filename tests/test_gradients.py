"""A spiking network passes a gradient to every parameter: the proxy's of all time at once, or a surrogate one step by step."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import JUNCTIONS, DigitsNet, random_quantized

import nbsnn
from nbsnn.data.images import Batches
from nbsnn.errors import ConfigError
from nbsnn.spiking.functional import RETRACT_AT, integrate_and_fire

SCHEDULES = ["fixed", "settle", "barrier"]
GRADIENTS = ["proxy", "surrogate"]


def gradients_of(network, loss):
    network.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("schedule", ["settle", "barrier"])
@settings(max_examples=5)
@given(st.integers(0, 10**6), st.lists(st.sampled_from(JUNCTIONS), min_size=1, max_size=3), st.sampled_from([[2], [3], [2, 4]]))
def test_the_proxys_gradient_is_the_quantized_networks_where_spikes_are_exact(schedule, seed, junctions, act_bits):
    quantized = random_quantized(seed, junctions, act_bits)
    images = torch.randn(4, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(4) % 3
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule=schedule)
    wanted = gradients_of(quantized, F.cross_entropy(quantized(images), labels))
    got = gradients_of(spiking, F.cross_entropy(spiking(images), labels))
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[f"network.{name}"], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_every_parameter_has_a_gradient_and_the_value_is_the_spikes_own(schedule, gradient):
    """Case 31: from a network in training mode too; no statistic of a norm moves."""
    quantized, images = random_quantized(3, ["identity", "concatenation"], [2]).train(), torch.randn(8, 2, 6, 6).double()
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule=schedule, gradient=gradient)
    before = copy.deepcopy(spiking.state_dict())
    logits = spiking(images)
    with torch.no_grad():
        assert torch.equal(spiking(images), logits)
        assert torch.equal(spiking.eval()(images), logits)
    for name, grad in gradients_of(spiking, F.cross_entropy(logits, torch.arange(8) % 3)).items():
        assert grad is not None, name
        assert grad.abs().sum() > 0, name
        assert grad.isfinite().all(), name
    assert all(torch.equal(value, before[key]) for key, value in spiking.state_dict().items())


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_an_image_has_a_gradient_and_a_frozen_network_none(gradient):
    quantized, image = random_quantized(3, ["chain"], [2]), torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    spiking = nbsnn.to_spiking(quantized, image, gradient=gradient).requires_grad_(False)
    spiking(image)[0, 0].backward()
    assert image.grad.abs().sum() > 0
    assert not spiking(image.detach()).requires_grad


@given(
    st.integers(0, 10**6),
    st.sampled_from([(False, None), (True, None), (True, 3), (False, 3)]),
    st.floats(0.3, 2.0),
)
def test_the_surrogate_is_a_rectangle_around_firing_and_taking_back(seed, kind, theta):
    """Against the definition, written with detached values: s + near · (V/θ − its value)."""
    signed, cap = kind
    g = torch.Generator().manual_seed(seed)
    current, weight = torch.randn(5, 7, generator=g, dtype=torch.float64), torch.randn(5, 7, generator=g, dtype=torch.float64)

    def by_definition(current, threshold):
        membrane, count, spikes = threshold / 2, torch.zeros(7, dtype=torch.float64), []
        for step in current:
            membrane = membrane + step
            v, t = membrane.detach(), threshold.detach()
            up = (v >= t) & (count < (cap or 5))
            down = (v < 0 if cap else v <= RETRACT_AT) & (count > 0) & signed
            near = ((v - t).abs() < t / 2) | (v == t / 2)
            near = (near & (count < (cap or 5))) | ((v >= -t / 2) & (v < t / 2) & (count > 0) & signed)
            spike = up.double() - down.double()
            count = count + spike
            ratio = membrane / threshold
            spike = spike + near * (ratio - ratio.detach())
            membrane = membrane - spike * threshold
            spikes.append(spike)
        return torch.stack(spikes)

    results = []
    for function in (by_definition, lambda c, t: integrate_and_fire(c, t, signed=signed, cap=cap)):
        x, threshold = current.clone().requires_grad_(), torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        spikes = function(x, threshold)
        (spikes * weight).sum().backward()
        results.append((spikes.detach(), x.grad, threshold.grad))
    for got, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, wanted)


def test_current_is_answered_once_however_long_the_window():
    """The gradient of the count: each step's current moves it by 1/θ, or by nothing once the neuron is at its bounds."""
    current = torch.full((15, 1), 0.3, dtype=torch.float64).requires_grad_()
    integrate_and_fire(current, torch.tensor(1.0, dtype=torch.float64), signed=True).sum().backward()
    assert set(current.grad.flatten().tolist()) <= {0.0, 1.0}


def test_an_unknown_gradient_is_refused():
    quantized, image = random_quantized(3, ["chain"], [2]), torch.randn(1, 2, 6, 6).double()
    with pytest.raises(ConfigError, match="unknown gradient 'surogate'; did you mean surrogate"):
        nbsnn.to_spiking(quantized, image, gradient="surogate")
    spiking = nbsnn.to_spiking(quantized, image)
    with pytest.raises(ConfigError, match="unknown gradient 'none'"):
        spiking.gradient = "none"
    spiking.gradient = "surrogate"


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("schedule", ["fixed", "settle"])
def test_a_spiking_network_learns_digits(gradient, schedule):
    """Through its spikes alone, from random weights: every layer moves, and the accuracy rises far above chance."""
    splits = nbsnn.load_data("digits")
    torch.manual_seed(0)
    start = splits.train.normalized(splits.train.images[:256])
    spiking = nbsnn.to_spiking(
        nbsnn.quantize(DigitsNet(), nbsnn.QuantSpec(3, 2), images=start), start[:1], schedule=schedule, gradient=gradient
    ).train()
    test = Batches(splits.test, 120)
    before, first = nbsnn.evaluate(spiking, test).top1, copy.deepcopy(spiking.state_dict())
    optimizer = torch.optim.Adam(spiking.parameters(), lr=0.01)
    for epoch in range(2):
        for pixels, labels in Batches(splits.train, 50, shuffle=True, seed=1, epoch=epoch):
            optimizer.zero_grad()
            F.cross_entropy(spiking(pixels), labels).backward()
            optimizer.step()
    after = nbsnn.evaluate(spiking, test).top1
    assert after > max(80, before + 40)
    for name, parameter in spiking.named_parameters():
        assert not torch.equal(parameter, first[name.removeprefix("network.")]), name
