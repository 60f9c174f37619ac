"""A small network. Replace it with your own: the recipe names the function that makes it, as module:function."""

from torch import Tensor, nn


class Net(nn.Module):
    """Four convolutions, each with batch norm and ReLU, then the average over positions and a linear layer."""

    def __init__(self, num_classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(channels, width, stride=1),
            block(width, width, stride=2),
            block(width, 2 * width, stride=2),
            block(2 * width, 2 * width, stride=1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores [B, num_classes] of images [B, channels, H, W] of any size."""
        scores: Tensor = self.classifier(self.pool(self.features(images)).flatten(1))
        return scores


def block(channels_in: int, channels_out: int, *, stride: int) -> nn.Sequential:
    """A convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def net(num_classes: int = 3, channels: int = 3, width: int = 16) -> nn.Module:
    """The network with fresh weights; the recipe's `args` are the arguments."""
    return Net(num_classes, channels, width)
