"""Small networks for the tests: a random one with every kind of junction, and a plain one for everyday use."""

import torch
from torch import Tensor, nn

from nbsnn.quant.layers import QuantReLU
from nbsnn.quant.quantize import quantize, set_bits_
from nbsnn.recipe import QuantSpec

JUNCTIONS = ("chain", "identity", "projection", "concatenation", "pool")


class SmallNet(nn.Module):
    """Two convolutions, a hidden linear layer and a head, for images [B, 2, 6, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1, self.act1 = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()
        self.conv2, self.norm2, self.act2 = nn.Conv2d(5, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU()
        self.flatten = nn.Flatten()
        self.linear, self.act3 = nn.Linear(24, 8), nn.ReLU()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        x = self.act2(self.norm2(self.conv2(x)))
        return self.head(self.act3(self.linear(self.flatten(x))))


class RandomBlock(nn.Module):
    """One junction: how the input of the block meets what its convolution makes of it."""

    def __init__(self, channels: int, junction: str, *, bias: bool) -> None:
        super().__init__()
        self.junction = junction
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=bias), nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        if junction == "projection":
            self.shortcut = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        elif junction == "concatenation":
            self.merge, self.act2 = nn.Conv2d(2 * channels, channels, 1), nn.ReLU()
        elif junction == "pool":
            self.pool = nn.AvgPool2d(2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        current = self.norm(self.conv(x))
        if self.junction == "identity":
            return self.act(current + x)
        if self.junction == "projection":
            return self.act(current + self.shortcut(x))
        if self.junction == "concatenation":
            return self.act2(self.merge(torch.cat([self.act(current), x], 1)))
        return self.pool(self.act(current)) if self.junction == "pool" else self.act(current)


class RandomNet(nn.Module):
    """Stem, random blocks, pool, hidden linear layer, head."""

    def __init__(self, junctions: list[str], *, channels: int = 4, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.Sequential(*(RandomBlock(channels, j, bias=bias) for j in junctions))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden, self.norm, self.act = nn.Linear(4 * channels, 6), nn.BatchNorm1d(6), nn.ReLU()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.blocks(self.stem(x)))
        return self.head(self.act(self.norm(self.hidden(x.flatten(1)))))


@torch.no_grad()
def randomize_(net: nn.Module) -> None:
    """Batch-norm statistics, biases and thresholds as a trained network might have them."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.3, 2)
            module.weight.normal_(1, 0.4)
            module.bias.normal_(0, 0.4)
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            module.bias.normal_(0, 0.3)
        elif isinstance(module, QuantReLU):
            module.threshold.uniform_(0.5, 2.5)


def random_quantized(seed: int, junctions: list[str], act_bits: list[int], *, weight_bits: int = 4) -> nn.Module:
    """A random quantized network in float64; `act_bits` are dealt out in turn."""
    torch.manual_seed(seed)
    net = quantize(RandomNet(junctions), QuantSpec(weight_bits, act_bits[0])).double().eval()
    acts = [name for name, module in net.named_modules() if isinstance(module, QuantReLU)]
    for index, name in enumerate(acts):
        set_bits_(net, act_bits=act_bits[index % len(act_bits)], only=[name])
    randomize_(net)
    return net


def small_quantized(bits: int = 2, **spec: object) -> nn.Module:
    """A SmallNet with random statistics, quantized, in evaluation mode."""
    net = SmallNet()
    randomize_(net)
    quantized = quantize(net, QuantSpec(bits, bits, **spec)).eval()
    randomize_(quantized)
    return quantized


class DigitsNet(nn.Module):
    """The smallest net with every kind of quantized layer, for images [B, 1, 8, 8]."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1, self.act1 = nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.norm2, self.act2 = nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()
        self.flatten, self.head = nn.Flatten(), nn.Linear(64, 10)

    def forward(self, x):
        x = self.act1(self.norm1(self.conv1(x)))
        return self.head(self.flatten(self.act2(self.norm2(self.conv2(x)))))


def digits_net(*, quantized=True):
    """A DigitsNet with ever the same weights."""
    torch.manual_seed(1)
    return quantize(DigitsNet(), QuantSpec(4, 4)) if quantized else DigitsNet()
