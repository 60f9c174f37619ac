"""An nn.Module of your own, from float to spikes on scikit-learn's 8×8 digits: python examples/own_network.py"""

import argparse
import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import nbsnn


class OwnNet(nn.Module):
    """A network with a skip and an average pool; each activation is a separate nn.ReLU."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.act = nn.ReLU()
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(width * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.act(self.block(x) + x)  # the skip is added to the current, before the activation
        return self.head(self.pool(x).flatten(1))


def train_(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, lr: float) -> None:
    """A plain training loop: thresholds and weight scales are ordinary parameters for the optimizer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def main(epochs: int) -> None:
    torch.manual_seed(0)
    pixels, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 8 - 1
    labels = torch.from_numpy(targets).long()
    train, test = torch.randperm(len(images)).split([1437, 360])
    model = OwnNet()
    train_(model, images[train], labels[train], epochs=epochs, lr=0.05)
    quantized = nbsnn.quantize(model, nbsnn.QuantSpec(weight_bits=3, act_bits=2), images=images[train][:256])
    train_(quantized, images[train], labels[train], epochs=epochs, lr=0.02)

    quantized.double()  # in float64 rounding does not decide ties, so differences are those of the method
    for schedule in ("fixed", "settle"):
        spiking = nbsnn.to_spiking(quantized, images[test][:1].double(), schedule=schedule)
        fidelity = nbsnn.measure_fidelity(quantized, spiking, images[test], labels=labels[test])
        sys.stdout.write(
            f"{schedule}: {fidelity.off:.3f} % of counts differ, top-1 {fidelity.spiking_top1:.2f} % "
            f"(quantized {fidelity.quantized_top1:.2f} %), {fidelity.steps.double().mean():.1f} steps on average\n"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8, help="before and after quantization")
    main(parser.parse_args().epochs)
