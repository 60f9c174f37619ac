"""Networks that are wide in some way: odd enlargements before a head, raw currents that many blocks read, masked weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nbsnn
from nbsnn.integer.trace import trace


class Enlarged(nn.Module):
    """A head on an enlargement by an odd ratio, whose integers are large."""

    def __init__(self, kernel: int, padding: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(32, 5, kernel, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.body(x), size=(17, 23), mode="bilinear", align_corners=True)
        return self.head(F.interpolate(x, size=(48, 40), mode="bilinear", align_corners=True))


@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1)])
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_head_on_odd_enlargements_is_exact(kernel: int, padding: int, backend: str) -> None:
    """The map follows the sums of weights and counts, which stay below 32 bits."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 6, 7)
    quantized = nbsnn.quantize(Enlarged(kernel, padding), nbsnn.QuantSpec(4, 2), images=images).eval()
    network = nbsnn.lower(quantized, images[:1])
    # Weights decide whether sums of one tap behind the map have 32 bits; those of nine taps always have more.
    assert kernel == 1 or all(branch.after is not None for branch in network.program.head.branches)
    wanted = quantized(images)
    for engine in ("counts", "spikes"):
        found = network.run(images, engine=engine, schedule="settle", backend=backend)
        assert torch.allclose(found, wanted, atol=1e-5), engine


class Dense(nn.Module):
    """Blocks on the concatenation of all raw currents before them, with grouped convolutions and channel shuffles."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 * (i + 1)) for i in range(depth))
        self.convs = nn.ModuleList(nn.Conv2d(8 * (i + 1), 8, 3, padding=1, groups=2) for i in range(depth))
        self.last = nn.Linear(8 * (depth + 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(F.relu(norm(x)))
            x = torch.cat([x, y.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)], 1)
        return self.last(F.relu(x).mean((2, 3)))


def test_blocks_that_read_the_same_raw_currents_share_their_weights() -> None:
    """Tracing keeps one copy of the weights of each layer, however many blocks read its currents."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 6, 6)
    quantized = nbsnn.quantize(Dense().eval(), nbsnn.QuantSpec(4, 2), images=images).eval()
    seen = trace(quantized, images[:1])
    synapses = {term.synapse for firing in seen.firings for term in firing.current.terms}
    assert len(synapses) == 5
    network = nbsnn.lower(quantized, images[:1])
    for engine in ("counts", "spikes"):
        assert torch.allclose(network.run(images, engine=engine, schedule="settle"), quantized(images), atol=1e-5)


class MaskedConv2d(nn.Conv2d):
    """A convolution with a forward of its own, whose weight is masked by a parameter."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.mask = nn.Parameter((torch.rand_like(self.weight) < 0.5).float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


def test_masked_weights_become_layers() -> None:
    """The layer that held the mask is not called any more, and is no obstacle."""
    torch.manual_seed(0)
    net = nn.Sequential(MaskedConv2d(3, 8), nn.ReLU(), MaskedConv2d(8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    images = torch.randn(2, 3, 6, 6)
    assert not any(finding.status == "refused" for finding in nbsnn.check(net, images))
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(4, 2), images=images).eval()
    network = nbsnn.lower(quantized, images[:1])
    assert torch.allclose(network.run(images), quantized(images), atol=1e-5)
    assert set(net.state_dict()) <= {name for name, _ in quantized.state_dict().items()}


def test_refusals_say_why() -> None:
    """Exponentials and decisions by value are told apart from functions that are only unknown."""

    def reason(act: nn.Module) -> str:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), act, nn.Flatten(), nn.Linear(64, 2))
        return next(f.what for f in nbsnn.check(net, torch.randn(1, 3, 6, 6)) if f.status == "refused")

    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sign(x)

    assert reason(nn.ELU()) == "nn.ELU is exponential below 0, and spike counts are not"
    assert reason(Sign()) == "sign() decides by the values of currents"
