"""Weights as bytes: a row for each output channel, in the fewest bytes that tell its values apart."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TERNARY = 1  # what the runtime calls three values, of which a byte holds five
_MOST_CODED = 7  # bits; more are stored as they are
_PER_BYTE = 5


@dataclass(frozen=True, eq=False)
class Packed:
    """A branch's weights.

    Attributes:
        data: [O, row_bytes] uint8, each row in the order [kernel rows, kernel columns, channels].
        values: int16, the weight that each code stands for; empty for 8 and 16 bits.
        bits: 2 to 7, 8 or 16, or `TERNARY`.
        row: weights of a row.
    """

    data: NDArray[np.uint8]
    values: NDArray[np.int16]
    bits: int
    row: int


def pack_rows(weight: Tensor) -> Packed:
    """Pack weights [O, I, kh, kw] or [O, I], int8 or int16."""
    ordered = weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight
    rows = ordered.reshape(len(weight), -1).to(torch.int16).numpy()
    values, codes = np.unique(rows, return_inverse=True)
    codes, bits = codes.reshape(rows.shape), max(2, int(len(values) - 1).bit_length())
    if len(values) <= 3:
        return Packed(_base_three(codes), values, TERNARY, rows.shape[1])
    few = weight.dtype == torch.int8
    data = np.ascontiguousarray(rows.astype("<i1" if few else "<i2")).view(np.uint8)
    coded = _bit_stream(codes, bits)
    if bits <= _MOST_CODED and coded.nbytes + values.nbytes < data.nbytes:
        return Packed(coded, values, bits, rows.shape[1])
    return Packed(data, values[:0], 8 if few else 16, rows.shape[1])


def _base_three(codes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Five codes of 0, 1 or 2 in a byte, the first one in the lowest digit."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % _PER_BYTE)))
    digits = padded.reshape(len(codes), -1, _PER_BYTE)
    packed: NDArray[np.uint8] = (digits * 3 ** np.arange(_PER_BYTE)).sum(2).astype(np.uint8)
    return packed


def _bit_stream(codes: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Codes one after the other, the lowest bit first; each row begins with a byte."""
    each = (codes[..., None] >> np.arange(bits) & 1).astype(np.uint8)
    return np.packbits(each.reshape(len(codes), -1), axis=1, bitorder="little")
