"""Max and min pools in quantized and spiking networks: exact wherever spikes are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pooled_nets import PLACES, POOLS, pooled_images, pooled_net
from torch import nn

import nbsnn
from nbsnn.pooling import AdaptiveMinPool1d, MinPool1d, MinPool2d
from nbsnn.spiking.call import Call, running
from nbsnn.spiking.functional import fold, unfold
from nbsnn.spiking.pooling import TemporalPool

EXACT = (("signed", "settle"), ("unsigned", "barrier"))
PAIRS = [(pool, PLACES[i % len(PLACES)]) for i, pool in enumerate(POOLS)] + [("overlapping", place) for place in PLACES]


def windows(train, kernel, stride, choose):
    """The rule in NumPy: spikes [T, L] in, spikes [T, L'] out, one window after the other."""
    out = []
    for start in range(0, train.shape[1] - kernel + 1, stride):
        best = choose(np.cumsum(train[:, start : start + kernel], 0), axis=1)
        out.append(np.diff(best, prepend=0))
    return np.stack(out, 1)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_the_rule_on_any_spikes(data):
    """m_t = max of the counts so far, and m_t - m_{t-1} is emitted: -1, 0 or 1, over several windows of time."""
    T, windows_of_time = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    kernel, stride = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    length, lowest = data.draw(st.integers(kernel, 7)), data.draw(st.booleans())
    seed = data.draw(st.integers(0, 2**16))
    train = np.random.default_rng(seed).integers(-1, 2, (windows_of_time * T, length))
    pool = TemporalPool((MinPool1d if lowest else nn.MaxPool1d)(kernel, stride))
    heights, parts, call = torch.tensor([0.3, 1.7]).view(1, 1, 2, 1), [], Call(T)
    for part in torch.from_numpy(train).split(T):
        spikes = torch.stack([part, part], 1).view(T, 1, 2, length) * heights  # the same in two channels
        with running(call.begin("drive")):
            parts.append(unfold(pool(fold(spikes)), T) / heights)
    got = torch.cat(parts).round().long()
    assert torch.allclose(torch.cat(parts), got.to(torch.float32))
    assert got.abs().max() <= 1
    want = torch.from_numpy(windows(train, kernel, stride, np.min if lowest else np.max))
    assert torch.equal(got[:, 0, 0], want)
    assert torch.equal(got[:, 0, 1], want)


@pytest.mark.parametrize(("pool", "place"), PAIRS)
def test_exact_schedules_stay_exact(pool, place):
    bits = 2 + (len(pool) + len(place)) % 3
    net, images = pooled_net(len(pool), pool, place, bits), pooled_images(1)
    for neuron, schedule in EXACT:
        spiking = nbsnn.to_spiking(net, images[:1], neuron=neuron, schedule=schedule)
        assert spiking.depth == nbsnn.quant.audit.audit(net, images[:1]).depth
        result = nbsnn.measure_fidelity(net, spiking, images)
        assert result.differing == 0
        assert result.agreement == 100.0
        assert int(result.steps.max()) <= 2**bits * (spiking.depth + 1)
        single = torch.cat([spiking(image) for image in images.split(1)])
        assert torch.allclose(single, spiking(images), rtol=1e-9)


def test_layers_of_different_levels():
    net, images = pooled_net(3, "halves", "concatenation", 2, 4), pooled_images(2)
    for neuron, schedule in EXACT:
        spiking = nbsnn.to_spiking(net, images[:1], neuron=neuron, schedule=schedule)
        assert nbsnn.measure_fidelity(net, spiking, images).differing == 0


@pytest.mark.parametrize("neuron", ["signed", "unsigned"])
def test_fixed_is_the_mean_of_its_steps(neuron):
    """Under `fixed` a pool's spikes add up to the pool of the net counts of its neurons, whatever these are."""
    net, images = pooled_net(5, "overlapping", "plain", 3), pooled_images(3)
    spiking = nbsnn.to_spiking(net, images[:1], neuron=neuron, schedule="fixed")
    with nbsnn.surgery.tap({"pool": spiking.network.pool}) as seen:
        result = spiking.simulate(images, keep_counts=True)
    total = unfold(seen["pool"][0], spiking.timesteps).sum(0)
    want = nn.functional.max_pool2d(result.counts["stem.2"], 3, 2, 1) * spiking.network.stem[2].height()
    assert torch.allclose(total, want)


def test_gradients_are_those_of_the_quantized_network_where_spikes_are_exact():
    net, images = pooled_net(7, "overlapping", "twice", 2), pooled_images(4)
    spiking = nbsnn.to_spiking(net, images[:1], schedule="settle")
    net(images).square().sum().backward()
    spiking(images).square().sum().backward()
    for (name, parameter), other in zip(net.named_parameters(), spiking.parameters(), strict=True):
        assert torch.allclose(parameter.grad, other.grad, rtol=1e-6, atol=1e-9), name
    spiking.gradient = "surrogate"
    spiking.zero_grad()
    spiking(images).square().sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for name, p in spiking.named_parameters() if name.endswith("weight"))


def test_fine_tuning_with_max_pools():
    net, images = pooled_net(9, "halves", "plain", 2).float(), pooled_images(5, 16).float()
    pair = nbsnn.training.proxy.SpikingProxy(net, images[:1])
    units = nbsnn.training.proxy.find_units(pair, images)
    assert [unit.name for unit in units] == ["stem.2", "act", ""]
    pair.activation(images, "act").sum().backward()
    assert pair.network.last[0].weight.grad.abs().sum() > 0


class Line(nn.Module):
    """Pools of one axis, on [B, C, L] made of rows."""

    def __init__(self, pool):
        super().__init__()
        self.conv, self.act, self.pool, self.head = nn.Conv2d(2, 4, 3), nn.ReLU(), pool, nn.LazyLinear(3)

    def forward(self, x):
        return self.head(self.pool(self.act(self.conv(x)).flatten(2)).flatten(1))


@pytest.mark.parametrize(
    "pool", [nn.MaxPool1d(3, 2, 1), nn.AdaptiveMaxPool1d(7), MinPool1d(2), AdaptiveMinPool1d(1)], ids=lambda p: type(p).__name__
)
def test_pools_of_one_axis(pool):
    torch.manual_seed(1)
    net, images = Line(pool), pooled_images(6).float()
    net(images)
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(3, 3), images=images).double().eval()
    for neuron, schedule in EXACT:
        spiking = nbsnn.to_spiking(quantized, images[:1], neuron=neuron, schedule=schedule)
        assert torch.allclose(spiking(images.double()), quantized(images.double()))


def test_state_dicts_stay_interchangeable_and_the_source_as_it_was():
    net, images = pooled_net(11, "halves", "plain", 2), pooled_images(7)
    spiking = nbsnn.to_spiking(net, images[:1])
    assert spiking.state_dict().keys() == net.state_dict().keys()
    assert type(net.pool) is nn.MaxPool2d
    assert isinstance(spiking.network.pool, TemporalPool)
    hooked = pooled_net(11, "halves", "plain", 2)
    hooked.pool.register_forward_hook(lambda module, args, output: output * 0.5)
    assert torch.allclose(nbsnn.to_spiking(hooked, images[:1], schedule="settle")(images), hooked(images))


def test_a_min_pool_is_the_minimum_and_ignores_padding():
    x = torch.rand(2, 3, 5, 5)
    assert torch.equal(MinPool2d(3, 1, 1)(x)[:, :, 0, 0], x[:, :, :2, :2].amin((2, 3)))
    assert torch.equal(MinPool2d(2)(x), -nn.MaxPool2d(2)(-x))
