"""Files say whether they are whole: no bit of one can change unseen, and names that no file can have are one line."""

import argparse
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from nets import SmallNet, small_quantized

from nbsnn.checkpoint import describe, load_checkpoint, save_checkpoint
from nbsnn.errors import CheckpointError
from nbsnn.importers.reference import load_reference_checkpoint
from nbsnn.spiking.convert import to_spiking
from nbsnn.tensorfile import is_ours, read_state_dict, read_tensors, write_tensors

TENSORS = {
    "weight": torch.arange(12.0).view(3, 4), "steps": torch.tensor(7), "none": torch.zeros(0, 2),
    "half": torch.ones(3, dtype=torch.bfloat16), "codes": torch.arange(5, dtype=torch.uint8),
}  # fmt: skip
HEADER = describe(SmallNet(), metrics={"rate": 1e-05, "shape": (1, 2), "name": "naïve"})
SUFFIXES = pytest.mark.parametrize("suffix", [".safetensors", ".pth.tar"])


def refusal(read, *args, **options):
    with pytest.raises(CheckpointError) as caught:
        read(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@SUFFIXES
def test_any_flipped_bit_is_refused(tmp_path, suffix):
    """Case 18: in the header, in a tensor, in the padding, and in what the container keeps for itself."""
    path, damaged = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_tensors(path, TENSORS, HEADER)
    content = path.read_bytes()
    draws = random.Random(0)
    for place in draws.sample(range(len(content)), 400):
        altered = bytearray(content)
        altered[place] ^= 1 << draws.randrange(8)
        damaged.write_bytes(altered)
        refusal(read_tensors, damaged)
    assert set(read_tensors(path)[1]) == set(TENSORS)


@SUFFIXES
def test_every_bit_of_the_hash_and_of_its_key_counts(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_tensors(path, {"w": torch.ones(1)}, HEADER)
    content = path.read_bytes()
    start = content.index(b"content_hash")
    for place in range(start - 3, start + 20):
        for bit in range(8):
            altered = bytearray(content)
            altered[place] ^= 1 << bit
            path.write_bytes(altered)
            refusal(read_tensors, path)


@SUFFIXES
@pytest.mark.parametrize("form", ["float", "quantized", "spiking"])
def test_a_checkpoint_with_a_flipped_bit_in_a_tensor_is_refused(tmp_path, form, suffix):
    """Case 18."""
    quantized = small_quantized()
    net = {"float": SmallNet(), "quantized": quantized, "spiking": to_spiking(quantized, torch.zeros(1, 2, 6, 6))}[form]
    path = tmp_path / f"a{suffix}"
    save_checkpoint(path, net)
    weight = net.state_dict()["conv2.weight"].numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weight) + 40] ^= 4
    path.write_bytes(content)
    said = f"{path}: its content does not match its hash; it was altered or damaged, restore it from a copy"
    assert refusal(load_checkpoint, path, model=SmallNet()) == said
    if suffix == ".pth.tar":
        assert refusal(read_state_dict, path) == said


def test_what_was_appended_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, HEADER)
    path.write_bytes(path.read_bytes() + b"\0")
    refusal(read_tensors, path)


@SUFFIXES
def test_a_file_of_an_earlier_version_is_read_and_one_line_says_what_it_lacks(tmp_path, suffix, caplog):
    net, path = small_quantized(), tmp_path / f"old{suffix}"
    text = json.dumps(describe(net))
    if suffix == ".pth.tar":
        torch.save({"state_dict": net.state_dict(), "nbsnn": text}, path)
    else:
        safetensors.torch.save_file(net.state_dict(), path, {"nbsnn": text})
    for _ in range(2):
        twin = load_checkpoint(path, model=SmallNet())
    assert all(value.equal(twin.state_dict()[key]) for key, value in net.state_dict().items())
    said = f"{path}: from an earlier version of nbsnn, without a hash of its content; damage would not be detected"
    assert caplog.messages == [said]
    save_checkpoint(path, twin)  # the hash comes with saving
    assert "content_hash" in read_tensors(path)[0]
    assert caplog.messages == [said]


def test_a_stale_hash_is_not_written_again(tmp_path):
    write_tensors(tmp_path / "a.safetensors", TENSORS, HEADER)
    header, tensors = read_tensors(tmp_path / "a.safetensors")
    write_tensors(tmp_path / "b.safetensors", tensors | {"more": torch.ones(1)}, header)
    assert "more" in read_tensors(tmp_path / "b.safetensors")[1]


def test_torch_reads_a_sealed_file_like_any_other(tmp_path):
    write_tensors(tmp_path / "a.pth.tar", TENSORS, HEADER)
    for mmap in (False, True):
        content = torch.load(tmp_path / "a.pth.tar", weights_only=True, mmap=mmap)
        assert all(value.equal(content["state_dict"][key]) for key, value in TENSORS.items())


# ------------------------------------------------------------------------------------------------- what others keep beside


HARMLESS = {
    "accuracy": np.float64(91.5), "single": np.float32(0.5), "count": np.int64(3), "flag": np.bool_(True),
    "options": argparse.Namespace(lr=0.1, out=Path("result")),
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
def test_numbers_of_numpy_and_parsed_options_beside_the_tensors_are_read(tmp_path, legacy):
    """Case 17."""
    path = tmp_path / "a.pth.tar"
    torch.save({"state_dict": TENSORS, **HARMLESS}, path, _use_new_zipfile_serialization=not legacy)
    assert read_state_dict(path)["weight"].equal(TENSORS["weight"])
    assert not is_ours(path)


@pytest.mark.parametrize("name", ["core", "_core"])
def test_numbers_of_numpy_1_and_2_are_read(tmp_path, name):
    path = tmp_path / "a.pth.tar"
    torch.save({"state_dict": TENSORS, "best": np.float64(1)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"numpy._core.multiarray", f"numpy.{name}.multiarray".encode()))
    assert read_state_dict(path)["steps"] == 7


class Strange:
    pass


@pytest.mark.parametrize("legacy", [False, True])
def test_a_type_that_is_not_read_is_named(tmp_path, legacy):
    """Case 17."""
    path = tmp_path / "a.pth.tar"
    torch.save({"state_dict": TENSORS, "logger": Strange()}, path, _use_new_zipfile_serialization=not legacy)
    assert refusal(load_reference_checkpoint, path, "cifar10/resnet20", weight_bits=2, act_bits=2) == (
        f"{path}: holds {Strange.__module__}.Strange, which could execute code when it is read; if you trust its source, load "
        "it with torch.load(..., weights_only=False) and save its state_dict alone"
    )
    torch.save({"state_dict": torch.load(path, weights_only=False)["state_dict"]}, path)  # the remedy
    assert set(read_state_dict(path)) == set(TENSORS)


@pytest.mark.parametrize("state", [3, [1], {"a": 1}, None])
def test_a_state_dict_that_is_none_is_refused(tmp_path, state):
    path = tmp_path / "a.pth.tar"
    torch.save({"state_dict": state, "nbsnn": json.dumps(HEADER)}, path)
    refusal(read_tensors, path)
    torch.save({"state_dict": TENSORS, "nbsnn": 3}, path)
    refusal(read_tensors, path)


# ------------------------------------------------------------------------------------------- names, and what is no file


def test_a_folder_a_fifo_and_a_device_are_no_checkpoints(tmp_path):
    """Never a hang: nobody writes into the FIFO."""
    os.mkfifo(tmp_path / "fifo.safetensors")
    (tmp_path / "folder.pth.tar").mkdir()
    (tmp_path / "link.pth.tar").symlink_to(tmp_path / "fifo.safetensors")
    for name, kind in (("fifo.safetensors", "FIFO"), ("folder.pth.tar", "folder"), ("link.pth.tar", "FIFO")):
        path = tmp_path / name
        assert refusal(load_checkpoint, path) == f"{path}: is a {kind}, not a checkpoint file; name the file itself"
        assert refusal(save_checkpoint, path, SmallNet()) == f"cannot write {path}: it is a {kind}; choose another name"
    assert refusal(load_checkpoint, "/dev/full").startswith("/dev/full: is a device")
    assert refusal(save_checkpoint, "/dev/full", SmallNet()).startswith("cannot write /dev/full: it is a device")


def test_a_name_may_have_255_bytes_and_no_more(tmp_path):
    for name in ("a" * 243, "ü" * 121):
        save_checkpoint(tmp_path / f"{name}.safetensors", SmallNet())
        load_checkpoint(tmp_path / f"{name}.safetensors", model=SmallNet())
    path = tmp_path / ("a" * 300 + ".safetensors")
    assert refusal(save_checkpoint, path, SmallNet()) == f"cannot write {path}: File name too long; choose a shorter name"
    assert refusal(load_checkpoint, path) == f"{path}: cannot be read (File name too long); name another file"
    assert refusal(save_checkpoint, "a\0b.safetensors", SmallNet()).startswith(
        "cannot write 'a\\x00b.safetensors': no file name"
    )
    assert "cannot be read" in refusal(load_checkpoint, "a\0b.safetensors")


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    said = refusal(load_checkpoint, tmp_path / "file" / "a.safetensors")
    assert said == f"{tmp_path}/file/a.safetensors: no such checkpoint file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    said = refusal(save_checkpoint, tmp_path / "a.safetensors", SmallNet())
    assert said.endswith("Permission denied; choose another folder")


def test_a_rename_is_made_to_last_by_syncing_the_folder(tmp_path, monkeypatch):
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), sync(handle)))
    write_tensors(tmp_path / "a.safetensors", TENSORS, HEADER)
    assert synced == [(tmp_path / "a.safetensors").stat().st_ino, tmp_path.stat().st_ino]
