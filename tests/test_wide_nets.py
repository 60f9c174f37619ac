"""Networks that are wide in some way: odd enlargements before a head, raw currents that many blocks read, masked weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nbsnn


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
    assert all(branch.after is not None for branch in network.program.head.branches)
    wanted = quantized(images)
    for engine in ("counts", "spikes"):
        found = network.run(images, engine=engine, schedule="settle", backend=backend)
        assert torch.allclose(found, wanted, atol=1e-5), engine
