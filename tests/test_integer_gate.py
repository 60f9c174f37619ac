"""What a file or a program may ask of the backends: refused in one line, at once, before anything is allocated."""

import resource
import time
from dataclasses import replace
from math import prod

import pytest
import torch
from forging import forge
from programs import random_pixels, random_program

import nbsnn
from nbsnn.errors import CheckpointError, LoweringError
from nbsnn.integer.backends import native
from nbsnn.integer.backends import torch as engine_torch
from nbsnn.integer.checking import check_numbers, check_structure
from nbsnn.integer.maps import AxisMap, PlaneMap
from nbsnn.integer.nodes import Branch, Flatten, Resample, SumPool, Unit
from nbsnn.integer.program import Program
from nbsnn.integer.readout import Output, Part, Readout
from nbsnn.integer.storage import described, save_program
from nbsnn.integer.work import LIMITS, work_of

PROGRAM = random_program(["conv", "identity", "pooled", "wide"], timesteps=3)
POOL_AT = next(i for i, node in enumerate(PROGRAM.nodes) if node.name == "pool")


def place(program: Program, node, **change) -> Program:
    return replace(program, nodes=tuple(replace(n, **change) if n is node else n for n in program.nodes))


def unit(**change):
    return lambda program: place(program, program.units[1], **change)


def branch(**change):
    def edit(program):
        first, *others = program.units[1].branches
        return place(program, program.units[1], branches=(replace(first, **change), *others))

    return edit


def head(**change):
    return lambda program: replace(program, head=replace(program.head, **change))


def head_branch(**change):
    def edit(program):
        first, *others = program.head.branches
        return replace(program, head=replace(program.head, branches=(replace(first, **change), *others)))

    return edit


def pools(count: int, kernel: int, padding: int = 0):
    """Pools in a row between the last unit with places and the pool that the network has."""

    def edit(program):
        source = program.nodes[POOL_AT].source
        shape, made = program.shapes[source], []
        for index in range(count):
            shape = (shape[0], *(n + 2 * padding - kernel + 1 for n in shape[1:]))
            made.append(SumPool(f"p{index}", source, (kernel, kernel), (1, 1), (padding, padding), shape))
            source = f"p{index}"
        nodes = [*program.nodes[:POOL_AT], *made, replace(program.nodes[POOL_AT], source=source), *program.nodes[POOL_AT + 1 :]]
        return replace(program, nodes=tuple(nodes))

    return edit


def wide_padding(padding: int):
    """Convolutions of 6×6 places that give a thousand times as many, and a pool that sums them."""

    def edit(program):
        stem, node = program.units[:2]
        side = node.shape[1] + 2 * (padding - 1)
        wide = [replace(node.branches[0], padding=(padding, padding), weight=node.branches[0].weight.clone(),
                        multiplier=node.branches[0].multiplier.clone()) for _ in range(2)]  # fmt: skip
        large = replace(node, branches=tuple(wide), shape=(8, side, side))
        pool = SumPool("all", node.name, (side, side), (1, 1), (0, 0), (8, 1, 1))
        weight = torch.ones(5, 8, 1, 1, dtype=torch.int8)
        last = Branch("all", torch.ones(5, dtype=torch.float64), weight)
        return replace(program, nodes=(stem, large, pool), head=replace(program.head, branches=(last,)))

    return edit


def chained_skip(program):
    """A skip of a large flattened value: the kernel would make a unit matrix for it."""
    stem = program.units[0]
    values = prod(stem.shape)
    numbers = torch.ones(values, dtype=torch.int32)
    flat = Flatten("f", stem.name, (values,))
    skip = Unit("skip", (values,), (Branch("f", numbers),), numbers.clone(), 12, 1, 1.0, -5, 1)
    last = Branch("skip", torch.ones(values, dtype=torch.float64))
    result = replace(program.head, branches=(last,), shape=(values,), bias=torch.zeros(values, dtype=torch.float64))
    return replace(program, nodes=(stem, flat, skip), head=result)


def output(gain=None, shift=None):
    """The head's numbers, times a gain, plus a constant."""

    def edit(program):
        numbers = {"gain": gain, "shift": shift}
        gain_, shift_ = (None if n is None else torch.full((5,), n, dtype=torch.float64) for n in numbers.values())
        made = Output((5,), (Part(0, torch.arange(5, dtype=torch.int32), gain_),), shift_)
        return replace(program, readout=Readout((made,), 0))

    return edit


def resampled(weight: int):
    """The places of the pool's source, each times a weight."""

    def edit(program):
        pool = program.nodes[POOL_AT]
        shape = program.shapes[pool.source]
        axes = [AxisMap(torch.arange(n)[None].int(), torch.full((1, n), w, dtype=torch.int32), n)
                for n, w in zip(shape[1:], (weight, 1), strict=True)]  # fmt: skip
        nodes = list(program.nodes)
        nodes[POOL_AT : POOL_AT + 1] = [Resample("map", pool.source, PlaneMap(*axes), shape), replace(pool, source="map")]
        return replace(program, nodes=tuple(nodes))

    return edit


LARGE = random_program(["conv"], timesteps=3, size=48)

FORGERIES = {  # case 21, and others of its kind
    "fraction bits of 10^12": (unit(fraction_bits=10**12), "fraction_bits=1000000000000 must be an integer from 1 to 40"),
    "7 pools of 3×3 in a row": (pools(7, 3, 1), "positions that synapses read, more than the limit of 67108864"),
    "1,500 pools": (pools(1500, 1), "must be a list of 1 to 1024"),
    "900 pools in a row": (pools(900, 1), "902 pools in a row, more than the limit of 8"),
    "a padding of 4000": (branch(padding=(4000, 4000)), "padding.0=4000 must be an integer from 0 to 1024"),
    "a padding of 1024": (wide_padding(1024), "positions that synapses read, more than the limit of 67108864"),
    "levels of 2.5": (unit(levels=2.5), "levels=2.5 must be an integer"),
    "levels of True": (unit(levels=True), "levels=True must be an integer"),
    "strides in float": (branch(stride=(1.0, 1.0)), "stride.0=1.0 must be an integer"),
    "one stride": (branch(stride=(1,)), "stride=[1] must be a list of 2"),
    "a stride of 10^9": (branch(stride=(10**9, 1)), "stride.0=1000000000 must be"),
    "a dilation of -1": (branch(dilation=(-1, 1)), "dilation.0=-1 must be"),
    "groups of 0": (branch(groups=0), "groups=0 must be"),
    "a head without branches": (head(branches=()), "branches=[] must be a list of 1 to 4096"),
    "a head's shift of -1": (head_branch(shift=-1), "shift=-1 must be an integer from 0 to 62"),
    "a head's shift of 1": (head_branch(shift=1), "the head has a shift"),
    "a head of infinity": (head_branch(multiplier=torch.full((5,), torch.inf, dtype=torch.float64)), "that is not finite"),
    "a head in single precision": (head_branch(multiplier=torch.ones(5)), "where [5] of torch.float64 is wanted"),
    "a gain that is not a number": (output(gain=float("nan")), "an output has a gain or constant that is not finite"),
    "an infinite constant": (output(shift=float("inf")), "an output has a gain or constant that is not finite"),
    "a map with a weight of 2^15": (resampled(2**15), "map has a map with too large weights"),
    "a map with the one weight that abs() leaves negative": (resampled(-(2**31)), "map has a map with too large weights"),
    "a bound of 0": (unit(bound=0), "bound=0 must be an integer from 1"),
    "a bound of 1": (unit(bound=1), "has bound=1, but its numbers make"),
    "another retraction": (unit(retract=-6), "has retract=-6, but its height makes -5"),
    "a retraction upwards": (unit(retract=3), "retract=3 must be an integer from"),
    "a height of 0": (unit(height=0.0), "height=0.0 must be a finite number"),
    "a height of nothing": (unit(height=1e-30), "retract=-5, but its height makes"),
    "wide, with 32-bit numbers": (unit(wide=True), "where [8] of torch.int64 is wanted"),
    "wide as a number": (unit(wide=1), "wide=1 must be true or false"),
    "a negative multiplier": (branch(multiplier=torch.full((8,), -1, dtype=torch.int32)), "a negative multiplier"),
    "a bias in float": (unit(bias=torch.zeros(8)), "where [8] of torch.int32 is wanted"),
    "a bias that would be broadcast": (unit(bias=torch.zeros(1, dtype=torch.int32)), "has a [1] tensor of torch.int32"),
    "a weight in bool": (branch(weight=torch.ones(8, 8, 3, 3, dtype=torch.bool)), "has a wrong weight"),
    "an empty weight": (branch(weight=torch.ones(8, 0, 3, 3, dtype=torch.int8)), "has a wrong weight"),
    "a shape of 2": (unit(shape=(8, 6)), "has a wrong shape"),
    "T of 1,000": (lambda p: replace(p, timesteps=1000), "timesteps=1000 must be an integer from 1 to 255"),
    "more levels than T": (unit(levels=4), "has more levels than T"),
    "a name twice": (unit(name="stem"), "stem occurs twice"),
    "the name of the image": (unit(name="image"), "image occurs twice"),
    "a name of two lines": (unit(name="a\nb"), r"name=a\nb must be text"),
    "no nodes": (lambda p: replace(p, nodes=()), "nodes=[] must be a list of 1 to 1024"),
    "pixels of 31 bits": (lambda p: replace(p, pixels=replace(p.pixels, fraction_bits=31)), "fraction_bits=31 must be"),
    "an image of a mile": (lambda p: replace(p, pixels=replace(p.pixels, shape=(3, 10**6, 10**6))), "shape.1=1000000 must be"),
    "a table of floats": (
        lambda p: replace(p, pixels=replace(p.pixels, table=torch.zeros(2, 256))), "the pixel table has a [2, 256] tensor of",
    ),
    "a unit matrix": (lambda p: chained_skip(LARGE), "positions that synapses read, more than the limit of 67108864"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_file_that_asks_for_what_cannot_be_is_refused_at_once(tmp_path, name):
    change, said = FORGERIES[name]
    header, tensors = described(change(PROGRAM))
    path = forge(tmp_path / "a.safetensors", header | {"content_hash": ""}, {k: t.contiguous() for k, t in tensors.items()})
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        nbsnn.IntegerNetwork.load(path)
    assert time.perf_counter() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["levels of 2.5", "7 pools of 3×3 in a row", "a head without branches", "a padding of 1024"])
def test_a_program_built_in_python_meets_the_same_checks(name):
    change, said = FORGERIES[name]
    with pytest.raises(LoweringError, match="not a valid program: ") as caught:
        nbsnn.IntegerNetwork(change(PROGRAM))
    assert said in str(caught.value)


TENSORS = {
    "a missing tensor": (lambda h, t: t.pop("program.head.bias"), "the tensor program.head.bias is missing"),
    "a tensor too many": (lambda h, t: t.update(x=torch.ones(1)), "the tensor x is not used"),
    "a tensor used twice": (
        lambda h, t: h["program"]["nodes"][1].update(bias=h["program"]["nodes"][0]["bias"]),
        "the tensor program.nodes.1.bias is missing",
    ),
    "another class": (lambda h, t: h["program"]["nodes"][0].update({"class": "Head"}), "class=Head must be Unit or SumPool or"),
    "no class": (lambda h, t: h["program"]["nodes"][0].pop("class"), "class=None must be"),
    "an unknown field": (lambda h, t: h["program"]["nodes"][0].update(colour=1), "program.nodes.0.colour is unknown"),
    "no hash": (lambda h, t: h.pop("content_hash"), "content_hash is missing"),
    "a recipe of another kind": (lambda h, t: h.update(recipe=[1]), "recipe: recipe=[1]: must be a table"),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_a_file_whose_parts_do_not_belong_together_is_refused(tmp_path, name):
    change, said = TENSORS[name]
    header, tensors = described(PROGRAM)
    header["content_hash"] = ""
    change(header, tensors)
    with pytest.raises(CheckpointError) as caught:
        nbsnn.IntegerNetwork.load(forge(tmp_path / "a.safetensors", header, tensors))
    assert said in str(caught.value)


def test_the_random_programs_pass_and_come_back(tmp_path):
    for seed in range(4):
        program = random_program(["conv", "strided", "dilated", "grouped", "pooled", "wide", "int16"], timesteps=7, seed=seed)
        check_structure(program)
        check_numbers(program)
        save_program(tmp_path / "a.safetensors", program)
        pixels = random_pixels(program, 2)
        again = nbsnn.IntegerNetwork.load(tmp_path / "a.safetensors").program
        wanted = engine_torch.run_counts(program, pixels).accumulators
        assert all(torch.equal(a, b) for a, b in zip(wanted, engine_torch.run_counts(again, pixels).accumulators, strict=True))


def test_large_networks_are_far_from_the_limits():
    """The largest registered one is measured in `integer/work.py`; here the count itself, by hand."""
    stem = PROGRAM.units[0]
    small = replace(
        PROGRAM, nodes=(stem,), head=replace(PROGRAM.head, shape=(8, 6, 6), branches=(Branch(stem.name, torch.ones(8)),))
    )
    work = work_of(small)
    assert work == (2 * 9 * 8 * 36 + 8 * 36, 2 * 36 + 2 * 8 * 36, 36, 9 * 36 + 36, 2 * 9 * 36, 0)
    assert all(asked * 1000 < most for asked, most in zip(work[:5], LIMITS[:5], strict=True))


def test_what_passes_the_checks_runs_alike_on_both_engines():
    if native.why_not():
        pytest.skip(native.why_not())
    generator = torch.Generator().manual_seed(5)
    for seed in range(12):
        program = mutated(random_program(["conv", "pooled"], timesteps=3, seed=seed), generator)
        try:
            check_structure(program)
        except ValueError:
            continue
        pixels = random_pixels(program, 2)
        assert torch.equal(*(engine.run_counts(program, pixels).accumulators[0] for engine in (engine_torch, native)))


def mutated(program: Program, generator: torch.Generator) -> Program:
    """Another stride, padding, dilation or kernel somewhere, with the shapes after it left as they were."""

    def number(high: int) -> int:
        return int(torch.randint(0, high, (1,), generator=generator))

    node = program.units[number(len(program.units) - 1)]
    first, *others = node.branches
    key = ("stride", "padding", "dilation")[number(3)]
    return place(program, node, branches=(replace(first, **{key: (number(3), number(3))}), *others))
