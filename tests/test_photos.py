"""Photographs: an ImageNet tree, what loaders make of it, one order for all, and files that are no images."""

import io
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import nbsnn
from nbsnn.cli import main
from nbsnn.data import load_data
from nbsnn.data.dali import is_installed
from nbsnn.data.decode import CROP_AREA, CROP_RATIO, center_crop, random_crop, random_rectangle
from nbsnn.data.images import Batches
from nbsnn.data.photos import Loading
from nbsnn.data.trees import load_tree
from nbsnn.distributed import World
from nbsnn.errors import DataError
from nbsnn.recipe import DataSpec

needs_dali = pytest.mark.skipif(not is_installed(), reason="nvidia-dali is not installed")
LOADERS = ["torch", pytest.param("dali_cpu", marks=needs_dali)]
SIZES = [(300, 260), (260, 391), (500, 333), (224, 224), (240, 601)]


def photograph(width, height, seed):
    """Smooth noise, as unlike a flat colour as a photograph is, as JPEG bytes."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Three classes with five training and four validation photographs each."""
    root = tmp_path_factory.mktemp("imagenet")
    for part, count in (("train", 5), ("val", 4)):
        for label, name in enumerate(("n01", "n02", "n03")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                seed = 100 * label + 10 * index + (part == "val")
                (folder / f"{name}_{index}.JPEG").write_bytes(photograph(*SIZES[index], seed))
    return root


def load(tree, loader="torch", **settings):
    return load_tree(tree, size=64, loading=Loading(loader, workers=0 if loader == "torch" else 1, **settings))


def damaged(tree, tmp_path, *, part="train"):
    """A copy of the tree with a text in the place of a photograph, and with one that is cut in half."""
    for path in tree.rglob("*.JPEG"):
        target = tmp_path / path.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / part / "n01" / "n01_1.JPEG").write_text("no image")
    cut = tmp_path / part / "n02" / "n02_2.JPEG"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    return tmp_path


def test_a_tree_becomes_sets_with_labels_by_class(tree):
    splits = load(tree)
    assert (len(splits.train), len(splits.test), splits.test.classes) == (15, 12, ("n01", "n02", "n03"))
    assert splits.test is splits.validation
    assert splits.train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert splits.train.shape == (3, 64, 64)
    held_out = load_tree(tree, validation=4)
    assert sorted([*held_out.train.paths, *held_out.validation.paths]) == sorted(splits.train.paths)
    assert len(held_out.validation) == 4
    spec = DataSpec("imagenet", str(tree), loader="torch", workers=0, validation=0)
    assert load_data(spec, size=32).test.shape == (3, 32, 32)


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_are_normalised_photographs_in_order(tree, loader):
    data = load(tree, loader).test
    images, labels = (torch.cat(parts) for parts in zip(*Batches(data, 5), strict=True))
    assert labels.equal(data.labels)
    assert images.shape == (12, 3, 64, 64)
    assert images.dtype == torch.float32
    assert float((images - data.normalized()).abs().mean()) < 0.02  # a level of 255 is 0.017
    assert sum(len(x) for x, _ in Batches(data.take(slice(2, 7)), 3)) == 5


@pytest.mark.parametrize("loader", LOADERS)
def test_training_batches_come_in_the_order_of_every_other_set(tree, loader):
    data = load(tree, loader).train

    def labels(**settings):
        return [y.tolist() for _, y in Batches(data, 4, shuffle=True, augment=True, **settings)]

    assert labels(epoch=1) == [y.tolist() for _, y in Batches(load(tree).train, 4, shuffle=True, epoch=1)]
    assert labels(epoch=1) != labels(epoch=2)
    later = [y.tolist() for _, y in Batches(data, 4, shuffle=True, augment=True, epoch=1).starting_at(2)]
    assert later == labels(epoch=1)[2:]
    halves = [labels(epoch=1, world=World(rank, 2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == labels(epoch=1)[:3]  # the last batch is not full


def test_crops_follow_from_seed_epoch_and_place_alone(tree):
    data = load(tree).train
    whole = [images for images, _ in Batches(data, 6, shuffle=True, augment=True, seed=3)]
    again = [images for images, _ in Batches(data, 6, shuffle=True, augment=True, seed=3).starting_at(1)]
    assert torch.equal(torch.cat(whole[1:]), torch.cat(again))
    halves = [list(Batches(data, 6, shuffle=True, augment=True, seed=3, world=World(rank, 2))) for rank in (0, 1)]
    assert torch.cat([images for parts in zip(*halves, strict=True) for images, _ in parts]).equal(torch.cat(whole[:2]))
    other = next(iter(Batches(data, 6, shuffle=True, augment=True, seed=4)))[0]
    assert not other.equal(whole[0])


def test_worker_processes_give_the_same_pixels(tree):
    alone = load(tree).train
    helped = load_tree(tree, size=64, loading=Loading("torch", workers=1)).train
    for first, second in zip(*(Batches(data, 8, shuffle=True, augment=True) for data in (alone, helped)), strict=True):
        assert first[0].equal(second[0])


def test_the_middle_is_cropped_after_the_shorter_side_is_resized(tree):
    for path in load(tree).test.paths:
        picture = Image.open(path).convert("RGB")
        scale = 73 / min(picture.size)
        whole = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BILINEAR)
        left, top = ((side - 64 + 1) // 2 for side in whole.size)
        expected = np.asarray(whole.crop((left, top, left + 64, top + 64))).astype(int)
        assert abs(center_crop(path, size=64).permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 2**32))
def test_random_rectangles_lie_inside_and_have_the_published_shapes(width, height, seed):
    left, top, right, bottom = random_rectangle(width, height, random.Random(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    if min(width, height) > 100 and w != h:  # rounding is small; not the square of last resort
        assert CROP_AREA[0] * 0.9 <= w * h / (width * height) <= CROP_AREA[1]
        assert CROP_RATIO[0] * 0.97 <= w / h <= CROP_RATIO[1] * 1.03


def test_half_of_the_random_crops_are_mirrored(tmp_path):
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    crops = [random_crop(str(tmp_path / "ramp.png"), size=16, seed=seed)[0].float() for seed in range(200)]
    mirrored = sum(float(crop[:, -1].mean()) < float(crop[:, 0].mean()) for crop in crops)
    assert abs(mirrored - 100) < 4 * math.sqrt(50)


@needs_dali
def test_both_loaders_see_the_same_photographs(tree):
    first, second = (
        torch.cat([x for x, _ in Batches(load_tree(tree, loading=Loading(name, workers=1)).test, 6)])
        for name in ("torch", "dali_cpu")
    )
    scale = 255 * torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    difference = ((first - second) * scale).abs()  # in levels of 255
    assert float(difference.mean()) < 0.6
    assert float(difference.max()) < 30
    torch.manual_seed(0)
    net = nbsnn.build_model("cifar10/resnet20").eval()  # any image size
    with torch.no_grad():
        logits = [net(torch.nn.functional.avg_pool2d(images, 4)) for images in (first, second)]
    assert float((logits[0] - logits[1]).abs().max()) < 0.02 * float(logits[0].abs().max())


@pytest.mark.parametrize("loader", LOADERS)
def test_files_that_are_no_images_are_named_and_left_out(tree, tmp_path, loader, caplog):
    data = load(damaged(tree, tmp_path, part="val"), loader).test
    labels = torch.cat([y for _, y in Batches(data, 4)])
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 4
    assert len(data.skipped) == 2
    assert sorted(record.getMessage().partition(": ")[0] for record in caplog.records) == [
        f"skipped {tmp_path / 'val' / 'n01' / 'n01_1.JPEG'}", f"skipped {tmp_path / 'val' / 'n02' / 'n02_2.JPEG'}"
    ]  # fmt: skip


@pytest.mark.parametrize("loader", LOADERS)
def test_in_training_another_photograph_takes_the_place_of_a_damaged_one(tree, tmp_path, loader):
    data = load(damaged(tree, tmp_path), loader).train
    batches = list(Batches(data, 5, shuffle=True, augment=True))
    assert [len(images) for images, _ in batches] == [5, 5, 5]
    assert len(data.skipped) == 2
    assert torch.cat([labels for _, labels in batches]).tolist() != data.labels.tolist()


@pytest.mark.parametrize("loader", LOADERS)
def test_damaged_files_are_refused_where_that_is_asked_for(tree, tmp_path, loader):
    data = load(damaged(tree, tmp_path), loader, on_corrupt="refuse").train
    with pytest.raises(DataError, match=r"n0._.\.JPEG: not an image .*; remove it, or set data.on_corrupt=skip$"):
        list(Batches(data, 15))


def test_files_not_named_as_images_are_counted(tree, tmp_path, caplog):
    root = damaged(tree, tmp_path)
    (root / "val" / "n01" / "notes.txt").write_text("")
    load(root)
    assert caplog.messages == [f"{root / 'val'}: left out 1 file not named as an image, such as n01/notes.txt"]


def test_trees_that_do_not_fit_are_refused(tree, tmp_path):
    with pytest.raises(DataError, match=r"val: no such folder; a tree of photographs is train/<class>/\*.jpg"):
        load_tree(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="holds no class folders"):
        load_tree(tmp_path)
    (tmp_path / "val" / "n09").mkdir()
    with pytest.raises(DataError, match="holds no image files"):
        load_tree(tmp_path)
    with pytest.raises(DataError, match="validation=15: the training set has 15 images"):
        load_tree(tree, validation=15)


def test_eval_reads_a_tree(tree, tmp_path, capsys):
    net = nbsnn.build_model("cifar10/resnet20", num_classes=3)
    nbsnn.save_checkpoint(tmp_path / "net.safetensors", net)
    assert (
        main(["eval", str(tmp_path / "net.safetensors"), "--data", "imagenet", "--root", str(tree), "-b", "5", "--json"]) == 0
    )
    assert '"images": 12' in capsys.readouterr().out


def test_classify_names_the_classes_of_a_tree(tree, tmp_path, capsys):
    net = nbsnn.quantize(nbsnn.build_model("cifar10/resnet20", num_classes=4, image_size=64), nbsnn.QuantSpec(2, 2)).eval()
    recipe = nbsnn.load_recipe("imagenet/alexnet:lowbit", [f"data.root={tree}"])
    nbsnn.save_checkpoint(tmp_path / "net.safetensors", net, recipe=recipe)
    photo = load(tree).test.paths[0]
    assert main(["classify", str(tmp_path / "net.safetensors"), photo, "--json"]) == 0
    said = capsys.readouterr().out
    assert all(f'"{name}"' in said for name in ("n01", "n02", "n03", "class 3"))


def test_some_of_a_tree_are_of_all_classes(tree):
    data = load(tree).test
    assert data.some(3).labels.tolist() == [0, 1, 2]
    assert data.some(0).paths == data.some(None).paths == data.some(99).paths == data.paths


@pytest.mark.parametrize("loader", LOADERS)
def test_a_training_batch_without_an_image_is_refused(tree, tmp_path, loader):
    root = damaged(tree, tmp_path)
    for path in (root / "train").rglob("*.JPEG"):
        path.write_text("no image")
    with pytest.raises(DataError, match=r"a training batch without an image: .* not an image that can be read"):
        list(Batches(load(root, loader).train, 5, shuffle=True, augment=True))
    with pytest.raises(DataError, match="none of 15 files is an image that can be read"):
        load(root, loader).train.pixels(slice(0, 1))


def test_the_next_image_takes_the_place_of_a_damaged_one_among_examples(tree, tmp_path):
    data = load(damaged(tree, tmp_path)).train
    first, second = data.pixels(slice(1, 3))
    assert first.equal(second)
    assert list(data.skipped) == [str(tmp_path / "train" / "n01" / "n01_1.JPEG")]


def test_a_data_set_that_does_not_fit_a_network_is_refused(tree, tmp_path, capsys):
    nbsnn.save_checkpoint(tmp_path / "few.safetensors", nbsnn.build_model("cifar10/resnet20", num_classes=2))
    where = ["--data", "imagenet", "--root", str(tree)]
    assert main(["eval", str(tmp_path / "few.safetensors"), *where]) == 2
    assert "the network has 2 classes, but imagenet has 3; train one with model.num_classes=3, or " in capsys.readouterr().err
    nbsnn.save_checkpoint(tmp_path / "plain.safetensors", nbsnn.build_model("cifar10/alexnet", image_size=16))
    assert main(["eval", str(tmp_path / "plain.safetensors"), "--data", "sample"]) == 2
    assert "the network takes images of 16 pixels, but sample has 32×32; choose other data" in capsys.readouterr().err
