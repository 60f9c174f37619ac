"""AlexNet and VGG, for CIFAR-sized and ImageNet-sized images: a table and a loop.

Down-sampling is by stride, never by max pooling, and batch norm follows every layer: a pool costs its own computation in
every step, and a norm folds into the weights.
"""

from typing import NamedTuple

from torch import nn

from nbsnn.errors import ConfigError
from nbsnn.models.units import ConvNormAct, LinearNormAct, PlainNet
from nbsnn.shapes import window_places


class _Plain(NamedTuple):
    convolutions: tuple[tuple[int, int, int, int], ...]  # (channels, kernel, stride, padding)
    hidden: tuple[int, ...]  # features of the hidden linear layers


def _vgg(*layers: tuple[int, int]) -> tuple[tuple[int, int, int, int], ...]:
    return tuple((channels, 3, stride, 1) for channels, stride in layers)


PLAIN_NETS = {
    "cifar10/alexnet": _Plain(
        ((96, 3, 1, 1), (256, 3, 2, 1), (384, 3, 2, 1), (384, 3, 1, 1), (256, 3, 2, 1)),
        (2048,),
    ),
    "cifar10/vgg11": _Plain(
        _vgg((64, 1), (128, 2), (256, 1), (256, 2), (512, 1), (512, 2), (512, 1), (512, 2)),
        (4096, 4096),
    ),
    "imagenet/alexnet": _Plain(
        ((64, 11, 4, 2), (192, 5, 2, 1), (384, 3, 2, 0), (256, 3, 1, 1), (256, 3, 2, 0)),
        (4096, 4096),
    ),
    "imagenet/vgg16": _Plain(
        _vgg(
            (64, 1), (64, 2), (128, 1), (128, 2), (256, 1), (256, 1), (256, 2),
            (512, 1), (512, 1), (512, 2), (512, 1), (512, 1), (512, 2),
        ),
        (4096, 4096),
    ),
}  # fmt: skip


def build_plain(name: str, *, num_classes: int, in_channels: int, image_size: int) -> PlainNet:
    """One of `PLAIN_NETS`; the size of the first linear layer follows from the image size and the strides."""
    table = PLAIN_NETS[name]
    channels, size = in_channels, image_size
    features = []
    for out, kernel, stride, padding in table.convolutions:
        features.append(ConvNormAct(channels, out, kernel, stride, padding))
        channels, (size,) = out, window_places([size], [kernel], [stride], [padding], [1])
        if size < 1:
            raise ConfigError(f"image_size={image_size}: too small for {name}, whose strides leave nothing of it")
    width = channels * size * size
    classifier = []
    for out in table.hidden:
        classifier.append(LinearNormAct(width, out))
        width = out
    return PlainNet(features, classifier, nn.Linear(width, num_classes))
