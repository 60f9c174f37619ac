"""Every float network: its parameters against the reference, and its way through all forms."""

import json

import pytest
import torch
from conftest import GOLDEN

from nbsnn.errors import ConfigError
from nbsnn.importers.reference import rename_reference_keys
from nbsnn.models import build_model, canonical_name, list_models
from nbsnn.quant.layers import QuantReLU
from nbsnn.quant.quantize import quantize
from nbsnn.recipe import QuantSpec
from nbsnn.spiking.convert import to_spiking

reference = json.loads((GOLDEN / "reference_parameters.json").read_text())
SMALLEST = {"cifar10/alexnet": 8, "cifar10/vgg11": 8, "imagenet/alexnet": 63, "imagenet/vgg16": 8}  # images, pixels
ALL = [
    *(
        f"cifar10/{net}"
        for net in ("alexnet", "resnet110", "resnet18", "resnet20", "resnet32", "resnet44", "resnet56", "vgg11")
    ),
    "imagenet/alexnet",
    "imagenet/vgg16",
]


def spec_of(net, *, bits=2):
    """As in the reference: these nets keep inner weights in float; the widened ResNet-18 its edges as well."""
    floats = net in ("cifar10/resnet18", "imagenet/alexnet", "imagenet/vgg16")
    return QuantSpec(32 if floats else bits, bits, 32 if net == "cifar10/resnet18" else 8)


def name_of(entry):
    return (
        entry.replace("/float", "")
        .replace("/quantized", "")
        .replace("cifar10/alex", "cifar10/alexnet")
        .replace("alexnetnet", "alexnet")
    )


def test_the_list_of_models_is_complete():
    assert list_models() == ALL


@pytest.mark.parametrize("entry", reference)
def test_parameter_names_and_shapes_map_onto_the_reference(entry):
    name = name_of(entry)
    with torch.device("meta"):
        net = build_model(name)
    if not entry.endswith("/float"):
        net = quantize(net, spec_of(name))
    theirs = {key: torch.empty(shape, device="meta") for key, shape in reference[entry].items()}
    renamed = {key: tensor.shape for key, tensor in rename_reference_keys(theirs, net).items()}
    ours = {key: tensor.shape for key, tensor in net.state_dict().items()}
    assert len(renamed) == len(theirs)
    biases = {key for key in renamed if key.endswith((".conv.bias", ".linear.bias"))}  # folded into the norm after it
    assert set(renamed) - biases == set(ours)
    assert all(renamed[key].numel() == ours[key].numel() for key in ours)
    assert [key for key in ours if renamed[key] != ours[key]] == []


@pytest.mark.parametrize("name", ALL)
def test_every_model_goes_through_every_form(name):
    size = SMALLEST.get(name, 4)
    net = build_model(name, num_classes=5, image_size=size)
    quantized = quantize(net, spec_of(name))
    images = torch.randn(4, 3, size, size)
    for module in quantized.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # one pass in training mode gives currents of unit variance
    with torch.no_grad():
        quantized.train()(images)
        quantized.eval().double()  # in single precision one current in 100,000 is as close to a tie as its rounding
        image = images[:1].double()
        spiking = to_spiking(quantized, image, schedule="settle")
        wanted, got = quantized(image), spiking(image)
    assert sum(isinstance(m, QuantReLU) for m in quantized.modules()) == sum(type(m) is torch.nn.ReLU for m in net.modules())
    assert wanted.shape == (1, 5)
    assert spiking.timesteps == 3
    assert (got - wanted).abs().max() <= 1e-9 * wanted.abs().max()
    assert spiking.steps > 3  # spikes did travel late


@pytest.mark.parametrize(
    ("short", "data", "full"),
    [
        ("alex", "cifar10", "cifar10/alexnet"),
        ("alex", "imagenet", "imagenet/alexnet"),
        ("vgg11", "cifar10", "cifar10/vgg11"),
        ("vgg16", "imagenet", "imagenet/vgg16"),
        ("res20", "cifar10", "cifar10/resnet20"),
        ("resnet110", "cifar10", "cifar10/resnet110"),
        ("imagenet/vgg16", "cifar10", "imagenet/vgg16"),
    ],
)
def test_published_short_names_have_full_ones(short, data, full):
    assert canonical_name(short, data=data) == full


def test_an_unknown_name_comes_with_close_matches():
    with pytest.raises(ConfigError, match=r"^unknown model 'cifar10/resnet21'; did you mean .*cifar10/resnet20"):
        build_model("cifar10/resnet21")


@pytest.mark.parametrize("name", ["imagenet/alexnet"])
def test_an_image_too_small_for_the_strides_is_refused(name):
    message = f"^image_size=16: too small for {name}, whose strides leave nothing of it$"
    with pytest.raises(ConfigError, match=message):
        build_model(name, image_size=16)


def test_residual_networks_take_any_size():
    net = build_model("cifar10/resnet20").eval()
    with torch.no_grad():
        assert all(net(torch.randn(1, 3, size, size)).shape == (1, 10) for size in (1, 5, 17, 32))


def test_channels_and_classes_can_be_chosen():
    net = build_model("resnet20", num_classes=7, in_channels=1, image_size=8)
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 7)
    assert (net.model_spec.name, net.model_spec.num_classes, net.model_spec.in_channels) == ("cifar10/resnet20", 7, 1)
