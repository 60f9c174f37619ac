"""A network with a place for any function of its currents, and the refusal that it meets."""

import pytest
import torch
from torch import nn

from nbsnn.errors import ConversionError
from nbsnn.quant.quantize import quantize
from nbsnn.recipe import QuantSpec
from nbsnn.spiking.convert import to_spiking

IMAGE = torch.linspace(-1, 1, 2 * 6 * 6).view(1, 2, 6, 6)


class Probe(nn.Module):
    """conv → norm → ReLU → `function` → conv → ReLU → head: the function sees currents of 4 channels, 6×6."""

    def __init__(self, function=None, *, module=None, tail=None):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.function, self.tail, self.module = function or (lambda net, x: x), tail or (lambda net, x: x), module
        self.conv2, self.act2 = nn.LazyConv2d(4, 3, padding=1), nn.ReLU()
        self.gain = nn.Parameter(torch.full((4, 1, 1), 0.5))
        self.flatten, self.head = nn.Flatten(), nn.LazyLinear(3)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        x = self.function(self, x)
        x = x if self.module is None else self.module(x)
        x = self.act2(self.conv2(x))
        return self.tail(self, self.head(self.flatten(x)))


def materialized(net):
    """Give the lazy layers their shapes; many of the functions below run on a batch of one or more alike."""
    with torch.no_grad():
        net.eval()(IMAGE.expand(3, -1, -1, -1))
    return net


def quantized_probe(function=None, *, spec=None, **options):
    return quantize(materialized(Probe(function, **options)), spec or QuantSpec(2, 2)).eval()


def refusal(net, **options):
    """The message of the refusal, after a check that the source is as it was."""
    state = {k: v.clone() for k, v in net.state_dict().items()}
    types = [(name, type(m), m.training, len(m._forward_hooks)) for name, m in net.named_modules()]
    with pytest.raises(ConversionError) as caught:
        to_spiking(net, **{"example": IMAGE, **options})
    assert types == [(name, type(m), m.training, len(m._forward_hooks)) for name, m in net.named_modules()]
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())
    assert "\n" not in str(caught.value)
    return str(caught.value)
