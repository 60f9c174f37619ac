"""Quantization without training: learned rounding, and networks near their float form that are ordinary quantized ones."""

import pytest
import torch
import torch.nn.functional as F
from nets import RandomNet, randomize_
from torch import nn

import nbsnn
from nbsnn.data.sets.digits import load_digits
from nbsnn.errors import ConfigError
from nbsnn.export.packed import save_packed
from nbsnn.quant.formats import Apot, Uniform
from nbsnn.quant.reconstruct import _patches, _rows
from nbsnn.quant.rounding import SecondMoments, learn_rounding

JUNCTIONS = ["chain", "identity", "concatenation", "projection"]


@pytest.fixture(scope="module")
def digits():
    """A CNN without norms that knows the digits, and images and labels to train and to test."""
    torch.manual_seed(0)
    splits = load_digits(validation=0)
    images, labels = splits.train.normalized(splits.train.images), splits.train.labels
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    train_(net, images, labels, epochs=12, lr=0.05)
    return net, (images, labels), (splits.test.normalized(splits.test.images), splits.test.labels)


def train_(net, images, labels, *, epochs, lr):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    net.eval()


@torch.no_grad()
def top1(net, test):
    return 100 * float((net(test[0]).argmax(1) == test[1]).double().mean())


# -------------------------------------------------------------------------------------------------------------- rounding


@pytest.mark.parametrize(
    "fmt", [Uniform(3), Uniform(4, scale="tensor"), Apot(3, own_scale=True), Apot(4, own_scale=True)], ids=str
)
def test_no_other_level_of_any_one_weight_gives_less_error(fmt):
    torch.manual_seed(0)
    mixed = torch.einsum("pgd,gde->pge", torch.randn(400, 2, 12), torch.randn(2, 12, 12))  # correlated inputs of two groups
    weight = torch.randn(2, 5, 12)
    matrix = SecondMoments.of(mixed, torch.einsum("pgd,god->pgo", mixed, weight), centred=False).held(1e-3)
    values, unit = learn_rounding(weight, matrix, fmt, torch.Size((10, 12)))
    each = unit.expand(10, 1).reshape(2, 5, 1)

    def error(v):
        return torch.einsum("god,gde,goe->go", v - weight, matrix, v - weight)

    found = values.reshape(2, 5, 12)
    assert fmt.rounded(found, each.expand_as(found)).allclose(found)
    assert float(error(found).sum()) < 0.8 * float(error(fmt.rounded(weight, each.expand_as(weight))).sum())
    levels = fmt.rounded(torch.linspace(-2, 2, 400), torch.tensor(1.0)).unique()
    for j in range(12):
        for level in levels:
            other = found.clone()
            other[..., j] = level * each[..., 0]
            assert bool((error(other) >= error(found) - 1e-4 * error(found).abs()).all())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, (3, 2), stride=2, groups=2, dilation=(1, 2)), nn.Linear(5, 3),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 4, padding="same"),
        nn.Conv1d(4, 6, 3, padding=2),
    ],
    ids=str,
)  # fmt: skip
def test_patches_times_weights_are_the_layers_output(layer):
    torch.manual_seed(0)
    shape = {nn.Linear: (7, 5), nn.Conv1d: (3, 4, 9), nn.Conv2d: (3, 4, 6, 7)}[type(layer)]
    x = torch.randn(shape)
    patches = _patches(layer, x)
    weight = layer.weight.reshape(patches.shape[1], -1, patches.shape[2])
    found = torch.einsum("pgd,god->pgo", patches, weight).flatten(1) + layer.bias
    torch.testing.assert_close(found, _rows(layer(x), layer))


# --------------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("method", ["calibrate", "reconstruct"])
@pytest.mark.parametrize("weight_format", ["apot", "uniform"])
def test_a_net_without_norms_loses_less_than_two_points_at_4_bits_and_trains_on(digits, method, weight_format):
    """A float CNN without batch norm: 4 bits without training, and fine-tuning that does not collapse."""
    net, (images, labels), test = digits
    spec = nbsnn.QuantSpec(4, 4, weight_format=weight_format)
    quantized = nbsnn.quantize(net, spec, images=images[:256], method=method)
    before, start = top1(net, test), top1(quantized, test)
    assert before > 95
    assert start > before - 2
    torch.manual_seed(0)
    train_(quantized, images, labels, epochs=2, lr=0.01)
    assert top1(quantized, test) > before - 2


def test_reconstruction_is_nearer_than_calibration_at_few_bits(digits):
    net, (images, _), test = digits
    wanted, errors = net(test[0]).detach(), {}
    for method in ("calibrate", "reconstruct"):
        quantized = nbsnn.quantize(net, nbsnn.QuantSpec(2, 2, weight_format="uniform"), images=images[:256], method=method)
        errors[method] = float((quantized(test[0]).detach() - wanted).norm() / wanted.norm())
    assert errors["reconstruct"] < 0.6 * errors["calibrate"]


@pytest.mark.parametrize("weight_format", ["apot", "uniform"])
def test_the_result_is_an_ordinary_quantized_network(weight_format, tmp_path):
    """Weights lie on levels, files and integers hold the same ones, statistics stay, and the source is not changed."""
    torch.manual_seed(0)
    net, images = RandomNet(JUNCTIONS), torch.randn(48, 2, 6, 6)
    randomize_(net)
    net.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    spec, told = nbsnn.QuantSpec(3, 3, weight_format=weight_format), []
    quantized = nbsnn.quantize(net, spec, images=images, method="reconstruct", progress=lambda *what: told.append(what))
    assert all(value.equal(before[key]) for key, value in net.state_dict().items())
    assert all(quantized.state_dict()[key].equal(value) for key, value in before.items() if "running" in key)
    assert [(done, total) for _, done, total in told] == [(n + 1, len(told)) for n in range(len(told))]
    assert "stem.2" in {name for name, _, _ in told}
    again = nbsnn.quantize(net, spec, images=images.split(16), method="reconstruct")
    assert all(value.equal(again.state_dict()[key]) for key, value in quantized.state_dict().items())

    plain = nbsnn.quantize(net, spec, images=images)
    with torch.no_grad():
        wanted, logits = net(images), quantized(images)
        assert (logits - wanted).norm() < 0.8 * (plain(images) - wanted).norm()
        save_packed(tmp_path / "b.safetensors", quantized)
        assert nbsnn.load_checkpoint(tmp_path / "b.safetensors", model=RandomNet(JUNCTIONS))(images).equal(logits)
    program = nbsnn.lower(quantized.double(), images[:1].double())
    assert not program.program.notes
    spiking = nbsnn.to_spiking(quantized, images[:1].double(), schedule="settle")
    assert nbsnn.measure_fidelity(quantized, spiking, images[:4].double()).differing == 0


def test_layers_without_a_bias_of_their_own_or_after_them_have_none():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    images = torch.randn(64, 2, 6, 6)
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(4, 4), images=images, method="reconstruct")
    assert quantized[2].bias is None
    wanted = net(images).detach()
    assert (quantized(images) - wanted).norm() < 0.15 * wanted.norm()


@pytest.mark.parametrize(
    ("settings", "spec", "message"),
    [
        ({"method": "recontruct"}, {}, "unknown method 'recontruct'; did you mean reconstruct?"),
        ({"method": "reconstruct", "images": None}, {}, "method='reconstruct' needs images; give a few hundred"),
        (
            {"method": "reconstruct"},
            {"norms": "recalibrate"},
            "method='reconstruct' fits the float network with the statistics",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, spec, message):
    given = {"images": torch.randn(4, 2, 6, 6)} | settings
    with pytest.raises(ConfigError) as caught:
        nbsnn.quantize(RandomNet(["chain"]), nbsnn.QuantSpec(4, 4, **spec), **given)
    assert str(caught.value).startswith(message)


class Padded(nn.Conv2d):
    """A convolution with a forward of its own, as networks from TensorFlow have."""

    def forward(self, input):
        return F.conv2d(F.pad(input, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Bottleneck(nn.Module):
    """A linear bottleneck with clipped activations, one of them used twice, and no nn.ReLU."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = Padded(2, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.norm2 = Padded(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8)
        self.project, self.norm3 = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.expand, self.act, self.head = nn.Conv2d(6, 12, 1), nn.ReLU6(), nn.Linear(12, 4)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        x = self.norm3(self.project(self.act(self.norm2(self.depthwise(x)))))
        return self.head(F.relu6(self.expand(x)).mean((2, 3)))


def test_a_network_that_has_to_be_prepared_is_reconstructed_and_named_by_its_own_names():
    """Layers of the prepared network stand on the weights of the user's, whose names patterns take."""
    torch.manual_seed(0)
    net, images = Bottleneck(), torch.randn(96, 2, 12, 12)
    randomize_(net)
    net.eval()
    spec = nbsnn.QuantSpec(8, 6, layers={"depthwise": {"weight_bits": 5}})
    quantized = nbsnn.quantize(net, spec, images=images, method="reconstruct")
    wanted = net(images).detach()
    assert (quantized(images) - wanted).norm() < 0.6 * (wanted - wanted.mean(0)).norm()
    layers = [m for m in quantized.modules() if isinstance(m, nbsnn.quant.layers.WeightQuantizer)]
    assert sorted(layer.weight_bits for layer in layers) == [5, 8, 8, 8, 8]
    program = nbsnn.lower(quantized.double(), images[:1].double())
    counts = program.simulate(images[:4].double(), keep_counts=True).counts
    stepped = program.simulate(images[:4].double(), engine="spikes", schedule="settle", keep_counts=True).counts
    assert all(counts[name].equal(stepped[name]) for name in counts)
