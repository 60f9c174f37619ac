"""From float to quantized: the plan, its refusals, the change of bits, calibration, and how often weights are quantized."""

import pytest
import torch
from nets import SmallNet, small_quantized
from torch import nn

from nbsnn.errors import ConfigError, QuantizationError
from nbsnn.quant.formats import Apot, EdgeUniform
from nbsnn.quant.layers import QuantConv2d, QuantLinear, QuantReLU, WeightQuantizer
from nbsnn.quant.plans import ActFormat, plan_formats, read_plan
from nbsnn.quant.quantize import quantize, set_bits_
from nbsnn.recipe import QuantSpec


def state_of(net):
    return {key: tensor.clone() for key, tensor in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# -------------------------------------------------------------------------------------------------------- what is made


def test_quantize_gives_a_new_object_and_leaves_the_source_alone():
    net = SmallNet()
    before, types = state_of(net), [type(m) for m in net.modules()]
    quantized = quantize(net, QuantSpec(3, 3), images=torch.randn(8, 2, 6, 6))
    assert quantized is not net
    assert same(state_of(net), before)
    assert [type(m) for m in net.modules()] == types
    with torch.no_grad():
        quantized.conv1.weight.zero_()
    assert same(state_of(net), before)


def test_parameter_names_stay_and_thresholds_and_scales_join_them():
    net = SmallNet()
    names = set(quantize(net, QuantSpec(3, 3)).state_dict())
    added = {"act1.threshold", "act2.threshold", "act3.threshold", "conv2.weight_scale", "linear.weight_scale"}
    assert names == set(net.state_dict()) | added


def test_edges_get_eight_bits_and_inner_layers_their_own():
    plan = read_plan(quantize(SmallNet(), QuantSpec(3, 2)))
    edge, act = EdgeUniform(8, "max_abs"), ActFormat(2)
    assert plan == {
        "conv1": edge, "act1": act, "conv2": Apot(3), "act2": act, "linear": Apot(3, own_scale=True), "act3": act, "head": edge,
    }  # fmt: skip
    assert plan == plan_formats(SmallNet(), QuantSpec(3, 2))


def test_thirty_two_bits_leave_layers_alone():
    only_acts = quantize(SmallNet(), QuantSpec(32, 4, edge_bits=32))
    assert not any(isinstance(m, WeightQuantizer) for m in only_acts.modules())
    only_weights = quantize(SmallNet(), QuantSpec(4, 32))
    assert not any(isinstance(m, QuantReLU) for m in only_weights.modules())
    only_edges = quantize(SmallNet(), QuantSpec(32, 4))
    assert [n for n, m in only_edges.named_modules() if isinstance(m, WeightQuantizer)] == ["conv1", "head"]


def test_skip_patterns_leave_layers_in_float():
    quantized = quantize(SmallNet(), QuantSpec(3, 3, skip=("conv*", "act1")))
    assert set(read_plan(quantized)) == {"act2", "linear", "act3", "head"}
    assert type(quantized.conv1) is nn.Conv2d


def test_layer_options_survive():
    conv = nn.Conv2d(4, 6, (3, 1), stride=2, padding=(1, 0), dilation=2, groups=2, bias=False, padding_mode="circular")
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(conv), nn.Linear(4, 4))
    twin = quantize(net, QuantSpec(32, 32, edge_bits=8, skip=()))
    assert type(twin[1][0]) is nn.Conv2d  # inner weights at 32 bits
    made = QuantConv2d.from_float(conv, Apot(5))
    with torch.no_grad():
        made.weight.copy_(made.quantized_weight())
        assert made.weight is conv.weight
        x = torch.randn(2, 4, 9, 5)
        made.weight_scale.fill_(2.0)
        assert torch.equal(made(x), conv._conv_forward(x, made.quantized_weight(), None))
    assert QuantLinear.from_float(nn.Linear(3, 2, bias=False), Apot(2)).bias is None


ALREADY = "the network is quantized already; change its bits with nbsnn.set_bits_, or start from the float network"


@pytest.mark.parametrize(
    ("make", "spec", "message"),
    [
        (small_quantized, QuantSpec(2, 2), ALREADY),
        (
            SmallNet,
            QuantSpec(32, 32, edge_bits=32),
            "nothing to quantize with weight_bits=32, edge_bits=32, act_bits=32; choose fewer bits",
        ),
        (
            lambda: nn.Sequential(nn.Conv3d(1, 1, 1), nn.ReLU(), nn.Linear(3, 3)),
            QuantSpec(),
            "0 is a Conv3d, which has no quantized form; use nn.Conv2d or nn.Linear, or leave it in float with "
            "QuantSpec(skip=('0',))",
        ),
        (SmallNet, QuantSpec(skip=("conv9",)), "QuantSpec.skip: unknown layer 'conv9'; did you mean conv2, conv1?"),
    ],
)
def test_refusals_name_the_layer_and_the_remedy(make, spec, message):
    net = make()
    before = state_of(net)
    with pytest.raises(QuantizationError) as caught:
        quantize(net, spec)
    assert str(caught.value) == message
    assert same(state_of(net), before)


@pytest.mark.parametrize(
    "settings", [{"weight_bits": 9}, {"act_bits": 0}, {"act_bits": 7.5}, {"edge_bits": 4}, {"weight_bits": True}]
)
def test_bits_without_a_quantizer_are_refused(settings):
    ((kind, bits),) = settings.items()
    with pytest.raises(ConfigError, match=rf"^{kind}={bits}: choose one of .*32 \(32 leaves a layer in float\)$"):
        QuantSpec(**settings)


# --------------------------------------------------------------------------------------------------------- change of bits


def test_set_bits_changes_inner_layers_and_keeps_what_was_learned():
    quantized = small_quantized(4)
    with torch.no_grad():
        quantized.conv2.weight_scale.fill_(2.2)
    before = state_of(quantized)
    assert set_bits_(quantized, weight_bits=2, act_bits=3) is quantized
    assert same(state_of(quantized), before)
    plan = read_plan(quantized)
    assert [plan[n].bits for n in ("conv1", "conv2", "linear", "head", "act1")] == [8, 2, 2, 8, 3]
    assert len(quantized.conv2.quantized_weight().unique()) <= 3


def test_set_bits_can_be_limited_to_some_layers():
    quantized = set_bits_(small_quantized(4), act_bits=2, only=["act[12]"])
    assert [m.bits for m in quantized.modules() if isinstance(m, QuantReLU)] == [2, 2, 4]


def test_set_bits_refuses_what_has_no_layer_and_changes_nothing():
    net = quantize(SmallNet(), QuantSpec(32, 4))
    message = r"^weight_bits=2: no layer that it could change is quantized; quantize the float network with weight_bits=2$"
    with pytest.raises(QuantizationError, match=message):
        set_bits_(net, weight_bits=2, act_bits=2)
    assert net.act1.bits == 4
    with pytest.raises(ConfigError, match=r"^weight_bits=32: choose one of 2, 3, 4, 5$"):
        set_bits_(small_quantized(), weight_bits=32)
