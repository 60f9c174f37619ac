"""Random networks with a max or min pool at every kind of place."""

import torch
from integer_nets import quantized_at_random
from torch import nn

from nbsnn.pooling import AdaptiveMinPool2d, MinPool2d

POOLS = {
    "halves": lambda: nn.MaxPool2d(2),
    "overlapping": lambda: nn.MaxPool2d(3, 2, 1),
    "in place": lambda: nn.MaxPool2d((3, 2), 1, (1, 0)),
    "dilated": lambda: nn.MaxPool2d(2, 1, 1, dilation=2),
    "ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "gaps": lambda: nn.MaxPool2d(2, 3),
    "adaptive": lambda: nn.AdaptiveMaxPool2d((3, 4)),
    "global": lambda: nn.AdaptiveMaxPool2d(1),
    "min": lambda: MinPool2d(2, 1, 1),
    "adaptive min": lambda: AdaptiveMinPool2d(4),
}
PLACES = ("plain", "twice", "concatenation", "shuffle", "skip", "average after", "flattened")


class PooledNet(nn.Module):
    """Stem on [B, 2, 7, 6] images, a pool at one of PLACES, a unit on it, a head on a mean or on all places."""

    def __init__(self, pool, place):
        super().__init__()
        self.place, self.pool = place, POOLS[pool]()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.next = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.flatten = nn.Flatten()
        if place == "flattened":
            self.head = nn.Linear(self.pool(torch.zeros(1, 4, 7, 6)).numel(), 3)
            return
        width = 8 if place == "concatenation" else 4
        self.last = nn.Sequential(nn.Conv2d(width, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.act, self.head = nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        if self.place == "flattened":
            return self.head(self.flatten(self.pool(self.next(x))))
        if self.place == "twice":  # one module at two places
            x = self.pool(self.next(self.pool(x)))
        elif self.place == "concatenation":  # of neurons with different thresholds
            x = self.pool(torch.cat([x, self.next(x)], 1))
        elif self.place == "shuffle":
            x = self.pool(torch.cat(self.next(x)[:, [2, 0, 3, 1]].chunk(2, 1)[::-1], 1))
        else:
            x = self.pool(x)
        if self.place == "average after":
            x = nn.functional.avg_pool2d(x, (x.shape[2], 1))
        current = self.last(x)
        x = self.act(current + x if self.place == "skip" else current)
        return self.head(self.flatten(x.mean((2, 3), keepdim=True)))


def pooled_net(seed, pool, place, *act_bits):
    """A random quantized network with a pool at a place; see `quantized_at_random`."""
    torch.manual_seed(seed)
    return quantized_at_random(PooledNet(pool, place), act_bits)


def pooled_images(seed, count=7):
    return torch.randn(count, 2, 7, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
