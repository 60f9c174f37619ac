"""The building blocks of every float network: synapse, norm and activation, without bits or spikes."""

from collections.abc import Iterable

from torch import Tensor, nn


class ConvNormAct(nn.Module):
    """Convolution → batch norm → ReLU; an optional shortcut is added to the current before the ReLU."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, padding: int, *, shortcut: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        if shortcut is not None:
            self.shortcut = shortcut

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        current = self.norm(self.conv(x))
        if skip is not None:
            current = current + self.shortcut(skip)
        out: Tensor = self.act(current)
        return out


class ConvNorm(nn.Module):
    """Convolution → batch norm: the projection of a shortcut."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        current: Tensor = self.norm(self.conv(x))
        return current


class LinearNormAct(nn.Module):
    """Linear → batch norm → ReLU."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, features, bias=False)
        self.norm = nn.BatchNorm1d(features)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.norm(self.linear(x)))
        return out


class PlainNet(nn.Module):
    """A chain: convolution units, hidden linear units, and a linear head."""

    def __init__(self, features: Iterable[ConvNormAct], classifier: Iterable[LinearNormAct], head: nn.Linear) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(*classifier)
        self.head = head
        initialize_(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.classifier(self.flatten(self.features(x))))
        return logits


def initialize_(net: nn.Module) -> None:
    """Kaiming-normal weights (He et al., 2015) for layers before a ReLU; zero biases."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out" if isinstance(module, nn.Conv2d) else "fan_in")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
