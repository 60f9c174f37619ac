"""Data sets and batches: splits that stay the same, and passes that can resume at any batch."""

import numpy as np
import pytest
import torch
from conftest import DATA

import nbsnn
from nbsnn.data import load_data
from nbsnn.data.images import Batches, ImageSet, split_validation
from nbsnn.data.pixels import crop_and_flip
from nbsnn.data.sets.cifar10 import CLASSES, MEAN, STD
from nbsnn.data.sets.digits import load_digits
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
    with pytest.raises(DataError, match="validation=-1: the training set has 1437 images"):
        load_digits(validation=-1)
    with pytest.raises(DataError, match="validation=5000: the training set has 1437 images; hold out fewer"):
        load_data(DataSpec("digits"))


def test_an_unknown_data_set_comes_with_close_matches():
    with pytest.raises(ConfigError, match=r"^unknown data set 'digit'; did you mean digits\?$"):
        load_data(DataSpec("digit"))


def test_without_validation_images_the_test_set_is_used():
    full, test = image_set(), image_set(5)
    splits = split_validation(full, test, 0)
    assert (len(splits.train), len(splits.validation)) == (23, 5)


# ---------------------------------------------------------------------------------------------------------- sets by hand

PIXELS, MARKS = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 1])
FIELDS = {"images": PIXELS, "labels": MARKS, "mean": (0.3,), "std": (0.4,), "classes": ("a", "b")}
MISFITS = {
    "images as floats": ({"images": PIXELS.float()}, "images is torch.float32 [3, 1, 4, 4]; give 8-bit pixels [N, C, H, W]"),
    "images without channels": ({"images": PIXELS[:, 0]}, "images is torch.uint8 [3, 4, 4]; give 8-bit pixels [N, C, H, W]"),
    "images in an array": ({"images": PIXELS.numpy()}, "images is a ndarray; give 8-bit pixels [N, C, H, W], a tensor"),
    "a label of 2": ({"labels": MARKS + 1}, "labels[1] is 2; give class numbers 0 to 1"),
    "a label of -1": ({"labels": MARKS - 1}, "labels[0] is -1; give class numbers 0 to 1"),
    "labels as floats": ({"labels": MARKS.float()}, "labels has type torch.float32; give class numbers, torch.int64"),
    "one-hot labels": ({"labels": torch.eye(2)[MARKS]}, "labels has type torch.float32; give class numbers, torch.int64: "),
    "a label too few": ({"labels": MARKS[:2]}, "labels has shape [2] for 3 images; give one class number for each, [3]"),
    "labels in a list": ({"labels": [0, 1, 1]}, "labels is a list of 3 ints; give a tensor [3] of class numbers"),
    "classes in a text": ({"classes": "ab"}, "classes is 'ab'; give the names of the classes, a tuple of texts"),
    "classes as numbers": ({"classes": (0, 1)}, "classes is (0, 1); give the names of the classes, a tuple of texts"),
    "a class twice": ({"classes": ("a", "a")}, "classes holds 'a' twice; give each class a different name"),
    "a mean too many": ({"mean": (0.3, 0.3)}, "mean=(0.3, 0.3): give 1 numbers, one for each channel"),
    "a mean that is none": ({"mean": (float("nan"),)}, "mean holds nan; give finite numbers"),
    "a mean in a text": ({"mean": "0"}, "mean='0': give 1 numbers, one for each channel"),
    "a deviation of zero": ({"std": (0.0,)}, "std holds 0.0; give positive finite numbers"),
    "a negative deviation": ({"std": (-1,)}, "std holds -1; give positive finite numbers"),
    "another padding": ({"padding": "white"}, "padding='white'; choose black or mirror"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_a_set_by_hand_is_checked_when_it_is_made(case):
    changes, line = MISFITS[case]
    with pytest.raises(ConfigError) as caught:
        nbsnn.ImageSet(**FIELDS | changes)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_are_not_normalized_twice():
    data = nbsnn.ImageSet(**FIELDS)
    with pytest.raises(ConfigError, match=r"^images to normalize have type torch.float32; give 8-bit pixels, torch.uint8$"):
        data.normalized(data.normalized())


def test_a_set_by_hand_takes_what_says_the_same():
    data = nbsnn.ImageSet(PIXELS, MARKS.to(torch.uint8), [0.3], [1], ["a", "b"])
    assert data.labels.dtype == torch.int64
    assert (data.mean, data.std, data.classes) == ((0.3,), (1.0,), ("a", "b"))
    assert len(data.take(slice(0, 0))) == 0


def test_splits_by_hand_hold_sets_of_one_kind():
    data = nbsnn.ImageSet(**FIELDS)
    assert nbsnn.Splits(data, data, data).test is data
    with pytest.raises(ConfigError, match=r"^Splits: test is a list; give an image set: nbsnn.ImageSet\("):
        nbsnn.Splits(data, data, [data])
    with pytest.raises(ConfigError, match=r"^Splits: validation is None; give an image set"):
        nbsnn.Splits(data, None, data)
    for field, value in {"classes": ("a", "c"), "mean": (0.5,), "images": PIXELS[..., 1:]}.items():
        with pytest.raises(ConfigError, match=r"^Splits: validation has \w+ .*, but train .*; make them equal$"):
            nbsnn.Splits(data, nbsnn.ImageSet(**FIELDS | {field: value}), data)
    for size in (0, 1.5, True):
        with pytest.raises(ConfigError, match=r"^Batches: batch_size=.*; give an integer from 1$"):
            nbsnn.Batches(data, size)
    with pytest.raises(ConfigError, match=r"^Batches: data is a Tensor; give an image set"):
        nbsnn.Batches(PIXELS, 2)


def test_load_data_takes_a_name_and_settings(tmp_path):
    assert len(nbsnn.load_data("digits").validation) == 180  # as many as suit the set
    assert len(nbsnn.load_data("digits", validation=50).validation) == 50
    assert nbsnn.load_data(DataSpec("digits", validation=7), padding="mirror").train.padding == "mirror"
    with pytest.raises(DataError, match=f"^{tmp_path}: no cifar-10-batches-py folder"):
        nbsnn.load_data("cifar10", root=tmp_path)
    with pytest.raises(ConfigError, match=r"^unknown key 'data.rot'; did you mean data.root, "):
        nbsnn.load_data("cifar10", rot=tmp_path)
    with pytest.raises(ConfigError, match=r"^data.validation=many: must be an integer$"):
        nbsnn.load_data("cifar10", validation="many")
    with pytest.raises(ConfigError, match=r"^data is a PosixPath; give a name, cifar10, digits, folder, image"):
        nbsnn.load_data(tmp_path)


# -------------------------------------------------------------------------------------------------------------- batches


def test_normalized_pixels_have_the_published_constants():
    data = ImageSet(torch.tensor([[[[0]], [[128]], [[255]]]], dtype=torch.uint8), torch.zeros(1).long(), MEAN, STD, CLASSES)
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
