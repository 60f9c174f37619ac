"""Which neurons and schedules go together, and what the audit must let pass."""

import pytest
import torch
import torch.nn.functional as F
from nets import RandomNet, SmallNet, small_quantized
from probes import IMAGE, quantized_probe, refusal
from torch import nn

from nbsnn.integer.lower import lower
from nbsnn.quant.quantize import quantize, set_bits_
from nbsnn.recipe import QuantSpec
from nbsnn.spiking.convert import to_spiking
from nbsnn.spiking.network import SpikingNetwork

# ------------------------------------------------------------------------------------------------- neurons and schedules


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"neuron": "unsigned", "schedule": "settle"},
            "neuron='unsigned' does not go with schedule='settle': settling needs negative spikes; use neuron='signed'",
        ),
        (
            {"neuron": "signed", "schedule": "barrier"},
            "neuron='signed' does not go with schedule='barrier': under barrier no spike is premature, so neurons are "
            "unsigned; use neuron='unsigned'",
        ),
        ({"schedule": "settled"}, "unknown schedule 'settled'; did you mean settle?"),
        ({"neuron": "sign"}, "unknown neuron 'sign'; did you mean signed, unsigned?"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(options, message):
    assert refusal(small_quantized(), **options) == message


def test_mixed_bits_are_refused_under_fixed_only():
    net = set_bits_(small_quantized(3), act_bits=2, only=["act2"])
    assert refusal(net) == (
        "act2 has 3 levels where others have 7: in a fixed number of steps this is not exact; use schedule='settle' or "
        "'barrier', or give all layers the same act_bits with nbsnn.set_bits_"
    )
    assert to_spiking(net, IMAGE, schedule="settle").timesteps == 7


def test_a_spiking_network_is_not_converted_again():
    spiking = to_spiking(small_quantized(), IMAGE)
    message = "the network is spiking already; convert the quantized network that it was made from"
    assert refusal(spiking) == message


def test_the_default_neuron_is_signed_and_unsigned_behind_a_barrier():
    net = small_quantized()
    assert [to_spiking(net, IMAGE, schedule=s).neuron for s in ("fixed", "settle", "barrier")] == [
        "signed",
        "signed",
        "unsigned",
    ]


# -------------------------------------------------------------------------------------------------------------- accepted


ACCEPTED = {
    "sum of two": lambda net, x: x + x * 0.5 - 0.25,
    "in place": lambda net, x: x.clone().add_(0.1).mul_(2),
    "concatenation": lambda net, x: torch.cat([x, 0.5 * x], 1),
    "F.avg_pool2d": lambda net, x: F.avg_pool2d(x, 2),
    "x.mean((2, 3))": lambda net, x: x.mean((2, 3), keepdim=True),
    "x.view(x.size(0), -1)": lambda net, x: x.view(x.size(0), -1).view(x.shape[0], 4, 6, 6),
    "flatten and unflatten": lambda net, x: x.flatten(1).unflatten(1, (4, 6, 6)),
    "permute of other axes": lambda net, x: x.permute(0, 1, 3, 2),
    "a parameter as gain": lambda net, x: x * net.gain,
    "division by a constant": lambda net, x: x / 4,
    "chunks and cat": lambda net, x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "channel slices": lambda net, x: x[:, 1:] + x[:, :3],
    "an ellipsis": lambda net, x: x[..., ::2],
    "padding": lambda net, x: F.pad(x, (1, 1, 1, 1)),
    "up-sampling": lambda net, x: F.interpolate(x, scale_factor=2),
    "zeros beside": lambda net, x: torch.cat([x, torch.zeros_like(x)], 1),
    "dropout in evaluation": lambda net, x: F.dropout(x, 0.5, training=net.training),
    "shape arithmetic": lambda net, x: x.reshape(x.shape[0], x.numel() // len(x)).view(x.size(0), 4, 6, -1),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_affine_is_accepted_and_exact(name):
    net, images = quantized_probe(ACCEPTED[name]).double(), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        net.norm.running_mean.normal_()
        wanted = net(images)
        for schedule in ("settle", "barrier"):
            assert torch.allclose(to_spiking(net, images[:1], schedule=schedule)(images), wanted, atol=1e-9)


@pytest.mark.parametrize(
    "module", [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.ZeroPad2d(1), nn.Identity()]
)
def test_affine_modules_are_accepted(module):
    assert to_spiking(quantized_probe(module=module), IMAGE).depth == 2


def test_a_depth_is_the_longest_path():
    junctions = ["chain", "identity", "projection", "concatenation", "pool"]
    net = quantize(RandomNet(junctions).eval(), QuantSpec(2, 2))
    spiking = to_spiking(net, IMAGE)
    assert isinstance(spiking, SpikingNetwork)
    assert spiking.depth == 1 + 6 + 1  # stem, five blocks of which one holds two neurons in a row, hidden


def test_forms_made_within_inference_mode_are_like_any_other():
    net, images = SmallNet(), torch.randn(4, 2, 6, 6)
    with torch.inference_mode():
        quantized = quantize(net, QuantSpec(3, 3), images=images)
        spiking = to_spiking(quantized.eval(), images, schedule="settle")
        network = lower(quantized, images)
        assert spiking(images).equal(to_spiking(quantized, images, schedule="settle")(images))
    assert network.run(images).shape == (4, 4)
    quantized.train()(images).sum().backward()
    assert all(p.grad is not None for p in quantized.parameters())
