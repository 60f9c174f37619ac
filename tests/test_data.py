"""Data sets and batches: splits that stay the same, and passes that can resume at any batch."""

import numpy as np
import pytest
import torch
from conftest import DATA

from nbsnn.data import load_data
from nbsnn.data.cifar10 import CLASSES, MEAN, STD
from nbsnn.data.digits import load_digits
from nbsnn.data.images import Batches, ImageSet, crop_and_flip, split_validation
from nbsnn.errors import ConfigError, DataError
from nbsnn.recipe import DataSpec

sample = np.load(DATA / "cifar10_q75_200.npz")


def image_set(count=23, channels=1, size=8):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % 10, (0.3,) * channels, (0.4,) * channels, tuple("0123456789"))


# -------------------------------------------------------------------------------------------------------------- digits


def test_digits_splits_have_their_sizes_and_share_no_image():
    splits = load_digits()
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [1797 - 360 - 180, 180, 360]
    rows = [{bytes(image.numpy().tobytes()) for image in s.images} for s in (splits.train, splits.validation, splits.test)]
    assert len(rows[0] & rows[1]) + len(rows[0] & rows[2]) + len(rows[1] & rows[2]) <= 2  # the set repeats a few itself
    assert splits.train.images.shape[1:] == (1, 8, 8)
    assert splits.train.images.dtype == torch.uint8
    assert len(splits.test.labels.unique()) == 10


def test_digits_are_the_same_at_every_call():
    first, second = load_digits(validation=50), load_data(DataSpec("digits", validation=50))
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.validation.labels, second.validation.labels)
    assert torch.equal(first.test.images, load_digits().test.images)  # whatever is held out of training


def test_digits_are_normalized_to_mean_zero_and_deviation_one():
    x = load_digits().train.normalized()
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.std()) - 1) < 0.02


def test_more_validation_images_than_there_are_is_refused():
    with pytest.raises(DataError, match="validation=5000: the training set has 1437 images; hold out fewer"):
        load_data(DataSpec("digits"))


def test_an_unknown_data_set_comes_with_close_matches():
    with pytest.raises(ConfigError, match=r"^unknown data set 'digit'; did you mean digits\?$"):
        load_data(DataSpec("digit"))


def test_without_validation_images_the_test_set_stands_in():
    full, test = image_set(), image_set(5)
    splits = split_validation(full, test, 0)
    assert (len(splits.train), len(splits.validation)) == (23, 5)


# -------------------------------------------------------------------------------------------------------------- batches


def test_normalized_pixels_have_the_published_constants():
    data = ImageSet(torch.tensor([[[[0]], [[128]], [[255]]]], dtype=torch.uint8), torch.zeros(1), MEAN, STD, CLASSES)
    expected = [(p / 255 - m) / s for p, m, s in zip((0, 128, 255), MEAN, STD, strict=True)]
    assert data.normalized().dtype == torch.float32
    assert data.normalized().flatten().tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("first", [0, 1, 3])
def test_a_pass_that_resumes_at_a_batch_sees_the_same_rest(first):
    batches = Batches(image_set(), 5, shuffle=True, augment=True, seed=3, epoch=2)
    whole = list(batches)
    rest = list(batches.starting_at(first))
    assert len(rest) == len(whole) - first
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(whole[first:], rest, strict=True))


def test_the_order_depends_on_seed_and_epoch_alone():
    def labels(**key):
        return torch.cat([labels for _, labels in Batches(image_set(), 5, shuffle=True, **key)]).tolist()

    assert labels(seed=1, epoch=1) == labels(seed=1, epoch=1)
    assert len({tuple(labels(seed=s, epoch=e)) for s in (0, 1) for e in (0, 1, 2)}) == 6
    assert sorted(labels()) == sorted((torch.arange(23) % 10).tolist())


def test_without_shuffling_the_order_stays():
    assert torch.cat([labels for _, labels in Batches(image_set(), 7)]).tolist() == (torch.arange(23) % 10).tolist()


def test_a_last_batch_of_one_is_dropped_in_training_only():
    sizes = {shuffle: [len(x) for x, _ in Batches(image_set(21), 5, shuffle=shuffle)] for shuffle in (True, False)}
    assert sizes == {True: [5] * 4, False: [5] * 4 + [1]}
    assert [len(Batches(image_set(21), 5, shuffle=s)) for s in (True, False)] == [4, 5]
    assert [len(x) for x, _ in Batches(image_set(22), 5, shuffle=True)] == [5] * 4 + [2]


@pytest.mark.parametrize(("padding", "mode"), [("black", "constant"), ("mirror", "reflect")])
def test_crop_and_flip_equals_a_slow_loop(padding, mode):
    images = torch.from_numpy(sample["images"][:12])
    ours = crop_and_flip(images, torch.Generator().manual_seed(4), padding)
    generator = torch.Generator().manual_seed(4)
    top, left = torch.randint(0, 9, (2, 12, 1), generator=generator)
    flip = torch.rand(12, 1, generator=generator) < 0.5
    for image, out, row, column, mirrored in zip(images, ours, top, left, flip, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)), mode)
        crop = padded[:, int(row) : int(row) + 32, int(column) : int(column) + 32]
        assert np.array_equal(out.numpy(), crop[:, :, ::-1] if mirrored else crop)
    assert 0 < int(flip.sum()) < 12
    assert ours.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(sample["images"][:12]))


def test_the_recipe_says_what_crops_show_beyond_the_border():
    by_name = {padding: load_data(DataSpec("digits", validation=180, padding=padding)).train for padding in ("black", "mirror")}
    seen = [next(iter(Batches(by_name[padding], 64, augment=True, seed=1)))[0] for padding in by_name]
    assert by_name["mirror"].padding == "mirror"
    assert not torch.equal(*seen)


def test_the_sample_of_real_images_is_balanced():
    assert sample["images"].shape == (200, 3, 32, 32)
    assert np.bincount(sample["labels"]).tolist() == [20] * 10
    assert sample["labels"][:10].tolist() == list(range(10))
