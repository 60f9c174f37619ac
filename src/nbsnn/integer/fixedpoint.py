"""An affine function in integers: weights, multipliers and biases with the largest precision that 32 or 64 bits allow."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil, floor, isfinite, log2

import torch
from torch import Tensor

from nbsnn.errors import LoweringError
from nbsnn.integer.affine import Affine, Synapse, Term
from nbsnn.integer.bounds import NARROW, WIDE, largest_sum, retract_at
from nbsnn.integer.frozen import thawed
from nbsnn.integer.nodes import Branch, Head, Resample, Unit
from nbsnn.integer.placing import through
from nbsnn.integer.trace import Firing
from nbsnn.shapes import per_channel, plane

MOST_FRACTION_BITS = 28
FINE_FRACTION_BITS = 40  # if membranes of 64 bits are asked for
FEWEST_FRACTION_BITS = 12  # if 32 bits leave fewer, 64 are used
FEW_BITS = 8  # of a multiplier: below 2^8 rounding changes such a gain by up to 0.2 %
_IMAGE_SUMS = 62  # bits of a product with the image, in int64
_IMAGE_MULTIPLIER = 31  # bits of its multiplier


@dataclass(frozen=True)
class Setting:
    """Settings shared by all units of a network.

    Attributes:
        timesteps: T.
        pixel_bits: fraction bits of the image.
        shapes: value → shape.
        sizes: value → largest |value| in a step.
        constant: values that do not change in time.
        float_bits: 8 or 16, for weights that are not integers.
        membrane_bits: 32 or 64; units for which 32 are too few have 64 in either case.
        mapped: values with weights of a map of places, whose divisor makes multipliers small.
        maps: maps of places by the name of their value.
        notes: a line is appended for each of those.
    """

    timesteps: int
    pixel_bits: int
    shapes: dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    constant: frozenset[str]
    float_bits: int
    membrane_bits: int = 32
    mapped: frozenset[str] = frozenset()
    maps: Mapping[str, Resample] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Whole:
    """A branch before its multipliers are rounded: gain [O] float64 of its accumulator, and the sum of |weight| [O] float64."""

    branch: Branch
    gain: Tensor
    load: Tensor


def integer_unit(firing: Firing, setting: Setting) -> Unit:
    """A unit with the largest fraction_bits for which no sum can overflow.

    Raises:
        LoweringError: not even 52 bits are enough.
    """
    wholes = [_whole(term, firing.current, setting) for term in firing.current.terms]
    height = firing.threshold * setting.timesteps / firing.levels
    mapped = any(whole.branch.after is not None or whole.branch.source in setting.mapped for whole in wholes)
    limits = ((NARROW, FEWEST_FRACTION_BITS), (WIDE, 1))
    for limit, fewest in limits if setting.membrane_bits == 32 else limits[1:]:
        for bits in range(_first_bits(wholes, firing, setting, height, limit), fewest - 1, -1):
            branches, bias, bound = _at(bits, wholes, firing, setting, height)
            if bound < limit == NARROW and mapped and not all(_is_fine(branch.multiplier) for branch in branches):
                break
            if bound < limit:
                kind = torch.int64 if limit == WIDE else torch.int32
                return Unit(
                    firing.name, firing.current.shape, tuple(_typed(b, kind, setting) for b in branches), bias.to(kind),
                    fraction_bits=bits, levels=firing.levels, height=height, retract=retract_at(bits, height),
                    bound=int(bound), wide=limit == WIDE,
                )  # fmt: skip
    raise LoweringError(
        f"the currents of {firing.name} overflow {WIDE.bit_length() - 1} bits relative to its threshold of "
        f"{firing.threshold:.3g}; give it a larger threshold, or train on"
    )


def _at(bits: int, wholes: list[_Whole], firing: Firing, setting: Setting, height: float) -> tuple[list[Branch], Tensor, float]:
    """The branches and the bias of a unit with so many fraction bits, in float64, and the bound on its sums."""
    scale = 2.0**bits / height  # from the activation's unit to the membrane's
    rounded = [(branch, whole.load) for whole in wholes for branch in _rounded(whole, scale, setting)]
    branches, loads = [branch for branch, _ in rounded], [load for _, load in rounded]
    bias = (firing.current.bias * scale).round()
    bound = largest_sum(
        branches, loads, bias, bits,
        timesteps=setting.timesteps, sizes=setting.sizes, constants=setting.constant,
    )  # fmt: skip
    return branches, bias, bound


def _first_bits(wholes: list[_Whole], firing: Firing, setting: Setting, height: float, limit: int) -> int:
    """From how many fraction bits to search downwards: the bound doubles with each bit, but for rounding."""
    bits = MOST_FRACTION_BITS if setting.membrane_bits == 32 else FINE_FRACTION_BITS
    most = _at(bits, wholes, firing, setting, height)[2]
    beyond = log2(most / limit) if isfinite(most) else 0
    return bits - max(0, floor(beyond) - 2)


def _is_fine(multiplier: Tensor) -> bool:
    """Whether rounding changes no gain of a branch by more than 0.2 %."""
    return bool(((multiplier == 0) | (multiplier.abs() >= 2**FEW_BITS)).all())


def integer_head(output: Affine, setting: Setting) -> Head:
    """The head: integer weights, gains in float64.

    Raises:
        LoweringError: its sums overflow 32 bits, or 52 bits after a map of places.
    """
    branches = []
    terms = list(output.terms)
    while terms:
        term = terms.pop(0)
        whole = _whole(term, output, setting)
        if not _overflows(whole, setting):
            branches.append(replace(whole.branch, multiplier=whole.gain))
        elif term.value in setting.maps and term.synapse is not None and term.synapse.weight.dim() == 4:
            terms = through(term, setting.maps[term.value]) + terms
        else:
            raise LoweringError(f"the sums of the head over {term.value} overflow 32 bits; average over fewer places before it")
    return Head(output.shape, tuple(branches), output.bias)


def _overflows(whole: _Whole, setting: Setting) -> bool:
    """Whether accumulators of a head's branch reach beyond 32 bits, or beyond 52 bits after a map of places."""
    branch = whole.branch
    if branch.source in setting.constant:
        return False
    largest = float(whole.load.max()) * setting.sizes[branch.source] * setting.timesteps
    return largest >= WIDE or largest / (branch.after.largest if branch.after else 1) >= NARROW


def _whole(term: Term, affine: Affine, setting: Setting) -> _Whole:
    gain = term.gain * (2.0**-setting.pixel_bits if term.value in setting.constant else 1.0)
    if term.synapse is not None:
        there = term.take >= 0
        if bool(there.any()) and not bool(there.all()):  # of a concatenation: rows of zeros are made last, as they cost time
            few = replace(term, take=term.take[there], gain=term.gain[there], synapse=term.synapse.dense())
            return _spread(_whole(few, affine, setting), there)
        synapse = term.chosen()
    else:
        channels = setting.shapes[term.value][0]
        if plane(setting.shapes[term.value]) == plane(affine.shape) and torch.equal(term.take, torch.arange(channels)):
            return _Whole(Branch(term.value, gain), gain, torch.ones_like(gain))
        chosen = torch.nn.functional.one_hot(term.take.clamp_min(0), channels).double() * (term.take >= 0).view(-1, 1)
        synapse = Synapse("", chosen, integral=True)
    weight, row_step = _integers(synapse, setting)
    if weight.dim() == 2 and len(setting.shapes[term.value]) + len(affine.shape) > 2:
        weight = weight.view(*weight.shape, 1, 1)  # on planes of one place
    gain = gain * row_step
    if bool((gain < 0).any()):
        weight = weight * per_channel(torch.where(gain < 0, -1, 1), weight.dim() - 1)
    load = torch.linalg.vector_norm(weight.flatten(1), 1, dim=1)  # without a map behind it, which is added below
    gain = torch.where(load > 0, gain.abs(), 0.0)  # a row of zeros has no bound on its multiplier, so it gets 0
    kind = torch.int8 if int(torch.linalg.vector_norm(weight, torch.inf)) <= 127 else torch.int16
    branch = Branch(
        term.value, gain, weight.to(kind).contiguous(), synapse.stride, synapse.padding, synapse.dilation, synapse.groups,
        after=None if term.after is None or term.after.is_identity else term.after, layer=synapse.layer,
    )  # fmt: skip
    return _Whole(branch, gain, load * (1 if branch.after is None else branch.after.largest))


def _spread(whole: _Whole, there: Tensor) -> _Whole:
    """A term with the rows of a branch where `there` [O] is true, and rows of zeros."""

    def spread(rows: Tensor) -> Tensor:
        return rows.new_zeros(len(there), *rows.shape[1:]).index_copy_(0, there.nonzero().flatten(), rows)

    weight = thawed(whole.branch.weight)
    gain, load = spread(whole.gain), spread(whole.load)
    return _Whole(replace(whole.branch, multiplier=gain, weight=spread(weight)), gain, load)


def _integers(synapse: Synapse, setting: Setting) -> tuple[Tensor, Tensor]:
    """Integer weights and the step of each row, [O]."""
    rows = synapse.weight.flatten(1).abs().amax(1)
    if synapse.integral and float(rows.max()) <= 2**15 - 1:
        return synapse.weight, torch.ones_like(rows)
    steps = rows.clamp_min(torch.finfo(torch.float32).tiny) / (2 ** (setting.float_bits - 1) - 1)
    whole = (synapse.weight / per_channel(steps, synapse.weight.dim() - 1)).round()
    setting.notes.append(f"{synapse.layer}: weights rounded to {setting.float_bits} bits per output channel")
    return whole, steps


def _rounded(whole: _Whole, scale: float, setting: Setting) -> list[Branch]:
    branch = whole.branch
    if branch.source not in setting.constant:
        # A count is one spike's height per window: T steps with 1/T of it as current.
        return [replace(branch, multiplier=(whole.gain * (scale * setting.timesteps)).round())]
    gain = whole.gain * scale
    shift = _image_shift(gain, whole, setting)
    if setting.membrane_bits == 32:
        return [replace(branch, multiplier=(gain * 2.0**shift).round(), shift=shift)]
    # Products with large pixels leave 20 to 30 bits to a multiplier; a second branch has the next bits.
    first = (gain * 2.0**shift).floor()
    rest = gain - first / 2.0**shift
    second = _image_shift(rest, whole, setting)
    return [
        replace(branch, multiplier=first, shift=shift),
        replace(branch, multiplier=(rest * 2.0**second).round(), shift=second),
    ]


def _image_shift(gain: Tensor, whole: _Whole, setting: Setting) -> int:
    """The shift of an image's branch with the largest multipliers of this gain that int64 allows."""
    largest = max(float(gain.abs().max()), 2.0**-_IMAGE_MULTIPLIER)
    product = max(float((gain.abs() * whole.load).max()) * setting.sizes[whole.branch.source], 1.0)
    return max(1, min(_IMAGE_MULTIPLIER - ceil(log2(largest)), _IMAGE_SUMS - ceil(log2(product))) - 1)


def _typed(branch: Branch, kind: torch.dtype, setting: Setting) -> Branch:
    return replace(branch, multiplier=branch.multiplier.to(torch.int64 if branch.source in setting.constant else kind))
