"""One pass of the native extension has the bits of torch's operations."""

from dataclasses import replace

import pytest
import torch
from programs import random_program

import nbsnn
from nbsnn.integer import passes
from nbsnn.integer.backends import library
from nbsnn.integer.nodes import Pixels
from nbsnn.integer.pixels import to_integers

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason="no native extension")


@pytest.mark.parametrize("size", [1, 3, 4, 7, 64])
def test_images_become_the_same_integers(size):
    grid = Pixels((1, 1, size), 20, -(2**23), 2**23)
    numbers = torch.cat([torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 0.25, 0.75, 2**22 + 0.5, 2**23]), 1e6 * torch.randn(991)])
    numbers = torch.cat([numbers, numbers.nextafter(torch.tensor(9e9))])
    images = (numbers[: len(numbers) // size * size] / 2**20).clamp(-8, 8).view(-1, 1, 1, size)
    found = passes.rounded(grid, images, 1)
    assert found is not None
    assert found.is_contiguous()
    assert found.equal(to_integers(grid, images))


def test_images_at_the_edges_of_the_grid():
    grid = Pixels((1, 1, 5), 20, -100, 50)
    images = torch.tensor([-101, -100, 0, 50, 51]).view(1, 1, 1, 5) / 2**20
    assert to_integers(grid, images, native=True).flatten().tolist() == [-100, -100, 0, 50, 50]
    for wrong in (52 / 2**20, -102 / 2**20, float("nan"), float("inf"), -float("inf")):
        for place in range(5):
            spoiled = images.clone()
            spoiled[..., place] = wrong
            assert passes.rounded(grid, spoiled, 1) is None
            with pytest.raises(nbsnn.LoweringError):
                to_integers(grid, spoiled, native=True)


def test_other_tensors_are_left_to_torch():
    grid = Pixels((2, 2, 3), 20, -(2**23), 2**23)
    images = torch.randn(2, 2, 2, 3)
    for other in (images.double(), images.half(), images.transpose(2, 3), images.to(memory_format=torch.channels_last)):
        assert passes.rounded(grid, other, 1) is None
    assert to_integers(grid, images.to(memory_format=torch.channels_last), native=True).equal(to_integers(grid, images))


def test_sums_become_the_same_logits():
    program = random_program(["conv"], timesteps=3)
    head = replace(program.head, branches=program.head.branches[:1])
    sums = torch.randint(-(2**40), 2**40, (9, *head.shape))
    assert passes.logits_of(program, [sums, sums]) is None
    program = replace(program, head=head)
    found = passes.logits_of(program, [sums])
    assert found is not None
    assert found.equal(program.result([sums]))
