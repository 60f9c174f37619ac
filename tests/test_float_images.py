"""The native backend rounds float images to the integers, and computes the logits, that torch's operations give."""

from dataclasses import replace

import pytest
import torch
from programs import random_program

import nbsnn
from nbsnn.integer.backends import library, native
from nbsnn.integer.nodes import IMAGE, Branch, Flatten, Head, Pixels
from nbsnn.integer.pixels import to_integers
from nbsnn.integer.program import Program

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason="no native extension")


def bare(*shape, low=-(2**23), high=2**23, fraction_bits=20):
    """A program whose sums are its pixels."""
    size = torch.Size(shape).numel()
    weight = torch.eye(size, dtype=torch.int8)
    head = Head((size,), (Branch("flat", torch.ones(size).double(), weight),), torch.zeros(size).double())
    return Program(3, Pixels(shape, fraction_bits, low, high), (Flatten("flat", IMAGE, (size,)),), head)


def rounded(program, images, **options):
    assert native.takes_floats(program, images)
    return native.run_counts(program, images, floats=True, **options).accumulators[0].view(images.shape)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 64])
def test_images_become_the_same_integers(size):
    program = bare(1, 1, size)
    numbers = torch.cat([torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 0.25, 0.75, 2**22 + 0.5, 2**23]), 1e6 * torch.randn(991)])
    numbers = torch.cat([numbers, numbers.nextafter(torch.tensor(9e9))])
    images = (numbers[: len(numbers) // size * size] / 2**20).clamp(-8, 8).view(-1, 1, 1, size)
    for target in native.targets():
        for threads in (1, 2):
            assert rounded(program, images, target=target, threads=threads).equal(to_integers(program.pixels, images).long())


def test_images_at_the_edges_of_the_grid():
    program = bare(1, 1, 5, low=-100, high=50)
    images = torch.tensor([-101, -100, 0, 50, 51]).view(1, 1, 1, 5) / 2**20
    for wrong in (52 / 2**20, -102 / 2**20, float("nan"), float("inf"), -float("inf")):
        for place in range(5):
            spoiled = images.repeat(9, 1, 1, 1)
            spoiled[7, ..., place] = wrong
            for part, threads in ((spoiled, 1), (spoiled, 2), (spoiled[7:8], 2)):
                with pytest.raises(nbsnn.LoweringError):
                    rounded(program, part, threads=threads)
        assert rounded(program, images).flatten().tolist() == [-100, -100, 0, 50, 50]


def test_other_tensors_are_left_to_torch():
    program = bare(2, 2, 3)
    images = torch.randn(2, 2, 2, 3)
    others = [images.double(), images.half(), images.transpose(1, 2), images.to(memory_format=torch.channels_last)]
    for other in (*others, images[:0], images[:, :1].contiguous(), images.to("meta"), images.to_sparse(), images.tolist()):
        assert not native.takes_floats(program, other)
    assert not native.takes_floats(bare(2, 2, 3, low=-(2**24)), images)
    assert not native.takes_floats(bare(2, 2, 3, fraction_bits=28, high=2**24 - 2**8), images)


def test_sums_become_the_same_logits():
    program = random_program(["conv"], timesteps=3)
    pixels = torch.randint(program.pixels.low, program.pixels.high + 1, (9, *program.pixels.shape), dtype=torch.int32)
    assert native.run_counts(program, pixels).result is None
    program = replace(program, head=replace(program.head, branches=program.head.branches[:1]))
    outcome = native.run_counts(program, pixels)
    assert outcome.result.equal(program.result(outcome.accumulators))
