"""Currents in any arrangement: elements of affine functions, moved, scaled and added one by one.

Reshapes, permutations, slices, stacks and expansions give arrangements. Where one is again a choice of channels, rows and
columns (`as_affine`), such as a channel shuffle written with `view` and `transpose`, it is an affine function like any other,
so activations and weight layers can follow. What the network returns may stay an arrangement.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from nbsnn.integer.affine import Affine, NoForm, ValueTable, added, compact, scaled, selected, shifted
from nbsnn.integer.maps import AxisMap, PlaneMap
from nbsnn.integer.placing import flattened, pooled, resampled
from nbsnn.shapes import plane

_MOST_PIECES = 64  # that a rearrangement of channels into places may take
_FEWEST_ELEMENTS = 8  # of a piece on average, unless there is no other way
_MOVES: dict[int, list[tuple[int, ...]]] = {
    2: [(1, 0)],
    3: [(0, 2, 1), (2, 0, 1)],
}  # planes transposed, or channels that are the last axis


@dataclass(frozen=True, eq=False)
class Piece:
    """Elements of an affine function by their flat index, int64 of the arrangement's shape, −1 for nothing; and their gain."""

    form: Affine
    index: Tensor
    gain: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Σ gain · form[index] + shift, element by element; `shift` is float64 of this shape."""

    pieces: tuple[Piece, ...]
    shift: Tensor
    shape: tuple[int, ...]


Form = Affine | Arrangement


def arranged(x: Form) -> Arrangement:
    """A form as an arrangement."""
    if isinstance(x, Arrangement):
        return x
    index = torch.arange(prod(x.shape)).reshape(x.shape)
    return Arrangement((Piece(x, index),), torch.zeros(x.shape, dtype=torch.float64), x.shape)


def chosen(x: Form, index: Tensor) -> Arrangement:
    """The elements of x with these flat indices, −1 giving 0; `index` has the shape of the result."""
    there, at = index >= 0, index.clamp_min(0)

    def choose(values: Tensor, nothing: float) -> Tensor:
        return torch.where(there, values.flatten()[at], nothing)

    whole = arranged(x)
    pieces = (
        Piece(piece.form, choose(piece.index, -1), None if piece.gain is None else choose(piece.gain, 0.0))
        for piece in whole.pieces
    )
    return Arrangement(tuple(pieces), choose(whole.shift, 0.0), tuple(index.shape))


def added_up(parts: Sequence[Arrangement], shift: Tensor | float = 0.0) -> Arrangement:
    """The sum of arrangements of one shape."""
    first = parts[0]
    total = torch.stack([part.shift for part in parts]).sum(0) + shift
    return Arrangement(tuple(piece for part in parts for piece in part.pieces), total.expand(first.shape), first.shape)


def multiplied(x: Arrangement, factor: Tensor) -> Arrangement:
    """x times a factor for each element."""
    factor = factor.expand(x.shape)
    pieces = (replace(p, gain=factor if p.gain is None else p.gain * factor) for p in x.pieces)
    return Arrangement(tuple(pieces), x.shift * factor, x.shape)


def simplest(x: Arrangement, values: ValueTable) -> Form:
    """An affine function if it is one, otherwise x itself."""
    found = as_affine(x, values, thin=False)
    return x if found is None else found


def as_affine(x: Form, values: ValueTable, *, thin: bool = True) -> Affine | None:
    """The affine function that an arrangement is; None if it is no choice of channels, rows and columns.

    Args:
        thin: also by many pieces of a few elements each, which a layer that reads them pays for.
    """
    if isinstance(x, Affine):
        return x
    if len(x.shape) not in (1, 2, 3):
        return None
    found: list[Callable[[ValueTable], Affine] | None] = []
    for piece in x.pieces:
        whole = _lines(piece, x.shape)
        parts = [] if whole is not None else _split(piece, x.shape)
        if not thin and prod(x.shape) < _FEWEST_ELEMENTS * len(parts):
            return None
        found += [whole] if whole is not None else [_lines(part, x.shape) for part in parts]
    if None in found or not found:
        return None
    total: Affine | None = None
    for make in found:
        assert make is not None
        total = make(values) if total is None else added(total, make(values))
    assert total is not None
    return shifted(total, x.shift) if bool(x.shift.any()) else total


def no_affine(x: Arrangement, *, weighted: bool = True) -> NoForm:
    """Why an arrangement cannot enter an activation, or, if `weighted`, another layer."""
    if weighted and any(term.synapse is not None for piece in x.pieces for term in piece.form.terms):
        return NoForm("one weight layer follows another", "put an nn.ReLU between them, or merge them")
    gains = (piece.gain[piece.index >= 0] for piece in x.pieces if piece.gain is not None)
    if any(not torch.equal(gain, gain[:1].expand_as(gain)) for gain in gains):
        return NoForm("currents are multiplied by other numbers from place to place", "use one number per channel")
    return NoForm(
        f"currents rearranged to {list(x.shape)} are used",
        "choose or move whole channels, rows and columns before the last weight layer",
    )


def _lines(piece: Piece, shape: tuple[int, ...]) -> Callable[[ValueTable], Affine] | None:
    """What makes an affine function of a piece; None if there is none."""
    form, factor = piece.form, None
    if piece.gain is not None:
        gains = torch.where(piece.index >= 0, piece.gain, -torch.inf).reshape(shape[0], -1)
        factor = gains.amax(1)
        if not bool(((gains == factor[:, None]) | gains.isinf()).all()):
            return None
        factor = torch.where(factor.isinf(), 0.0, factor)
    if len(shape) == 1 and len(form.shape) > 1:
        if prod(form.shape[1:]) > 1 and any(term.synapse is not None for term in form.terms):
            return None
        return lambda values: _gained(selected(flattened(form, values), piece.index), factor)
    size, index = plane(form.shape), piece.index.reshape(plane(shape))
    coordinates = (index // (size[1] * size[2]), index // size[2] % size[1], index % size[2])
    there = index >= 0
    lines = [torch.where(there, c, -1).amax(tuple(b for b in range(3) if b != axis)) for axis, c in enumerate(coordinates)]
    c, y, x = (line.view(*(-1 if b == axis else 1 for b in range(3))) for axis, line in enumerate(lines))
    rebuilt = torch.where((c >= 0) & (y >= 0) & (x >= 0), (c * size[1] + y) * size[2] + x, -1)
    if not torch.equal(rebuilt.expand_as(index), index):
        return None
    return lambda values: _gained(_picked(form, lines, shape, values), factor)


def _split(piece: Piece, shape: tuple[int, ...]) -> list[Piece]:
    """A piece as several, in each of which all channels choose the same places: of a pixel shuffle one for each offset."""
    size = plane(piece.form.shape)
    places = size[1] * size[2]
    index = piece.index.reshape(shape[0], -1)
    channel = torch.where(index >= 0, index // places, -1)
    found: dict[tuple[bytes, int], Tensor] = {}
    for number, row in enumerate(index):
        for source in set(channel[number].tolist()):
            own = torch.where(channel[number] == source, row, -1)
            key = torch.where(own >= 0, own - source * places, -1).numpy().tobytes()
            again = 0
            while (key, again) in found and bool((found[key, again][number] >= 0).any()):
                again += 1
            if source >= 0:
                found.setdefault((key, again), torch.full_like(index, -1))[number] = own
            if len(found) > _MOST_PIECES:
                return [piece]
    return [replace(piece, index=part.reshape(shape)) for part in found.values()]


def _gained(x: Affine, factor: Tensor | None) -> Affine:
    return x if factor is None else scaled(x, factor)


def _picked(form: Affine, lines: list[Tensor], shape: tuple[int, ...], values: ValueTable) -> Affine:
    """The channels, rows and columns of a form; −1 for nothing."""
    size = plane(form.shape)[1:]
    strides = [int(line[1] - line[0]) if len(line) > 1 else n for line, n in zip(lines[1:], size, strict=True)]
    regular = [
        torch.equal(line, torch.arange(0, n, max(stride, 1))) for line, n, stride in zip(lines[1:], size, strides, strict=True)
    ]
    if all(regular):  # every n-th row and column: a 1×1 window with a stride
        if strides != [1, 1] and size != tuple(map(len, lines[1:])):
            form = pooled(form, values, kernel=(1, 1), stride=(strides[0], strides[1]), padding=(0, 0), divisor=1)
        placed = replace(form, shape=(form.channels, *shape[1:]), shift=_reshaped(form, shape))
    else:
        change = PlaneMap(*(AxisMap.choosing(line, n) for line, n in zip(lines[1:], size, strict=True)))
        placed = resampled(form, values, change, divisor=1, shape=(form.channels, *shape[1:]))
    return selected(placed, lines[0])


def _reshaped(form: Affine, shape: tuple[int, ...]) -> Tensor:
    """The shift of a form whose axes of one place come or go."""
    return compact(form.whole_shift(), (form.channels, *shape[1:]))


def home(x: Form, values: ValueTable) -> tuple[Affine, Tensor] | None:
    """The affine function that has x's elements in another order, and where they are in it: [*x.shape], flat.

    Planes that were transposed, or channels that were moved to the last axis, have their neurons in the order of planes.
    None if no order of the elements is an affine function.
    """
    if isinstance(x, Affine):
        return x, torch.arange(prod(x.shape)).reshape(x.shape)
    for thin in (False, True):
        for order in _orders(x):
            found = as_affine(chosen(x, order), values, thin=thin)
            if found is not None:
                return found, torch.argsort(order.flatten()).reshape(x.shape)
    return None


def _orders(x: Arrangement) -> Iterator[Tensor]:
    """Elements of x as they are, in the order of what they are taken from, if it is all of that, and with axes moved."""
    index, size = x.pieces[0].index.flatten(), prod(x.pieces[0].form.shape)
    elements = torch.arange(len(index))
    yield elements.reshape(x.shape)
    if len(index) == size and torch.equal(index.sort()[0], elements):
        yield torch.argsort(index).reshape(x.pieces[0].form.shape)
    yield from (elements.reshape(x.shape).permute(axes) for axes in _MOVES.get(len(x.shape), ()))


def by_tokens(x: Form, values: ValueTable) -> tuple[Affine, Tensor] | None:
    """x [..., C] as an affine function [C, ...], and the place in it of each token, [...]; None if there is none."""
    whole = arranged(x)
    tokens, channels = prod(x.shape[:-1]), x.shape[-1]
    form, places = whole.pieces[0].form, whole.pieces[0].index.reshape(tokens, channels)[:, 0] % tokens
    orders = [(torch.arange(tokens), (channels, *(x.shape[:-1] if len(x.shape) < 4 else (tokens,))))]
    if form.shape[0] == channels and prod(form.shape[1:]) == tokens and torch.equal(places.sort()[0], torch.arange(tokens)):
        orders.insert(0, (places, form.shape))
    for thin in (False, True):
        for at, shape in orders:
            order = torch.argsort(at) * channels + torch.arange(channels)[:, None]
            found = as_affine(chosen(whole, order.reshape(shape)), values, thin=thin)
            if found is not None:
                return found, at.reshape(x.shape[:-1])
    return None


def reduced(x: Form, index: Tensor, values: ValueTable) -> Affine | None:
    """Sums of elements with flat indices [C, N], if each is the sum over all places of a channel; None otherwise."""
    found = home(x, values)
    if found is None:
        return None
    form, at = found[0], found[1].flatten()[index]
    rows, columns = plane(form.shape)[1:]
    places = rows * columns
    channel = at[:, 0] // places
    all_places = at.shape[1] == places and torch.equal((at % places).sort(1)[0], torch.arange(places).expand_as(at))
    if not bool((at // places == channel[:, None]).all()) or not all_places:
        return None
    sums = pooled(form, values, kernel=(rows, columns), stride=(rows, columns), padding=(0, 0), divisor=1)
    return selected(flattened(sums, values), channel)
