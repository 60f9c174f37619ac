"""Layers that no batch norm follows keep the scale and the mean of their float weight."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from nets import RandomNet, SmallNet, randomize_
from torch import nn

import nbsnn
from nbsnn.data.sets.digits import load_digits
from nbsnn.evaluation.fidelity import measure_integer_fidelity
from nbsnn.export.packed import save_packed
from nbsnn.quant.calibrate import refit_scales_
from nbsnn.quant.formats import Apot
from nbsnn.quant.layers import WeightQuantizer
from nbsnn.quant.normed import normed_layers
from nbsnn.quant.plans import read_plan
from nbsnn.tensorfile import read_tensors


def plain_net():
    """Case 6's network."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def own_scale(net):
    return {name for name, fmt in read_plan(net).items() if isinstance(fmt, Apot) and fmt.own_scale}


# ------------------------------------------------------------------------------------------------------------ arithmetic


def test_a_net_without_norms_keeps_the_scale_of_its_weights_and_logits():
    """Case 6: the quantized weight's deviation is the float weight's; logits are near the float net's."""
    torch.manual_seed(0)
    net, x = plain_net(), torch.randn(64, 1, 8, 8)
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(5, 8)).eval()
    with torch.no_grad():
        values, weight, logits = quantized[2].quantized_weight(), net[2].weight, net(x)
        assert float(values.std()) == pytest.approx(float(weight.std()), rel=0.03)
        assert float(values.mean()) == pytest.approx(float(weight.mean()), abs=0.01)
        assert (quantized(x) - logits).norm() < 0.2 * (logits - logits.mean(0)).norm()


@pytest.mark.parametrize("mean", [0.0, 0.05, 0.5])
def test_more_bits_come_closer_to_the_float_weight(mean):
    torch.manual_seed(0)
    weight = torch.randn(32, 16, 3, 3) * 0.1 + mean
    errors = []
    for bits in (2, 3, 4, 5):
        fmt = Apot(bits, own_scale=True)
        errors.append(float((fmt.quantize(weight, fmt.first_scale(weight)) - weight).square().mean().sqrt()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.08 * float(weight.square().mean().sqrt())


def test_gradients_are_those_of_the_scaled_weight():
    torch.manual_seed(0)
    weight = (torch.randn(40, 30, dtype=torch.float64) * 0.1 + 0.02).requires_grad_()
    scale = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(40, 30, dtype=torch.float64)
    values = Apot(3, own_scale=True).quantize(weight, scale)
    values.backward(grad)
    size = weight.detach().square().mean().sqrt()
    unit = weight.detach() / (size * 1.1)
    inside = (unit.abs() < 1).double()
    torch.testing.assert_close(weight.grad, grad * inside)
    level = values.detach() / (size * 1.1)
    torch.testing.assert_close(scale.grad, size * (grad * torch.where(inside > 0, level - unit, unit.sign())).sum())


# ----------------------------------------------------------------------------------------------------------- which layers


class Junctions(nn.Module):
    """Each layer's output goes elsewhere in another way."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        for name in ("direct", "pooled", "functional", "added", "also_used", "after_relu", "in_place", "twice"):
            setattr(self, name, nn.Conv2d(4, 4, 3, padding=1))
            setattr(self, f"{name}_norm", nn.BatchNorm2d(4))
        self.act, self.head = nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x):
        assert x.shape[1] == 3
        x = self.norm(self.stem(x))
        x = self.direct_norm(self.direct(x))
        x = self.pooled_norm(F.avg_pool2d(self.pooled(x), 3, 1, 1).contiguous())
        functional = self.functional_norm
        x = F.batch_norm(self.functional(x), functional.running_mean, functional.running_var)
        x = self.added_norm(self.added(x) + x)
        y = self.also_used(x)
        x = self.also_used_norm(y) + y
        x = self.after_relu_norm(self.act(self.after_relu(x)))
        y = self.in_place(x)
        y += x
        x = self.in_place_norm(y)
        x = self.twice(self.twice_norm(self.twice(x)))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("example", [None, torch.randn(1, 3, 11, 11)])
def test_only_what_a_norm_follows_directly_loses_its_scale(example):
    net = Junctions()
    layers = [name for name, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert normed_layers(net, layers, example) == {"stem", "direct", "pooled"}
    assert all(value.equal(before[key]) for key, value in net.state_dict().items())
    assert net.training


def test_where_the_network_cannot_be_followed_the_scale_is_kept():
    class Looks(SmallNet):
        def forward(self, x):
            return super().forward(x if float(x.sum()) > 0 else -x)

    assert own_scale(nbsnn.quantize(SmallNet(), nbsnn.QuantSpec(3, 3))) == {"linear"}
    assert own_scale(nbsnn.quantize(Looks(), nbsnn.QuantSpec(3, 3))) == {"conv2", "linear"}


@pytest.mark.parametrize("name", [name for name in nbsnn.list_models() if name.startswith("cifar10")])
def test_a_norm_follows_every_inner_layer_of_the_published_nets(name):
    with torch.device("meta"):
        net = nbsnn.build_model(name)
    layers = [n for n, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert normed_layers(net, layers) == set(layers[:-1])


# ----------------------------------------------------------------------------------------------------- training and files


def train(net, data, epochs, rate):
    optimizer = torch.optim.SGD(net.train().parameters(), rate, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(data)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(data.normalized()[batch]), data.labels[batch]).backward()
            optimizer.step()
    return net.eval()


def accuracy(net, data):
    with torch.no_grad():
        return float((net(data.normalized()).argmax(1) == data.labels).double().mean())


def test_a_trained_net_without_norms_stays_what_it_is_and_trains_on():
    """Normalised weights brought |logits| from 30 to 137,000 and training to 10 %."""
    torch.manual_seed(0)
    digits = load_digits()
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    train(net, digits.train, 8, 0.05)
    images, wanted = digits.train.normalized()[:256], accuracy(net, digits.test)
    assert wanted > 0.93
    for bits, drop in ((5, 0.01), (4, 0.02)):
        quantized = nbsnn.quantize(net, nbsnn.QuantSpec(bits, 8), images=images).eval()
        assert accuracy(quantized, digits.test) >= wanted - drop
        with torch.no_grad():
            assert (quantized(images) - net(images)).norm() < 0.3 * net(images).norm()
    few = nbsnn.quantize(net, nbsnn.QuantSpec(2, 2), images=images)
    assert accuracy(train(few, digits.train, 3, 0.02), digits.test) > 0.93


@pytest.mark.parametrize("bits", [2, 4])
def test_it_is_saved_packed_converted_and_lowered_exactly(tmp_path, bits):
    torch.manual_seed(bits)
    net, x = plain_net(), torch.randn(16, 1, 8, 8)
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(bits, 3), images=x).eval()
    randomize_(quantized)
    with torch.no_grad():
        logits = quantized(x)
        nbsnn.save_checkpoint(tmp_path / "a.safetensors", quantized)
        again = nbsnn.load_checkpoint(tmp_path / "a.safetensors", model=plain_net())
        assert again(x).equal(logits)
        save_packed(tmp_path / "b.safetensors", quantized)
        packed = nbsnn.load_checkpoint(tmp_path / "b.safetensors", model=plain_net())
        assert packed(x).equal(logits)
        nbsnn.save_checkpoint(tmp_path / "c.safetensors", packed)
        assert nbsnn.load_checkpoint(tmp_path / "c.safetensors", model=plain_net())(x).equal(logits)
    assert own_scale(again) == own_scale(packed) == {"2"}
    assert read_tensors(tmp_path / "a.safetensors")[0]["plan"]["2"] == {
        "format": "apot", "bits": bits, "fixed": False, "own_scale": True,
    }  # fmt: skip
    spiking = nbsnn.to_spiking(packed, x[:1], schedule="settle")
    assert nbsnn.measure_fidelity(packed, spiking, x).differing == 0
    programs = [nbsnn.lower(form, x[:1]) for form in (quantized, packed)]
    assert not programs[0].program.notes
    assert programs[0].run(x).equal(programs[1].run(x))
    assert measure_integer_fidelity(quantized.double(), nbsnn.lower(quantized, x[:1].double()), x.double()).off < 0.2


def test_bits_and_scales_change_as_in_other_layers():
    quantized = nbsnn.quantize(plain_net(), nbsnn.QuantSpec(5, 4))
    layer = quantized[2]

    def error():
        with torch.no_grad():
            return float((layer.quantized_weight() - layer.weight).norm())

    fine = error()
    nbsnn.set_bits_(quantized, weight_bits=2, act_bits=2)
    assert layer.format == Apot(2, own_scale=True)
    kept = error()
    refit_scales_(quantized)
    assert fine < error() <= kept


def test_files_of_before_keep_their_normalised_weights(tmp_path):
    """A plan without `own_scale` means what it meant: weights of deviation 1, norm or none."""
    torch.manual_seed(0)
    quantized = nbsnn.quantize(RandomNet(["concatenation"]), nbsnn.QuantSpec(3, 3)).eval()
    assert own_scale(quantized) == {"blocks.0.merge"}
    new = copy.deepcopy(quantized)
    for layer in quantized.modules():
        if isinstance(layer, WeightQuantizer) and not layer.format.edge:
            layer.format = replace(layer.format, own_scale=False)
    x = torch.randn(3, 2, 6, 6)
    nbsnn.save_checkpoint(tmp_path / "a.safetensors", quantized)
    assert read_tensors(tmp_path / "a.safetensors")[0]["plan"]["blocks.0.merge"] == {
        "bits": 3, "edge_range": None, "fixed": False,
    }  # fmt: skip
    with torch.no_grad():
        loaded = nbsnn.load_checkpoint(tmp_path / "a.safetensors", model=RandomNet(["concatenation"]))
        assert loaded(x).equal(quantized(x))
        assert not loaded(x).equal(new(x))
    assert float(loaded.blocks[0].merge.quantized_weight().detach().std()) == pytest.approx(1, rel=0.2)
