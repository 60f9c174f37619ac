"""Convolutions of counts in 8-bit integers: exact, used by `evaluate` where they apply, and nowhere else."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import DigitsNet, randomize_
from torch import nn

import nbsnn
from nbsnn.quant import counted
from nbsnn.quant.formats import Apot, EdgeUniform, Uniform
from nbsnn.quant.layers import QuantConv2d


def counts_of(shape, most, seed=0):
    """Random integers, channels last; of NumPy, the same on every machine."""
    counts = torch.from_numpy(np.random.default_rng(seed).integers(0, most + 1, shape))
    return counts.contiguous(memory_format=torch.channels_last)


def layer_of(weight_format, **options):
    layer = QuantConv2d.from_float(nn.Conv2d(8, 12, **{"kernel_size": 3, "bias": False} | options), weight_format)
    return layer.eval()


def apply(layer, x):
    with torch.inference_mode(), counted.convolutions_of_counts():
        return counted.convolution_of_counts(layer, x)


AVAILABLE = apply(layer_of(Apot(2)), counts_of((1, 8, 5, 5), 3) * 0.3) is not None
needs_integers = pytest.mark.skipif(not AVAILABLE, reason="no 8-bit convolutions here")
LAYERS = {
    "2 bits": (layer_of(Apot(2)), 3), "4 bits": (layer_of(Apot(4), padding=1), 15),
    "5 bits": (layer_of(Apot(5), stride=2), 255),
    "channels": (layer_of(Uniform(4, scale="channel"), bias=True), 15), "8 bits": (layer_of(Uniform(8)), 127),
    "edge": (layer_of(EdgeUniform(8), kernel_size=1), 15), "groups": (layer_of(Apot(3), groups=4, dilation=2), 7),
}  # fmt: skip


@needs_integers
@pytest.mark.parametrize("name", LAYERS)
def test_sums_of_counts_are_exact(name):
    layer, most = LAYERS[name]
    x = counts_of((5, 8, 9, 7), most).float() * 0.37
    steps = layer.format.step(layer.weight, layer.weight_scale)
    whole = (layer.quantized_weight().detach().double() / steps).round()
    options = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
    sums = F.conv2d(counts_of((5, 8, 9, 7), most).double(), whole, **options)
    wanted = sums * (steps * float(torch.tensor(0.37))).reshape(-1, 1, 1)
    bias = 0 if layer.bias is None else layer.bias.detach().double().view(-1, 1, 1)
    found = apply(layer, x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert ((found - (wanted + bias)).abs() <= 3e-7 * (wanted.abs() + abs(bias))).all()


@needs_integers
def test_what_is_not_exact_is_left_to_float32():
    layer, x = layer_of(Apot(4)), counts_of((2, 8, 6, 6), 15).float()
    assert apply(layer, x) is not None
    image = x.clone()
    image[-1, -1, -1, -1] = 0.5003
    for other in (image, -x, x * float("nan"), x.contiguous(), x.double(), x * 100 + 1):
        assert apply(layer, other) is None
    assert apply(layer_of(Uniform(8)), counts_of((1, 8, 5, 5), 255).float()) is None  # pairs of products exceed 16 bits
    for unlike in ({"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}):
        assert apply(layer_of(Apot(4), **unlike), x) is None
    assert counted.convolution_of_counts(layer, x) is None  # outside of the context
    with counted.convolutions_of_counts():
        assert counted.convolution_of_counts(layer, x) is None  # with a gradient


@needs_integers
@pytest.mark.parametrize("failure", [RuntimeError, AttributeError, None])
def test_a_build_of_torch_without_right_integers_computes_in_float32(monkeypatch, failure):
    def other(self, counts, scale):
        if failure:
            raise failure("no such operation")
        return torch.zeros(2, 12, 4, 4)

    monkeypatch.setattr(counted._Integers, "_run", other)
    layer, x = layer_of(Apot(2)), counts_of((2, 8, 6, 6), 3).float()
    with torch.inference_mode(), counted.convolutions_of_counts():
        for _ in range(2):
            assert torch.equal(layer(x), F.conv2d(x, layer.quantized_weight()))


class Viewing(DigitsNet):
    """Its forward takes images and outputs in the layout of rows only."""

    def forward(self, x):
        x = self.act1(self.norm1(self.conv1(x)))
        x = self.act2(self.norm2(self.conv2(x)))
        return self.head(x.view(len(x), -1))


@pytest.mark.parametrize(("kind", "bits"), [(DigitsNet, 2), (Viewing, 2), (DigitsNet, 4)])
def test_evaluate_computes_in_integers_where_the_network_allows_it(kind, bits, monkeypatch):
    net = nbsnn.quantize(kind(), nbsnn.QuantSpec(bits, bits)).eval()
    randomize_(net)
    images = torch.from_numpy(np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32) - 0.5)
    labels = net(images).argmax(1)
    seen = []

    def spied(layer, x, function=counted.convolution_of_counts):
        result = function(layer, x)
        seen.append(result is not None)
        return result

    logits = []
    net.register_forward_hook(lambda module, args, output: logits.append(output))
    monkeypatch.setattr("nbsnn.quant.layers.convolution_of_counts", spied)
    assert nbsnn.evaluate(net, [(images[:10], labels[:10]), (images[10:], labels[10:])]).top1 == 100
    fast, plain = torch.cat(logits), torch.cat([net(images[:10]), net(images[10:])])
    assert (fast - plain).abs().max() < 1e-5
    if bits == 4:  # rounding of float32 decides too often
        assert torch.equal(fast, plain)
        assert not any(seen)
    elif AVAILABLE:
        assert seen[:2] == [False, True]  # the image, then counts
        assert any(seen[2:]) == (kind is DigitsNet)
