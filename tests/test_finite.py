"""NaN and infinity are named, with the layer or the images and how many: nothing turns them into an answer (case 7)."""

import copy
from dataclasses import replace

import pytest
import torch
from nets import DigitsNet, SmallNet, digits_net, small_quantized
from torch import nn

import nbsnn
from nbsnn.data.sets.digits import load_digits
from nbsnn.data.sets.sample import load_sample
from nbsnn.errors import (
    CheckpointError,
    ConfigError,
    ConversionError,
    DataError,
    DivergedError,
    LoweringError,
    QuantizationError,
)
from nbsnn.evaluation.classify import classify
from nbsnn.finite import check_finite, check_images, check_network, count_not_finite, not_finite
from nbsnn.pipeline import integer_form
from nbsnn.quant.calibrate import refit_scales_
from nbsnn.recipe import Phase
from nbsnn.training.finetune_spec import FinetuneSpec
from nbsnn.training.loop import fit

SPEC = nbsnn.QuantSpec(2, 2)


@pytest.fixture
def images():
    return torch.randn(8, 2, 6, 6)


def labelled(images):
    return [(images[:5], torch.zeros(5, dtype=torch.int64)), (images[5:], torch.zeros(3, dtype=torch.int64))]


def with_bad(network, tensor, value=torch.nan, places=1):
    bad = copy.deepcopy(network)
    with torch.no_grad():
        bad.state_dict()[tensor].view(-1)[:places] = value
    return bad


# ------------------------------------------------------------------------------------------------------- every entry point


def entries(tmp_path, images):
    """Name → (the error, what is done with a quantized network)."""
    good = small_quantized()
    spiking = nbsnn.to_spiking(good, images[:1])
    integer = nbsnn.lower(good, images[:1])

    def spiking_of(bad):
        network = nbsnn.to_spiking(good, images[:1])
        network.load_state_dict(bad.state_dict())
        return network

    return {
        "to_spiking": (ConversionError, lambda bad: nbsnn.to_spiking(bad, images[:1])),
        "lower": (LoweringError, lambda bad: nbsnn.lower(bad, images[:1])),
        "pack": (QuantizationError, lambda bad: nbsnn.save_packed(tmp_path / "packed.safetensors", bad)),
        "evaluate": (ConfigError, lambda bad: nbsnn.evaluate(bad, labelled(images))),
        "evaluate spiking": (ConfigError, lambda bad: nbsnn.evaluate(spiking_of(bad), labelled(images))),
        "fidelity": (ConfigError, lambda bad: nbsnn.measure_fidelity(bad, spiking, images)),
        "fidelity of spikes": (ConfigError, lambda bad: nbsnn.measure_fidelity(good, spiking_of(bad), images)),
        "integer fidelity": (ConfigError, lambda bad: nbsnn.measure_integer_fidelity(bad, integer, images)),
        "set_bits_": (QuantizationError, lambda bad: nbsnn.set_bits_(bad, weight_bits=3)),
        "refit": (QuantizationError, refit_scales_),
    }


@pytest.mark.parametrize(
    ("tensor", "size"),
    [("conv1.weight", 90), ("conv2.weight_scale", 1), ("act1.threshold", 1), ("norm2.running_var", 6), ("norm1.bias", 5)],
)
def test_case_7_every_entry_names_the_tensor_and_how_many_of_its_values(tmp_path, images, tensor, size):
    bad = with_bad(small_quantized(), tensor, places=2)
    count = min(size, 2)
    told = rf"{tensor}: {count} of {size} values? (is|are)* ?.*not finite \(NaN or infinity\)"
    for name, (error, use) in entries(tmp_path, images).items():
        with pytest.raises(error, match=told) as caught:
            use(copy.deepcopy(bad))
        assert "\n" not in str(caught.value), name
    assert not any(tmp_path.iterdir()), "nothing was written"


def test_infinity_is_named_like_nan(tmp_path, images):
    """An infinite variance silences a channel, and the logits stay finite: nothing else would show it."""
    for error, use in entries(tmp_path, images).values():
        with pytest.raises(error, match=r"norm1\.running_var: 1 of 5 values is not finite"):
            use(with_bad(small_quantized(), "norm1.running_var", torch.inf))


def test_a_variance_without_a_root_is_named(tmp_path, images):
    for error, use in entries(tmp_path, images).values():
        with pytest.raises(error, match=r"norm1\.running_var: 2 of 5 variances are not positive, their roots not finite"):
            use(with_bad(small_quantized(), "norm1.running_var", -1.0, places=2))


def test_case_7_quantize_names_weights_and_calibration_images(images):
    net = SmallNet()
    with pytest.raises(QuantizationError, match=r"head\.weight: 3 of 32 values are not finite"):
        nbsnn.quantize(with_bad(net, "head.weight", places=3), SPEC)
    bad = images.clone()
    bad[2, 0, 0, 0] = torch.nan
    bad[5] = torch.inf
    with pytest.raises(QuantizationError, match=r"^images: 73 of 576 .* not finite .* in 2 of 8 images, first at index 2"):
        nbsnn.quantize(net, SPEC, images=bad)
    with pytest.raises(QuantizationError, match=r"the current of act1: .* not finite .*; normalize the images"):
        nbsnn.quantize(with_bad(net, "conv1.weight", 1e30), SPEC, images=images * 1e20)


def test_several_broken_tensors_are_counted():
    bad = with_bad(with_bad(small_quantized(), "conv1.weight"), "head.bias")
    with pytest.raises(ConversionError, match=r"^conv1\.weight: 1 of 90 .* \(and 1 more of the network's tensors\); go back"):
        nbsnn.to_spiking(bad, torch.zeros(1, 2, 6, 6))


# ------------------------------------------------------------------------------------------------------------------ images


def test_images_are_named_by_batch_and_index(images):
    """A NaN image makes no spike, so that a spiking network would answer it like a black one."""
    images[6, 1] = torch.nan
    quantized = small_quantized()
    networks = [quantized, nbsnn.to_spiking(quantized, images[:1]), nbsnn.lower(quantized, images[:1])]
    for network in networks:
        told = r"images of batch 2: 36 of 216 values are not finite .* in 1 of 3 images, first at index 1; leave those images"
        with pytest.raises(DataError, match=told):
            nbsnn.evaluate(network, labelled(images))
    with pytest.raises(ConfigError, match=r"^images: 36 of 576 .* first at index 6"):
        nbsnn.measure_fidelity(quantized, networks[1], images)
    with pytest.raises(ConfigError, match=r"^images: 36 of 576 .* first at index 6"):
        nbsnn.measure_integer_fidelity(quantized, networks[2], images)
    for backend in ("torch", "auto"):
        for engine in ("counts", "spikes"):
            with pytest.raises(LoweringError, match=r"^images: 36 of 576 values are not finite"):
                networks[2].run(images, engine=engine, backend=backend)
    for use in (nbsnn.to_spiking, nbsnn.lower):
        with pytest.raises(nbsnn.NbsnnError, match=r"^example: 36 of 72 values are not finite .* in 1 of 1 images"):
            use(quantized, images[6:7])
    with pytest.raises(ConfigError, match=r"^images: 36 of 576 values are not finite"):
        networks[1](images)


def test_a_loader_goes_on_to_nothing_and_every_process_hears_of_it(images):
    """The processes of a group find out together; here there is one, and the batches after the broken one are not run."""
    images[0] = torch.nan
    seen = []
    with pytest.raises(DataError, match="images of batch 1"):
        nbsnn.evaluate(small_quantized(), labelled(images), progress=seen.append)
    assert seen == []


@pytest.mark.parametrize("schedule", ["fixed", "settle", "barrier"])
def test_a_weight_that_becomes_nan_after_conversion_shows_in_the_spikes(images, schedule):
    """NaN reaches no threshold; without care the network would answer as if nothing were there, in training above all."""
    spiking = nbsnn.to_spiking(small_quantized(), images[:1], schedule=schedule)
    with torch.no_grad():
        spiking.network.norm2.bias[0] = torch.nan
    for network in (spiking.eval(), spiking.train()):
        assert network(images).isnan().all()
    with pytest.raises(ConfigError, match=r"^norm2\.bias: 1 of 6 values is not finite"):
        nbsnn.evaluate(torch.nn.DataParallel(spiking), labelled(images))


# ------------------------------------------------------------------------------------------------- numbers on their way


class Quotient(nn.Module):
    """Divides by the mean of its input: 0/0 for a black image."""

    def forward(self, x):
        return x / x.mean((1, 2, 3), keepdim=True)


def test_logits_are_named_with_the_layer_where_they_begin(images):
    images[3] = 0
    net = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), Quotient(), nn.Flatten(), nn.Linear(48, 4))
    told = r"^logits of batch 1: 4 of 20 values are not finite .* in 1 of 5 images, first at index 3 \(from 1 on\); look for"
    with pytest.raises(DataError, match=told):
        nbsnn.evaluate(net, labelled(images))


class Divided(SmallNet):
    """Divides currents by a constant, which is 0: 0/0 is NaN, and NaN fires as rarely as 0 does."""

    def forward(self, x):
        return super().forward((x - x) / torch.zeros(()))


def test_nan_on_the_way_is_no_agreement(images):
    quantized = nbsnn.quantize(Divided(), SPEC).eval()
    for use in (nbsnn.to_spiking, nbsnn.lower):
        with pytest.raises(ConversionError, match=r"^logits: 8 of 8 values are not finite .* \(from conv1 on\); look for"):
            use(quantized, images[:1])
    good = nbsnn.quantize(SmallNet(), SPEC).eval()
    with pytest.raises(DataError, match=r"^the current of act1: 720 of 720 values are not finite .*; compare in float64, or"):
        nbsnn.measure_fidelity(quantized, nbsnn.to_spiking(good, images[:1]), images[:4])
    with pytest.raises(ConversionError, match=r"^logits: 8 of 8 values are not finite .* \(from conv1 on\)"):
        nbsnn.measure_integer_fidelity(quantized, nbsnn.lower(good, images[:1]), images)
    with pytest.raises(ConversionError, match=r"^logits: 8 of 8 values are not finite .* \(from conv1 on\)"):
        nbsnn.quantize(Divided(), SPEC, images=images)


def test_a_tensor_whose_sum_overflows_is_finite():
    assert count_not_finite(torch.full((4,), 3e38)) == 0
    assert count_not_finite(torch.full((9,), 6e4, dtype=torch.float16)) == 0
    assert count_not_finite(torch.tensor([1, 2])) == 0
    assert count_not_finite(torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0])) == 3
    assert not_finite("x", torch.ones(3)) is None
    check_finite("x", torch.ones(3), DataError)
    check_images(torch.zeros(2, 3), DataError)


def test_a_mask_of_infinities_is_no_fault():
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    check_network(net, ConfigError)
    net.mask[0] = torch.nan
    with pytest.raises(ConfigError, match=r"^mask: 2 of 2"):
        check_network(net, ConfigError)


# --------------------------------------------------------------------------------------------------- files, and training


def test_a_checkpoint_that_is_not_finite_is_refused_by_tensor(tmp_path):
    path = tmp_path / "net.safetensors"
    for network in (small_quantized(), nbsnn.to_spiking(small_quantized(), torch.zeros(1, 2, 6, 6))):
        nbsnn.save_checkpoint(path, with_bad(network, "conv2.weight", places=7))
        with pytest.raises(CheckpointError, match=r"net\.safetensors: conv2\.weight: 7 of 270 values are not finite"):
            nbsnn.load_checkpoint(path, model=SmallNet())


def test_a_start_that_is_not_finite_is_refused_before_training(tmp_path):
    pytest.importorskip("sklearn")
    recipe = nbsnn.load_recipe("digits/resnet20", ["data.batch_size=32"])
    start = nbsnn.build_model("cifar10/resnet20", in_channels=1, image_size=8)
    bad = with_bad(start, "head.bias")
    with pytest.raises(ConfigError, match=r"^the start: head\.bias: 1 of 10 values is not finite"):
        next(iter(nbsnn.train(recipe, tmp_path / "run", init=bad)))
    with pytest.raises(ConfigError, match=r"^the network to train: head\.bias"):
        fit(with_bad(digits_net(), "head.bias"), load_digits(), recipe, Phase(1, lr=0.1), out=tmp_path / "run")
    images = load_digits().train.some(4)
    with pytest.raises(ConfigError, match=r"head\.bias: 1 of 10"):
        nbsnn.finetune(with_bad(digits_net(), "head.bias"), images, images, FinetuneSpec(method="calibrate"))
    assert not (tmp_path / "run").exists()


def test_what_the_last_step_of_an_epoch_spoils_is_neither_judged_nor_saved(tmp_path):
    """No loss has seen it: the validation images would have, and called it an accuracy of 10 %."""
    pytest.importorskip("sklearn")
    splits = load_digits()
    few = nbsnn.Splits(splits.train.some(64), splits.validation.some(20), splits.test)
    recipe = nbsnn.load_recipe("digits/resnet20", ["data.batch_size=32", "optim.recalibrate_batches=0"])

    class Spoiled(DigitsNet):
        steps = 0

        def forward(self, x):
            if self.training:
                self.steps += 1
                if self.steps == 2:  # the last one
                    self.head.weight.register_hook(lambda gradient: gradient * torch.nan)
            return super().forward(x)

    told = r"^epoch 1: head\.weight: 640 of 640 values are not finite .*; lower phase\.N\.lr=0\.1, or set optim\.clip_norm"
    with pytest.raises(DivergedError, match=told):
        fit(Spoiled(), few, recipe, Phase(2, lr=0.1), out=tmp_path)
    assert not list(tmp_path.glob("*best*")) + list(tmp_path.glob("*last*"))


def test_classify_names_logits_that_are_not_finite():
    quantized = nbsnn.load_checkpoint("zoo:cifar10/resnet20-w2a2")
    sample = load_sample().test.some(2)
    network = integer_form(quantized, sample)
    head = replace(network.program.head, bias=network.program.head.bias * torch.nan)
    with pytest.raises(LoweringError, match=r"^logits: 20 of 20 values are not finite"):
        classify(nbsnn.IntegerNetwork(replace(network.program, head=head)), sample)
