"""Fine-tuning for the fixed schedule: what is trained, what is kept, what is left alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import DigitsNet, SmallNet, digits_net
from torch import nn

import nbsnn
from nbsnn.data.images import Batches
from nbsnn.data.sets.digits import load_digits
from nbsnn.errors import ConfigError, ConversionError, DivergedError
from nbsnn.export.packed import save_packed
from nbsnn.models.resnet import BasicBlock
from nbsnn.models.units import ConvNormAct
from nbsnn.spiking.functional import integrate_and_fire
from nbsnn.training.bias_shift import least_error_shift, shift_biases_
from nbsnn.training.finetune import finetune, images_to_see
from nbsnn.training.finetune_spec import FinetuneSpec
from nbsnn.training.loss import distillation_loss
from nbsnn.training.proxy import SpikingProxy, find_units

METHODS = ("layerwise", "end-to-end", "calibrate")


class Residual(nn.Module):
    """A stem and two blocks, the second one with a projection, for images [B, 1, 8, 8]."""

    def __init__(self):
        super().__init__()
        self.stem, self.block1, self.block2 = ConvNormAct(1, 8, 3, 1, 1), BasicBlock(8, 8, 1), BasicBlock(8, 16, 2)
        self.pool, self.flatten, self.head = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.flatten(self.pool(self.block2(self.block1(self.stem(x))))))


def train_(net, data, *, epochs, lr):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    for epoch in range(epochs):
        for images, labels in Batches(data, 64, shuffle=True, epoch=epoch):
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return load_digits()


@pytest.fixture(scope="module")
def trained(digits):
    """A 2-bit residual network that knows the digits."""
    torch.manual_seed(0)
    net = train_(Residual(), digits.train, epochs=3, lr=0.1)
    quantized = nbsnn.quantize(
        net, nbsnn.QuantSpec(2, 2, norms="recalibrate"), images=digits.train.normalized(digits.train.images[:256])
    )
    return train_(quantized, digits.train, epochs=5, lr=0.02)


@pytest.fixture
def pair(trained, digits):
    return SpikingProxy(trained, digits.train.normalized(digits.train.images[:1]))


def images_of(digits, count=16):
    return digits.train.normalized(digits.train.images[:count])


def same_state(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ------------------------------------------------------------------------------------------------------------- the proxy


@pytest.mark.parametrize("name", ["stem.act", "block1.second.act", "block2.second.act"])
def test_a_unit_has_the_value_of_the_spikes_and_the_gradient_of_its_own_parameters(pair, digits, name):
    images = images_of(digits)
    output = pair.activation(images, name)
    assert torch.equal(output, pair.rates(images)[name])
    output.square().sum().backward()
    unit = next(unit for unit in find_units(pair, images[:1]) if unit.name == name)
    trained_parameters = {key for key, p in pair.network.named_parameters() if p.grad is not None}
    assert trained_parameters == set(unit.parameters)


def test_the_gradient_is_the_quantized_units_at_the_spiking_inputs():
    torch.manual_seed(0)
    net = nbsnn.quantize(DigitsNet(), nbsnn.QuantSpec(2, 2)).eval()
    images, weight = torch.randn(8, 1, 8, 8), torch.randn(8, 16, 2, 2)
    pair = SpikingProxy(net, images[:1])
    (pair.activation(images, "act2") * weight).sum().backward()
    rates = pair.rates(images)
    unit = copy.deepcopy(net)
    activation = unit.act2(unit.norm2(unit.conv2(rates["act1"])))
    (activation * weight).sum().backward()
    assert not torch.equal(activation, rates["act2"]), "the spikes differ from the activation, or the test shows nothing"
    for key in ("conv2.weight", "conv2.weight_scale", "norm2.weight", "norm2.bias"):
        wanted, got = unit.get_parameter(key).grad, pair.network.get_parameter(key).grad
        torch.testing.assert_close(got, wanted)
        assert wanted.abs().sum() > 0


def test_all_layers_together_give_the_spiking_logits_and_a_gradient_everywhere_but_in_thresholds(pair, digits):
    images = images_of(digits)
    logits = pair.spiking(images)
    with torch.no_grad():
        assert torch.equal(logits, pair.spiking(images))
    F.cross_entropy(logits, digits.train.labels[:16]).backward()
    for key, parameter in pair.network.named_parameters():
        assert (parameter.grad is None) == key.endswith("threshold"), key


def test_units_are_found_in_order_with_all_their_branches(pair, digits):
    units = find_units(pair, images_of(digits, 1))
    assert [unit.name for unit in units] == [
        "stem.act", "block1.first.act", "block1.second.act", "block2.first.act", "block2.second.act", "",
    ]  # fmt: skip
    last = units[4]
    assert {"block2.second.conv.weight", "block2.second.shortcut.conv.weight", "block2.second.shortcut.norm.bias"} <= set(
        last.parameters
    )
    assert last.bias == "block2.second.norm.bias"
    names = [key for unit in units for key in unit.parameters]
    assert sorted(names) == sorted(k for k, _ in pair.network.named_parameters() if not k.endswith("threshold"))


def test_the_bias_of_a_unit_without_norm_is_the_layers():
    net = nbsnn.quantize(SmallNet(), nbsnn.QuantSpec(2, 2)).eval()
    pair = SpikingProxy(net, torch.randn(1, 2, 6, 6))
    assert [unit.bias for unit in find_units(pair, torch.randn(1, 2, 6, 6))][1:] == ["norm2.bias", "linear.bias", "head.bias"]


# --------------------------------------------------------------------------------------------------------- calibration


def test_least_error_shift_finds_the_shift_of_each_channel_and_leaves_a_silent_one_alone():
    threshold, T = torch.tensor(1.5), 3
    current = torch.randn(T, 200, 4) * 0.8
    current[:, :, 3] = -50
    true = torch.tensor([0.1, -0.06, 0.0, 0.0]) * threshold / T
    target = integrate_and_fire(current + true, threshold, signed=True).mean(0) * threshold
    found = least_error_shift(current, target, threshold, signed=True)
    torch.testing.assert_close(found, true)


def test_shifted_biases_bring_the_rates_closer_layer_by_layer(trained, pair, digits):
    images, other = images_of(digits, 200), digits.validation.normalized()
    with nbsnn.tap({name: trained.get_submodule(name) for name in pair.neurons}) as wanted, torch.no_grad():
        trained(other)

    def errors():
        rates = pair.rates(other)
        return {name: float((rates[name] - wanted[name][0]).square().mean()) for name in rates}

    before = errors()
    shifts = shift_biases_(pair, trained, images, find_units(pair, images[:1]))
    after = errors()
    assert set(shifts) == {*before, ""} - {"stem.act"}
    assert after["stem.act"] == before["stem.act"]
    assert sum(after.values()) < sum(before.values())


def test_a_unit_without_bias_cannot_be_calibrated():
    net = SmallNet()
    net.conv2, net.norm2 = nn.Conv2d(5, 6, 3, stride=2, bias=False), nn.Identity()
    quantized, images = nbsnn.quantize(net, nbsnn.QuantSpec(2, 2)).eval(), torch.randn(4, 2, 6, 6)
    pair = SpikingProxy(quantized, images[:1])
    with pytest.raises(ConversionError, match=r"act2 has no bias per channel .* use the method layerwise"):
        shift_biases_(pair, quantized, images, find_units(pair, images[:1]))


# --------------------------------------------------------------------------------------------------------- the methods


@pytest.mark.parametrize("method", METHODS)
def test_a_method_raises_or_leaves_the_accuracy_and_touches_neither_source_nor_thresholds(trained, digits, method):
    source, seen, told = copy.deepcopy(trained), [], []
    train, held_out = digits.train.take(slice(0, 200)), digits.validation
    epochs = 1 if method == "calibrate" else 2
    spec = FinetuneSpec(method=method, epochs=epochs, augment=False, calibrate_first=method == "end-to-end")
    result = finetune(
        trained, train, held_out, spec, progress=lambda _, n: seen.append(n), on_change=lambda change, _: told.append(change)
    )
    assert same_state(trained, source)
    assert sum(seen) == images_to_see(trained, train, held_out, spec)
    assert result.after_top1 >= result.before_top1
    assert nbsnn.evaluate(result.spiking, Batches(held_out, 60)).top1 == pytest.approx(result.after_top1, abs=1e-3)
    assert told[0].name == "start"
    assert tuple(told[1:]) == result.changes
    assert result.after_top1 == max(change.top1 for change in told if change.kept)
    state = result.spiking.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in source.state_dict().items() if key.endswith("threshold"))
    assert result.spiking.schedule == "fixed"
    assert all(p.requires_grad and p.grad is None for p in result.spiking.parameters())


def test_calibration_brings_the_spiking_logits_closer_to_the_teachers(trained, digits):
    images = digits.validation.normalized()
    spiking = finetune(trained, digits.train, digits.validation, FinetuneSpec(method="calibrate", force=True)).spiking
    with torch.no_grad():
        wanted, before, after = trained(images), nbsnn.to_spiking(trained, images[:1])(images), spiking(images)
    assert (after - wanted).square().mean() < (before - wanted).square().mean()


@pytest.mark.parametrize("method", ["layerwise", "end-to-end"])
def test_a_change_that_harms_is_undone_exactly_unless_forced(trained, digits, method):
    ruinous = {"method": method, "lr": 30.0, "augment": False}
    train = digits.train.take(slice(0, 100))
    result = finetune(trained, train, digits.validation, FinetuneSpec(**ruinous))
    assert not any(change.kept for change in result.changes)
    assert same_state(result.spiking, trained)
    forced = finetune(trained, train, digits.validation, FinetuneSpec(**ruinous, force=True))
    assert all(change.kept for change in forced.changes)
    assert forced.after_top1 < forced.before_top1
    assert not same_state(forced.spiking, trained)


@pytest.mark.parametrize("method", ["layerwise", "end-to-end"])
def test_weights_that_are_no_longer_finite_end_it_with_a_remedy(trained, digits, method):
    source = copy.deepcopy(trained)
    with pytest.raises(DivergedError, match=rf"no longer finite at .* of {method}; lower lr=1e\+38"):
        finetune(trained, digits.train, digits.validation, FinetuneSpec(method=method, lr=1e38, augment=False, force=True))
    assert same_state(trained, source)


@pytest.mark.parametrize("method", ["layerwise", "end-to-end"])
def test_the_seed_decides_the_result(trained, digits, method):
    train, held_out = digits.train.take(slice(0, 100)), digits.validation.take(slice(0, 30))
    first, again, other = (
        finetune(trained, train, held_out, FinetuneSpec(method=method, force=True, seed=seed)).spiking for seed in (1, 1, 2)
    )
    assert same_state(first, again)
    assert not same_state(first, other)


def test_layerwise_takes_the_units_from_the_second_to_the_last_but_one(trained, digits):
    few = digits.train.take(slice(0, 20))
    result = finetune(trained, few, few, FinetuneSpec(force=True))
    assert [change.name for change in result.changes] == [
        "block1.first.act", "block1.second.act", "block2.first.act", "block2.second.act",
    ]  # fmt: skip
    assert torch.equal(result.spiking.network.stem.conv.weight, trained.stem.conv.weight)
    assert torch.equal(result.spiking.network.head.weight, trained.head.weight)
    assert not torch.equal(
        result.spiking.network.block2.second.shortcut.conv.weight, trained.block2.second.shortcut.conv.weight
    )


def test_the_distillation_loss_is_cross_entropy_or_the_distance_to_the_teacher():
    logits, teacher, labels = torch.randn(6, 10), torch.randn(6, 10), torch.randint(0, 10, (6,))
    alone = distillation_loss(logits, teacher, labels, share=0.0, temperature=2.0)
    torch.testing.assert_close(alone, F.cross_entropy(logits, labels))
    assert distillation_loss(teacher, teacher, labels, share=1.0, temperature=2.0).abs() < 1e-6
    p, q = (teacher / 2).softmax(1), (logits / 2).softmax(1)
    expected = 4 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(distillation_loss(logits, teacher, labels, share=1.0, temperature=2.0), expected)


def test_a_fine_tuned_network_is_kept_as_a_spiking_one(trained, digits, tmp_path):
    result = finetune(trained, digits.train, digits.validation, FinetuneSpec(method="calibrate", force=True))
    nbsnn.save_checkpoint(tmp_path / "ft.safetensors", result.spiking)
    loaded = nbsnn.load_checkpoint(tmp_path / "ft.safetensors", model=Residual())
    assert isinstance(loaded, nbsnn.SpikingNetwork)
    torch.testing.assert_close(loaded(images_of(digits)), result.spiking(images_of(digits)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "layer"}, "unknown method 'layer'; did you mean layerwise"),
        ({"neuron": "sign"}, "unknown neuron 'sign'"),
        ({"epochs": 0}, "epochs=0: must be 1 or more"),
        ({"lr": -1.0}, "lr=-1.0: must be"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"distillation": 2.0}, "distillation=2.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises((ConfigError, ConversionError), match=message):
        FinetuneSpec(**settings)


def test_what_cannot_be_fine_tuned_is_refused(trained, digits):
    few, none = digits.train.take(slice(0, 4)), digits.train.take(slice(0, 0))
    spiking = nbsnn.to_spiking(trained, images_of(digits, 1))
    for network in (digits_net(quantized=False), spiking):
        with pytest.raises(ConfigError, match="takes a quantized network"):
            finetune(network, few, few)
    with pytest.raises(ConfigError, match="4 images to learn from and 0 held out"):
        finetune(trained, few, none)
    with pytest.raises(ConfigError, match="1 image to learn from; batches of two or more are needed"):
        finetune(trained, digits.train.take(slice(0, 1)), few)


@pytest.mark.parametrize("method", ["layerwise", "end-to-end"])
@pytest.mark.parametrize("weights", [True, False])
def test_norms_and_biases_are_trained_with_the_weights_or_alone(trained, digits, method, weights):
    train = digits.train.take(slice(0, 100))
    result = finetune(trained, train, digits.validation, FinetuneSpec(method=method, weights=weights, force=True, lr=0.01))
    state, source = result.spiking.state_dict(), trained.state_dict()
    changed = {key for key, value in source.items() if not torch.equal(value, state[key])}
    assert "block2.first.norm.bias" in changed
    assert "block2.first.norm.weight" in changed
    assert ("block2.first.conv.weight" in changed) == ("block2.first.conv.weight_scale" in changed) == weights
    assert all(p.requires_grad for p in result.spiking.parameters())


def test_norms_trained_end_to_end_repair_shifted_biases(trained, digits):
    spoiled = copy.deepcopy(trained)
    with torch.no_grad():
        for unit in (spoiled.block1.first, spoiled.block2.first):
            unit.norm.bias.sub_(0.5)
    spec = FinetuneSpec(method="end-to-end", epochs=2, distillation=0.0, lr=0.01, augment=False)
    result = finetune(spoiled, digits.train, digits.validation, spec)
    assert result.after_top1 > result.before_top1 + 5
    assert result.changes[0].loss > result.changes[1].loss


def test_a_unit_with_weights_alone_cannot_be_trained_without_them(digits):
    net = Residual()
    net.block1.first.norm = nn.Identity()
    quantized, few = nbsnn.quantize(net, nbsnn.QuantSpec(2, 2)).eval(), digits.train.take(slice(0, 4))
    with pytest.raises(ConfigError, match=r"block1\.first\.act has no norm and no bias to train; train weights too"):
        finetune(quantized, few, few, FinetuneSpec(weights=False, force=True))


def test_a_packed_network_is_tuned_without_its_weights(trained, digits, tmp_path):
    save_packed(tmp_path / "packed.safetensors", trained)
    packed = nbsnn.load_checkpoint(tmp_path / "packed.safetensors", model=Residual())
    few = digits.train.take(slice(0, 20))
    for method in ("layerwise", "end-to-end"):
        with pytest.raises(ConfigError, match=rf"^method={method} trains weights, and .* are fixed; leave them as they are"):
            finetune(packed, few, few, FinetuneSpec(method=method, weights=True))
        state = finetune(packed, few, few, FinetuneSpec(method=method, weights=False, force=True)).spiking.state_dict()
        assert not torch.equal(state["block2.first.norm.bias"], packed.block2.first.norm.bias)
    result = finetune(packed, few, few, FinetuneSpec(method="calibrate", force=True))
    assert not same_state(result.spiking, packed)
    assert torch.equal(result.spiking.network.head.weight, packed.head.weight)
    assert not any(p.requires_grad for key, p in result.spiking.named_parameters() if key.endswith("conv.weight"))
