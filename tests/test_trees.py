"""Trees of photographs: classes are matched by name, so that no label shifts; what does not count is named in one line."""

import json
import os
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

import nbsnn
from nbsnn.cli import main
from nbsnn.data.photos import Loading
from nbsnn.data.trees import load_tree
from nbsnn.errors import ConfigError, DataError

NAMES = ("cat", "dog", "eel")


def picture(path, level=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 12, 3), level, np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path):
    """Three classes, each of a brightness of its own, with three training and two validation images."""
    for part, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(NAMES):
            for index in range(count):
                picture(tmp_path / part / name / f"{index}.png", 60 + 60 * label)
    return tmp_path


def load(root, **settings):
    return load_tree(root, size=8, loading=Loading("torch", workers=0), **settings)


def labels_by_brightness(images):
    """Whether each image has the label that its brightness tells."""
    levels = images.pixels().float().mean((1, 2, 3))
    return ((levels - 60) / 60).round().long().equal(images.labels)


def test_hidden_files_and_folders_never_count(tree, caplog):
    """Case 9: `.ipynb_checkpoints` became class 0 and shifted all labels."""
    for part in ("train", "val"):
        for name in (".ipynb_checkpoints", "__MACOSX", ".cache", "@eaDir"):
            picture(tree / part / name / "0.png")
        for name in (".DS_Store", "Thumbs.db", "cat/.DS_Store", "cat/._0.png", "dog/desktop.ini", "eel/.hidden.png"):
            (tree / part / name).write_bytes(b"junk")
        picture(tree / part / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png")
    splits = load(tree)
    assert splits.train.classes == NAMES
    assert (len(splits.train), len(splits.test)) == (9, 6)
    assert labels_by_brightness(splits.train)
    assert labels_by_brightness(splits.test)
    assert caplog.messages == []


def test_a_class_that_val_lacks_shifts_no_label_and_is_named(tree, caplog):
    """Case 9: a validation tree that lacks a class."""
    for path in (tree / "val" / "cat").iterdir():
        path.unlink()
    for folder in ("left empty", "removed"):
        splits = load(tree)
        assert splits.test.classes == splits.train.classes == NAMES
        assert splits.test.labels.tolist() == [1, 1, 2, 2]
        assert caplog.messages == [f"{tree / 'val'}: no image of cat (1 of 3 classes)"], folder
        caplog.clear()
        if folder == "left empty":
            (tree / "val" / "cat").rmdir()


def test_what_does_not_count_is_named_in_one_line_for_each_part(tree, caplog):
    """Case 9: an empty class folder, images one level deeper, files beside class folders; links and pipes with them."""
    (tree / "train" / "ape").mkdir()
    picture(tree / "train" / "cat" / "more" / "0.png")
    (tree / "train" / "cat" / "notes.txt").write_text("")
    (tree / "train" / "readme.md").write_text("")
    (tree / "train" / "labels.csv").write_text("")
    os.mkfifo(tree / "train" / "dog" / "pipe.png")
    (tree / "train" / "dog" / "loop.png").symlink_to("loop.png")
    (tree / "train" / "dog" / "lost.png").symlink_to("nowhere.png")
    (tree / "train" / "loop").symlink_to("../train")
    splits = load(tree)
    assert splits.train.classes == NAMES
    assert splits.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert labels_by_brightness(splits.test)
    assert caplog.messages == [
        f"{tree / 'train'}: left out 2 files outside the class folders, such as labels.csv; left out 3 files not named as an "
        "image, such as cat/notes.txt; left out 3 pipe, device, socket or broken links instead of a file, such as "
        "dog/loop.png; left out 6 folders within the class folders, such as cat/more; left out 2 folders without an image, "
        "such as ape"
    ]


def test_a_class_that_is_empty_in_train_alone_stays_one(tree, caplog):
    for path in (tree / "train" / "cat").iterdir():
        path.unlink()
    splits = load(tree)
    assert splits.train.classes == NAMES
    assert splits.train.labels.unique().tolist() == [1, 2]
    assert labels_by_brightness(splits.test)
    assert caplog.messages == [f"{tree / 'train'}: no image of cat (1 of 3 classes)"]


def test_images_all_one_level_deeper_are_refused(tmp_path):
    picture(tmp_path / "val" / "imagenet" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"holds no image files \(.*\); left out 1 folder within the class folders, such as "):
        load(tmp_path)


def test_a_class_that_val_has_alone_is_refused_by_name(tree):
    (tree / "val" / "cat").rename(tree / "val" / "kitten")
    with pytest.raises(DataError) as caught:
        load(tree)
    assert str(caught.value) == (
        f"{tree / 'val'}: holds kitten, not among the classes of {tree / 'train'}, and lacks cat; rename or move those folders"
    )


def test_links_to_folders_and_files_count_as_what_they_lead_to(tree):
    (tree / "val" / "cat").rename(tree / "elsewhere")
    (tree / "val" / "cat").symlink_to(tree / "elsewhere")
    (tree / "val" / "cat" / "linked.png").symlink_to(tree / "elsewhere" / "0.png")
    splits = load(tree)
    assert splits.test.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert labels_by_brightness(splits.test)


def test_accents_are_compared_as_they_read(tree):
    names = {form: unicodedata.normalize(form, "café") for form in ("NFC", "NFD")}
    picture(tree / "train" / names["NFD"] / "0.png")
    picture(tree / "val" / names["NFC"] / "0.png")
    assert load(tree).test.classes == ("café", *NAMES)
    picture(tree / "val" / names["NFD"] / "0.png")
    with pytest.raises(DataError, match=r"val: two folders are called 'café' in different encodings; make them one$"):
        load(tree)


def test_names_that_differ_in_case_are_named(tree, caplog):
    picture(tree / "train" / "Cat" / "0.png")
    assert load(tree).train.classes == ("Cat", *NAMES)
    assert "folders whose names differ in case alone are classes of their own: Cat, cat" in caplog.text


def test_odd_names_stay_on_one_line(tree, caplog):
    picture(tree / "train" / "two\nlines" / "0.png")
    (tree / "train" / os.fsdecode(b"bytes\xff")).mkdir()
    load(tree)
    assert caplog.messages == [
        f"{tree / 'train'}: left out 1 folder without an image, such as bytes\\udcff",
        f"{tree / 'val'}: no image of two\\nlines (1 of 4 classes)",
    ]


# ------------------------------------------------------------------------------------- the classes of a trained network


def test_labels_are_places_among_the_classes_that_are_given(tree, caplog):
    names = ("eel", "bat", "dog", "cat")
    splits = load(tree, classes=names)
    assert splits.train.classes == names
    assert splits.test.labels.tolist() == [0, 0, 2, 2, 3, 3]
    assert caplog.messages == [f"{tree / part}: no image of bat (1 of 4 classes)" for part in ("train", "val")]
    with pytest.raises(DataError, match=r"train: holds cat, not among the network's classes, and lacks bat; rename or move"):
        load(tree, classes=names[:3])
    with pytest.raises(ConfigError, match=r"data.classes=\('cat', 'cat'\): must be names of classes, each once"):
        nbsnn.load_data("folder", root=tree, classes=("cat", "cat"))


def test_without_train_the_classes_are_those_of_val_and_a_line_says_so(tree, caplog):
    (tree / "train").rename(tree / "gone")
    assert load(tree).test.classes == NAMES
    assert caplog.messages == [f"{tree}: no train folder; labels are indices of the folders of val, wrong if it lacks a class"]
    caplog.clear()
    load(tree, classes=NAMES)
    assert caplog.messages == []


RECIPE = """
[model]
name = "cifar10/resnet20"
num_classes = 3
image_size = 8

[data]
name = "folder"
validation = 0
batch_size = 9
workers = 0
loader = "torch"
augment = false

[phase.32]
epochs = 8
lr = 0.05
"""


def test_a_tree_of_ones_own_is_trained_on_and_its_classes_travel(tree, tmp_path, capsys, caplog, monkeypatch):
    """Case 9, whole: train by the command line, then take classes away from the tree that is evaluated on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(RECIPE)
    train = ["train", "--recipe", "mine.toml", "--set", f"data.root={tree}", "--out", "run", "--device", "cpu"]
    assert main([*train, "--json"]) == 0
    best = "run/32bit/best.safetensors"
    trained = nbsnn.tensorfile.read_tensors(tmp_path / best)[0]["recipe"]["data"]
    assert trained["classes"] == list(NAMES)
    capsys.readouterr()

    def evaluate():
        assert main(["eval", best, "--json", "--device", "cpu"]) == 0
        return json.loads(capsys.readouterr().out)

    caplog.clear()
    assert evaluate()["images"] == 6
    assert caplog.messages == []
    (tree / "train").rename(tree / "moved")  # the classes are known without it
    for path in (*(tree / "val" / "cat").iterdir(), tree / "val" / "cat"):
        path.rmdir() if path.is_dir() else path.unlink()
    assert evaluate()["images"] == 4
    assert caplog.messages == [f"{tree / 'val'}: no image of cat (1 of 3 classes)"]
    (tree / "val" / "cat").mkdir()
    (tree / "val" / "dog").rename(tree / "val" / "hound")
    assert main(["eval", best]) == 2
    assert "val: holds hound, not among the network's classes, and lacks cat, dog;" in " ".join(capsys.readouterr().err.split())
    (tree / "moved").rename(tree / "train")
    (tree / "val" / "hound").rename(tree / "val" / "dog")
    (tree / "train" / "dog").rename(tree / "train" / "ant")
    (tree / "val" / "dog").rename(tree / "val" / "ant")
    assert main(train) == 2  # to go on would be to learn other labels
    assert "was trained with 3 classes, but the data are without dog and with ant;" in " ".join(capsys.readouterr().err.split())


def test_any_number_of_classes_is_trained_on_and_the_misfit_is_named(tree, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(RECIPE.replace("num_classes = 3", "num_classes = 2"))
    train = ["train", "--recipe", str(tmp_path / "mine.toml"), "--set", f"data.root={tree}", "--out", str(tmp_path / "run")]
    assert main(train) == 2
    line = "the network has 2 classes, but folder has 3; train one with model.num_classes=3, or choose other data"
    assert line in " ".join(capsys.readouterr().err.split())
    assert main([*train, "--set", "model.num_classes=3", "--set", "phase.32.epochs=1"]) == 0


def test_a_checkpoint_without_class_names_says_so(tree, tmp_path, caplog):
    nbsnn.save_checkpoint(tmp_path / "old.safetensors", nbsnn.build_model("cifar10/resnet20", num_classes=3))
    assert main(["eval", str(tmp_path / "old.safetensors"), "--data", "folder", "--root", str(tree), "--json"]) == 0
    assert caplog.messages == [f"the checkpoint does not name its classes; labels are indices of the class folders of {tree}"]


def test_class_names_change_no_recipe_hash():
    recipe = nbsnn.load_recipe("imagenet/alexnet")
    named = nbsnn.load_recipe("imagenet/alexnet", ["data.classes=cat,dog"])
    assert named.data.classes == ("cat", "dog")
    assert named.hash == recipe.hash


def test_classes_belong_to_trees_of_photographs():
    with pytest.raises(ConfigError, match=r"^data\.classes: the classes of digits are not read from folders; leave it out$"):
        nbsnn.load_data("digits", classes=("0",))


def test_classify_says_the_names_that_the_network_was_trained_with(tree, tmp_path, capsys):
    net = nbsnn.quantize(nbsnn.build_model("cifar10/resnet20", num_classes=3, image_size=8), nbsnn.QuantSpec(2, 2)).eval()
    recipe = nbsnn.load_recipe("imagenet/alexnet:lowbit", ["data.name=folder", "data.classes=x,y,z", "data.root=nowhere"])
    nbsnn.save_checkpoint(tmp_path / "net.safetensors", net, recipe=recipe)
    assert main(["classify", str(tmp_path / "net.safetensors"), str(tree / "val" / "cat" / "0.png"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert sorted(guess["name"] for guess in next(iter(said.values()))) == ["x", "y", "z"]


def test_dali_is_taken_for_trees_of_jpeg_files_alone(tree, monkeypatch, caplog):
    monkeypatch.setattr("nbsnn.data.dali.is_installed", lambda: True)
    assert load_tree(tree).train.loading.loader == "torch"  # auto: PNG files may be transparent
    assert load_tree(tree, loading=Loading("dali_cpu")).train.loading.loader == "dali_cpu"
    assert "is no JPEG file: of such, DALI leaves out transparency; Pillow does not (data.loader=torch)" in caplog.text
    picture(tree / "val" / "cat" / "2.gif")
    with pytest.raises(DataError, match=r"2\.gif: DALI does not read GIF files; let Pillow read them \(data.loader=torch\)$"):
        load_tree(tree, loading=Loading("dali"))
    (tree / "val" / "cat" / "2.gif").unlink()
    for path in tree.rglob("*.png"):
        path.rename(path.with_suffix(".jpg"))
    assert load_tree(tree).train.loading.loader == "auto"
    assert torch.equal(load(tree).train.labels, load_tree(tree).train.labels)


def test_a_val_folder_that_is_the_train_folder_is_named(tree, caplog):
    (tree / "val").rename(tree / "unused")
    (tree / "val").symlink_to("train")
    assert len(load(tree).test) == 9
    assert caplog.messages == [f"{tree}: train and val are the same folder: tested on training images"]


def test_classes_of_one_image_cannot_be_divided(tmp_path):
    for name in NAMES:
        picture(tmp_path / name / "0.png")
    with pytest.raises(DataError, match=r"no class has two images to divide; add images, or leave data.split out"):
        load(tmp_path, split=0.5)
    picture(tmp_path / "cat" / "1.png")
    assert load(tmp_path, split=0.5).test.labels.tolist() == [0]
