"""Every refusal of the audit, `quantize`, `set_bits_`, `lower` and the engines, with its remedy applied: it works.

A row holds what is refused, the remedy as the message prints it, and the same with that remedy applied, which passes. The last
test compares the lines that raised with the source: a refusal without a row fails it.
"""

import ast
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nbsnn
from nbsnn.errors import NbsnnError
from nbsnn.integer.backends import Request, choose, library, native
from nbsnn.quant import operations
from nbsnn.quant.formats import EdgeUniform
from nbsnn.quant.operations import Refusal
from nbsnn.quant.plans import ActFormat, apply_plan_
from nbsnn.wrappers import as_network

SPEC = nbsnn.QuantSpec(2, 2)
IMAGES = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    """conv1 → act1 → `between`, which gives a current → act2 → mean → head → `tail`; other layers for functions to use."""

    def __init__(self, between=None, *, tail=None, end=None, **modules):
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.act2 = nn.Conv2d(4, 4, 1), nn.ReLU()
        self.head = nn.Linear(4, 3)
        self.between = between or (lambda net, x: net.conv2(x))
        self.end = end or (lambda net, x: net.head(net.act2(x).mean((2, 3))))
        self.tail = tail or (lambda net, x: x)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.tail(self, self.end(self, self.between(self, self.act1(self.conv1(x)))))


def quantized(*args, spec=SPEC, example=IMAGES, **options):
    """With an example, what cannot be converted is refused here; without, by `to_spiking`, in the same words."""
    torch.manual_seed(6)
    return nbsnn.quantize(Net(*args, **options), spec, example=example, prepare=False).eval()


def spikes(*args, **options):
    return nbsnn.to_spiking(quantized(*args, **options), IMAGES)


def integers(*args, **options):
    return nbsnn.lower(quantized(*args, **options), IMAGES)


def module(layer):
    """A network with this module between spikes and the second convolution."""
    return {"between": lambda net, x: net.conv2(net.module(x)), "module": layer}


PADDED = {"conv3": nn.Conv2d(4, 4, 3, padding=1, bias=False)}


@dataclass(frozen=True)
class Row:
    """`refused` raises, and its message ends with `remedy`; `passes` is the same with the remedy applied."""

    refused: Callable[[], object]
    remedy: str
    passes: Callable[[], object]


def after(prepare, then):
    """`then` of a quantized network to which something was done."""

    def run():
        network = quantized()
        prepare(network)
        return then(network)

    return run


def fill(name, value):
    def change(network):
        with torch.no_grad():
            network.get_parameter(name).fill_(value)

    return change


def enlarge(network):
    with torch.no_grad():
        network.conv2.weight.mul_(1e18)


def calling(function):
    """A module whose forward is a function."""
    return type("Calling", (nn.Module,), {"forward": lambda _, x: function(x)})()


FLAT = nn.Linear(144, 3)


OUTSIDE = "write self.act = nn.ReLU() and call it"
FIRST_AXIS = "keep axis 0 first and untouched"
AUDIT = {
    "F.relu": Row(lambda: spikes(lambda net, x: F.relu(net.conv2(x))), OUTSIDE, lambda: spikes()),
    "clamp": Row(lambda: spikes(lambda net, x: net.conv2(x).clamp_min(0)), OUTSIDE, lambda: spikes()),
    "another activation": Row(
        lambda: quantized(act2=nn.LeakyReLU()),
        "use nn.ReLU instead of nn.LeakyReLU, and quantize that network, or give images or an example, with which quantize "
        "rewrites leaky and clipped activations",
        lambda: (spikes(act2=nn.ReLU()), nbsnn.quantize(Net(act2=nn.LeakyReLU()), SPEC, example=IMAGES)),
    ),
    "a skipped ReLU": Row(
        lambda: spikes(spec=nbsnn.QuantSpec(2, 2, skip=("act2",))),
        "quantize the float network with act_bits < 32, and do not skip this layer",
        lambda: spikes(spec=nbsnn.QuantSpec(2, 2)),
    ),
    "max pool of currents": Row(
        lambda: quantized(between=lambda net, x: net.module(net.conv2(x)), module=nn.MaxPool2d(2)),
        "put the pool next to the activation, before sums, averages and weight layers; nbsnn.prepare does it",
        lambda: spikes(**module(nn.MaxPool2d(2))),
    ),
    "max pool as a function": Row(
        lambda: quantized(between=lambda net, x: net.conv2(F.max_pool2d(x, 2))),
        "write self.pool = nn.MaxPool2d(...) or nn.AdaptiveMaxPool2d(...), and call it on the output of an activation; "
        "nbsnn.prepare does it",
        lambda: spikes(**module(nn.MaxPool2d(2))),
    ),
    "max pool with indices": Row(
        lambda: quantized(between=lambda net, x: net.conv2(net.module(x)[0]), module=nn.MaxPool2d(2, return_indices=True)),
        "use nn.MaxPool2d or nn.MaxPool1d itself, without return_indices",
        lambda: spikes(**module(nn.MaxPool2d(2))),
    ),
    "max pool of neurons side by side": Row(
        lambda: quantized(
            between=lambda net, x: net.module(torch.cat([x, net.act3(x)], 2)), module=nn.MaxPool2d(2), act3=nn.ReLU()
        ),
        "concatenate them along the channels, with dim=1, or pool before",
        lambda: spikes(
            between=lambda net, x: net.wide(net.module(torch.cat([x, net.act3(net.conv2(x))], 1))),
            module=nn.MaxPool2d(2), act3=nn.ReLU(), wide=nn.Conv2d(8, 4, 1),
        ),
    ),
    "another kind of max pool": Row(
        lambda: quantized(between=lambda net, x: net.module(net.conv2(x)), module=nn.FractionalMaxPool2d(2, 2)),
        "use nn.MaxPool1d, nn.MaxPool2d, or their adaptive forms",
        lambda: spikes(**module(nn.AdaptiveMaxPool2d(2))),
    ),
    "max pool of padding": Row(
        lambda: quantized(between=lambda net, x: net.conv2(net.module(x)), module=nn.MaxPool2d(2, padding=1, dilation=7)),
        "use less padding or dilation",
        lambda: spikes(**module(nn.MaxPool2d(2, padding=1))),
    ),
    "an exponential": Row(
        lambda: spikes(act2=nn.ELU()),
        "use nn.ReLU or nn.LeakyReLU",
        lambda: (spikes(act2=nn.ReLU()), nbsnn.quantize(Net(act2=nn.LeakyReLU()), SPEC, example=IMAGES)),
    ),
    "sign": Row(
        lambda: spikes(lambda net, x: torch.sign(net.conv2(x))),
        "use nn.ReLU, or apply it to the network's result, outside the network",
        lambda: spikes()(IMAGES).sign(),
    ),
    "sigmoid": Row(
        lambda: quantized(act2=nn.Sigmoid()),
        "use nn.ReLU between layers, and leave it out at the end: return the logits, and apply it to the result",
        lambda: spikes(act2=nn.ReLU())(IMAGES).sigmoid(),
    ),
    "the maximum of two": Row(
        lambda: spikes(between=lambda net, x: net.conv2(torch.maximum(x, 1 - x))),
        "write self.act = nn.ReLU(), and b + self.act(a - b) for the maximum or a - self.act(a - b) for the minimum",
        lambda: spikes(between=lambda net, x: net.conv2(x - 1 + net.module(2 - 2 * x)), module=nn.ReLU()),
    ),
    "softmax": Row(
        lambda: spikes(tail=lambda net, x: x.softmax(1)),
        "leave it out: return the logits, and apply it to the result",
        lambda: spikes()(IMAGES).softmax(1),
    ),
    "group norm": Row(
        lambda: quantized(**module(nn.GroupNorm(2, 4))),
        "use batch norm, which folds into the weights",
        lambda: spikes(**module(nn.BatchNorm2d(4))),
    ),
    "attention": Row(
        lambda: quantized(example=None, **module(nn.MultiheadAttention(4, 2))),
        "use convolutions or linear layers, whose weights are constant",
        lambda: spikes(**module(nn.Conv2d(4, 4, 1))),
    ),
    "recurrence": Row(
        lambda: quantized(example=None, **module(nn.LSTM(4, 4))),
        "use convolutions or linear layers over the whole input",
        lambda: spikes(**module(nn.Conv2d(4, 4, 6, padding=3))),
    ),
    "abs": Row(
        lambda: spikes(lambda net, x: net.conv2(x).abs()),
        "between neurons write only sums, products with constants, convolutions, linear layers, average pools, reshapes",
        lambda: spikes(lambda net, x: net.conv2(x) * 0.5 + x),
    ),
    "no running statistics": Row(
        lambda: quantized(**module(nn.BatchNorm2d(4, track_running_stats=False))),
        "build it with track_running_stats=True",
        lambda: spikes(**module(nn.BatchNorm2d(4, track_running_stats=True))),
    ),
    "F.batch_norm": Row(
        lambda: spikes(lambda net, x: F.batch_norm(net.conv2(x), torch.zeros(4), torch.ones(4), training=True)),
        "give F.batch_norm training=self.training",
        lambda: spikes(lambda net, x: F.batch_norm(net.conv2(x), torch.zeros(4), torch.ones(4), training=net.training)),
    ),
    "indices of maxima": Row(
        lambda: spikes(lambda net, x: net.conv2(F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2))),
        "leave out return_indices, and interpolate instead",
        lambda: spikes(lambda net, x: net.conv2(F.interpolate(net.pool(x), scale_factor=2)), pool=nn.MaxPool2d(2)),
    ),
    "F.dropout": Row(
        lambda: spikes(lambda net, x: net.conv2(F.dropout(x))),
        "use nn.Dropout, or give F.dropout training=self.training",
        lambda: (spikes(lambda net, x: net.conv2(F.dropout(x, training=net.training))), spikes(**module(nn.Dropout()))),
    ),
    "x * x": Row(
        lambda: spikes(lambda net, x: net.conv2(x) * x),
        "multiply or divide currents by constants or parameters only",
        lambda: spikes(lambda net, x: net.conv2(x) * net.gain, gain=nn.Parameter(torch.ones(4, 1, 1))),
    ),
    "a current as a norm's weight": Row(
        lambda: spikes(lambda net, x: F.batch_norm(net.conv2(x), torch.zeros(4), torch.ones(4), weight=x.flatten()[:4])),
        "keep axis 0 first and untouched, as x.flatten(1) does",
        lambda: spikes(lambda net, x: F.batch_norm(net.conv2(x), torch.zeros(4), torch.ones(4), weight=torch.ones(4))),
    ),
    "rounding": Row(
        lambda: spikes(lambda net, x: torch.div(net.conv2(x), 0.3, rounding_mode="floor")),
        "leave rounding to the quantized activations",
        lambda: spikes(lambda net, x: torch.div(net.conv2(x), 0.3)),
    ),
    "index_select": Row(
        lambda: spikes(tail=lambda net, x: x.index_select(0, torch.tensor([2, 1, 0]))),
        FIRST_AXIS,
        lambda: spikes(tail=lambda net, x: x.index_select(1, torch.tensor([2, 1, 0]))),
    ),
    "x[0]": Row(lambda: spikes(tail=lambda net, x: x[0]), "index as x[:, ...]", lambda: spikes(tail=lambda net, x: x[:, 0:1])),
    "x.T": Row(
        lambda: spikes(tail=lambda net, x: x.T),
        "keep the batch axis first; use x.transpose(1, 2) and the like",
        lambda: spikes(lambda net, x: net.conv2(x).transpose(2, 3)),
    ),
    "an integer type": Row(
        lambda: spikes(tail=lambda net, x: x.to(torch.int32)),
        "keep them in floating point",
        lambda: spikes(tail=lambda net, x: x.to(x)),
    ),
    "a batch axis that goes": Row(
        lambda: spikes(tail=lambda net, x: x.view(1, -1)),
        "keep axis 0 first and untouched, as x.flatten(1) does",
        lambda: spikes(tail=lambda net, x: x.flatten(1)),
    ),
    "overwritten": Row(
        lambda: spikes(lambda net, x: (net.act3(x), net.conv2(x))[1], act3=nn.ReLU(inplace=True)),
        "use its result: write x = act(x)",
        lambda: spikes(lambda net, x: net.conv2(net.act3(x)), act3=nn.ReLU(inplace=True)),
    ),
    "overwritten and returned": Row(
        lambda: spikes(tail=lambda net, x: (net.act3(x), x)[1], act3=nn.ReLU(inplace=True)),
        "use its result: write x = act(x)",
        lambda: spikes(tail=lambda net, x: net.act3(x), act3=nn.ReLU(inplace=True)),
    ),
    "called twice": Row(
        lambda: spikes(lambda net, x: net.act1(net.conv2(x))),
        "use a separate nn.ReLU for each call",
        lambda: spikes(lambda net, x: net.act3(net.conv2(x)), act3=nn.ReLU()),
    ),
    "an activation of no image": Row(
        lambda: spikes(lambda net, x: torch.zeros(len(x), 4, 6, 6)),
        "compute it from the image in forward, without NumPy, TorchScript or a torch.autograd.Function",
        lambda: spikes(lambda net, x: net.conv2(x)),
    ),
    "an output of no image": Row(
        lambda: spikes(tail=lambda net, x: torch.zeros(len(x), 3)),
        "compute it from the image in forward, without NumPy, TorchScript or a torch.autograd.Function",
        lambda: spikes(tail=lambda net, x: x + torch.zeros(len(x), 3)),
    ),
    "no activation on the way": Row(
        lambda: spikes(end=lambda net, x: net.head(net.conv2(x).mean((2, 3))), act1=nn.Identity()),
        "call one in forward: x = self.act(x)",
        lambda: spikes(end=lambda net, x: net.head(net.act2(x).mean((2, 3))), act1=nn.Identity()),
    ),
    "the forward of an activation": Row(
        lambda: spikes(lambda net, x: net.act3.forward(net.conv2(x)), act3=nn.ReLU()),
        "call that: self.act(x)",
        lambda: spikes(lambda net, x: net.act3(net.conv2(x)), act3=nn.ReLU()),
    ),
    "the weight of a layer": Row(
        lambda: spikes(lambda net, x: F.conv2d(x, net.conv2.weight), example=None),
        "call the layer",
        lambda: spikes(lambda net, x: net.conv2(x), example=None),
    ),
    "the weight of a layer, seen": Row(
        lambda: quantized(lambda net, x: F.conv2d(x, net.conv2.weight)),
        "call the layer",
        lambda: spikes(lambda net, x: net.conv2(x)),
    ),
    "an output that is no tensor": Row(
        lambda: spikes(tail=lambda net, x: (x, "logits")),
        "return tensors, in tuples, lists or dicts",
        lambda: (spikes(tail=lambda net, x: (x, [x])), spikes(tail=lambda net, x: {"logits": x})),
    ),
    "no axis of classes": Row(
        lambda: spikes(head=nn.Linear(4, 1), tail=lambda net, x: x.squeeze(1)),
        "return [B, 1], without a squeeze at the end",
        lambda: spikes(head=nn.Linear(4, 1)),
    ),
    "one batch size": Row(
        lambda: spikes(tail=lambda net, x: x[..., torch.tensor([2, 1, 0]), :]),
        "keep axis 0 free",
        lambda: spikes(tail=lambda net, x: x[..., torch.tensor([2, 1, 0])]),
    ),
    "images that see each other": Row(
        lambda: spikes(tail=lambda net, x: torch.ones(len(x), len(x)) @ x),
        "keep axis 0 first and untouched (no indexing, matrix product or permutation over it)",
        lambda: spikes(tail=lambda net, x: x @ torch.ones(3, 3)),
    ),
    "a float network": Row(
        lambda: nbsnn.to_spiking(Net().eval(), IMAGES),
        "call nbsnn.quantize on it first, with act_bits < 32",
        lambda: nbsnn.to_spiking(nbsnn.quantize(Net(), SPEC).eval(), IMAGES),
    ),
    "weights alone": Row(
        lambda: spikes(spec=nbsnn.QuantSpec(2, 32)),
        "quantize the float network that it was made from with act_bits < 32",
        lambda: spikes(spec=nbsnn.QuantSpec(2, 8)),
    ),
    "images of another shape": Row(
        lambda: nbsnn.to_spiking(quantized(end=lambda net, x: net.flat(net.act2(x).flatten(1)), flat=FLAT), IMAGES[:, :, 1:]),
        "give images on which the network runs",
        lambda: nbsnn.to_spiking(quantized(end=lambda net, x: net.flat(net.act2(x).flatten(1)), flat=FLAT), IMAGES),
    ),
    "writing into the images": Row(
        lambda: spikes(conv1=nn.Sequential(calling(lambda x: x.sub_(1)), nn.Conv2d(2, 4, 1))),
        "write x = x - mean and the like, not x.sub_(mean)",
        lambda: spikes(conv1=nn.Sequential(calling(lambda x: x - 1), nn.Conv2d(2, 4, 1))),
    ),
    "two inputs": Row(
        lambda: nbsnn.quantize(type("Two", (Net,), {"forward": lambda net, x, y: Net.forward(net, x + y)})(), SPEC),
        "concatenate them along the channels, and split them in forward",
        lambda: spikes(conv1=nn.Sequential(calling(lambda xy: sum(xy.chunk(2, 1))), nn.Conv2d(1, 4, 1))),
    ),
}  # fmt: skip


def materialized(network):
    network(IMAGES)
    return network


def on_cpu(network):
    network.to_empty(device="cpu").load_state_dict(Net().state_dict())
    return network


def scripted():
    return torch.jit.trace(Net(), IMAGES)


class Sharded(torch.Tensor):
    pass


Sharded.__name__ = "DTensor"


def sharded():
    network = Net()
    network.conv2._parameters["weight"] = network.conv2.weight.as_subclass(Sharded)
    return network


def whole():
    network = Net()
    network.load_state_dict({key: tensor.as_subclass(torch.Tensor) for key, tensor in sharded().state_dict().items()})
    return network


class Odd(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class OddReLU(nn.ReLU):
    def forward(self, x):
        return x.relu()


def skipping(*names):
    return nbsnn.QuantSpec(2, 2, skip=names)


KERNEL = {"kernel": nn.Parameter(torch.randn(4, 4, 1, 1))}
BY_KERNEL = {"between": lambda net, x: F.conv2d(x, net.kernel)}


def fitted(spec=SPEC, **how):
    """Quantized without training."""
    return nbsnn.quantize(Net(), spec, **how)


QUANTIZE = {
    "an unknown method": Row(
        lambda: fitted(images=IMAGES, method="recalibrate"), "did you mean calibrate?",
        lambda: fitted(images=IMAGES, method="calibrate"),
    ),
    "a method without images": Row(
        lambda: fitted(method="reconstruct"), "give a few hundred, without labels",
        lambda: fitted(images=IMAGES, method="reconstruct"),
    ),
    "a method with other norms": Row(
        lambda: fitted(nbsnn.QuantSpec(2, 2, norms="recalibrate"), images=IMAGES, method="reconstruct"), "leave norms='keep'",
        lambda: fitted(nbsnn.QuantSpec(2, 2, norms="keep"), images=IMAGES, method="reconstruct"),
    ),
    "no module": Row(lambda: nbsnn.quantize(Net, SPEC), "give an nn.Module", lambda: nbsnn.quantize(Net(), SPEC)),
    "TorchScript": Row(
        lambda: nbsnn.quantize(scripted(), SPEC),
        "give the network that it was made from",
        lambda: nbsnn.quantize(Net(), SPEC),
    ),
    "sharded": Row(
        lambda: as_network(sharded(), nbsnn.QuantizationError),
        "load the full state dict (get_model_state_dict of torch.distributed.checkpoint.state_dict, with full_state_dict=True) "
        "into a network without FSDP",
        lambda: nbsnn.quantize(whole(), SPEC),
    ),
    "quantized already": Row(
        lambda: nbsnn.quantize(quantized(), SPEC),
        "change its bits with nbsnn.set_bits_, or start from the float network",
        lambda: (nbsnn.set_bits_(quantized(), weight_bits=3, act_bits=3), nbsnn.quantize(Net(), SPEC)),
    ),
    "bits of float": Row(
        lambda: quantized(spec=nbsnn.QuantSpec(32, 32, edge_bits=32)),
        "choose fewer bits",
        lambda: quantized(spec=nbsnn.QuantSpec(3, 32)),
    ),
    "everything skipped": Row(
        lambda: quantized(spec=skipping("*")), "skip fewer layers", lambda: quantized(spec=skipping("conv*"))
    ),
    "an unknown layer": Row(
        lambda: quantized(spec=skipping("conv9")), "did you mean conv2, conv1?", lambda: spikes(spec=skipping("conv2"))
    ),
    "a lazy layer": Row(
        lambda: nbsnn.quantize(Net(head=nn.LazyLinear(3)), SPEC),
        "run the network on one image first",
        lambda: nbsnn.quantize(materialized(Net(head=nn.LazyLinear(3))), SPEC),
    ),
    "no floats": Row(
        lambda: nbsnn.quantize(nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64), nn.ReLU()), SPEC),
        "build its layer with dtype=torch.float32",
        lambda: nbsnn.quantize(nn.Sequential(nn.Linear(2, 2, dtype=torch.float32), nn.ReLU()), SPEC),
    ),
    "no numbers": Row(
        lambda: nbsnn.quantize(Net().to("meta"), SPEC, images=IMAGES),
        "call to_empty(device='cpu') and load a state dict",
        lambda: nbsnn.quantize(on_cpu(Net().to("meta")), SPEC, images=IMAGES),
    ),
    "no activation": Row(
        lambda: nbsnn.quantize(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten()), SPEC),
        "write self.act = nn.ReLU() for each activation and call it, give images or an example for activations that are "
        "functions, or quantize weights alone with act_bits=32",
        lambda: (
            nbsnn.to_spiking(nbsnn.quantize(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten()), SPEC), IMAGES),
            nbsnn.quantize(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten()), nbsnn.QuantSpec(2, 32)),
        ),
    ),
    "a convolution over a volume": Row(
        lambda: quantized(conv2=nn.Conv3d(1, 4, 3), example=None),
        "use nn.Conv2d or nn.Linear, or leave it in float with QuantSpec(skip=('conv2',))",
        lambda: quantized(conv2=nn.Conv2d(4, 4, 3)),
    ),
    "a subclass": Row(
        lambda: quantized(conv2=Odd(4, 4, 1)),
        "use nn.Conv2d itself, or leave it in float with QuantSpec(skip=('conv2',))",
        lambda: (spikes(conv2=nn.Conv2d(4, 4, 1)), spikes(conv2=Odd(4, 4, 1), spec=skipping("conv2"))),
    ),
    "a subclass of ReLU": Row(lambda: quantized(act2=OddReLU()), "use nn.ReLU itself", lambda: spikes(act2=nn.ReLU())),
    "a parameter of its own": Row(
        lambda: quantized(example=None, **KERNEL, **BY_KERNEL),
        "hold it in such a layer, or leave it in float with QuantSpec(skip=('kernel',))",
        lambda: (spikes(conv2=nn.Conv2d(4, 4, 1)), spikes(example=None, spec=skipping("kernel"), **KERNEL, **BY_KERNEL)),
    ),
    "a parameter of its own, seen": Row(
        lambda: quantized(**KERNEL, **BY_KERNEL),
        "hold it in such a layer and call that, or leave it in float with QuantSpec(skip=('kernel',))",
        lambda: (spikes(), spikes(spec=skipping("kernel"), **KERNEL, **BY_KERNEL)),
    ),
    "a plan of another network": Row(
        lambda: apply_plan_(Net(), {"conv9": EdgeUniform(8, "max_abs")}),
        "did you mean conv2, conv1?",
        lambda: apply_plan_(Net(), {"conv2": EdgeUniform(8, "max_abs")}),
    ),
    "a plan for another kind": Row(
        lambda: apply_plan_(Net(), {"conv2": ActFormat(2)}),
        "only convolutions, Linear and ReLU are quantized",
        lambda: apply_plan_(Net(), {"act2": ActFormat(2)}),
    ),
    "bits without a quantizer": Row(
        lambda: nbsnn.QuantSpec(6, 2, weight_format="apot"),
        "choose one of 2, 3, 4, 5, 32 (32 leaves a layer in float)",
        lambda: nbsnn.QuantSpec(5, 2, weight_format="apot"),
    ),
    "bits of an unknown layer": Row(
        lambda: quantized(spec=nbsnn.QuantSpec(2, 2, layers={"conv22": 3})),
        "did you mean conv2, conv1?",
        lambda: spikes(spec=nbsnn.QuantSpec(2, 2, layers={"conv2": 3})),
    ),
    "an unknown edge": Row(
        lambda: quantized(spec=nbsnn.QuantSpec(2, 2, edges=("conv22",))),
        "did you mean conv2, conv1?",
        lambda: spikes(spec=nbsnn.QuantSpec(2, 2, edges=("conv2",))),
    ),
    "set_bits_ of a float network": Row(
        lambda: nbsnn.set_bits_(Net(), act_bits=3),
        "call nbsnn.quantize first",
        lambda: nbsnn.set_bits_(nbsnn.quantize(Net(), SPEC), act_bits=3),
    ),
    "set_bits_ of what is in float": Row(
        lambda: nbsnn.set_bits_(quantized(spec=nbsnn.QuantSpec(2, 32)), act_bits=3),
        "quantize the float network with act_bits=3",
        lambda: spikes(spec=nbsnn.QuantSpec(2, act_bits=3)),
    ),
    "set_bits_ of no weight": Row(
        lambda: nbsnn.set_bits_(quantized(), weight_bits=3, only=["act2"]),
        "known: conv2",
        lambda: nbsnn.set_bits_(quantized(), weight_bits=3, only=["conv2"]),
    ),
    "images all alike": Row(
        lambda: nbsnn.quantize(Net(), SPEC, images=torch.zeros_like(IMAGES)),
        "give different training images, or only example=images[:1]",
        lambda: (nbsnn.quantize(Net(), SPEC, images=IMAGES), nbsnn.quantize(Net(), SPEC, example=torch.zeros_like(IMAGES)[:1])),
    ),
    "set_bits_ of no layer": Row(
        lambda: nbsnn.set_bits_(quantized(), act_bits=3, only=["act9"]),
        "did you mean act2, act1?",
        lambda: nbsnn.set_bits_(quantized(), act_bits=3, only=["act2"]),
    ),
}  # fmt: skip


def packed():
    network = quantized()
    layer = network.conv2
    with torch.no_grad():
        values, unit = layer.quantized_weight(), layer.format.unit(layer.weight, layer.weight_scale)
        layer.weight.copy_(values), layer.weight_scale.copy_(unit)
    layer.format = replace(layer.format, fixed=True)
    return network


CONVERT = {
    "spiking already": Row(
        lambda: nbsnn.to_spiking(spikes(), IMAGES),
        "convert the quantized network that it was made from",
        lambda: nbsnn.to_spiking(quantized(), IMAGES),
    ),
    "mixed levels": Row(
        after(lambda net: nbsnn.set_bits_(net, act_bits=3, only=["act2"]), lambda net: nbsnn.to_spiking(net, IMAGES)),
        "use schedule='settle' or 'barrier', or give all layers the same act_bits with nbsnn.set_bits_",
        after(
            lambda net: nbsnn.set_bits_(net, act_bits=3, only=["act2"]),
            lambda net: (
                nbsnn.to_spiking(net, IMAGES, schedule="settle"),
                nbsnn.to_spiking(net, IMAGES, schedule="barrier"),
                nbsnn.to_spiking(nbsnn.set_bits_(net, act_bits=3), IMAGES),
            ),
        ),
    ),
    "another number of steps": Row(
        lambda: nbsnn.to_spiking(quantized(), IMAGES, timesteps=7),
        "for T = 7 train with 3 bits",
        lambda: nbsnn.to_spiking(nbsnn.set_bits_(quantized(), act_bits=3), IMAGES, timesteps=7),
    ),
    "an unknown schedule": Row(
        lambda: nbsnn.to_spiking(quantized(), IMAGES, schedule="settled"),
        "did you mean settle?",
        lambda: nbsnn.to_spiking(quantized(), IMAGES, schedule="settle"),
    ),
    "an unknown neuron": Row(
        lambda: nbsnn.to_spiking(quantized(), IMAGES, neuron="sign"),
        "did you mean signed, unsigned?",
        lambda: nbsnn.to_spiking(quantized(), IMAGES, neuron="signed"),
    ),
    "a pair that does not go together": Row(
        lambda: nbsnn.to_spiking(quantized(), IMAGES, neuron="unsigned", schedule="settle"),
        "use neuron='signed'",
        lambda: nbsnn.to_spiking(quantized(), IMAGES, neuron="signed", schedule="settle"),
    ),
    "half precision": Row(
        lambda: nbsnn.to_spiking(quantized().bfloat16(), IMAGES, schedule="settle"),
        "keep the network in float32 with .float(), or convert with schedule='fixed'",
        lambda: (
            nbsnn.to_spiking(quantized().bfloat16().float(), IMAGES, schedule="settle"),
            nbsnn.to_spiking(quantized().bfloat16(), IMAGES, schedule="fixed"),
        ),
    ),
}  # fmt: skip


def one_image_in_autocast():
    spiking = nbsnn.to_spiking(quantized(), IMAGES, schedule="settle")
    with torch.autocast("cpu"):
        return spiking(IMAGES)


def one_image_without():
    spiking = nbsnn.to_spiking(quantized(), IMAGES, schedule="settle")
    with torch.autocast("cpu"), torch.autocast("cpu", enabled=False):
        return spiking(IMAGES), spiking(IMAGES)


CONVERT |= {
    "autocast": Row(
        one_image_in_autocast,
        "call it outside torch.autocast, or within torch.autocast('cpu', enabled=False)",
        one_image_without,
    ),
    "a layer of a spiking network": Row(
        lambda: spikes().network(IMAGES),
        "call that, not its .network or a layer of it",
        lambda: spikes()(IMAGES),
    ),
}


def write_behind(net, x):
    part = x[:, :2]
    part += 1
    return net.conv2(x)


def rows(*layers):
    """Lowered, for images [B, 2, 6]."""
    return nbsnn.lower(nbsnn.quantize(nn.Sequential(*layers), SPEC).eval(), IMAGES[:, :, 0])


LOWER = {
    "a float network": Row(
        lambda: nbsnn.lower(Net(), IMAGES),
        "call nbsnn.quantize first",
        lambda: nbsnn.lower(nbsnn.quantize(Net(), SPEC), IMAGES),
    ),
    "a spiking network": Row(
        lambda: nbsnn.lower(spikes(), IMAGES), "lower the quantized network that it was made from", lambda: integers()
    ),
    "bits of float weights": Row(
        lambda: nbsnn.lower(quantized(), IMAGES, float_weight_bits=4),
        "choose 8 or 16",
        lambda: [nbsnn.lower(quantized(), IMAGES, float_weight_bits=bits) for bits in (8, 16)],
    ),
    "bits of membranes": Row(
        lambda: nbsnn.lower(quantized(), IMAGES, membrane_bits=48),
        "choose 32 or 64",
        lambda: [nbsnn.lower(quantized(), IMAGES, membrane_bits=bits) for bits in (32, 64)],
    ),
    "half precision": Row(
        lambda: nbsnn.lower(quantized().half(), IMAGES),
        "call .float() first",
        lambda: nbsnn.lower(quantized().half().float(), IMAGES),
    ),
    "a mean alone": Row(
        lambda: nbsnn.lower(quantized(), IMAGES, mean=(0.5, 0.5)),
        "give both, or neither for float images only",
        lambda: (nbsnn.lower(quantized(), IMAGES, mean=(0.5, 0.5), std=(0.2, 0.2)), nbsnn.lower(quantized(), IMAGES)),
    ),
    "a matrix product": Row(
        lambda: integers(lambda net, x: net.conv2(torch.matmul(x, torch.eye(6)))),
        "between activations write convolutions, linear layers, sums, products with constants per channel, average pools, "
        "interpolation, concatenation and reshapes",
        lambda: integers(lambda net, x: net.conv2(x)),
    ),
    "in place on a view": Row(
        lambda: integers(write_behind),
        "avoid operations in place on views, and code that looks at values",
        lambda: integers(lambda net, x: net.conv2(torch.cat([x[:, :2] + 1, x[:, 2:]], 1))),
    ),
    "a convolution flattened": Row(
        lambda: integers(end=lambda net, x: net.flat(x.flatten(1)), flat=FLAT),
        "put an nn.ReLU between them, or merge them",
        lambda: (
            integers(end=lambda net, x: net.flat(net.act2(x).flatten(1)), flat=FLAT),
            integers(end=lambda net, x: x.flatten(1)),
        ),
    ),
    "a max pool of shuffled pixels": Row(
        lambda: integers(
            lambda net, x: net.one(net.module(F.pixel_shuffle(x, 2))), module=nn.MaxPool2d(2), one=nn.Conv2d(1, 4, 1)
        ),
        "pool before the currents are rearranged",
        lambda: integers(
            lambda net, x: net.one(F.pixel_shuffle(net.module(x), 2)), module=nn.MaxPool2d(2), one=nn.Conv2d(1, 4, 1)
        ),
    ),
    "one weight layer after another": Row(
        lambda: integers(lambda net, x: net.conv2(net.conv3(x)), **PADDED),
        "put an nn.ReLU between them, or merge them",
        lambda: integers(lambda net, x: net.conv2(net.act3(net.conv3(x))), act3=nn.ReLU(), **PADDED),
    ),
    "a linear layer along the last axis": Row(
        lambda: integers(conv2=nn.Linear(6, 6)),
        "move the channels there, as x.permute(0, 2, 3, 1) does, flatten first, or use nn.Conv2d",
        lambda: integers(lambda net, x: net.conv2(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), conv2=nn.Linear(4, 4)),
    ),
    "a constant per place": Row(
        lambda: integers(lambda net, x: net.conv2(x) * torch.linspace(0, 1, 6)),
        "use one number per channel",
        lambda: integers(lambda net, x: net.conv2(x) * torch.linspace(0, 1, 4).view(4, 1, 1)),
    ),
    "a mean over channels": Row(
        lambda: integers(lambda net, x: net.conv2(x - x.mean(1, keepdim=True))),
        "reduce over dim=(2, 3)",
        lambda: integers(end=lambda net, x: net.head(net.act2(x).mean(dim=(2, 3)))),
    ),
    "a reshape": Row(
        lambda: integers(lambda net, x: net.conv2(x.reshape(-1, 4, 4, 9))),
        "choose or move whole channels, rows and columns before the last weight layer",
        lambda: integers(end=lambda net, x: net.flat(net.act2(x).flatten(1)), flat=FLAT),
    ),
    "an enlargement by an odd factor": Row(
        lambda: integers(lambda net, x: net.conv2(F.interpolate(x, scale_factor=1.2718, mode="bilinear"))),
        "choose an output size or a scale_factor that is a ratio of small integers, such as size=(2 * h, 2 * w)",
        lambda: integers(lambda net, x: net.conv2(F.interpolate(x, size=(12, 12), mode="bilinear"))),
    ),
    "a mean over a part of the places": Row(
        lambda: integers(end=lambda net, x: net.head(net.act2(x).reshape(-1, 4, 2, 18).mean(3)[:, :, 0])),
        "reduce over dim=(2, 3) before that",
        lambda: integers(end=lambda net, x: net.head(net.act2(x).mean(dim=(2, 3)))),
    ),
    "currents far beyond the threshold": Row(
        after(enlarge, lambda net: nbsnn.lower(net, IMAGES)),
        "give it a larger threshold, or train on",
        after(enlarge, lambda net: (fill("act2.threshold", 1e18)(net), nbsnn.lower(net, IMAGES))),
    ),
    "a head that overflows": Row(
        lambda: nbsnn.lower(
            nbsnn.quantize(nn.Sequential(nn.ReLU(), nn.AvgPool2d(256), nn.Flatten(), nn.Linear(8, 2)), nbsnn.QuantSpec(2, 8)),
            torch.zeros(1, 8, 256, 256),
        ),
        "average over fewer places before it",
        lambda: nbsnn.lower(
            nbsnn.quantize(nn.Sequential(nn.ReLU(), nn.AvgPool2d(16), nn.Flatten(), nn.Linear(8, 2)), nbsnn.QuantSpec(2, 8)),
            torch.zeros(1, 8, 16, 16),
        ),
    ),
}  # fmt: skip


def network(**options):
    return nbsnn.lower(quantized(), IMAGES, **options)


def pixels(value=0, *, dtype=torch.int32, shape=(1, 2, 6, 6)):
    return torch.full(shape, value, dtype=dtype)


def natively(images, **options):
    return native.run_counts(network().program, images, **options)


def mixed():
    made = quantized()
    nbsnn.set_bits_(made, act_bits=3, only=["act2"])
    return nbsnn.lower(made, IMAGES)


def with_extension(instead, run):
    def call():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "loaded", lambda: instead)
            return run()

    return call


class OutOfMemory:
    """The extension as it is where nothing can be allocated."""

    nbsnn_new = staticmethod(lambda *_: 0)
    nbsnn_has_target = staticmethod(lambda _: 1)
    nbsnn_error = staticmethod(lambda: b"out of memory")


ENGINES = {
    "an unknown engine": Row(
        lambda: network().run(IMAGES, engine="count"), "did you mean counts?", lambda: network().run(IMAGES, engine="counts")
    ),
    "an unknown backend": Row(
        lambda: network().run(IMAGES, backend="numpy"),
        "known: auto, native, torch",
        lambda: [network().run(IMAGES, backend=backend) for backend in ("auto", "native", "torch")],
    ),
    "mixed levels": Row(
        lambda: mixed().run(IMAGES, engine="spikes"),
        "use schedule='settle' or 'barrier'",
        lambda: [mixed().run(IMAGES, engine="spikes", schedule=schedule) for schedule in ("settle", "barrier")],
    ),
    "spikes of each signed neuron": Row(
        lambda: network().simulate(IMAGES, engine="spikes", keep_fired=True, backend="native"),
        "use backend='torch'",
        lambda: [network().simulate(IMAGES, engine="spikes", keep_fired=True, backend=b) for b in ("torch", "auto")],
    ),
    "a device without float64": Row(lambda: network().to("mps"), "use cpu or cuda", lambda: network().to("cpu").run(IMAGES)),
    "another shape": Row(
        lambda: network().run(IMAGES[:, :, 1:]), "the network takes [B, 2, 6, 6]", lambda: network().run(IMAGES)
    ),
    "8-bit images": Row(
        lambda: network().run(pixels(dtype=torch.uint8)),
        "give them to nbsnn.lower",
        lambda: network(mean=(0.5, 0.5), std=(0.2, 0.2)).run(pixels(dtype=torch.uint8)),
    ),
    "images beyond the range": Row(
        lambda: network().run(IMAGES + 200),
        "give nbsnn.lower their mean and std",
        lambda: network(mean=(0, 0), std=(1 / 255, 1 / 255)).run((IMAGES + 200).clamp(0, 255)),
    ),
    "images that are not normalized": Row(
        lambda: network(mean=(0.5, 0.5), std=(0.25, 0.25)).run(torch.full_like(IMAGES, 200)),
        "normalize them with the mean and std of nbsnn.lower",
        lambda: network(mean=(0.5, 0.5), std=(0.25, 0.25)).run((torch.full_like(IMAGES, 200) / 255 - 0.5) / 0.25),
    ),
}  # fmt: skip
NATIVE = {
    "native on another device": Row(
        lambda: choose("native", Request(torch.device("cuda"))),
        "move it with .to('cpu'), or use backend='torch'",
        lambda: (network().to("cpu").run(IMAGES, backend="native"), network().run(IMAGES, backend="torch")),
    ),
    "no extension": Row(
        with_extension("the extension was not built", lambda: natively(pixels())),
        "use backend='torch'",
        with_extension("the extension was not built", lambda: network().run(IMAGES, backend="torch")),
    ),
    "no extension, asked for": Row(
        with_extension("the extension was not built", lambda: network().run(IMAGES, backend="native")),
        "use backend='torch'",
        with_extension("the extension was not built", lambda: network().run(IMAGES, backend="torch")),
    ),
    "what the kernel refuses": Row(
        with_extension(OutOfMemory(), lambda: network().run(IMAGES, backend="native")),
        "use backend='torch'",
        with_extension(OutOfMemory(), lambda: network().run(IMAGES, backend="torch")),
    ),
    "threads": Row(
        lambda: natively(pixels(), threads=0), "give a number from 1 to 1024", lambda: natively(pixels(), threads=1)
    ),
    "pixels of another type": Row(
        lambda: natively(pixels(dtype=torch.int64)), "give a contiguous int32 tensor on the CPU", lambda: natively(pixels())
    ),
    "pixels of another shape": Row(
        lambda: natively(pixels(shape=(1, 2, 5, 6))), "give [B, 2, 6, 6], B ≥ 1", lambda: natively(pixels(shape=(3, 2, 6, 6)))
    ),
    "pixels beyond": Row(
        lambda: natively(pixels(2**24)), "the network takes -8388608 to 8388608", lambda: natively(pixels(2**23))
    ),
    "an unknown target": Row(
        lambda: natively(pixels(), target="base"), "did you mean baseline?", lambda: natively(pixels(), target="baseline")
    ),
}  # fmt: skip
if native.why_not() is not None:
    ENGINES.pop("an unknown backend")
    NATIVE = {}
TABLES = {"audit": AUDIT, "quantize": QUANTIZE, "to_spiking": CONVERT, "lower": LOWER, "engines": ENGINES, "native": NATIVE}
ROWS = {f"{table}: {name}": row for table, rows in TABLES.items() for name, row in rows.items()}


LINES: dict[str, set[tuple[str, int]]] = {}  # by row, where in the source its refusal came by


def refuse(name):
    """Provoke the refusal of a row, note where it came by, and return it."""

    def note(*args):
        frame = sys._getframe(1)
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return Refusal(*args)

    lines = LINES[name] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations, "Refusal", note)
        with pytest.raises(NbsnnError) as caught:
            ROWS[name].refused()
    error = caught.value
    while error is not None:
        lines.update((frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__))
        error = error.__cause__ or error.__context__
    return caught.value


QUIET = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Using padding='same':UserWarning")


@QUIET
@pytest.mark.parametrize("name", ROWS)
def test_a_remedy_works(name):
    message, remedy = str(refuse(name)), ROWS[name].remedy
    assert "\n" not in message
    assert message.endswith(remedy), message
    assert message.removesuffix(remedy)[-2:] in ("; ", ": "), message
    ROWS[name].passes()


def test_a_packed_network_says_how_its_bits_can_be_changed():
    with pytest.raises(nbsnn.QuantizationError, match=r"are fixed; change those of nbsnn\.unpack\(network\)$"):
        nbsnn.set_bits_(packed(), weight_bits=3)
    assert nbsnn.set_bits_(nbsnn.unpack(packed()), weight_bits=3) is not None


# ------------------------------------------------------------------------------------------------------------- coverage

ROOT = Path(nbsnn.__file__).parent
FILES = [
    *(ROOT / "quant" / f"{name}.py" for name in ("audit", "flow", "operations", "planning", "quantize")),
    *(ROOT / "spiking" / f"{name}.py" for name in ("call", "convert", "network", "neuron", "schedules")),
    *(ROOT / "integer").glob("*.py"), *(ROOT / "integer" / "backends").glob("*.py"), ROOT / "tracing.py", ROOT / "wrappers.py",
]  # fmt: skip
ELSEWHERE = {  # functions whose refusals other tests provoke: of files, of what is registered, and of single arguments
    "checking.py": "test_integer_files.py", "storage.py": "test_integer_files.py", "plain.py": "test_integer_files.py",
    "work.py": "test_integer_files.py", "plan_from_header": "test_headers.py", "_read_act_format": "test_headers.py",
    "register": "test_extending.py", "__post_init__": "test_extending.py", "run_spikes": "test_extending.py",
    "layers.py": "test_recording.py", "frozen.py": "test_calls.py", "grouped": "test_any_output.py",
    "__setattr__": "test_calls.py", "set_bits_": "a test above", "__init__": "test_integer_files.py",
    "_go_on": "none: rounding that would keep a neuron firing is not known of any network",
}  # fmt: skip


def refusals_of(path):
    """Lines at which a refusal is made: (first, last), and the function around it."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            raised = isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" not in ast.unparse(node.exc)
            if raised or name in ("Refusal", "self._refuse"):
                yield node.lineno, node.end_lineno, function.name


@QUIET
@pytest.mark.skipif(not NATIVE, reason="needs the extension for the refusals of the native backend")
def test_every_refusal_has_a_row():
    for name in ROWS.keys() - LINES.keys():  # run elsewhere, or not at all
        refuse(name)
    seen = set().union(*LINES.values())
    missing = {
        f"{path.relative_to(ROOT)}:{first} in {function}"
        for path in FILES
        for first, last, function in refusals_of(path)
        if not ({path.name, function} & ELSEWHERE.keys()) and not any((str(path), n) in seen for n in range(first, last + 1))
    }
    assert not missing, f"refusals without a row: {'; '.join(sorted(missing))}"
