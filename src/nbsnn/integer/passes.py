"""What a call does to its images and its sums, each in one pass of the native extension.

Torch's operations, of which the same takes a few, cost as much as a small network does on one image. Each function returns None
where it does not apply, and its caller then computes the same bits in torch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nbsnn.integer.backends import library
from nbsnn.integer.frozen import thawed
from nbsnn.integer.nodes import Pixels
from nbsnn.integer.program import Program


def rounded(pixels: Pixels, images: Tensor, slack: int) -> Tensor | None:
    """The integers of float images, as `pixels.to_integers`; None for images that are beyond the grid by more than `slack`."""
    if not _is_plain(images, torch.float32) or isinstance(found := library.loaded(), str):
        return None
    out = torch.empty(images.shape, dtype=torch.int32)
    done = found.nbsnn_round(
        images.data_ptr(), images.numel(), 2.0**pixels.fraction_bits, pixels.low, pixels.high, slack, out.data_ptr()
    )
    return out if done == 1 else None


def logits_of(program: Program, accumulators: Sequence[Tensor]) -> Tensor | None:
    """The result of a network with one head of one branch and no places, as `Program.result`."""
    numbers = program.prepared("logits", lambda: _simple_head(program))
    found = library.loaded()
    if (
        numbers is None
        or len(accumulators) != 1
        or not _is_plain(sums := accumulators[0], torch.int64)
        or isinstance(found, str)
    ):
        return None
    bias, factor = numbers
    out = torch.empty(sums.shape, dtype=torch.float32)
    found.nbsnn_logits(sums.data_ptr(), len(sums), len(bias), bias.data_ptr(), factor.data_ptr(), out.data_ptr())
    return out


def _simple_head(program: Program) -> tuple[Tensor, Tensor] | None:
    """Bias and multiplier [O] of a head that is the network's result."""
    head = program.head
    if program.readout is not None or program.more or len(head.branches) != 1 or len(head.shape) != 1:
        return None
    return thawed(head.bias).contiguous(), thawed(head.branches[0].multiplier).contiguous()


def _is_plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.dtype is dtype and type(tensor) is Tensor and tensor.is_cpu and tensor.is_contiguous()
