"""A weight is quantized once for each value of its parameters, and never a value too late."""

import copy

import pytest
import torch
from torch import nn

from nbsnn.quant import layers as quant_layers
from nbsnn.quant.layers import QuantLinear


@pytest.fixture
def calls(monkeypatch):
    seen = []
    original = quant_layers.apot_weight

    def counting(*args, **kwargs):
        seen.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(quant_layers, "apot_weight", counting)
    return seen


def layer():
    return QuantLinear.from_float(nn.Linear(5, 4), bits=3)


def test_several_forwards_in_evaluation_quantize_once(calls):
    net, x = layer().eval(), torch.randn(2, 5)
    with torch.no_grad():
        first = net(x)
        assert torch.equal(net(x), first)
    assert torch.equal(net(x), first)
    assert len(calls) == 1


def test_a_forgotten_weight_is_computed_anew(calls):
    net, x = layer().eval(), torch.randn(2, 5)
    with torch.no_grad():
        first = net(x)
        quant_layers.forget_quantized_weights_(net)
        assert torch.equal(net(x), first)
    assert len(calls) == 2


def test_accumulating_gradients_quantizes_once_and_a_step_once_more(calls):
    net, x = layer(), torch.randn(2, 5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(x).sum().backward()
    single = net.weight.grad.clone()
    net(x).sum().backward()
    assert torch.equal(net.weight.grad, 2 * single)
    assert len(calls) == 1
    before = net(x)
    optimizer.step()
    assert not torch.equal(net(x), before)
    assert len(calls) == 2


@pytest.mark.parametrize("key", ["weight", "weight_scale"])
def test_a_loaded_or_edited_parameter_is_seen(calls, key):
    net, x = layer(), torch.randn(2, 5)
    before = net(x)
    net.load_state_dict({k: v * 2 + 0.1 * torch.randn_like(v) if k == key else v for k, v in net.state_dict().items()})
    loaded = net(x)
    assert not torch.equal(loaded, before)
    with torch.no_grad():
        getattr(net, key).mul_(0.7).add_(torch.randn_like(getattr(net, key)) * 0.1)
    assert not torch.equal(net(x), loaded)
    assert len(calls) == 3


def test_a_change_of_bits_or_type_is_seen(calls):
    net = layer()
    three = net.quantized_weight()
    net.weight_bits = 2
    assert len(net.quantized_weight().unique()) < len(three.unique())
    assert net.double().quantized_weight().dtype == torch.float64
    assert len(calls) == 3


def test_a_deep_copy_and_its_source_go_their_own_ways():
    net, x = layer(), torch.randn(2, 5)
    before = net(x)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.weight.normal_()
    assert torch.equal(net(x), before)
    assert not torch.equal(twin(x), before)


@pytest.mark.parametrize("make", [layer, lambda: QuantLinear.from_float(nn.Linear(5, 4), bits=8, edge_range="max")])
def test_training_goes_on_after_inference_mode(make):
    net, x = make(), torch.randn(2, 5)
    with torch.inference_mode():
        before = net(x)
    out = net(x)
    out.sum().backward()
    assert torch.equal(out, before)
    assert net.weight.grad.abs().sum() > 0
