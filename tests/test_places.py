"""What maps places between activations: transposed convolutions, enlargements, uneven averages, borders, shuffles, constants.

All are exact in spikes under settle and barrier, and in integers, in both backends.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from nets import randomize_
from torch import nn

import nbsnn
from nbsnn.integer.backends.native import why_not
from nbsnn.integer.maps import AxisMap
from nbsnn.integer.nodes import Resample
from nbsnn.integer.reading import READERS
from nbsnn.quant.operations import ARRANGING

BACKENDS = ["torch", *(["native"] if why_not() is None else [])]
OPTIONS = (
    {"engine": "counts"}, {"engine": "spikes", "schedule": "settle"}, {"engine": "spikes", "schedule": "barrier"},
    {"engine": "spikes", "schedule": "fixed"},
)  # fmt: skip


class Middle(nn.Module):
    """A convolution to [B, 4, 6, 6], steps with an activation behind each, another convolution, a mean, and a head."""

    def __init__(self, steps):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.layers = nn.ModuleList(layer for layer, _ in steps)
        self.acts = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()) for _ in steps)
        self.uses = [use for _, use in steps]
        self.last, self.act, self.head = nn.Conv2d(4, 3, 3, padding=1), nn.ReLU(), nn.Linear(3, 5)

    def forward(self, x):
        x = self.stem(x)
        for layer, use, act in zip(self.layers, self.uses, self.acts, strict=True):
            x = act(use(layer, x))
        return self.head(self.act(self.last(x)).mean((2, 3)))


def conv(**options):
    return nn.Conv2d(4, 4, **{"kernel_size": 3, "padding": 1} | options)


def before(change, **options):
    """A convolution of what `change` makes."""
    return conv(**options), lambda layer, x: layer(change(x))


def after(change, **options):
    """What `change` makes of a convolution."""
    return conv(**options), lambda layer, x: change(layer(x))


def shuffled(x):
    return x.view(len(x), 2, 2, *x.shape[2:]).transpose(1, 2).reshape(len(x), -1, *x.shape[2:])


def plain(layer):
    return layer, lambda layer, x: layer(x)


def perceptron(tokens, planes):
    """Linear layers along the last axis of what `tokens` makes, with an activation between."""
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)), lambda layer, x: planes(layer(tokens(x)), x.shape)


def windows(x):
    """[B, 36, C] of [B, C, 6, 6], in squares of 3 × 3."""
    return x.reshape(len(x), 4, 2, 3, 2, 3).permute(0, 2, 4, 3, 5, 1).reshape(len(x), 36, 4)


def planes(x):
    """What `windows` makes [B, 36, C] of."""
    return x.reshape(len(x), 2, 2, 3, 3, 4).permute(0, 5, 1, 3, 2, 4).reshape(len(x), 4, 6, 6)


ROW = torch.linspace(0, 1, 6, dtype=torch.float64)
CHAINS = {
    "transposed convolutions": [
        plain(nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1)),
        plain(nn.ConvTranspose2d(4, 4, (2, 3), stride=(1, 2), padding=(0, 3), dilation=(1, 2), groups=2)),
    ],
    "depthwise transposed": [plain(nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=4, bias=False))],
    "nearest": [before(lambda x: F.interpolate(x, scale_factor=2)), after(nn.UpsamplingNearest2d(size=(8, 7)))],
    "bilinear": [
        before(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")), after(nn.UpsamplingBilinear2d(size=(7, 9))),
    ],
    "bicubic": [after(lambda x: F.interpolate(x, size=(9, 12), mode="bicubic"))],
    "uneven averages": [before(lambda x: F.adaptive_avg_pool2d(x, 4)), after(lambda x: F.adaptive_avg_pool2d(x, (3, 5)))],
    "excluded padding": [before(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False))],
    "ceil mode": [before(lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)), after(nn.AvgPool2d(3, 1, 1))],
    "borders": [before(lambda x: F.pad(x, (0, 1, 2, -1)), padding=0), before(nn.ZeroPad2d((1, 0, 0, 1)), padding=0, stride=2)],
    "other borders": [plain(conv(padding_mode="reflect")), plain(conv(kernel_size=2, padding="same"))],
    "filled border": [before(lambda x: F.pad(x, (0, 1, 2, 1), value=0.7))],
    "a shift before padding": [before(lambda x: x + 1), before(lambda x: F.avg_pool2d(x - 0.5, 3, 1, 1))],
    "constants per place": [before(lambda x: x + ROW), after(lambda x: x - ROW[:, None])],
    "rows and columns": [before(lambda x: torch.cat([x[:, :, 1:5], x[..., 1:3, :]], 2)), after(lambda x: x[..., 1::2])],
    "a focus": [before(lambda x: torch.cat([x[:, :2, ::2, ::2], x[:, 1:3, 1::2, ::2]], 1))],
    "shuffles": [before(shuffled, groups=2), after(lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2))],
    "flipped places": [before(lambda x: x.flip(3)), after(lambda x: x.flip(1, 2))],
    "copied places": [before(lambda x: x.tile(1, 1, 1, 2)), before(lambda x: x.repeat(1, 1, 2, 1)[:, :, 3:7, 2:9])],
    "taken apart": [
        before(lambda x: sum(x.unbind(2)).reshape_as(x[:, :, 0]).unsqueeze(2).expand_as(x)),
        before(lambda x: torch.cat(x.tensor_split(3, 3)[::-1], 3) + x.select(2, 1).unsqueeze(2).view_as(x[:, :, :1])),
    ],
    "a stack": [(conv(), lambda layer, x: torch.stack([layer(x), x], 2).flatten(1, 2)[:, :4])],
    "means that broadcast": [
        before(lambda x: x + x.mean((2, 3), keepdim=True)),
        (conv(), lambda layer, x: layer(x) + x.mean(3, keepdim=True) - x.view(len(x), 4, -1).mean(2)[:, :, None, None]),
    ],
    "a linear layer that broadcasts": [
        (nn.Linear(144, 4), lambda layer, x: layer(x.flatten(1))[..., None, None] + x),
        (nn.Conv2d(144, 4, 3, padding=1, groups=2), lambda layer, x: layer(x.reshape(len(x), 144, 1, 1)).expand_as(x)),
    ],
    "other moves": [
        before(lambda x: torch.roll(x.flip(3), 1, 2)),
        after(lambda x: torch.rot90(x, 1, (2, 3))),
        (nn.Conv2d(16, 4, 1), lambda layer, x: layer(F.unfold(x, 2, stride=2).unflatten(2, (3, 3)))),
        (conv(), lambda layer, x: torch.hstack([layer(x).moveaxis(2, 3), x.swapdims(2, 3)]).narrow_copy(1, 2, 4)),
    ],
    "rows and columns exchanged": [
        before(lambda x: x.mT, kernel_size=(3, 1), padding=(1, 0), stride=(1, 2)),
        (nn.ConvTranspose2d(4, 4, (2, 3), stride=(2, 1), groups=2), lambda layer, x: layer(F.avg_pool2d(x, (2, 1)))),
        after(lambda x: F.interpolate(F.adaptive_avg_pool2d(x.transpose(2, 3), (3, 6)), size=(6, 5))),
        (conv(), lambda layer, x: torch.cat([layer(x)[:, 1:], x[:, :1]], 1)),
    ],
    "channels last": [
        perceptron(lambda x: x.permute(0, 2, 3, 1), lambda x, shape: x.permute(0, 3, 1, 2)),
        (nn.Linear(4, 4), lambda layer, x: x + (layer(x.movedim(1, -1)) * torch.tensor([1.0, 0.5, 2.0, 1.5])).movedim(-1, 1)),
    ],
    "tokens": [
        perceptron(lambda x: x.flatten(2).mT, lambda x, shape: x.mT.reshape(shape)),
        (nn.Linear(4, 4), lambda layer, x: planes(layer(windows(x)))),
        (nn.Linear(4, 4), lambda layer, x: x + layer(x.flatten(2).mT).mean(1)[:, :, None, None]),
    ],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", CHAINS)
def test_places_are_mapped_exactly(name):
    torch.manual_seed(1)
    images = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    net = nbsnn.quantize(Middle(CHAINS[name]).double(), nbsnn.QuantSpec(4, 2), example=images[:1]).eval()
    randomize_(net)
    for schedule in ("settle", "barrier"):
        assert nbsnn.measure_fidelity(net, nbsnn.to_spiking(net, images[:1], schedule=schedule), images).differing == 0
    exact = nbsnn.measure_integer_fidelity(net, nbsnn.lower(net, images[:1], membrane_bits=64), images)
    assert exact.differing == 0
    assert exact.output_difference < 1e-5
    network = nbsnn.lower(net, images[:1])
    # Weights of enlargements leave coarse multipliers in 32 bits: whether a neuron is near enough to a tie depends on the seed.
    assert nbsnn.measure_integer_fidelity(net, network, images).off < 2
    for options in OPTIONS:
        first, *others = (network.simulate(images, backend=backend, keep_counts=True, **options) for backend in BACKENDS)
        for other in others:
            assert torch.equal(first.logits, other.logits)
            assert all(torch.equal(count, other.counts[key]) for key, count in first.counts.items())


def test_whatever_only_arranges_values_has_an_integer_form():
    assert READERS.keys() >= ARRANGING


def enlarging():
    torch.manual_seed(1)
    image = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    return nbsnn.lower(nbsnn.quantize(Middle(CHAINS["nearest"]).double(), nbsnn.QuantSpec(4, 2), example=image).eval(), image)


AXES = {
    "leaves its source": lambda axis: {"index": axis.index + 3},
    "weighs nothing": lambda axis: {"index": axis.index * 0 - 1},
    "is of another size": lambda axis: {"size": axis.size + 1},
    "weighs too much": lambda axis: {"weight": axis.weight * 2**15},
    "has another type": lambda axis: {"weight": axis.weight.long()},
}


@pytest.mark.parametrize("name", AXES)
def test_a_map_that_does_not_fit_is_refused(name):
    program = enlarging().program
    at, node = next((i, node) for i, node in enumerate(program.nodes) if isinstance(node, Resample))
    rows = replace(node.map.rows, **AXES[name](node.map.rows))
    nodes = (*program.nodes[:at], replace(node, map=replace(node.map, rows=rows)), *program.nodes[at + 1 :])
    with pytest.raises(nbsnn.LoweringError, match="not a valid program"):
        nbsnn.IntegerNetwork(replace(program, nodes=nodes))


def test_maps_compose_as_matrices_do():
    first = AxisMap.of_matrix(torch.tensor([[1, 3, 0], [0, 2, -1], [0, 0, 0], [1, 0, 0]]))
    second = AxisMap.choosing(torch.tensor([-1, 3, 0]), 4)
    assert torch.equal(second.after(first).matrix(), second.matrix() @ first.matrix())
    x = torch.arange(6).reshape(1, 1, 3, 2)
    assert torch.equal(first.apply(x, 2)[0, 0], first.matrix() @ x[0, 0])
    assert (first.largest, first.reads, first.places, first.is_identity) == (4, 2, 4, False)


def test_channels_moved_to_the_last_axis_and_back_stay_one_branch():
    layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 4), nn.Conv1d(4, 3, 3)])

    class Lines(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            x = F.relu(self.layers[1](F.relu(self.layers[0](x.mT)))).mT
            return self.layers[2](x).mean(2)

    lines = torch.randn(2, 4, 16)
    quantized = nbsnn.quantize(Lines(), nbsnn.QuantSpec(4, 2), example=lines[:1]).eval()
    network = nbsnn.lower(quantized, lines[:1])
    assert [(unit.shape, len(unit.branches)) for unit in network.program.units] == [((6, 16), 1), ((4, 16), 1)]
    assert nbsnn.measure_integer_fidelity(quantized, network, lines).off == 0
