"""The audit refuses what spikes cannot follow, names the layer and the remedy, and leaves the source as it was."""

import pytest
import torch
import torch.nn.functional as F
from nets import RandomNet, SmallNet, small_quantized
from torch import nn

from nbsnn.errors import ConversionError
from nbsnn.quant.quantize import quantize, set_bits_
from nbsnn.recipe import QuantSpec
from nbsnn.spiking.convert import to_spiking
from nbsnn.spiking.network import SpikingNetwork

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


OWN = "the network's own forward"
OUTSIDE = "() is applied to currents outside a module at {place}; write self.act = nn.ReLU() and call it"
MAX_POOL = "max pooling does not commute with spikes at {place}; use the convolution's stride, or average pooling"
SMOOTH = "() is smooth, and neurons count at {place}; use nn.ReLU"
UNKNOWN = (
    "() is applied to currents and is not known to be affine at {place}; only sums, products with constants, convolutions, "
    "linear layers, average pools and reshapes may stand between neurons"
)
PRODUCT = "() of two currents at {place}; multiply or divide currents by constants or parameters only"
NORM = "() depends on the data of each step at {place}; use batch norm, which folds into the weights"

FUNCTIONS = {
    "F.relu": (lambda net, x: F.relu(x), "relu" + OUTSIDE),
    "x.relu()": (lambda net, x: x.relu(), "relu" + OUTSIDE),
    "torch.relu": (lambda net, x: torch.relu(x), "relu" + OUTSIDE),
    "torch.clamp": (lambda net, x: torch.clamp(x, 0, 1), "clamp" + OUTSIDE),
    "clamp_min": (lambda net, x: x.clamp_min(0), "clamp_min" + OUTSIDE),
    "maximum": (lambda net, x: torch.maximum(x, x * 2), "maximum" + OUTSIDE),
    "F.max_pool2d": (lambda net, x: F.max_pool2d(x, 2), MAX_POOL),
    "amax": (lambda net, x: x.amax(1, keepdim=True), MAX_POOL),
    "sigmoid": (lambda net, x: x.sigmoid(), "sigmoid" + SMOOTH),
    "F.gelu": (lambda net, x: F.gelu(x), "gelu" + SMOOTH),
    "F.silu": (lambda net, x: F.silu(x), "silu" + SMOOTH),
    "tanh": (lambda net, x: torch.tanh(x), "tanh" + SMOOTH),
    "softmax": (
        lambda net, x: x.softmax(1),
        "softmax() is applied to currents at {place}; return the logits, and apply it to the spiking network's result",
    ),
    "F.dropout": (
        lambda net, x: F.dropout(x, 0.5),
        "dropout is in training mode at {place}; call model.eval() before to_spiking",
    ),
    "F.layer_norm": (lambda net, x: F.layer_norm(x, (6, 6)), "layer_norm" + NORM),
    "x * x": (lambda net, x: x * x, "mul" + PRODUCT),
    "x / y": (lambda net, x: x / (x + 1), "div" + PRODUCT),
    "1 / x": (lambda net, x: torch.div(1.0 + torch.zeros(4, 6, 6), other=x + 1), "div" + PRODUCT),
    "matmul": (lambda net, x: x @ x.transpose(2, 3), "matmul" + PRODUCT),
    "einsum": (lambda net, x: torch.einsum("bchw,bchv->bcwv", x, x), "einsum" + PRODUCT),
    "abs": (lambda net, x: x.abs(), "abs" + UNKNOWN),
    "power": (lambda net, x: x**2, "pow" + UNKNOWN),
    "where": (lambda net, x: torch.where(torch.ones(()) > 0, x, -x), "where" + UNKNOWN),
    "comparison": (lambda net, x: x * (x > 0), "gt" + UNKNOWN),
    "if x.max() > 0": (lambda net, x: x if x.max() > 0 else -x, MAX_POOL),
    "x.sum().item()": (
        lambda net, x: x * x.sum().item(),
        "sum() turns shape [3, 4, 6, 6] into [], which does not keep the batch axis at {place}; "
        "keep axis 0 first and untouched, as x.flatten(1) does",
    ),
    "x.tolist()": (lambda net, x: x + x.tolist()[0][0][0][0], "tolist" + UNKNOWN),
    "truncation by division": (lambda net, x: torch.div(x, 0.3, rounding_mode="floor"), None),
    "truncation by type": (lambda net, x: x.to(torch.int32).float(), None),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_is_not_affine_is_refused(name):
    function, message = FUNCTIONS[name]
    said = refusal(quantized_probe(function))
    assert message is None or said == message.format(place=OWN)


BATCH_AXIS = {
    "x.view(1, -1)": (lambda net, x: x.view(1, -1), "view() turns shape [3, 3] into [1, 9]"),
    "x.mean(0)": (lambda net, x: x.mean(0), "mean() turns shape [3, 3] into [3]"),
    "x.transpose(0, 1)": (lambda net, x: x.transpose(0, 1), "transpose() turns shape [3, 3] into [3, 3]"),
    "x.permute(1, 0)": (lambda net, x: x.permute(1, 0), "permute() turns shape [3, 3] into [3, 3]"),
    "x.reshape(len(x) // 3, -1)": (lambda net, x: x.reshape(len(x) // 3, -1), "reshape() turns shape [3, 3] into [1, 9]"),
    "torch.cat of batches": (lambda net, x: torch.cat([x, x]), "cat() turns shape [3, 3] into [6, 3]"),
    "x.unsqueeze(0)": (lambda net, x: x.unsqueeze(0), "unsqueeze() turns shape [3, 3] into [1, 3, 3]"),
}


@pytest.mark.parametrize("name", BATCH_AXIS)
def test_what_moves_the_batch_axis_is_refused(name):
    function, message = BATCH_AXIS[name]
    remedy = f", which does not keep the batch axis at {OWN}; keep axis 0 first and untouched, as x.flatten(1) does"
    assert refusal(quantized_probe(tail=function)) == message + remedy


@pytest.mark.parametrize("index", [0, [0, 1, 2], slice(0, 2), (None, 0), torch.tensor([0, 0, 1])])
def test_indexing_the_batch_axis_is_refused(index):
    message = f"indexing picks from the batch axis at {OWN}; index as x[:, ...]"
    assert refusal(quantized_probe(tail=lambda net, x: x[index])) == message


def test_the_transpose_attribute_is_refused():
    message = f".T moves the batch axis at {OWN}; keep the batch axis first; use x.transpose(1, 2) and the like"
    assert refusal(quantized_probe(tail=lambda net, x: x.T)) == message


def test_a_linear_layer_whose_weight_is_a_current_is_refused():
    assert "two currents" in refusal(quantized_probe(tail=lambda net, x: F.linear(x, x)))


def test_a_shuffled_batch_is_refused():
    assert "batch" in refusal(quantized_probe(tail=lambda net, x: x.index_select(0, torch.tensor([2, 1, 0]))))


NOT_QUANTIZED = "nn.{kind} is an activation that is not quantized at module; use nn.ReLU instead of nn.{kind}, and quantize it"
MODULES = {
    "nn.MaxPool2d": (lambda: nn.MaxPool2d(2), MAX_POOL),
    "nn.AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(2), MAX_POOL),
    "nn.Sigmoid": (nn.Sigmoid, "sigmoid" + SMOOTH),
    "nn.GELU": (nn.GELU, "gelu" + SMOOTH),
    "nn.SiLU": (nn.SiLU, "silu" + SMOOTH),
    "nn.Softmax": (lambda: nn.Softmax(1), FUNCTIONS["softmax"][1]),
    "nn.LayerNorm": (lambda: nn.LayerNorm(6), "layer_norm" + NORM),
    "nn.GroupNorm": (lambda: nn.GroupNorm(2, 4), "group_norm" + NORM),
    "nn.LeakyReLU": (nn.LeakyReLU, NOT_QUANTIZED.format(kind="LeakyReLU")),
    "nn.ReLU6": (nn.ReLU6, NOT_QUANTIZED.format(kind="ReLU6")),
    "batch norm without running statistics": (
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        "batch norm uses the statistics of the batch at {place}; call model.eval() before to_spiking, and keep "
        "track_running_stats=True",
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_is_not_affine_is_refused(name):
    make, message = MODULES[name]
    assert refusal(quantized_probe(module=make())) == message.format(place="module")


def test_a_module_inside_modules_is_named_in_full():
    net = quantized_probe(module=nn.Sequential(nn.Identity(), nn.Sequential(nn.MaxPool2d(2))))
    assert refusal(net) == MAX_POOL.format(place="module.1.0")


def test_dropout_and_batch_norm_in_training_mode_are_refused():
    net = quantized_probe(module=nn.Dropout(0.5))
    net.module.train()
    assert refusal(net) == "dropout is in training mode at module; call model.eval() before to_spiking"
    net = quantized_probe().train()
    assert refusal(net) == MODULES["batch norm without running statistics"][1].format(place="norm")


def test_an_activation_left_in_float_is_refused():
    net = quantized_probe(spec=QuantSpec(2, 2, skip=("act2",)))
    message = "nn.ReLU is an activation that is not quantized at act2; quantize it with nbsnn.quantize and act_bits < 32"
    assert refusal(net) == message
    message = "the network has no quantized activation; call nbsnn.quantize on the float network first"
    assert refusal(quantized_probe(spec=QuantSpec(2, 32))) == message
    assert refusal(SmallNet().eval()) == message


def test_an_activation_called_twice_is_refused():
    message = "act is called more than once; a neuron stands in one place: give each place an nn.ReLU of its own"
    assert refusal(quantized_probe(lambda net, x: net.act(x))) == message


def test_what_the_audit_cannot_see_is_refused():
    message = "the current of act2 does not descend from the image by torch functions the audit can see"
    assert refusal(quantized_probe(lambda net, x: torch.ones(len(x), 4, 6, 6))) == message
    message = "the network's output does not descend from the image by torch functions the audit can see"
    assert refusal(quantized_probe(tail=lambda net, x: torch.zeros(len(x), 3))) == message


def test_anything_but_one_tensor_of_logits_is_refused():
    net = quantized_probe(tail=lambda net, x: (x, x))
    assert refusal(net) == "the network returns a tuple; return the logits alone, as one tensor"


@pytest.mark.parametrize("shape", [(1, 3, 6, 6), (2, 6, 6), (1, 2, 9, 9), (1, 2)])
def test_an_example_of_the_wrong_shape_is_refused(shape):
    said = refusal(quantized_probe(), example=torch.zeros(shape))
    assert said.startswith(f"the example of shape {list(shape[1:])} does not run at ")


def test_a_builtin_without_signature_is_judged_too():
    assert "dropout" in refusal(quantized_probe(lambda net, x: torch.dropout(x, 0.5, True)))


# ------------------------------------------------------------------------------------------------- neurons and schedules


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"neuron": "unsigned", "schedule": "settle"},
            "neuron='unsigned' does not go with schedule='settle': settling takes spikes back; use neuron='signed'",
        ),
        (
            {"neuron": "signed", "schedule": "barrier"},
            "neuron='signed' does not go with schedule='barrier': nothing is ever taken back behind a barrier; "
            "use neuron='unsigned'",
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
