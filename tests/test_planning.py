"""Networks that people bring: each layer is quantized, or the network is refused by the layer's name before any training."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

import nbsnn
from nbsnn.errors import NbsnnError
from nbsnn.integer.backends.native import why_not
from nbsnn.quant.flow import follow
from nbsnn.quant.layers import QuantConv2d, QuantLinear, QuantReLU, WeightQuantizer
from nbsnn.quant.plans import plan_formats, read_plan

SPEC = nbsnn.QuantSpec(2, 2)
BACKENDS = ["torch", *(["native"] if why_not() is None else [])]
IMAGES = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(3))


def net(conv=nn.Conv2d, *, relu=nn.ReLU, linear=nn.Linear):
    """A CNN whose second convolution, activations and head are of the classes given; layers 0, 2, 3, 5, 8 are quantized."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), relu(), conv(4, 4, 3), nn.BatchNorm2d(4), relu(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(4, 3),
    )  # fmt: skip


class Net(nn.Module):
    """The same with a `forward` of the test's own, of two convolutions, two activations and a head, and whatever it adds."""

    def __init__(self, forward=None, *, inplace=False, **modules):
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace)
        self.conv2, self.act2 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace)
        self.head = nn.Linear(4, 3)
        self.function = forward or (lambda net, x: net.logits(x))
        for name, module in modules.items():
            setattr(self, name, module)

    def logits(self, x):
        return self.end(self.conv2(self.act1(self.conv1(x))))

    def end(self, x):
        return self.head(self.act2(x).mean((2, 3)))

    def forward(self, x):
        return self.function(self, x)


def said(function, *args, **kwargs):
    """The message of a refusal, one line."""
    with pytest.raises(NbsnnError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def goes_all_the_way(network, *, images=IMAGES):
    """Quantize, convert, lower and run; the integer logits are the quantized ones. Returns the quantized network."""
    quantized = nbsnn.quantize(network, SPEC, images=images).eval()
    spiking = nbsnn.to_spiking(quantized, IMAGES[:1], schedule="settle")
    with torch.no_grad():
        wanted = quantized(IMAGES.to(next(quantized.parameters(), IMAGES).dtype)).float()
        torch.testing.assert_close(spiking(IMAGES).float(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(nbsnn.lower(quantized, IMAGES).run(IMAGES), wanted, rtol=1e-4, atol=1e-4)
    return quantized


# ------------------------------------------------------------------------------------------------ subclasses of layers


def sub(base):
    return type(f"My{base.__name__}", (base,), {})


@pytest.mark.parametrize("images", [None, IMAGES])
def test_a_subclass_that_changes_nothing_is_quantized(images):
    """Case 12: `class C(nn.Conv2d): pass`."""
    quantized = goes_all_the_way(net(sub(nn.Conv2d), relu=sub(nn.ReLU), linear=sub(nn.Linear)), images=images)
    kinds = [type(quantized[i]) for i in (0, 2, 3, 5, 8)]
    assert kinds == [QuantConv2d, QuantReLU, QuantConv2d, QuantReLU, QuantLinear]


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Scaled(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.gain = nn.Parameter(torch.ones(()))


class Shifted(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight, bias) + 1


class OwnReLU(nn.ReLU):
    def forward(self, x):
        return x * (x > 0)


def replaced(*args):
    layer = nn.Conv2d(*args)
    layer.forward = lambda x: x
    return layer


def hypernetwork(*args):
    layer = nn.Conv2d(*args)
    weight = layer.weight
    del layer.weight
    layer.weight = weight.detach() * 2
    return layer


SKIP = ", or leave it in float with QuantSpec(skip=('3',))"


@pytest.mark.parametrize("images", [None, IMAGES])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: net(Doubled), "3 is a Doubled with a forward of its own; use nn.Conv2d itself" + SKIP),
        (lambda: net(Shifted), "3 is a Shifted with a forward of its own; use nn.Conv2d itself" + SKIP),
        (
            lambda: net(Scaled),
            "3 is a Scaled that holds more than a weight and a bias (gain); use nn.Conv2d itself" + SKIP,
        ),
        (lambda: net(replaced), "3 is a Conv2d whose forward was replaced; use nn.Conv2d itself" + SKIP),
        (
            lambda: net(hypernetwork),
            "3 is a Conv2d whose weight is not a parameter of its own; use nn.Conv2d itself" + SKIP,
        ),
        (lambda: net(relu=OwnReLU), "2 is a OwnReLU with a forward of its own; use nn.ReLU itself"),
        (
            lambda: net(lambda i, o, k: nn.Sequential(nn.Unflatten(1, (i, 1)), nn.ConvTranspose3d(i, o, 1), nn.Flatten(1, 2))),
            "3.1 is a ConvTranspose3d, which has no quantized form; use nn.Conv2d or nn.Linear" + SKIP.replace("'3'", "'3.1'"),
        ),
        (
            lambda: net(lambda i, o, k: nn.LazyConv2d(o, k)),
            "3 is lazy: it has no shape yet; run the network on one image first",
        ),
    ],
)
def test_a_layer_that_would_stay_in_float_is_refused_by_name(make, message, images):
    """Case 12: quantized, or refused by name, with and without images."""
    assert said(nbsnn.quantize, make(), SPEC, images=images, prepare=False) == message


@pytest.mark.parametrize("make", [lambda: net(Doubled), lambda: net(Shifted), lambda: net(relu=OwnReLU)])
def test_a_layer_with_a_forward_of_its_own_is_prepared(make):
    """Case 12: what its forward computes is a plain layer and functions, once an image shows it."""
    network = make()
    quantized = goes_all_the_way(network)
    assert [type(quantized[i]) for i in (0, 3, 8)] == [QuantConv2d, QuantConv2d, QuantLinear]
    assert set(network.state_dict()) <= set(quantized.state_dict())
    assert sum(isinstance(m, QuantReLU) for m in quantized.modules()) == 2


def test_a_skipped_layer_stays_in_float_on_purpose():
    quantized = nbsnn.quantize(net(Doubled), nbsnn.QuantSpec(2, 2, skip=("3",)), images=IMAGES).eval()
    assert type(quantized[3]) is Doubled
    nbsnn.to_spiking(quantized, IMAGES)


# ------------------------------------------------------------------------------------------------- computed parameters


def pruned(*args):
    layer = nn.Conv2d(*args)
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "bias", 0.5)
    return layer


COMPUTED = {
    "parametrized weight_norm": lambda *a: parametrizations.weight_norm(nn.Conv2d(*a)),
    "old weight_norm": lambda *a: nn.utils.weight_norm(nn.Conv2d(*a)),
    "parametrized spectral_norm": lambda *a: parametrizations.spectral_norm(nn.Conv2d(*a)),
    "old spectral_norm": lambda *a: nn.utils.spectral_norm(nn.Conv2d(*a)),
    "orthogonal": lambda *a: parametrizations.orthogonal(nn.Conv2d(*a)),
    "pruned": pruned,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # weight_norm of old is deprecated, and in use
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_weight_that_is_computed_is_folded_and_said_so(kind, trained, caplog):
    """Case 12: weight norm, spectral norm and pruning, also just after a step that left a graph behind."""
    torch.manual_seed(1)
    network = net(COMPUTED[kind])
    if trained:
        network(IMAGES).square().sum().backward()
    keys = list(network.state_dict())
    quantized = goes_all_the_way(network)
    assert isinstance(quantized[3], QuantConv2d)
    assert {"3.weight", "3.bias", "3.weight_scale"} == {key for key in quantized.state_dict() if key.startswith("3.")}
    with torch.no_grad():
        network.eval()(IMAGES)  # the source still works, under its own names, and holds the weight that was taken
        assert list(network.state_dict()) == keys
        assert torch.equal(quantized[3].weight, network[3].weight)
    assert "3.weight was computed in each call; it is a plain parameter now" in caplog.text
    quantized.train()(IMAGES).sum().backward()
    assert quantized[3].weight.grad is not None


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["parametrized weight_norm", "old weight_norm", "pruned"])
def test_a_checkpoint_of_a_folded_network_loads_into_the_float_one(kind, tmp_path):
    quantized = nbsnn.quantize(net(COMPUTED[kind]), SPEC, images=IMAGES).eval()
    nbsnn.save_checkpoint(tmp_path / "q.safetensors", quantized)
    again = nbsnn.load_checkpoint(tmp_path / "q.safetensors", model=net(COMPUTED[kind]))
    assert torch.equal(again(IMAGES), quantized(IMAGES))


# --------------------------------------------------------------------------------------------- parameters outside layers


class Functional(nn.Module):
    """A convolution by a parameter that no layer holds."""

    def __init__(self, use):
        super().__init__()
        self.stem, self.act1, self.act2, self.head = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ReLU(), nn.Linear(4, 3)
        self.kernels = nn.ParameterList([nn.Parameter(torch.randn(4, 4, 3, 3) / 6)])
        self.use = use

    def forward(self, x):
        return self.head(self.act2(self.use(self.kernels[0], self.act1(self.stem(x)))).mean((2, 3)))


USES = {
    "F.conv2d": lambda kernel, x: F.conv2d(x, kernel),
    "of a product": lambda kernel, x: F.conv2d(x, 0.5 * kernel),
    "matmul": lambda kernel, x: torch.matmul(x, kernel[0, 0, :1].expand(4, 3)),
}


@pytest.mark.parametrize("name", USES)
def test_a_weight_outside_a_layer_is_refused_by_name(name):
    """Case 12's kind: `F.conv2d(x, self.kernels[0])` would be computed with float weights."""
    network = Functional(USES[name])
    skip = "or leave it in float with QuantSpec(skip=('kernels.0',))"
    assert said(nbsnn.quantize, network, SPEC) == (
        "kernels.0 of shape [4, 4, 3, 3] is no weight of a convolution or nn.Linear, and would stay in float; hold it in such "
        f"a layer, {skip}"
    )
    refused = said(nbsnn.quantize, network, SPEC, images=IMAGES, prepare=False)
    assert refused.startswith("kernels.0 is used in ")
    assert refused.endswith(
        f"() outside a convolution or nn.Linear, and would stay in float; hold it in such a layer and call that, {skip}"
    )
    nbsnn.quantize(network, nbsnn.QuantSpec(2, 2, skip=("kernels.0",)), images=IMAGES)
    nbsnn.quantize(network, nbsnn.QuantSpec(32, 2), images=IMAGES)
    if name == "matmul":
        assert said(nbsnn.quantize, network, SPEC, images=IMAGES) == refused
    else:
        quantized = goes_all_the_way(network)
        assert isinstance(quantized.conv, QuantConv2d)
        assert "kernels.0" in quantized.state_dict()


def test_a_parameter_that_is_no_weight_passes_once_the_data_show_it():
    network = Net(lambda net, x: net.end(net.conv2(net.act1(net.conv1(x)) + net.position)))
    network.position = nn.Parameter(torch.zeros(1, 4, 6, 6))
    assert "position of shape [1, 4, 6, 6]" in said(nbsnn.quantize, network, SPEC)
    nbsnn.to_spiking(nbsnn.quantize(network, SPEC, example=IMAGES).eval(), IMAGES)


# ------------------------------------------------------------------------------------------- what cannot be converted


ACTIVATIONS = [
    nn.ReLU6(), nn.Hardtanh(0, 1), nn.LeakyReLU(), nn.PReLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.RReLU(), nn.Threshold(0, 0),
    nn.GELU(), nn.SiLU(), nn.Mish(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.Softsign(), nn.Hardsigmoid(), nn.Hardswish(),
    nn.LogSigmoid(), nn.Tanhshrink(), nn.Softshrink(), nn.Hardshrink(), nn.Softmax(1), nn.LogSoftmax(1), nn.Softmin(1),
    nn.GLU(1), nn.LPPool2d(2, 2), nn.FractionalMaxPool2d(2, 2), nn.LayerNorm(6),
    nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LocalResponseNorm(2), nn.RMSNorm(6),
    nn.BatchNorm2d(4, track_running_stats=False), nn.MultiheadAttention(4, 2), nn.LSTM(4, 4), nn.GRUCell(4, 4),
    nn.Bilinear(4, 4, 4),
]  # fmt: skip


@pytest.mark.parametrize("module", ACTIVATIONS, ids=lambda m: type(m).__name__)
def test_what_spikes_cannot_follow_is_refused_before_any_training(module):
    """Case 13: at once, by name, and never to be told to quantize what is quantized."""
    network = net()
    network.insert(3, module)
    for network_ in (network, net(relu=lambda: module)):
        message = said(nbsnn.quantize, network_, SPEC)
        assert " at 3; " in message or " at 2; " in message, message
        assert "nbsnn.quantize" not in message
    nbsnn.quantize(network, nbsnn.QuantSpec(2, 2, skip=("3",)))  # who wants to quantize and not to convert, can
    if isinstance(module, nn.ReLU6):
        nbsnn.quantize(network, nbsnn.QuantSpec(2, 2, skip=("3",)), images=IMAGES)
    nbsnn.quantize(network, nbsnn.QuantSpec(32, 2, skip=("3",)))


def test_an_activation_that_is_no_module_is_asked_for_at_once():
    """A network whose activations are functions holds no nn.ReLU; its quantized form would have none."""
    network = Net(lambda net, x: net.head(F.relu(net.conv2(F.relu(net.conv1(x)))).mean((2, 3))))
    assert said(nbsnn.quantize, network, SPEC, images=IMAGES, prepare=False) == (
        "relu() is applied to currents outside a module at the network's own forward; write self.act = nn.ReLU() and call it"
    )
    del network.act1, network.act2
    assert len(read_plan(goes_all_the_way(network))) == 5
    assert said(nbsnn.quantize, network, SPEC) == (
        "the network has no nn.ReLU that act_bits could apply to; write self.act = nn.ReLU() for each activation and call it, "
        "give images or an example for activations that are functions, "
        "or quantize weights alone with act_bits=32"
    )
    assert len(read_plan(nbsnn.quantize(network, nbsnn.QuantSpec(2, 32)))) == 3


OUTPUTS = {
    "tuple": lambda net, x: (net.logits(x), x),
    "dict": lambda net, x: {"logits": net.logits(x)},
    "list": lambda net, x: [net.logits(x)],
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_several_outputs_go_all_the_way(kind):
    quantized = nbsnn.quantize(Net(OUTPUTS[kind]), SPEC, images=IMAGES).eval()
    results = [nbsnn.to_spiking(quantized, IMAGES)(IMAGES), nbsnn.lower(quantized, IMAGES).run(IMAGES)]
    assert [type(result).__name__ for result in results] == [kind, kind]


def test_an_output_without_classes_is_refused():
    message = "the network returns one axis, that of the batch; return [B, 1], without a squeeze at the end"
    network = Net(lambda net, x: net.logits(x)[:, 0])
    assert said(nbsnn.quantize, network, SPEC, images=IMAGES) == message
    assert said(nbsnn.to_spiking, nbsnn.quantize(network, SPEC).eval(), IMAGES) == message


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x, y):
        return self.head(self.act(self.conv(torch.cat([x, y], 1))).mean((2, 3)))


def test_a_network_of_two_inputs_is_refused_in_one_line():
    """Case 15: `forward(self, x, y)`."""
    message = (
        "the network's forward takes 2 inputs (x, y), and a spiking network takes one; concatenate them along the channels, "
        "and split them in forward"
    )
    for images in (None, IMAGES):
        assert said(nbsnn.quantize, Two(), SPEC, images=images) == message
    one = type("One", (Two,), {"forward": lambda net, x: Two.forward(net, *x.chunk(2, 1))})  # the remedy
    quantized = nbsnn.quantize(one(), SPEC, images=torch.randn(8, 4, 6, 6)).eval()
    nbsnn.to_spiking(quantized, torch.randn(1, 4, 6, 6))
    quantized.forward = lambda x, y: y
    assert said(nbsnn.to_spiking, quantized, IMAGES) == said(nbsnn.lower, quantized, IMAGES) == message


@pytest.mark.parametrize(
    ("network", "kind"), [(3, "int"), (None, "NoneType"), ({"conv.weight": torch.zeros(1)}, "dict"), (nn.ReLU, "type")]
)
def test_what_is_no_network_is_refused(network, kind):
    message = f"the network is of class {kind}; give an nn.Module"
    assert said(nbsnn.quantize, network, SPEC) == message
    assert said(nbsnn.to_spiking, network, IMAGES) == said(nbsnn.lower, network, IMAGES) == message


def test_weights_that_are_not_there_or_no_floats_are_refused():
    assert said(nbsnn.quantize, net().to("meta"), SPEC, images=IMAGES) == (
        "0.weight is on the meta device and has no values; call to_empty(device='cpu') and load a state dict"
    )
    network = nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64), nn.ReLU())
    assert said(nbsnn.quantize, network, SPEC) == (
        "0.weight has type torch.complex64; build its layer with dtype=torch.float32"
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused():
    scripted = torch.jit.trace(net().eval(), IMAGES)
    assert said(nbsnn.quantize, scripted, SPEC) == (
        "the network is TorchScript, whose layers are not modules; give the network that it was made from"
    )


# --------------------------------------------------------------------------------------------------- what goes all the way


def shared(kind):
    """One module at two places, under two names."""
    network = net()
    if kind == "convolution":
        network.insert(6, nn.ReLU())
        network.insert(6, network[3])
    else:
        network.append(nn.Linear(3, 3))
        network[3].weight = nn.Parameter(network[0].weight.detach().repeat(1, 2, 1, 1))
        network.insert(6, nn.ReLU())
        network.insert(6, nn.Conv2d(4, 4, 3))
        network[6].weight = network[3].weight
    return network


def test_a_layer_at_two_places_is_quantized_at_both():
    quantized = goes_all_the_way(shared("convolution"))
    assert quantized[3] is quantized[6]
    assert isinstance(quantized[6], QuantConv2d)


def test_layers_that_share_a_weight_still_do():
    network = net()
    network.insert(6, nn.ReLU())
    network.insert(6, nn.Conv2d(4, 4, 3, padding=1))
    network[6].weight = network[3].weight
    quantized = goes_all_the_way(network)
    assert quantized[6].weight is quantized[3].weight
    assert quantized[6] is not quantized[3]


def hooked(*, before=False, index=3):
    network = net()
    if before:
        network[index].register_forward_pre_hook(lambda _m, args: (0.5 * args[0],))
    else:
        network[index].register_forward_hook(lambda _m, _args, output: 0.5 * output)
    return network


@pytest.mark.parametrize("make", [hooked, lambda: hooked(before=True), lambda: hooked(index=5)])
def test_hooks_that_change_what_a_layer_gives_stay(make):
    network, bare = make(), net()
    quantized = goes_all_the_way(network)
    bare.load_state_dict(network.state_dict())
    without = nbsnn.quantize(bare, SPEC).eval()
    without.load_state_dict(quantized.state_dict())
    assert not torch.allclose(without(IMAGES), quantized(IMAGES))


def test_a_hook_that_is_not_affine_is_refused():
    network = net()
    network[5].register_forward_hook(lambda _m, _args, output: output.square())
    assert "square() is applied to currents and is not known to be affine" in said(nbsnn.quantize, network, SPEC, images=IMAGES)


ALL_THE_WAY = {
    "activations in place": lambda: Net(inplace=True),
    "float64": lambda: net().double(),
    "frozen": lambda: net().requires_grad_(False),
    "a module list": lambda: Net(
        lambda net, x: net.end(net.convs[0](net.act1(net.conv1(x)))),
        convs=nn.ModuleList([nn.Conv2d(4, 4, 3)]), conv2=nn.Identity(),
    ),
    "batch norm after linear": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    ),
    "synchronized batch norm": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(net()),
    "one weight layer": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "no weight layer": lambda: nn.Sequential(nn.ReLU(), nn.Flatten()),
    "an activation at the end": lambda: nn.Sequential(net(), nn.ReLU()),
    "a map": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    "dropout": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Dropout2d(), nn.Flatten(), nn.Dropout(), nn.Linear(64, 3)
    ),
    "a branch of training": lambda: Net(lambda net, x: net.logits(x).exp() if net.training else net.logits(x)),
    "an auxiliary head of training": lambda: Net(
        lambda net, x: (net.logits(x), net.aux(x.mean((2, 3)))) if net.training else net.logits(x), aux=nn.Linear(2, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ALL_THE_WAY)
def test_common_networks_go_all_the_way(kind):
    torch.manual_seed(2)
    goes_all_the_way(ALL_THE_WAY[kind]())


ROWS = {
    "[B, F]": ((20,), lambda: [nn.Linear(20, 16)]),
    "[B, F], batch norm": ((20,), lambda: [nn.Linear(20, 16), nn.BatchNorm1d(16)]),
    "[B, C, L]": ((2, 10), lambda: [nn.Flatten(), nn.Linear(20, 16)]),
    "[B, C, H, W]": ((2, 5, 2), lambda: [nn.Flatten(), nn.Linear(20, 16)]),
}


@pytest.mark.parametrize("kind", ROWS)
def test_networks_on_rows_and_sequences_go_all_the_way(kind, tmp_path):
    """Case 14: quantized, spiking, measured, lowered, run by both engines, evaluated, saved and read."""
    shape, begin = ROWS[kind]
    torch.manual_seed(4)
    rows = torch.randn(8, *shape)
    quantized = nbsnn.quantize(nn.Sequential(*begin(), nn.ReLU(), nn.Linear(16, 5)), SPEC, images=rows).eval()
    wanted = quantized(rows).detach()
    for schedule in ("settle", "barrier", "fixed"):
        spiking = nbsnn.to_spiking(quantized, rows[:1], schedule=schedule)
        torch.testing.assert_close(spiking(rows).detach(), wanted, rtol=1e-4, atol=1e-4)  # one layer is exact in T steps
        assert nbsnn.measure_fidelity(quantized, spiking, rows).off == 0
    network = nbsnn.lower(quantized, rows, mean=[0.5] * shape[0], std=[0.1] * shape[0])
    assert nbsnn.measure_integer_fidelity(quantized, network, rows).off == 0
    path = tmp_path / "integer.safetensors"
    network.save(path)
    for loaded in (network, nbsnn.IntegerNetwork.load(path)):
        for backend in BACKENDS:
            for options in ({}, {"engine": "spikes", "schedule": "settle"}, {"engine": "spikes", "schedule": "barrier"}):
                torch.testing.assert_close(loaded.run(rows, backend=backend, **options), wanted, rtol=1e-4, atol=1e-4)
    pixels = torch.randint(0, 256, rows.shape, dtype=torch.uint8)
    torch.testing.assert_close(network.run(pixels), network.run((pixels / 255 - 0.5) / 0.1))
    assert nbsnn.evaluate(network, [(rows, wanted.argmax(1))]).top1 == 100
    assert nbsnn.evaluate(quantized, [(rows, wanted.argmax(1))]).top1 == 100


def test_a_layer_along_long_lines_is_refused_by_the_lowering_alone():
    """Case 14: [B, C, L] with a linear layer on each channel."""

    def made(rows):
        layers = nn.Linear(rows.shape[2], 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
        return nbsnn.quantize(nn.Sequential(*layers), SPEC, images=rows).eval()

    rows = torch.randn(8, 2, 10)
    quantized = made(rows)
    assert nbsnn.measure_integer_fidelity(quantized, nbsnn.lower(quantized, rows), rows).off == 0
    rows = torch.randn(8, 2, 40)
    quantized = made(rows)
    nbsnn.to_spiking(quantized, rows)
    assert said(nbsnn.lower, quantized, rows) == (
        "a linear layer works along the last of the axes [2, 40], which is no axis of channels at 0; move the channels there, "
        "as x.permute(0, 2, 3, 1) does, flatten first, or use nn.Conv2d"
    )
    rows = rows[..., :10]
    quantized = nbsnn.quantize(nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)), SPEC, images=rows).eval()
    assert nbsnn.lower(quantized, rows).run(rows).shape == (8, 3)


def test_layers_called_by_keyword_go_all_the_way():
    def keywords(net, x):
        x = net.act1(input=net.conv1(input=x))
        return net.head(input=net.act2(input=net.conv2(input=x)).mean((2, 3)))

    goes_all_the_way(Net(keywords))


def test_autocast_around_a_conversion_changes_nothing():
    torch.manual_seed(5)
    network = net()
    plain = nbsnn.quantize(network, SPEC, images=IMAGES).eval()
    with torch.autocast("cpu", torch.bfloat16):
        cast = nbsnn.quantize(network, SPEC, images=IMAGES).eval()
        lowered = nbsnn.lower(cast, IMAGES)
    assert all(torch.equal(value, cast.state_dict()[key]) for key, value in plain.state_dict().items())
    assert torch.equal(lowered.run(IMAGES), nbsnn.lower(plain, IMAGES).run(IMAGES))


def test_a_network_is_as_it_was_after_it_was_quantized():
    network = net().train()
    network[1].eval()
    modes, state = [m.training for m in network.modules()], {k: v.clone() for k, v in network.state_dict().items()}
    quantized = nbsnn.quantize(network, SPEC, images=IMAGES)
    assert [m.training for m in network.modules()] == [m.training for m in quantized.modules()] == modes
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in state.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*network.modules(), *quantized.modules()))


# --------------------------------------------------------------------------------------------------- what works in place


def before_activation(net, x):
    """A shortcut from in front of an activation, which is behind it where that works in place."""
    x = net.conv1(x)
    return net.end(net.conv2(net.act1(x)) + x)


def result_unused(net, x):
    x = net.conv1(x)
    net.act1(x)
    return net.end(net.conv2(x))


def part_overwritten(net, x):
    x = net.conv1(x)
    net.act1(x[:, :2])
    return net.end(net.conv2(x))


@pytest.mark.parametrize("forward", [before_activation, result_unused, part_overwritten])
def test_what_an_activation_overwrote_must_not_be_used(forward):
    """The quantized activation leaves its input as it was: the network would compute something else, without a word."""
    network = Net(forward, inplace=True)
    message = said(nbsnn.quantize, network, SPEC, images=IMAGES, prepare=False)
    assert message.startswith("act1 worked in place, and what it overwrote is used at ")
    assert message.endswith("; use its result: write x = act(x)")
    assert said(nbsnn.to_spiking, nbsnn.quantize(network, SPEC).eval(), IMAGES) == message
    if forward is part_overwritten:
        assert "avoid operations in place on views" in said(nbsnn.quantize, network, SPEC, images=IMAGES)
    else:
        quantized = goes_all_the_way(network)  # prepared, its graph says that the activation's result is used
        assert "a ReLU overwrites what is used later" in str(quantized.preparation.changes[0])


def test_what_an_activation_left_alone_may_be_used():
    def half(net, x):
        left, right = net.conv1(x).chunk(2, 1)
        return net.end(net.conv2(torch.cat([net.act1(left), right], 1)))

    nbsnn.quantize(Net(half, inplace=True), SPEC, images=IMAGES)
    nbsnn.quantize(Net(before_activation), SPEC, images=IMAGES)


@pytest.mark.parametrize("write", [lambda x: x.sub_(0.5), lambda x: x[:, :1].mul_(2), lambda x: F.relu(x, inplace=True)])
def test_a_network_that_writes_into_its_images_is_refused(write):
    images = IMAGES.clone()
    network = Net(lambda net, x: (write(x), net.logits(x))[1])
    message = said(nbsnn.quantize, network, SPEC, images=images)
    assert "the network writes into the images it is given; write x = x - mean" in message or "relu() is applied" in message
    assert torch.equal(images, IMAGES)


# ------------------------------------------------------------------------------------------------------------------ edges


def edges(network, **data):
    plan = read_plan(nbsnn.quantize(network, SPEC, **data))
    return sorted(name for name, layer in plan.items() if getattr(layer, "edge", False))


def test_the_head_that_makes_the_output_is_the_edge(caplog):
    """Case 30: an auxiliary head that nothing calls, registered last."""
    network = Net(aux=nn.Linear(4, 3))
    assert edges(network, images=IMAGES) == edges(network, example=IMAGES[:1]) == ["conv1", "head"]
    assert "never called on an image in evaluation, and quantized as inner layers: aux" in caplog.text
    assert edges(network) == ["aux", "conv1"]  # without data registration is all there is


def test_how_edges_were_found_is_logged(caplog):
    caplog.set_level(logging.INFO, "nbsnn")
    edges(Net())
    edges(Net(), images=IMAGES)
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith("edge")] == [
        "edge layers, by registration: conv1, head", "edge layers, by data flow: conv1, head"
    ]  # fmt: skip


def test_edges_follow_the_data_and_not_the_order_of_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.act2, self.inner, self.act1, self.stem = (
                nn.Linear(4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(2, 4, 3)
            )  # fmt: skip
            self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.act1(self.stem(x))
            return self.head(self.act2(self.inner(self.left(x)) + self.inner(x)).mean((2, 3)))

    assert edges(Backwards(), images=IMAGES) == ["head", "stem"]
    two_stems = Net(lambda net, x: net.end(net.act1(net.conv1(x)) + net.stem(x)), stem=nn.Conv2d(2, 4, 1), conv2=nn.Identity())
    assert edges(two_stems, images=IMAGES) == ["conv1", "head", "stem"]
    two_heads = Net(lambda net, x: net.logits(x) + net.other(x.mean((2, 3))), other=nn.Linear(2, 3))
    assert edges(two_heads, images=IMAGES) == ["conv1", "head", "other"]


@pytest.mark.parametrize("name", ["cifar10/alexnet", "cifar10/resnet20"])
def test_own_models_have_one_plan_with_and_without_data(name):
    network = nbsnn.build_model(name)
    image = torch.zeros(1, 3, 32, 32)
    flow = follow(network, image)
    assert plan_formats(network, SPEC, image) == plan_formats(network, SPEC)
    assert not flow.loose
    assert flow.seen >= set(plan_formats(network, SPEC))


def test_a_pattern_may_use_any_name_of_a_shared_layer():
    quantized = nbsnn.quantize(shared("convolution"), nbsnn.QuantSpec(2, 2, skip=("6",)))
    assert not isinstance(quantized[3], WeightQuantizer)
