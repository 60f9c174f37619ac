"""Bits, edges and norms by name: in `QuantSpec`, in recipes, and through the phases of training."""

import logging

import pytest
import torch
from nets import RandomNet, SmallNet, randomize_
from torch.utils.data import DataLoader, TensorDataset

import nbsnn
from nbsnn.errors import ConfigError, QuantizationError
from nbsnn.quant.formats import Apot, EdgeUniform, Uniform
from nbsnn.quant.plans import ActFormat, read_plan
from nbsnn.recipe import recipe_from_dict
from nbsnn.recipes import load_recipe
from nbsnn.training.progressive import next_form

IMAGES = torch.randn(40, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def plan_of(**settings):
    return read_plan(nbsnn.quantize(SmallNet(), nbsnn.QuantSpec(3, 4, **settings), example=IMAGES[:1]))


def test_patterns_say_the_bits_of_weights_and_activations_the_last_one_counting():
    plan = plan_of(layers={"*2": 5, "conv2": {"weight_bits": 8}, "act3": {"act_bits": 1}, "linear": 32})
    assert plan == {
        "conv1": EdgeUniform(8), "act1": ActFormat(4), "conv2": Uniform(8), "act2": ActFormat(5), "act3": ActFormat(1),
        "head": EdgeUniform(8),
    }  # fmt: skip


def test_a_pattern_goes_before_the_bits_of_edges():
    assert plan_of(layers={"conv1": 4})["conv1"] == Apot(4, own_scale=False)
    assert "head" not in plan_of(layers={"head": {"weight_bits": 32}})


def test_edges_by_name():
    plan = plan_of(edges=("conv2",))
    assert [name for name, fmt in plan.items() if isinstance(fmt, EdgeUniform)] == ["conv2"]
    assert not any(isinstance(fmt, EdgeUniform) for fmt in plan_of(edges=()).values())
    assert isinstance(plan_of(edges="l*")["linear"], EdgeUniform)  # a text is one pattern


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": {"convv2": 4}}, "QuantSpec.layers: unknown layer 'convv2'; did you mean conv2"),
        ({"layers": {"act1": {"weight_bits": 4}}}, "QuantSpec.layers: unknown weight layer 'act1'"),
        ({"layers": {"conv1": {"act_bits": 4}}}, "QuantSpec.layers: unknown activation 'conv1'"),
        ({"edges": ("act1",)}, "QuantSpec.edges: unknown weight layer 'act1'"),
        ({"layers": {"conv1": 9}}, "layers.conv1.weight_bits=9: choose one of 2, 3, 4, 5, 6, 7, 8, 32"),
        ({"layers": {"act1": 1}}, 'layers.act1=1: weights have at least 2 bits; for activations alone give {"act_bits": 1}'),
        ({"layers": {"conv1": {"weigth_bits": 4}}}, "layers.conv1: unknown key 'weigth_bits'; did you mean weight_bits"),
        ({"layers": {"conv1": {}}}, "layers.conv1 is empty; give bits"),
        ({"layers": 4}, "layers=4: give a table of patterns"),
        ({"layers": {"conv2": 8}, "weight_format": "apot"}, "layers.conv2.weight_bits=8: choose one of 2, 3, 4, 5, 32"),
        ({"scale": "channel"}, "scale='channel': weights in apot have scale='tensor'; leave it out, or choose weight_format"),
        ({"scale": "row"}, "scale='row': choose tensor or channel"),
        ({"norms": "reset"}, "norms='reset': choose keep or recalibrate"),
    ],
)
def test_what_names_nothing_is_refused_in_one_line(settings, message):
    with pytest.raises((ConfigError, QuantizationError)) as caught:
        plan_of(**settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- recipes


def test_recipes_take_the_same_settings_and_hashes_of_others_stay():
    plain = load_recipe("digits/resnet20")
    assert plain.hash == "71ac62b2c28b"
    for unchanged in ("quant.norms=recalibrate", "quant.weight_format=apot"):
        assert load_recipe("digits/resnet20", [unchanged]).hash == plain.hash
    changed = load_recipe("digits/resnet20", ["quant.layers.stages.2.*=4", "quant.scale=tensor", "quant.norms=keep"])
    assert changed.hash != plain.hash
    assert changed.quant.layers.keys() == {"stages.2.*"}
    assert recipe_from_dict(changed.to_dict()) == changed
    assert recipe_from_dict(changed.to_dict()).hash == changed.hash
    assert changed.spec(3).bits_of("weight_bits", "stages.2.0.conv1") == 4
    with pytest.raises(ConfigError, match=r"^quant\.layers\.fc\.weight_bits=9: choose one of"):
        load_recipe("digits/resnet20", ["quant.layers.fc=9"])


def test_layers_keep_their_bits_through_the_phases():
    phases = {"phase": {"4": {"epochs": 1}, "2": {"epochs": 1}}, "model": {"name": "cifar10/resnet20"}}
    recipe = recipe_from_dict({**phases, "quant": {"layers": {"blocks": {"0": {"*": 5}}}}})
    net = RandomNet(["chain", "chain"])
    first = next_form(net, recipe, 4, IMAGES)
    second = next_form(first, recipe, 2, IMAGES)
    for plan, bits in ((read_plan(first), 4), (read_plan(second), 2)):
        assert plan["blocks.0.conv"].bits == plan["blocks.0.act"].bits == 5
        assert plan["blocks.1.conv"].bits == plan["blocks.1.act"].bits == bits
    assert read_plan(first)["blocks.1.conv"] == Apot(4)  # normalized: a recipe recalibrates unless it says keep


# ------------------------------------------------------------------------------------------------------- norms and images


def test_statistics_of_pretrained_norms_are_kept_unless_asked_for(caplog):
    net = RandomNet(["chain", "projection"])
    randomize_(net)
    kept = nbsnn.quantize(net, nbsnn.QuantSpec(4, 4), images=IMAGES).state_dict()
    moved = nbsnn.quantize(net, nbsnn.QuantSpec(4, 4, norms="recalibrate"), images=IMAGES).state_dict()
    statistics = [key for key in net.state_dict() if "running" in key]
    assert statistics
    for key in statistics:
        assert kept[key].equal(net.state_dict()[key])
        assert not moved[key].equal(kept[key])
    assert not caplog.records


def test_few_images_are_said_to_be_few(caplog):
    with caplog.at_level(logging.WARNING):
        nbsnn.quantize(SmallNet(), nbsnn.QuantSpec(4, 4, norms="recalibrate"), images=IMAGES[:9])
    assert [r.message for r in caplog.records] == [
        "9 images are few to measure thresholds and batch norm statistics with; give a few hundred"
    ]


def test_images_come_from_any_iterable_of_batches():
    data, spec = TensorDataset(IMAGES, torch.arange(40)), nbsnn.QuantSpec(4, 4)
    net = SmallNet()
    wanted = nbsnn.quantize(net, spec, images=IMAGES).state_dict()
    loaders = [DataLoader(data, 16), [IMAGES[:20], IMAGES[20:]], ((x, 0) for x in IMAGES.split(10)), iter(DataLoader(data, 7))]
    for loader in loaders:
        found = nbsnn.quantize(net, spec, images=loader).state_dict()
        assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_an_endless_loader_is_read_up_to_its_first_thousand_images():
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield torch.randn(256, 2, 6, 6), None

    nbsnn.quantize(SmallNet(), nbsnn.QuantSpec(4, 4), images=endless())
    assert len(read) == 4


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (iter(()), "images yields no batch; give a tensor of images, or a DataLoader that was not read to its end"),
        (iter([{"x": IMAGES}]), "a batch of images is a dict; give a tensor [B, C, H, W]"),
        (iter([IMAGES, torch.randn(4, 2, 8, 8)]), "images holds images of shapes [2, 6, 6] and [2, 8, 8]; resize them"),
        (iter(IMAGES), "a batch of images has shape [2, 6, 6]; give a batch [B, C, H, W]"),
    ],
)
def test_what_holds_no_batches_is_refused(loader, message):
    with pytest.raises(QuantizationError) as caught:
        nbsnn.quantize(SmallNet(), nbsnn.QuantSpec(4, 4), images=loader)
    assert str(caught.value).startswith(message)
