"""The audit refuses what spikes cannot follow, names the layer and the remedy, and leaves the source as it was."""

import pytest
import torch
import torch.nn.functional as F
from nets import SmallNet
from probes import IMAGE, quantized_probe, refusal
from torch import nn

from nbsnn.errors import QuantizationError
from nbsnn.recipe import QuantSpec
from nbsnn.spiking.convert import to_spiking

OWN = "the network's own forward"
OUTSIDE = "() is applied to currents outside a module at {place}; write self.act = nn.ReLU() and call it"
TWO = (
    "() compares two currents at {place}; write self.act = nn.ReLU(), and b + self.act(a - b) for the maximum or "
    "a - self.act(a - b) for the minimum"
)
MAX_POOL = (
    "() is a max pool outside a module at {place}; write self.pool = nn.MaxPool2d(...) or nn.AdaptiveMaxPool2d(...), and call "
    "it on the output of an activation; nbsnn.prepare does it"
)
SMOOTH = "() is smooth, and spike counts are not at {place}; use nn.ReLU"
SIGMOID = "sigmoid" + SMOOTH + " between layers, and leave it out at the end: return the logits, and apply it to the result"
UNKNOWN = (
    "() is applied to currents and is not known to be affine at {place}; between neurons write only sums, products with "
    "constants, convolutions, linear layers, average pools, reshapes"
)
DECIDES = (
    "() decides by the values of currents at {place}; use nn.ReLU, or apply it to the network's result, outside the network"
)
PRODUCT = "() of two currents at {place}; multiply or divide currents by constants or parameters only"
WRITE = "; compute it from the image in forward, without NumPy, TorchScript or a torch.autograd.Function"
NORM = "() depends on the data of each step at {place}; use batch norm, which folds into the weights"

FUNCTIONS = {
    "F.relu": (lambda net, x: F.relu(x), "relu" + OUTSIDE),
    "x.relu()": (lambda net, x: x.relu(), "relu" + OUTSIDE),
    "torch.relu": (lambda net, x: torch.relu(x), "relu" + OUTSIDE),
    "torch.clamp": (lambda net, x: torch.clamp(x, 0, 1), "clamp" + OUTSIDE),
    "clamp_min": (lambda net, x: x.clamp_min(0), "clamp_min" + OUTSIDE),
    "maximum": (lambda net, x: torch.maximum(x, x * 2), "maximum" + TWO),
    "F.max_pool2d": (lambda net, x: F.max_pool2d(x, 2), "max_pool2d" + MAX_POOL),
    "amax": (lambda net, x: x.amax(1, keepdim=True), "amax" + MAX_POOL),
    "sigmoid": (lambda net, x: x.sigmoid(), SIGMOID),
    "F.gelu": (lambda net, x: F.gelu(x), "gelu" + SMOOTH),
    "F.silu": (lambda net, x: F.silu(x), "silu" + SMOOTH),
    "tanh": (lambda net, x: torch.tanh(x), "tanh" + SMOOTH),
    "softmax": (
        lambda net, x: x.softmax(1),
        "softmax() is applied to currents at {place}; leave it out: return the logits, and apply it to the result",
    ),
    "F.dropout": (
        lambda net, x: F.dropout(x, 0.5),
        "dropout is active in evaluation mode at {place}; use nn.Dropout, or give F.dropout training=self.training",
    ),
    "F.layer_norm": (lambda net, x: F.layer_norm(x, (6, 6)), "layer_norm" + NORM),
    "x * x": (lambda net, x: x * x, "mul" + PRODUCT),
    "x / y": (lambda net, x: x / (x + 1), "div" + PRODUCT),
    "1 / x": (lambda net, x: torch.div(1.0 + torch.zeros(4, 6, 6), other=x + 1), "div" + PRODUCT),
    "matmul": (lambda net, x: x @ x.transpose(2, 3), "matmul" + PRODUCT),
    "einsum": (lambda net, x: torch.einsum("bchw,bchv->bcwv", x, x), "einsum" + PRODUCT),
    "abs": (lambda net, x: x.abs(), "abs" + UNKNOWN),
    "power": (lambda net, x: x**2, "pow" + UNKNOWN),
    "where": (lambda net, x: torch.where(torch.ones(()) > 0, x, -x), "where" + DECIDES),
    "comparison": (lambda net, x: x * (x > 0), "gt" + DECIDES),
    "if x.max() > 0": (lambda net, x: x if x.max() > 0 else -x, "max" + MAX_POOL),
    "x.sum().item()": (
        lambda net, x: x * x.sum().item(),
        "sum() turns shape [3, 4, 6, 6] into [], which does not keep the batch axis at {place}; "
        "keep axis 0 first and untouched, as x.flatten(1) does",
    ),
    "x.tolist()": (lambda net, x: x + x.tolist()[0][0][0][0], "tolist" + UNKNOWN),
    "truncation by division": (
        lambda net, x: torch.div(x, 0.3, rounding_mode="floor"),
        "div() rounds currents at {place}; leave rounding to the quantized activations",
    ),
    "truncation by type": (
        lambda net, x: x.to(torch.int32).float(),
        "to() turns currents into torch.int32 at {place}; keep them in floating point",
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_is_not_affine_is_refused(name):
    function, message = FUNCTIONS[name]
    said = refusal(quantized_probe(function))
    assert said == message.format(place=OWN)


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
    message = f"indexing selects from the batch axis at {OWN}; index as x[:, ...]"
    assert refusal(quantized_probe(tail=lambda net, x: x[index])) == message


def test_the_transpose_attribute_is_refused():
    message = f".T moves the batch axis at {OWN}; keep the batch axis first; use x.transpose(1, 2) and the like"
    assert refusal(quantized_probe(tail=lambda net, x: x.T)) == message


def test_a_linear_layer_whose_weight_is_a_current_is_refused():
    assert "two currents" in refusal(quantized_probe(tail=lambda net, x: F.linear(x, x)))


def test_a_shuffled_batch_is_refused():
    message = f"index_select() selects from the batch axis at {OWN}; keep axis 0 first and untouched"
    assert refusal(quantized_probe(tail=lambda net, x: x.index_select(0, torch.tensor([2, 1, 0])))) == message
    assert refusal(quantized_probe(tail=lambda net, x: x.index_select(dim=-2, index=torch.tensor([2, 1, 0])))) == message


MIXERS = {
    "an index behind an ellipsis": lambda net, x: x[..., torch.arange(len(x)).flip(0), :],
    "a constant matrix over the batch": lambda net, x: torch.ones(len(x), len(x)) @ x,
    "einsum over the batch": lambda net, x: torch.einsum("ab,bc->ac", torch.ones(len(x), len(x)), x),
}


@pytest.mark.parametrize("name", MIXERS)
def test_a_network_whose_images_see_each_other_is_refused(name):
    said = refusal(quantized_probe(tail=MIXERS[name]))
    assert said.startswith("the result for an image depends on the other images of its batch; keep axis 0 first and untouched")


def test_a_network_tied_to_one_batch_size_is_refused():
    said = refusal(quantized_probe(tail=lambda net, x: x[..., torch.tensor([2, 1, 0]), :]))
    assert said.startswith("the network does not run on a batch of 2 images (")
    assert said.endswith("; keep axis 0 free")


NOT_QUANTIZED = (
    "nn.{kind} is an activation that is not quantized at module; use nn.ReLU instead of nn.{kind}, and quantize that network, "
    "or give images or an example, with which quantize rewrites leaky and clipped activations"
)
MODULES = {
    "nn.FractionalMaxPool2d": (
        lambda: nn.FractionalMaxPool2d(2, 2),
        "this kind of max pooling has no spiking form at {place}; use nn.MaxPool1d, nn.MaxPool2d, or their adaptive forms",
    ),
    "nn.Sigmoid": (nn.Sigmoid, SIGMOID),
    "nn.GELU": (nn.GELU, "gelu" + SMOOTH),
    "nn.SiLU": (nn.SiLU, "silu" + SMOOTH),
    "nn.Softmax": (lambda: nn.Softmax(1), FUNCTIONS["softmax"][1]),
    "nn.LayerNorm": (lambda: nn.LayerNorm(6), "layer_norm" + NORM),
    "nn.GroupNorm": (lambda: nn.GroupNorm(2, 4), "group_norm" + NORM),
    "nn.LeakyReLU": (nn.LeakyReLU, NOT_QUANTIZED.format(kind="LeakyReLU")),
    "nn.ReLU6": (nn.ReLU6, NOT_QUANTIZED.format(kind="ReLU6")),
    "batch norm without running statistics": (
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        "batch norm uses the statistics of the batch at {place}; build it with track_running_stats=True",
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_is_not_affine_is_refused(name):
    make, message = MODULES[name]
    with pytest.raises(QuantizationError) as caught:  # before any training
        quantized_probe(module=make())
    assert str(caught.value) == message.format(place="module")
    skipped = quantized_probe(module=make(), spec=QuantSpec(2, 2, skip=("module",)))
    assert refusal(skipped) == message.format(place="module")


def test_a_module_inside_modules_is_named_in_full():
    module = nn.Sequential(nn.Identity(), nn.Sequential(nn.Sigmoid()))
    net = quantized_probe(module=module, spec=QuantSpec(2, 2, skip=("module.1.0",)))
    assert refusal(net) == SIGMOID.format(place="module.1.0")


def test_a_network_in_training_mode_converts_as_in_evaluation():
    net, images = quantized_probe(module=nn.Dropout(0.5)), torch.randn(4, 2, 6, 6)
    with torch.no_grad():
        wanted = to_spiking(net, IMAGE)(images)
        spiking = to_spiking(net.train(), IMAGE)
        assert spiking.training
        assert torch.equal(spiking(images), wanted)
    assert all(torch.equal(value, spiking.state_dict()[key]) for key, value in net.state_dict().items())


def test_dropout_that_is_always_on_is_refused():
    assert "dropout is active in evaluation mode" in refusal(quantized_probe(lambda net, x: F.dropout(x, 0.5, True)))


def test_an_activation_left_in_float_is_refused():
    net = quantized_probe(spec=QuantSpec(2, 2, skip=("act2",)))
    message = (
        "nn.ReLU is an activation that is not quantized at act2; quantize the float network with act_bits < 32, and do not "
        "skip this layer"
    )
    assert refusal(net) == message
    message = (
        "the network has quantized weights but no quantized activation; quantize the float network that it was made from with "
        "act_bits < 32"
    )
    assert refusal(quantized_probe(spec=QuantSpec(2, 32))) == message
    message = "the network has no quantized activation; call nbsnn.quantize on it first, with act_bits < 32"
    assert refusal(SmallNet().eval()) == message


def test_an_activation_called_twice_is_refused():
    message = "act is called more than once, and a neuron has one place; use a separate nn.ReLU for each call"
    assert refusal(quantized_probe(lambda net, x: net.act(x))) == message


def test_what_the_audit_cannot_see_is_refused():
    message = "the current of act2 does not descend from the image by torch functions the audit can see" + WRITE
    assert refusal(quantized_probe(lambda net, x: torch.ones(len(x), 4, 6, 6))) == message
    message = "the network's output does not descend from the image by torch functions the audit can see" + WRITE
    assert refusal(quantized_probe(tail=lambda net, x: torch.zeros(len(x), 3))) == message


def test_anything_but_tensors_is_refused_as_an_output():
    message = "the network returns a {}; return tensors, in tuples, lists or dicts"
    assert refusal(quantized_probe(tail=lambda net, x: {"logits": [x, len(x)]})) == message.format("int")
    assert refusal(quantized_probe(tail=lambda net, x: (None, []))) == message.format("result without a tensor")
    assert refusal(quantized_probe(tail=lambda net, x: {("a", 1): x})) == message.format("dict with keys such as ('a', 1)")


@pytest.mark.parametrize("shape", [(1, 3, 6, 6), (1, 2, 9, 9)])
def test_an_example_of_the_wrong_shape_is_refused(shape):
    said = refusal(quantized_probe(), example=torch.zeros(shape))
    assert said.startswith(f"the example of shape {list(shape[1:])} does not run at ")


def test_a_builtin_without_signature_is_judged_too():
    assert "dropout" in refusal(quantized_probe(lambda net, x: torch.dropout(x, 0.5, True)))
