"""CIFAR-10: the layout of the release, files from strangers, and the download."""

import hashlib
import os
import pickle
import struct
import tarfile
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import DATA

from nbsnn.data.download import fetch
from nbsnn.data.sets.cifar10 import CLASSES, MEAN, STD, load_cifar10
from nbsnn.errors import DataError

sample = np.load(DATA / "cifar10_q75_200.npz")
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


class Python2Pickler(pickle._Pickler):
    """Writes every string as the release does: as a byte string of Python 2."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_str(self, text):
        content = text.encode("latin1") if isinstance(text, str) else text
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_str


def release(path, *, style="python3"):
    """The layout of the release, with the sample's 200 images in place of 60,000."""
    folder = path / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, part in zip(BATCHES, np.array_split(np.arange(200), 6), strict=True):
        batch = {
            "batch_label": name,
            "labels": sample["labels"][part].tolist(),
            "data": sample["images"][part].reshape(-1, 3072),
        }
        with (folder / name).open("wb") as file:
            if style == "python3":
                pickle.dump(batch, file, protocol=4)
            else:
                Python2Pickler(file, protocol=2).dump(batch)
        if style == "python2":
            content = (folder / name).read_bytes().replace(b"numpy._core.", b"numpy.core.")
            assert b"numpy.core.multiarray" in content
            (folder / name).write_bytes(content)
    return folder


def archive(path, folder):
    def timeless(member):
        member.mtime = 0
        return member

    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=folder.name, filter=timeless)
    return path


def check(splits):
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [167 - 20, 20, 33]
    assert torch.equal(splits.test.images, torch.from_numpy(sample["images"][167:]))
    assert torch.equal(splits.test.labels, torch.from_numpy(sample["labels"][167:]))
    assert splits.train.classes == CLASSES
    assert (splits.train.mean, splits.train.std) == (MEAN, STD)


@pytest.mark.parametrize("style", ["python2", "python3"])
def test_a_folder_in_the_layout_of_the_release_is_read(tmp_path, style):
    folder = release(tmp_path, style=style)
    check(load_cifar10(tmp_path, validation=20))
    check(load_cifar10(str(folder), validation=20))


def test_the_archive_is_read_without_unpacking(tmp_path):
    folder = release(tmp_path / "elsewhere")
    archive(tmp_path / "cifar-10-python.tar.gz", folder)
    check(load_cifar10(tmp_path, validation=20))
    check(load_cifar10(tmp_path / "cifar-10-python.tar.gz", validation=20))
    assert not (tmp_path / "cifar-10-batches-py").exists()


def refusal(root):
    with pytest.raises(DataError) as caught:
        load_cifar10(root, validation=20)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_absent_data_set_is_refused_with_the_remedy(tmp_path):
    assert refusal(tmp_path) == (
        f"{tmp_path}: no cifar-10-batches-py folder and no cifar-10-python.tar.gz there; put one there, name the folder that "
        "holds it (root=FOLDER), or let it be downloaded (download=True)"
    )


def test_a_missing_batch_is_named(tmp_path):
    folder = release(tmp_path)
    (folder / "data_batch_3").unlink()
    assert refusal(tmp_path).startswith(f"{folder / 'data_batch_3'}: cannot be read")
    path = archive(tmp_path / "cifar-10-python.tar.gz", folder)
    assert refusal(path) == f"{path}: holds no data_batch_3; is it the python release of CIFAR-10?"


class Bomb:
    def __reduce__(self):
        return eval, ("__import__('os').mkdir('exploded')",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (release(tmp_path) / "data_batch_2").write_bytes(pickle.dumps({b"data": Bomb(), b"labels": []}))
    assert refusal(tmp_path).startswith(
        "data_batch_2: not a batch of the python release of CIFAR-10 (refused to load builtins.eval"
    )
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1]), pickle.dumps(7)])
def test_a_batch_of_another_kind_is_refused(tmp_path, content):
    (release(tmp_path) / "test_batch").write_bytes(content)
    assert refusal(tmp_path).startswith("test_batch: not a batch of the python release of CIFAR-10 (")


def batch(count=3, **changes):
    """A batch with some of its entries changed."""
    return {"data": np.zeros((count, 3072), np.uint8), "labels": [1] * count} | changes


def with_value(kind, value, at=(2, 7)):
    data = np.zeros((3, 3072), kind)
    data[at] = value
    return data


BAD = {
    "a label of 99": (batch(labels=[1, 2, 99]), "label 99 of image 2 is not one of 0 to 9"),
    "a label of -1": (batch(labels=[1, -1, 9]), "label -1 of image 1 is not one of 0 to 9"),
    "a label of 1.7": (batch(labels=[1.7, 1, 9]), "label 1.7 of image 0 is not one of 0 to 9"),
    "a label of 2.0": (batch(labels=[2.0, 1, 9]), "label 2.0 of image 0 is not one of 0 to 9"),
    "a label of True": (batch(labels=[1, True, 9]), "label True of image 1 is not one of 0 to 9"),
    "a label in quotes": (batch(labels=[1, 2, "3"]), "label '3' of image 2 is not one of 0 to 9"),
    "a label of None": (batch(labels=[1, 2, None]), "label None of image 2 is not one of 0 to 9"),
    "labels as floats": (batch(labels=np.array([1.0, 2.0, 3.0])), "label 1.0 of image 0 is not one of 0 to 9"),
    "labels in a table": (batch(labels=np.ones((3, 1), int)), "labels is a ndarray, not a list of numbers"),
    "labels in a text": (batch(labels="123"), "labels is a str, not a list of numbers"),
    "a pixel of 300": (batch(data=with_value(np.int16, 300)), "image 2 holds the pixel 300; pixels are integers"),
    "a pixel of -1": (batch(data=with_value(np.int8, -1)), "image 2 holds the pixel -1; pixels are integers"),
    "pixels as floats": (batch(data=with_value(np.float32, 0.5)), "data has type float32, image 0 holds "),
    "pixels as truths": (batch(data=with_value(bool, True)), "data has type bool, image 0 holds "),
    "pixels as objects": (batch(data=with_value(object, 300)), "holds an array of type object; pixels and labels are"),
    "pixels in lists": (batch(data=[[0] * 3072] * 3), "data is a list, not [N, 3072] pixels"),
    "images of another size": (batch(data=np.zeros((3, 5), np.uint8)), "data is an array of shape [3, 5], not [N, 3072]"),
    "images that are not flat": (batch(data=np.zeros((3, 3, 32, 32), np.uint8)), "data is an array of shape [3, 3, 32, 32]"),
    "a label too few": (batch(labels=[1, 2]), "holds 3 images and 2 labels"),
    "no image": (batch(0), "holds 0 images"),
    "the labels twice": (batch() | {b"labels": [9, 9, 9]}, "holds the key 'labels' twice"),
    "no labels": ({"data": 0}, "holds no 'labels', but 'data'"),
    "nothing": ({}, "holds no 'data', but nothing"),
    "a batch of CIFAR-100": (
        {"data": 0, "fine_labels": [3], "coarse_labels": [1]}, "holds fine_labels: a batch of CIFAR-100, where one of CIFAR-10"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", ["data_batch_4", "test_batch"])
def test_values_that_are_no_pixels_or_labels_are_refused_by_file_and_index(tmp_path, name, case):
    """Case 11."""
    content, line = BAD[case]
    (release(tmp_path) / name).write_bytes(pickle.dumps(content))
    said = refusal(tmp_path)
    assert said.startswith(f"{name}: {line}")
    assert said.endswith("; unpack or fetch the release again")


@pytest.mark.parametrize("packed", [False, True])
def test_a_release_whose_own_list_of_classes_is_another_is_refused(tmp_path, packed):
    folder = release(tmp_path)

    def load(names):
        (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names, b"num_vis": 3072}, protocol=2))
        return load_cifar10(archive(tmp_path / "cifar-10-python.tar.gz", folder) if packed else tmp_path, validation=20)

    check(load([name.encode() for name in CLASSES]))
    swapped = [b"automobile", b"airplane", *(name.encode() for name in CLASSES[2:])]
    with pytest.raises(DataError, match=r"^batches\.meta: label 0 is automobile, and not as in CIFAR-10 .*data\.name"):
        load(swapped)
    with pytest.raises(DataError, match=r"^batches\.meta: 9 labels, and not as in CIFAR-10"):
        load(list(CLASSES[:9]))
    with pytest.raises(DataError, match=r"^batches\.meta: not the list of label names of CIFAR-10 .*; unpack or fetch"):
        load(7)


def test_a_release_that_is_not_whole_is_named(tmp_path, caplog):
    release(tmp_path)
    load_cifar10(tmp_path, validation=20)
    assert caplog.messages == [f"CIFAR-10 has 50000 training and 10000 test images; {tmp_path} holds 167 and 33"]


def test_whole_numbers_of_another_width_are_the_same_pixels(tmp_path):
    """An array that some other program wrote is right where its values are."""
    folder = release(tmp_path)
    for dtype in (np.int64, ">i2", np.uint16):
        content = pickle.loads((folder / "test_batch").read_bytes())
        content |= {"data": content["data"].astype(dtype), "labels": np.array(content["labels"], np.int16)}
        (folder / "test_batch").write_bytes(pickle.dumps(content))
        check(load_cifar10(tmp_path, validation=20))


def test_an_array_that_the_file_only_claims_to_hold_is_refused(tmp_path):
    class Claim:
        def __reduce__(self):
            return np.ndarray, ((10**8, 3072), np.dtype(np.uint8))  # 300 GB, none of it written

    folder = release(tmp_path)
    array = pickle.dumps(np.zeros((3, 3072), np.uint8), protocol=5)
    for content in (
        pickle.dumps({"data": Claim(), "labels": [1]}),
        b"\x80\x05}r\xff\xff\xff\xff.",  # stored as number 4,294,967,295 of a list that would take 64 GB
        array.replace(b"\x96" + (9216).to_bytes(8, "little"), b"\x96" + (2**40).to_bytes(8, "little")),
        pickle.dumps(batch(), protocol=2).replace(b"u1", b"u8"),
        pickle.dumps(batch(), protocol=4).replace(b"u1", b"O8"),
    ):
        (folder / "test_batch").write_bytes(content)
        assert refusal(tmp_path).startswith("test_batch: ")


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_pickle_is_read(tmp_path, protocol):
    folder = release(tmp_path)
    content = pickle.loads((folder / "test_batch").read_bytes())
    for order in "CF":
        again = content | {"data": np.array(content["data"], order=order)}
        (folder / "test_batch").write_bytes(pickle.dumps(again, protocol=protocol))
        check(load_cifar10(tmp_path, validation=20))


@pytest.mark.parametrize("where", ["a batch", "the archive", "the archive by name"])
def test_a_pipe_is_named_and_never_waited_for(tmp_path, where):
    """Case 25: a pipe that nobody writes to would hang for ever."""
    if where == "a batch":
        path = release(tmp_path) / "data_batch_3"
        path.unlink()
    else:
        path = tmp_path / "cifar-10-python.tar.gz"
    os.mkfifo(path)
    said = refusal(path if where == "the archive by name" else tmp_path)
    assert said.startswith(f"{path}: cannot be read (it is a named pipe (FIFO)); ")


def test_an_archive_with_a_batch_twice_or_too_large_is_refused(tmp_path):
    folder = release(tmp_path / "elsewhere")
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname="a")
        tar.add(folder, arcname="b")
    assert refusal(path) == f"{path}: holds data_batch_1 twice; fetch it again"
    with tarfile.open(path, "w:gz") as tar:
        (folder / "large").write_bytes(b"")
        os.truncate(folder / "large", 2**28 + 1)
        tar.add(folder / "large", arcname="a/test_batch")
    assert refusal(path) == f"{path}: holds test_batch with 268,435,457 bytes; fetch it again"


@pytest.mark.parametrize("content", [b"", b"hello" * 200])
def test_an_archive_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: damaged archive (")


def test_a_truncated_archive_is_refused(tmp_path):
    path = archive(tmp_path / "cifar-10-python.tar.gz", release(tmp_path / "elsewhere"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(path).startswith(f"{path}: damaged archive (")


def test_an_archive_damaged_anywhere_is_refused(tmp_path):
    path = archive(tmp_path / "cifar-10-python.tar.gz", release(tmp_path / "elsewhere"))
    whole = path.read_bytes()
    for percent in range(2, 100, 3):
        content, at = bytearray(whole), len(whole) * percent // 100
        content[at : at + 50] = bytes(255 - b for b in content[at : at + 50])
        path.write_bytes(content)
        refusal(path)  # as a damaged archive, or as a batch that is none


# ---------------------------------------------------------------------------------------------------------------- fetch


def test_a_file_is_fetched_with_progress_and_checked(tmp_path):
    source, target, seen = tmp_path / "source", tmp_path / "sub" / "target", []
    source.write_bytes(bytes(600_000))
    md5 = hashlib.md5(bytes(600_000), usedforsecurity=False).hexdigest()
    fetch(source.as_uri(), target, md5=md5, progress=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == source.read_bytes()
    assert seen[-1] == (600_000, 600_000)
    assert len(seen) > 1


def test_a_wrong_sum_leaves_nothing_behind(tmp_path):
    (tmp_path / "source").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"MD5 sum [0-9a-f]{32} instead of 0{32}; try again, or fetch it by hand$"):
        fetch((tmp_path / "source").as_uri(), tmp_path / "sub" / "target", md5="0" * 32)
    assert list((tmp_path / "sub").iterdir()) == []


@pytest.mark.parametrize("url", ["file:///no/such/file", "http://127.0.0.1:9/closed"])
def test_an_unreachable_file_is_an_error_of_one_line(tmp_path, url):
    with pytest.raises(DataError, match=r"^.*: cannot be fetched \(.*\); put the archive at .*/target by hand$"):
        fetch(url, tmp_path / "target", md5="0" * 32)
    assert list(tmp_path.iterdir()) == []
