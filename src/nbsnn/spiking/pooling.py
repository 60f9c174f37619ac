"""Max and min pools between neurons, exactly: the temporal difference of the pooled cumulative counts.

Choosing the largest spike of each step would not give the largest count (docs/concepts.md, "Pooling"). So a pool compares the
net counts so far: with m_t the pool of the counts after step t, it emits m_t − m_{t−1}. A count changes by at most one per
step, and so does m: the pool's output is −1, 0 or 1 times the height of its neurons' spikes, and its sum over time is the pool
of the sums.
"""

import torch
from torch import Tensor, nn

from nbsnn.spiking.call import current_call
from nbsnn.spiking.functional import fold, unfold


class TemporalPool(nn.Module):
    """The spiking form of a max or min pool: spikes · height in, spikes · height out, time folded into the batch.

    Each channel must hold spikes of one neuron layer, which the audit ensures. The pool may be called several times in a
        window: the n-th call of each window continues with the state of the n-th call of the one before.
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, input: Tensor) -> Tensor:
        call = current_call()
        if call.stage in ("rest", "mean"):  # no spikes, or rates: the pool of the rates is the rate of the pool
            return self._pooled(input)
        spikes, height = _spikes_and_height(unfold(input, call.timesteps))
        state = call.state_of_visit(self)
        before = torch.zeros_like(spikes[0]) if state.count is None else state.count
        counts = before + spikes.cumsum(0)
        state.count = counts[-1]
        pooled = unfold(self._pooled(fold(torch.cat([before.unsqueeze(0), counts]))), call.timesteps + 1)
        return fold(pooled.diff(dim=0) * height)

    def _pooled(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool.forward(x)  # not a call: this module has the hooks of the pool that it replaces
        return pooled


def _spikes_and_height(sequence: Tensor) -> tuple[Tensor, Tensor]:
    """[T, B, C, ...] spikes · height as whole spikes, and the height of each channel, [1, B, C, 1, ...]; 1 if it is silent."""
    axes = (0, *range(3, sequence.dim()))
    height = sequence.detach().abs().amax(axes, keepdim=True)  # all spikes of a channel have the same height
    height = torch.where(height == 0, 1.0, height)
    return sequence / height, height
