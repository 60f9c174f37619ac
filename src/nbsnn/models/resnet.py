"""Residual networks for CIFAR (He et al., 2016): a table and a loop.

Every addition is on currents, before the activation, so a skip is one more synapse of the same neuron.
"""

from typing import NamedTuple

from torch import Tensor, nn

from nbsnn.models.units import ConvNorm, ConvNormAct, initialize_


class _Residual(NamedTuple):
    stem: int  # channels
    stages: tuple[tuple[int, int, int], ...]  # (channels, blocks, stride of the first block)


def _cifar_resnet(depth: int) -> _Residual:
    blocks = (depth - 2) // 6
    return _Residual(16, ((16, blocks, 1), (32, blocks, 2), (64, blocks, 2)))


RESIDUAL_NETS = {
    **{f"cifar10/resnet{depth}": _cifar_resnet(depth) for depth in (20, 32, 44, 56, 110)},
    # The widened ResNet-18 of temporal efficient training (Deng et al., ICLR 2022).
    "cifar10/resnet18": _Residual(64, ((128, 3, 1), (256, 3, 2), (512, 2, 2))),
}


class BasicBlock(nn.Module):
    """Two 3×3 units; the block's input joins the second one's current, projected if its shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        same = stride == 1 and in_channels == channels
        shortcut = nn.Identity() if same else ConvNorm(in_channels, channels, 1, stride, 0)
        self.first = ConvNormAct(in_channels, channels, 3, stride, 1)
        self.second = ConvNormAct(channels, channels, 3, 1, 1, shortcut=shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x), x)
        return out


class ResNet(nn.Module):
    """Stem, stages of basic blocks, global average pool, linear head."""

    def __init__(self, table: _Residual, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = ConvNormAct(in_channels, table.stem, 3, 1, 1)
        width = table.stem
        for index, (channels, blocks, stride) in enumerate(table.stages, start=1):
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(BasicBlock(width, channels, stride if block == 0 else 1))
                width = channels
            self.add_module(f"stage{index}", stage)
        self.stages = len(table.stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(width, num_classes)
        initialize_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index in range(1, self.stages + 1):
            x = self.get_submodule(f"stage{index}")(x)
        logits: Tensor = self.head(self.flatten(self.pool(x)))
        return logits


def build_resnet(name: str, *, num_classes: int, in_channels: int, image_size: int) -> ResNet:
    """One of `RESIDUAL_NETS`; any image size, since the pool is global."""
    return ResNet(RESIDUAL_NETS[name], num_classes=num_classes, in_channels=in_channels)
