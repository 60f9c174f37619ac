"""Networks as people write them are rewritten without a change of their function, and then go all the way in spikes."""

import copy
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nbsnn
from nbsnn.errors import NbsnnError
from nbsnn.prepare.modules import ClippedReLU, SignedActivation
from nbsnn.quant.layers import QuantConv2d, QuantReLU

SPEC = nbsnn.QuantSpec(4, 3)


def conv(inputs, outputs, size=3, stride=1, groups=1):
    """Convolution and batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3)
        self.fc1, self.fc2 = nn.Linear(6 * 4, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.clamp(self.conv2(x), min=0), (2, 2))
        x = x.view(-1, self.features_of(x))
        return self.fc2(F.dropout(self.fc1(x).relu_(), 0.3, training=self.training))

    def features_of(self, x):
        count = 1
        for size in x.size()[1:]:
            count *= size
        return count


class SharedReLU(nn.Module):
    """A residual network with one ReLU at all places, and a max pool before an activation."""

    def __init__(self):
        super().__init__()
        self.stem, self.pool, self.relu = conv(2, 4, 3), nn.MaxPool2d(3, 2, 1), nn.ReLU(inplace=True)
        self.first, self.second, self.head = conv(4, 4), conv(4, 4), nn.Linear(4, 5)

    def forward(self, x):
        x = self.relu(self.pool(self.stem(x)))
        y = self.second(self.relu(self.first(x)))
        y += x
        return self.head(self.relu(y).mean((2, 3)))


class PreActivation(nn.Module):
    """Sums of currents: the next convolution reads one without an activation between."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.shortcut, self.head = nn.Conv2d(4, 6, 1, stride=2), nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv1(F.relu(self.norm1(x)))
        x = self.shortcut(x) + self.conv2(F.relu(self.norm2(x)))
        return self.head(F.relu(F.adaptive_avg_pool2d(x, 1)).flatten(1))


class Bottleneck(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        wide = 2 * inputs
        self.layers = nn.Sequential(
            conv(inputs, wide, 1), nn.ReLU6(inplace=True), conv(wide, wide, 3, stride, wide), nn.ReLU6(inplace=True),
            conv(wide, outputs, 1),
        )  # fmt: skip
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.layers(x) if self.adds else self.layers(x)


def mobile_net():
    return nn.Sequential(
        conv(2, 4), nn.ReLU6(), Bottleneck(4, 4, 1), Bottleneck(4, 6, 2), Bottleneck(6, 6, 1), conv(6, 8, 1), nn.Hardtanh(0, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 5),
    )  # fmt: skip


class SameConv2d(nn.Conv2d):
    """TensorFlow's padding, as in many ports."""

    def forward(self, x):
        need = [
            max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(x.shape[2:], self.stride, self.kernel_size, strict=True)
        ]
        x = F.pad(x, [need[1] // 2, need[1] - need[1] // 2, need[0] // 2, need[0] - need[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Leaky(nn.Module):
    """Activations of both signs, one of them at three places, and max pools over them."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm, self.act = SameConv2d(2, 4, 3, 2), nn.BatchNorm2d(4), nn.LeakyReLU(0.1, inplace=True)
        self.conv2, self.prelu, self.head = nn.Conv2d(4, 6, 3, padding=1), nn.PReLU(6), nn.Linear(6, 5)

    def forward(self, x):
        x = F.max_pool2d(self.act(self.norm(self.conv1(x))), 3, 1, 1)
        x = self.act(F.max_pool2d(self.prelu(self.conv2(x)), 2))
        return self.head(torch.abs(x).mean((2, 3)))


class RepVGG(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.small, self.norm, self.head = conv(2, 2), conv(2, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 5)

    def forward(self, x):
        for _ in range(1):
            x = F.relu(self.dense(x) + self.small(x) + self.norm(x))
        return self.head(x.mean([2, 3]))


class Dense(nn.Module):
    """Concatenations of currents, a pool over one of them, and a transition without an activation before its pool."""

    def __init__(self):
        super().__init__()
        self.stem, self.pool = nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(7)])
        self.convs = nn.ModuleList([nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(7, 3, 3, padding=1)])
        self.last, self.head = nn.BatchNorm2d(10), nn.Linear(10, 5)

    def forward(self, x):
        x = self.pool(self.stem(x))
        for norm, layer in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x), inplace=True))], 1)
        return self.head(F.relu(self.last(x)).mean((-1, -2)))


class Shuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = (
            conv(2, 4),
            nn.Sequential(conv(2, 2, 1), nn.ReLU(), conv(2, 2, 3, 1, 2)),
            nn.Linear(4, 5),
        )

    def forward(self, x):
        x = F.relu(self.stem(x))
        kept, changed = x.chunk(2, dim=1)
        x = torch.cat((kept, F.relu(self.branch(changed))), 1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(batch, -1, height, width)
        return self.head(F.adaptive_avg_pool2d(x, (1, 1))[:, :, 0, 0])


class UNet(nn.Module):
    """Upsampled sums and concatenations; a map of logits."""

    def __init__(self):
        super().__init__()
        self.down, self.deep, self.side, self.up = conv(2, 4), conv(4, 6, 3, 2), nn.Conv2d(6, 4, 1), conv(8, 4)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        skip = F.relu(self.down(x))
        x = F.interpolate(self.side(F.relu(self.deep(skip))), size=skip.shape[2:], mode="nearest")
        return self.head(F.relu(self.up(torch.cat([x, skip], 1))))


class Normalizing(nn.Module):
    """A forward that normalizes its images, with activations of plain classes."""

    class Swap(nn.Module):
        def forward(self, x):
            return torch.maximum(x, torch.zeros_like(x))

    class Masked(nn.Module):
        def forward(self, x):
            return torch.where(x > 0, x, 0.2 * x)

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2]).view(1, 2, 1, 1))
        self.conv, self.act, self.masked = conv(2, 4), self.Swap(), self.Masked()
        self.kernel, self.head = nn.Parameter(torch.randn(4, 4, 1, 1) / 2), nn.Linear(4, 5)

    def forward(self, x):
        if x.shape[2] != 8 or len(x) < 1:
            raise ValueError("8 pixels wide")
        x = self.act(self.conv((x - self.mean) / 0.5))
        return self.head(self.masked(F.conv2d(x, self.kernel)).mean((2, 3)))


class Joined(nn.Module):
    """Means and sums over a stack, as in FractalNet."""

    def __init__(self):
        super().__init__()
        self.paths = nn.ModuleList(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(3))
        self.conv, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        stacked = torch.stack([path(x) for path in self.paths], dim=0)
        assert stacked.size(0) == len(self.paths)
        both = torch.stack([self.conv(stacked.mean(dim=0)), self.conv(stacked.sum(0))], dim=-1)
        return self.head(F.relu(torch.mean(both, 4)).mean((2, 3)))


class Pyramid(nn.Module):
    """Shortcuts of PyramidNet: pooled, and filled up with channels of zeros."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.conv = conv(2, 4), nn.BatchNorm2d(4), conv(4, 6, 3, 2)
        self.pool, self.head = nn.AvgPool2d(2, 2, ceil_mode=True), nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        y, x = self.conv(F.relu(self.norm(x))), self.pool(x)
        zeros = torch.autograd.Variable(torch.zeros(x.size(0), y.size(1) - x.size(1), *x.shape[2:], dtype=x.dtype))
        return self.head(F.relu(y + torch.cat((x, zeros), 1)).mean((2, 3)))


class Auxiliary(nn.Module):
    """GoogLeNet's branches, and a second output in training."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide, self.pool = conv(2, 4), conv(4, 3), nn.MaxPool2d(3, 1, 1, ceil_mode=True)
        self.narrow, self.aux, self.head = conv(4, 3, 1), nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = torch.cat([F.relu(self.wide(x)), F.relu(self.narrow(self.pool(x)))], 1)
        logits = self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return (logits, self.aux(x.mean((2, 3)))) if self.training else logits


NETWORKS = {
    "LeNet, functional": LeNet, "one ReLU for all": SharedReLU, "pre-activation": PreActivation, "MobileNetV2": mobile_net,
    "leaky": Leaky, "RepVGG": RepVGG, "DenseNet": Dense, "ShuffleNet": Shuffle, "U-Net": UNet, "normalizing": Normalizing,
    "FractalNet": Joined, "PyramidNet": Pyramid, "GoogLeNet": Auxiliary,
}  # fmt: skip


def made(name):
    """A network with norms as after training, in double precision, and images for it."""
    torch.manual_seed(3)
    network = NETWORKS[name]().double()
    side = 14 if name.startswith("LeNet") else 8
    images = torch.randn(12, 2, side, side, dtype=torch.float64)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network, images


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_as_people_write_it_goes_all_the_way(name):
    """Prepared: the same logits. Quantized: 0 neurons off under settle. Nothing of the user's is changed or renamed."""
    network, images = made(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    prepared = nbsnn.prepare(network, images[:1])
    assert prepared.preparation.changes
    assert isinstance(prepared, type(network))
    with torch.no_grad():
        torch.testing.assert_close(prepared.eval()(images), network.eval()(images), rtol=1e-5, atol=1e-5)
    assert {*before} <= {*prepared.state_dict()}
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in before.items())
    quantized = nbsnn.quantize(network, SPEC, images=images).eval()
    assert not any(type(m) in (nn.ReLU, nn.Conv2d, nn.Linear) for m in quantized.modules())
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule="settle")
    assert nbsnn.measure_fidelity(quantized, spiking, images[:4]).off == 0
    assert not [finding for finding in nbsnn.check(network, images[:1]) if finding.status == "refused"]


def test_a_prepared_network_trains_copies_pickles_and_is_prepared_already(tmp_path):
    network, images = made("leaky")
    prepared = nbsnn.prepare(network.train(), images[:1])
    assert prepared.training
    prepared(images).sum().backward()
    assert all(parameter.grad is not None for parameter in prepared.parameters())
    prepared.eval()
    again = nbsnn.prepare(prepared, images[:1])
    assert list(again.state_dict()) == list(prepared.state_dict())
    for other in (again, copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert torch.equal(other(images), prepared(images))
    quantized = nbsnn.quantize(network, SPEC, images=images).eval()
    for form in (quantized, nbsnn.to_spiking(quantized, images[:1])):
        torch.save(form, tmp_path / "whole.pt")
        assert torch.equal(torch.load(tmp_path / "whole.pt", weights_only=False)(images), form(images))


def test_dropout_that_is_a_function_still_works_in_training():
    network, images = made("LeNet, functional")
    prepared = nbsnn.prepare(network, images[:1])
    assert [m.p for m in prepared.modules() if isinstance(m, nn.Dropout)] == [0.3]


def test_a_network_in_canonical_form_is_a_plain_copy():
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten(), nn.Linear(144, 3))
    prepared = nbsnn.prepare(network, torch.randn(1, 2, 8, 8))
    assert type(prepared) is nn.Sequential
    assert prepared is not network
    assert not hasattr(prepared, "preparation")
    assert prepared[2].inplace


def test_a_clipped_activation_starts_and_stays_below_its_limit():
    network, images = made("MobileNetV2")
    quantized = nbsnn.quantize(network, SPEC, images=100 * images)
    limits = [(m.limit, m.threshold.item()) for m in quantized.modules() if isinstance(m, QuantReLU) and m.limit]
    assert {limit for limit, _ in limits} == {6.0, 2.0}
    assert all(threshold <= limit for limit, threshold in limits)
    act = next(m for m in quantized.modules() if isinstance(m, QuantReLU) and m.limit == 6)
    with torch.no_grad():
        act.threshold.fill_(50)
    assert act.clip().item() == 6
    assert act(torch.tensor(1e3, dtype=torch.float64)).item() == 6
    act(torch.tensor([1e3], dtype=torch.float64)).sum().backward()
    assert act.threshold.grad is not None


@pytest.mark.parametrize("name", ["MobileNetV2", "leaky", "normalizing"])
@pytest.mark.parametrize("form", ["quantized", "spiking"])
def test_a_checkpoint_of_a_prepared_network_loads_into_the_users_float_one(name, form, tmp_path):
    network, images = made(name)
    saved = nbsnn.quantize(network, SPEC, images=images).eval()
    if form == "spiking":
        saved = nbsnn.to_spiking(saved, images[:1], schedule="barrier")
    nbsnn.save_checkpoint(tmp_path / "net.safetensors", saved)
    again = nbsnn.load_checkpoint(tmp_path / "net.safetensors", model=NETWORKS[name]())
    with torch.no_grad():
        assert torch.equal(again(images), saved(images))


def test_the_summary_says_what_was_quantized_and_what_stays_in_float(caplog):
    network, images = made("pre-activation")
    with caplog.at_level(logging.INFO):
        quantized = nbsnn.quantize(network, nbsnn.QuantSpec(4, 3, skip=("shortcut",)), example=images[:1])
    summary = quantized.summary
    assert ("activations", 3, 5) in summary.layers
    assert summary.in_float == (("shortcut", "skip='shortcut'"),)
    assert str(summary) in caplog.text
    assert summary.to_dict()["in_float"] == {"shortcut": "skip='shortcut'"}


def test_layers_that_could_be_merged_are_offered():
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    prepared = nbsnn.prepare(network, torch.randn(1, 2, 8, 8))
    change = prepared.preparation.changes[0]
    assert change.status == "approximated"
    assert change.remedy == "or merge 0 and 2 into one layer, which loses nothing"
    assert isinstance(prepared.signed, SignedActivation)


def test_code_that_looks_at_values_is_refused():
    class Looking(LeNet):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    with pytest.raises(NbsnnError, match=r"bool\(\) makes a Python number of values that depend on the image; compute with"):
        nbsnn.prepare(Looking(), torch.randn(1, 2, 14, 14))


def test_images_of_another_size_are_refused_where_code_computes_with_the_size():
    network, images = made("LeNet, functional")
    prepared = nbsnn.prepare(network, images[:1])
    with pytest.raises(NbsnnError, match="it was prepared with \\[2, 14, 14\\]; prepare or quantize it with an example"):
        prepared(torch.randn(1, 2, 16, 16, dtype=torch.float64))


# --------------------------------------------------------------------------------------------------------------- check


class Gated(nn.Module):
    """Several kinds of obstacles at once."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.gate, self.act = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 4), nn.SiLU()
        self.rnn, self.head = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.conv(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        x = F.layer_norm(self.act(x), x.shape[1:])
        x = x.flatten(2).transpose(1, 2)
        x = F.scaled_dot_product_attention(x, x, x)
        if x.max() > 0:
            x = F.hardswish(x)
        return F.softmax(self.head(self.rnn(x)[0].mean(1)), 1)


def test_check_finds_all_obstacles_at_once_with_their_reasons():
    found = {(f.layer, f.what): f for f in nbsnn.check(Gated(), torch.randn(1, 2, 8, 8)) if f.status == "refused"}
    said = "\n".join(map(str, found.values()))
    for words in (
        "norm (test_prepare.py:", "group_norm() depends on the data", "sigmoid() is smooth", "mul() multiplies or divides two",
        "silu() is smooth", "layer_norm() depends", "attention multiplies two signals", "bool() makes a Python number",
        "hardswish() is smooth", "GRU is recurrent", "softmax() is applied to currents; leave it out",
    ):  # fmt: skip
        assert words in said, words
    assert all(finding.place and finding.remedy for finding in found.values())


def test_check_refuses_two_inputs_and_images_on_which_nothing_runs():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    (finding,) = nbsnn.check(Two(), torch.randn(1, 4))
    assert (finding.status, finding.what.split(",")[0]) == ("refused", "the network's forward takes 2 inputs (x")
    (finding,) = nbsnn.check(LeNet(), torch.randn(1, 3, 14, 14))
    assert "does not run at conv1" in finding.what


def test_check_lists_what_is_changed_and_what_is_handled():
    network, images = made("MobileNetV2")
    found = nbsnn.check(network, images[:1])
    kinds = {status: [f for f in found if f.status == status] for status in ("refused", "approximated", "changed", "handled")}
    assert not kinds["refused"]
    assert {f.layer for f in kinds["approximated"]} == {"2", "3.layers.4.1", "4"}
    assert all(f.place.startswith("test_prepare.py:") for f in kinds["approximated"][:1])
    assert len(kinds["changed"]) == 8
    assert "12 weight layers: quantized" in [f.what for f in kinds["handled"]]
    assert ClippedReLU(6).extra_repr() == "limit=6"


def test_check_on_the_command_line(tmp_path, monkeypatch, capsys):
    from nbsnn.cli import main

    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(act='ReLU6'):\n"
        "    return nn.Sequential(nn.Conv2d(2, 4, 3), getattr(nn, act)(), nn.Flatten(), nn.Linear(144, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--model", "mine:net", "--image-shape", "2,8,8"]) == 0
    assert "nothing is refused" in capsys.readouterr().out
    words = ["check", "--model", "mine:net", "--model-args", '{"act": "GELU"}', "--image-shape", "2,8,8", "--json"]
    assert main(words) == 1
    assert '"refused": 1' in capsys.readouterr().out
    assert main(["check", "--model", "mine:net", "--image-shape", "2,a"]) == 2
    assert "--image-shape 2,a: give one to three sizes" in capsys.readouterr().err


def test_subclasses_of_layers_become_plain_ones_with_the_users_parameters():
    network, images = made("leaky")
    quantized = nbsnn.quantize(network, SPEC, images=images)
    assert type(quantized.conv1) is QuantConv2d
    assert torch.equal(quantized.conv1.weight, network.conv1.weight)
    assert quantized.prelu.weight.shape == (6,)
    restored = pickle.loads(pickle.dumps(quantized.preparation))
    assert restored == quantized.preparation


class _Parts(nn.Conv2d):
    """One weight whose parts are the weights of two convolutions, as in octave convolutions."""

    def forward(self, x):
        low = F.conv2d(F.avg_pool2d(x, 2), self.weight[4:], None, padding=1)
        return F.conv2d(x, self.weight[:4], None, padding=1) + F.interpolate(low, scale_factor=2)


def test_parts_of_one_weight_become_layers_of_their_own():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), _Parts(8, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    )
    images = torch.randn(2, 3, 8, 8)
    prepared = nbsnn.prepare(net.eval(), images)
    assert sum(isinstance(module, nn.Conv2d) for module in prepared.modules()) == 3
    torch.testing.assert_close(prepared(images), net(images), rtol=1e-5, atol=1e-5)


class _NormAct(nn.BatchNorm2d):
    """A norm that calls its own activation, as in timm."""

    def __init__(self, channels, affine=True):
        super().__init__(channels, affine=affine)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.drop(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)))


def test_a_norm_that_holds_its_activation_stays_a_norm_under_the_same_names():
    torch.manual_seed(0)
    net = nn.Sequential(conv(3, 4), _NormAct(4), conv(4, 4), _NormAct(4, affine=False), nn.Flatten(), nn.Linear(256, 5)).eval()
    images = torch.randn(4, 3, 8, 8)
    assert not [finding for finding in nbsnn.check(net, images) if finding.status == "refused"]
    quantized = nbsnn.quantize(net, SPEC, images=images)
    assert type(quantized[1]) is type(quantized[3]) is nn.BatchNorm2d
    names = dict(quantized.named_parameters()).keys() | dict(quantized.named_buffers()).keys()
    assert net.state_dict().keys() <= names
    quantized.train()(images + 1)
    assert bool((quantized[3].running_mean != net[3].running_mean).any())
    prepared = nbsnn.prepare(net, images)
    torch.testing.assert_close(prepared(images), net(images))


class _Written(nn.Module):
    """Hard swish and SiLU written out."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = conv(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.conv(x)
        x = x * F.relu6(x + 3) / 6
        x = x.mul(torch.sigmoid(x))
        return self.head((torch.tanh(F.softplus(x)) * x).mean((2, 3)))


def test_a_swish_that_is_written_out_is_named():
    refused = [finding for finding in nbsnn.check(_Written().eval(), torch.randn(1, 2, 8, 8)) if finding.status == "refused"]
    products = [finding for finding in refused if finding.what.startswith("mul()")]
    names = ("hardswish", "silu", "mish")
    assert [f.what for f in products] == [
        f"mul() multiplies a signal by a function of itself, as {name}() does, and is smooth" for name in names
    ]
    assert all(finding.remedy.startswith("use nn.ReLU") for finding in products)


def settled_exactly(net, images):
    """The quantized network, of one that `check` and `prepare` take and that settles without a neuron off."""
    assert not [finding for finding in nbsnn.check(net, images) if finding.status == "refused"]
    torch.testing.assert_close(nbsnn.prepare(net, images)(images), net(images))
    quantized = nbsnn.quantize(net, SPEC, images=images).eval()
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule="settle")
    assert nbsnn.measure_fidelity(quantized, spiking, images).differing == 0
    return quantized


class _Legacy(nn.Module):
    """Channels of zeros that torch's functions did not make, and a max pool after a pixel shuffle."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.last, self.head = conv(2, 4), nn.MaxPool2d(3, 2), conv(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.pool(F.pixel_shuffle(F.relu(self.conv(x)), 2))
        zeros = torch.FloatTensor(x.size(0), 4, *x.shape[2:]).zero_().type_as(x)
        return self.head(F.relu(self.last(torch.cat([x, zeros], 1))).mean((2, 3)))


def test_constants_for_a_batch_and_pools_after_a_shuffle_are_exact_in_integers_too():
    torch.manual_seed(0)
    net, images = _Legacy().eval().double(), torch.randn(4, 2, 8, 8, dtype=torch.float64)
    quantized = settled_exactly(net, images)
    network = nbsnn.lower(quantized, images[:1])
    wanted, found = (network.simulate(images, engine=e, schedule="settle", keep_counts=True) for e in ("counts", "spikes"))
    assert all(torch.equal(count, found.counts[name]) for name, count in wanted.counts.items())


class _Noise(_Legacy):
    def forward(self, x):
        x = self.conv(x) + torch.from_numpy(torch.rand(len(x), 4, 1, 1).numpy())
        return self.head(F.relu(x).mean((2, 3)))


def test_a_rewritten_network_that_does_not_run_is_refused_in_one_line():
    refused = [finding for finding in nbsnn.check(_Noise().eval(), torch.randn(1, 2, 8, 8)) if finding.status == "refused"]
    assert "the result does not run (The size of tensor a (2) must match" in refused[0].what
    assert "prepare=False" in refused[0].remedy


class _Extremes(nn.Module):
    """Maxout, a minimum, and max pools with padding="same"."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second, self.head = conv(2, 4), conv(4, 4), conv(4, 4), nn.Linear(4, 3)
        self.border, self.pool = nn.ConstantPad2d((0, 1, 0, 1), -torch.inf), nn.MaxPool2d(3, 2)

    def forward(self, x):
        x = F.relu(self.pool(self.border(self.conv(x))))
        x = torch.max(self.first(x), self.second(x))
        x = F.relu(torch.minimum(x, torch.full((1, 4, 1, 1), 0.75, dtype=x.dtype)))
        return self.head(F.max_pool2d(F.pad(x, (1, 0, 1, 0), value=-1e9), 2, 2).mean((2, 3)))


def test_extremes_of_two_signals_and_borders_below_zero_become_rectifiers():
    torch.manual_seed(0)
    net, images = _Extremes().eval().double(), torch.randn(4, 2, 8, 8, dtype=torch.float64)
    settled_exactly(net, images)


def test_a_border_below_zero_around_both_signs_is_refused_with_a_remedy():
    border = nn.ConstantPad2d((0, 1, 0, 1), -torch.inf)
    net = nn.Sequential(conv(2, 4), border, nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(64, 3)).eval()
    (refused,) = [finding for finding in nbsnn.check(net, torch.randn(1, 2, 8, 8)) if finding.status == "refused"]
    assert refused.what == "a max pool reads a border below 0 around values of both signs"
    net[2] = nn.MaxPool2d(3, 2, padding=1)
    del net[1]
    assert not [finding for finding in nbsnn.check(net, torch.randn(1, 2, 8, 8)) if finding.status == "refused"]


class _Shifts(nn.Module):
    """Channels that are shifted by writes into zeros and into a current, as in temporal shift modules."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = conv(2, 4), conv(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = torch.zeros_like(x)
        y[:, :2, 1:] = x[:, :2, :-1]
        y[:, 2:, :, :] = x[:, 2:]
        y = self.conv(y)
        y[:, :2] += x[:, 2:]
        y[:, 1] *= 2
        return self.head(F.relu(y).mean((2, 3)))


def test_writes_into_parts_of_a_signal_are_exact():
    torch.manual_seed(0)
    net, images = _Shifts().eval().double(), torch.randn(4, 2, 6, 6, dtype=torch.float64)
    assert not [finding for finding in nbsnn.check(net, images) if finding.status == "refused"]
    quantized = nbsnn.quantize(net, SPEC, images=images).eval()
    pickle.loads(pickle.dumps(quantized.prepared_forward))
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule="settle")
    assert nbsnn.measure_fidelity(quantized, spiking, images).differing == 0
    assert nbsnn.measure_integer_fidelity(quantized, nbsnn.lower(quantized, images[:1]), images).differing == 0


PIECES = {
    "hardsigmoid": lambda x: F.hardsigmoid(x), "Hardsigmoid": nn.Hardsigmoid(), "clamp": lambda x: x.clamp(0.25, 1.5),
    "min": lambda x: x.clamp_max(0.5), "above": lambda x: torch.clip(x, min=-0.5),
    "where": lambda x: torch.where(x < 0, torch.zeros_like(x), x), "fill": lambda x: x.masked_fill(x <= 0, 0),
    "write": lambda x: _with_zeros(x.clone()), "maximum": lambda x: torch.maximum(x, x.flip(1)), "float": lambda x: x.double(),
}  # fmt: skip


def _with_zeros(x):
    x[x < 0] = 0
    return x


@pytest.mark.parametrize("name", PIECES)
def test_functions_of_pieces_become_rectifiers(name):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.piece, self.last, self.head = conv(2, 4), PIECES[name], conv(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(F.adaptive_avg_pool2d(F.relu(self.last(self.piece(self.conv(x)))), 1).squeeze())

    net, images = Net().eval().double(), torch.randn(4, 2, 6, 6, dtype=torch.float64)
    assert not [str(finding) for finding in nbsnn.check(net, images) if finding.status == "refused"]
    torch.testing.assert_close(nbsnn.prepare(net, images)(images), net(images))
    quantized = nbsnn.quantize(net, SPEC, images=images).eval()
    assert quantized(images[:1]).shape == (1, 3)
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule="barrier")
    assert nbsnn.measure_fidelity(quantized, spiking, images).differing == 0


def test_results_and_jumps_are_refused_with_their_reason():
    class Result:
        pass

    class Odd(_Legacy):
        def forward(self, x):
            F.relu(self.conv(x))
            return Result()

    def refused(net):
        return [str(finding) for finding in nbsnn.check(net.eval(), torch.randn(1, 2, 8, 8)) if finding.status == "refused"]

    assert refused(Odd()) == ["the network: the network returns a Result; return tensors, in tuples, lists or dicts"]
    (jump,) = refused(nn.Sequential(conv(2, 4), nn.Threshold(0.1, 0), nn.Flatten(), nn.Linear(256, 3)))
    assert jump.endswith("threshold() jumps from one value to another; use nn.ReLU")
