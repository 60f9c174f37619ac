"""The table of docs/your-network.md is what `nbsnn.check` says: each row is a small network that it is asked about."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nbsnn

PAGE = Path(__file__).parent.parent / "docs" / "your-network.md"
STATUSES = ("handled", "changed", "approximated", "refused")  # from best to worst
IMAGE = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)


class Calls(nn.Module):
    """A convolution, what is under test, and a head; `between` is a module or a function of the first layer's output."""

    def __init__(self, between, *, act=True, channels=8, head=None):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU() if act else nn.Identity()
        self.between = between
        self.head = head or nn.Conv2d(channels, 4, 1)

    def forward(self, x):
        return self.head(self.between(self.act(self.conv(x))))


class Twice(nn.Module):
    """One activation in two places, and a sum of its results."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.act(self.first(x))
        return self.head(self.act(x + self.second(x)))


class Heads(Calls):
    """Two outputs in a dictionary."""

    def forward(self, x):
        x = self.act(self.conv(x))
        return {"map": self.head(x), "rest": self.between(x)}


class TrainingHead(Calls):
    """A second output in training, as of GoogLeNet."""

    def forward(self, x):
        x = self.act(self.conv(x))
        return (self.head(x), self.between(x)) if self.training else self.head(x)


class TwoInputs(Calls):
    def forward(self, x, y):
        return self.head(self.act(self.conv(x + y)))


class Recurrent(Calls):
    def forward(self, x):
        return self.head(self.between(self.act(self.conv(x)).flatten(2).transpose(1, 2))[0])


class Attention(Calls):
    def forward(self, x):
        x = self.act(self.conv(x)).flatten(2).transpose(1, 2)
        return self.head(self.between(x, x, x)[0])


class Moved(nn.Module):
    """Axes in another order."""

    def __init__(self, *axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.permute(self.axes)


class NormAct(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training))


def gate(x):
    return x * x.mean((2, 3), keepdim=True).sigmoid()


def shifted(x):
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    return y


def branch(x):
    return x if x.sum() > 0 else -x


def shortcut(x):
    return x + F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=1)


def normed(wrap):
    layer = wrap(nn.Conv2d(8, 8, 3, padding=1))
    return nn.Sequential(layer, nn.ReLU())


def pruned(layer):
    torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5)
    return layer


ROWS = {
    "`Conv1d`, `Conv2d`, `Linear`, batch norm, `ReLU`": nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
    "`ConvTranspose2d`, `interpolate` (nearest, bilinear)": nn.Sequential(
        nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU(), nn.Upsample(scale_factor=2)
    ),
    "sums, `cat`, `pad`, reshapes, channel shuffles": lambda x: torch.cat([x, F.pad(x + x, (0, 1, 1, 0))[..., 1:, :-1]], 1),
    "`Linear` along the last axis: channels last, tokens": nn.Sequential(
        Moved(0, 2, 3, 1), nn.Linear(8, 8), nn.ReLU(), Moved(0, 3, 1, 2)
    ),
    "rows and columns exchanged, as by `x.transpose(2, 3)`": nn.Sequential(
        Moved(0, 1, 3, 2), nn.Conv2d(8, 8, (3, 1)), nn.ReLU()
    ),
    "average pools of any size": nn.Sequential(nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AdaptiveAvgPool2d(3)),
    "`MaxPool2d`, `AdaptiveMaxPool2d`": nn.MaxPool2d(3, 2, 1),
    "`Dropout`, `Identity`": nn.Sequential(nn.Dropout(0.5), nn.Identity()),
    "heads that only work in training": TrainingHead(nn.Conv2d(8, 2, 1)),
    "several outputs, in a tuple or a dictionary": Heads(nn.Conv2d(8, 2, 1)),
    "`F.relu`, `x.relu_()`, `torch.clamp(x, min=0)`": Calls(F.relu, act=False),
    "`F.max_pool2d`": lambda x: F.max_pool2d(x, 2),
    "norms that call their own activation, as in `timm`": Calls(nn.Sequential(nn.Conv2d(8, 8, 1), NormAct(8))),
    "one activation module in several places": Twice(),
    "`ReLU6`, `Hardtanh(0, c)`, `clamp(0, c)`": Calls(nn.ReLU6(), act=False),
    "`Hardsigmoid`, `clamp(a, b)`, `masked_fill(x < 0, 0)`": Calls(
        lambda x: F.hardsigmoid(x) + x.clamp(0.5, 2) + x.masked_fill(x < 0, 0), act=False
    ),
    "writes into parts, `y[:, 1:] = x[:, :-1]`": shifted,
    "`weight_norm`, `spectral_norm`, pruning": normed(pruned),
    "`LeakyReLU`, `PReLU`, `abs`": Calls(nn.LeakyReLU(), act=False),
    "a weight layer after another, such as a linear bottleneck": Calls(nn.Conv2d(8, 8, 1), act=False),
    "a sum that feeds a weight layer": Calls(shortcut, act=False),
    "`torch.maximum`, `torch.minimum` of two signals": lambda x: torch.minimum(torch.maximum(x, x.flip(1)), x.roll(1, 2)),
    "a max pool behind `PixelShuffle`": Calls(nn.Sequential(nn.PixelShuffle(2), nn.MaxPool2d(3, 2)), channels=2),
    "`Sigmoid`, `SiLU`, `GELU`, `Tanh`, `softmax`": nn.SiLU(),
    "`x * F.relu6(x + 3) / 6`, `x * torch.sigmoid(x)`": lambda x: x * F.relu6(x + 3) / 6,
    "gates, such as squeeze-and-excitation": gate,
    "`GroupNorm`, `LayerNorm`, `InstanceNorm`": nn.GroupNorm(2, 8),
    "attention": Attention(nn.MultiheadAttention(8, 2, batch_first=True), head=nn.Linear(8, 4)),
    "`RNN`, `LSTM`, `GRU`": Recurrent(nn.LSTM(8, 8, batch_first=True), head=nn.Linear(8, 4)),
    "code that depends on values of the image": branch,
    "two inputs": TwoInputs(None),
}


def table():
    """What the page says: row → (status, what happens)."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| in your network |"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return rows
        name, status, what = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = (status, what)
    return rows


def test_the_page_and_the_networks_are_of_the_same_rows():
    assert list(table()) == list(ROWS)
    assert all(what for _, what in table().values())


@pytest.mark.parametrize("name", ROWS)
def test_check_says_what_the_table_says(name):
    part = ROWS[name]
    channels = 16 if "cat" in name else 8
    net = part if type(part).__module__ == __name__ else Calls(part, channels=channels)
    findings = nbsnn.check(net.eval(), IMAGE)
    worst = max((finding.status for finding in findings), key=STATUSES.index, default="handled")
    assert worst == table()[name][0], [str(finding) for finding in findings]
    refused = [finding for finding in findings if finding.status == "refused"]
    assert all(finding.remedy or re.search(r"\w", finding.what) for finding in refused)


def test_every_status_of_check_is_explained():
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"| {status} |" in text for status in STATUSES)
