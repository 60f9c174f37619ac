"""Random networks with every step that can be lowered, and how their integer forms are compared."""

import torch
import torch.nn.functional as F
from integer_oracle import run_oracle
from nets import randomize_
from torch import nn

from nbsnn.integer.pixels import to_integers
from nbsnn.quant.layers import QuantReLU
from nbsnn.quant.quantize import quantize, set_bits_
from nbsnn.recipe import QuantSpec

PAIRS = (("unsigned", "fixed"), ("signed", "fixed"), ("signed", "settle"), ("unsigned", "barrier"))


class Block(nn.Module):
    """Four channels in, four out, at 6×6 or whatever comes; `kind` says what happens between."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        options = {
            "grouped": {"groups": 2}, "depthwise": {"groups": 4}, "dilated": {"dilation": 2, "padding": 2},
            "same": {"padding": "same"}, "even": {"kernel_size": 2, "padding": 1, "stride": 1}, "strided": {"stride": (2, 1)},
        }.get(kind, {})  # fmt: skip
        self.conv = nn.Conv2d(4, 4, **{"kernel_size": 3, "padding": 1, "bias": kind in ("chain", "scaled")} | options)
        self.norm, self.act = nn.BatchNorm2d(4), nn.ReLU()
        if kind in ("projection", "pooled shortcut"):
            self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
        if kind in ("concatenation", "grouped concatenation"):
            self.merge = nn.Conv2d(8, 4, 1, groups=2 if "grouped" in kind else 1)
            self.act2 = nn.ReLU()
        if kind == "norm first":
            self.first, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False)
            nn.init.normal_(self.conv1.weight)  # no norm takes its scale back: small weights would make coarse multipliers
        if kind == "convolution, pool":
            self.pool = nn.AvgPool2d(2, stride=1)
        if kind == "padded pool":
            self.pool = nn.AvgPool2d(3, stride=1, padding=1)
        self.drop = nn.Dropout2d(0.5)

    def forward(self, x):
        kind = self.kind
        current = self.norm(self.conv(x))
        if kind == "identity":
            return self.act(self.drop(current) + x)
        if kind == "difference":
            return self.act(2.0 - (x - current) / 2)
        if kind == "projection":
            return self.act(torch.add(current, self.shortcut(x), alpha=0.5))
        if kind == "pooled shortcut":
            return self.act(current + self.shortcut(F.avg_pool2d(F.pad(x, (0, 0)), 1)))
        if "concatenation" in kind:
            return self.act2(self.merge(torch.cat([self.act(current), x], 1)))
        if kind == "channels without parameters":
            half = F.pad(x[:, 1:3], (0, 0, 0, 0, 1, 1))
            return self.act(current + half)
        if kind == "shuffle":
            left, right = F.channel_shuffle(x, 2).chunk(2, 1)
            return self.act(current + torch.cat([right, left], 1))
        if kind == "subsampled":
            return self.act(current[:, :, : x.shape[2], :])[:, :, ::2]
        if kind == "scaled":
            return self.act(current * torch.linspace(-1, 1, 4, dtype=x.dtype).view(4, 1, 1))
        if kind == "norm first":
            return self.act(current + self.conv1(self.first(x)))
        if kind == "convolution, pool":
            return self.act(self.pool(current))
        if kind == "padded pool":
            return self.pool(self.act(current))
        if kind == "in place":
            current += x
            return self.act(current)
        return self.act(current)


KINDS = (
    "chain", "grouped", "depthwise", "dilated", "same", "even", "strided", "identity", "difference", "projection",
    "pooled shortcut", "concatenation", "grouped concatenation", "channels without parameters", "shuffle", "subsampled",
    "scaled", "norm first", "convolution, pool", "padded pool", "in place",
)  # fmt: skip


class Assembled(nn.Module):
    """Stem, blocks, a pool to 2×2 or a mean, a hidden linear layer, head."""

    def __init__(self, kinds, *, mean):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(kind) for kind in kinds))
        self.mean = mean
        self.hidden, self.norm, self.act = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.blocks(self.stem(x))
        x = x.mean((2, 3)) if self.mean else F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.head(self.act(self.norm(self.hidden(x))))


def assembled(seed, kinds, act_bits, *, weight_bits=4, mean=False):
    """A random quantized network of these kinds; see `quantized_at_random`."""
    torch.manual_seed(seed)
    return quantized_at_random(Assembled(kinds, mean=mean), act_bits, weight_bits=weight_bits)


def quantized_at_random(net, act_bits, *, weight_bits=4):
    """The quantized form in float64, with statistics as after training; its activations take turns at these bits."""
    net = quantize(net, QuantSpec(weight_bits, act_bits[0])).double().eval()
    acts = [name for name, module in net.named_modules() if isinstance(module, QuantReLU)]
    for index, name in enumerate(acts):
        set_bits_(net, act_bits=act_bits[index % len(act_bits)], only=[name])
    randomize_(net)
    return net


def images_for(seed, count=3):
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equals_oracle(network, images, *, pairs=PAIRS, backend="torch"):
    """Every count, logit, step and number of spikes, for the counts engine and each neuron and schedule."""
    pixels = to_integers(network.program.pixels, images).numpy()
    for pair in (None, *pairs):
        options = {"engine": "counts"} if pair is None else {"engine": "spikes", "neuron": pair[0], "schedule": pair[1]}
        result = network.simulate(images, backend=backend, keep_counts=True, **options)
        for index, image in enumerate(pixels):
            logits, counts, steps, spikes = run_oracle(network.program, image, **options)
            for name, count in counts.items():
                assert torch.equal(result.counts[name][index], torch.from_numpy(count).int()), (pair, name)
            assert {name: int(s[index]) for name, s in result.spikes.items()} == spikes, pair
            assert torch.equal(result.logits[index], torch.from_numpy(logits)), pair
            assert int(result.steps[index]) == steps, pair
