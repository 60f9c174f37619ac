"""Checkpoints of every form come back bit for bit, are written whole or not at all, and never execute anything."""

import json
import os
import pickle

import pytest
import safetensors.torch
import torch
from forging import forge
from nets import SmallNet, random_quantized, small_quantized
from torch import nn

from nbsnn.checkpoint import form_of, load_checkpoint, save_checkpoint
from nbsnn.errors import CheckpointError, NbsnnError
from nbsnn.models import build_model
from nbsnn.quant.plans import read_plan
from nbsnn.quant.quantize import quantize, set_bits_
from nbsnn.recipe import QuantSpec
from nbsnn.recipes import load_recipe
from nbsnn.spiking.convert import to_spiking
from nbsnn.tensorfile import FORMAT_VERSION, is_ours, read_state_dict, read_tensors, write_tensors

IMAGES = torch.linspace(-2, 2, 3 * 2 * 36).view(3, 2, 6, 6)


def registered(form):
    net = build_model("cifar10/resnet20", num_classes=4, in_channels=2).eval()
    if form == "float":
        return net
    quantized = quantize(net, QuantSpec(3, 3, edge_range="max"), images=torch.randn(16, 2, 6, 6)).eval()
    set_bits_(quantized, weight_bits=2, act_bits=2, only=["stage2.*"])
    return quantized if form == "quantized" else to_spiking(quantized, IMAGES[:1], schedule="barrier")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth.tar"])
@pytest.mark.parametrize("form", ["float", "quantized", "spiking"])
def test_a_registered_network_comes_back_bit_for_bit(tmp_path, form, suffix):
    net = registered(form)
    path = tmp_path / f"net{suffix}"
    save_checkpoint(path, net)
    twin = load_checkpoint(path)
    with torch.no_grad():
        assert torch.equal(twin(IMAGES), net(IMAGES))
    assert form_of(twin) == form
    assert not twin.training
    assert read_plan(twin) == read_plan(net)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("form", ["float", "quantized", "spiking"])
def test_an_own_network_comes_back_with_its_float_form(tmp_path, form):
    source = SmallNet().eval()
    quantized = small_quantized(3, skip=("conv2",))
    net = {"float": source, "quantized": quantized, "spiking": to_spiking(quantized, IMAGES[:1], neuron="unsigned")}[form]
    save_checkpoint(tmp_path / "a.safetensors", net)
    fresh = SmallNet()
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    twin = load_checkpoint(str(tmp_path / "a.safetensors"), model=fresh)
    with torch.no_grad():
        assert torch.equal(twin(IMAGES), net(IMAGES))
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in before.items())
    with pytest.raises(CheckpointError, match=r"the network is not a registered one; pass its float form, load_checkpoint"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_double_precision_comes_back_as_such(tmp_path):
    net = registered("quantized").double()
    save_checkpoint(tmp_path / "a.safetensors", net)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(tmp_path / "a.safetensors")(IMAGES.double()), net(IMAGES.double()))


def test_the_header_says_what_it_is_and_where_it_came_from(tmp_path):
    recipe = load_recipe("digits/resnet20")
    save_checkpoint(tmp_path / "a.safetensors", registered("spiking"), recipe=recipe, metrics={"top1": 91.5})
    header, _ = read_tensors(tmp_path / "a.safetensors")
    assert header["format"] == FORMAT_VERSION
    assert header["form"] == "spiking"
    assert header["model"] == {"name": "cifar10/resnet20", "num_classes": 4, "in_channels": 2, "image_size": 32}
    assert header["plan"]["stem.conv"] == {"bits": 8, "edge_range": "max", "fixed": False}
    assert header["plan"]["stage2.0.first.act"] == {"bits": 2, "edge_range": None, "fixed": False}
    assert header["spiking"] == {"neuron": "unsigned", "schedule": "barrier", "image_shape": [2, 6, 6], "timesteps": 7}
    assert header["recipe_hash"] == recipe.hash
    assert header["recipe"]["model"]["name"] == "cifar10/resnet20"
    assert (header["seed"], header["metrics"]) == (recipe.seed, {"top1": 91.5})
    assert set(header["versions"]) == {"nbsnn", "torch"}


def test_state_dicts_of_the_quantized_and_the_spiking_form_are_interchangeable():
    quantized = random_quantized(0, ["chain", "projection"], [2])
    spiking = to_spiking(quantized, IMAGES[:1].double())
    other = random_quantized(1, ["chain", "projection"], [2])
    spiking.load_state_dict(other.state_dict())
    quantized.load_state_dict(spiking.state_dict())
    assert all(torch.equal(v, quantized.state_dict()[k]) for k, v in other.state_dict().items())


def test_a_torch_file_is_plain_tensors_with_a_state_dict(tmp_path):
    save_checkpoint(tmp_path / "a.pth.tar", small_quantized())
    content = torch.load(tmp_path / "a.pth.tar", weights_only=True)
    assert set(content["state_dict"]) == set(small_quantized().state_dict())
    assert is_ours(tmp_path / "a.pth.tar")
    torch.save({"state_dict": {"w": torch.ones(1)}, "epoch": 3}, tmp_path / "b.pth.tar")
    assert not is_ours(tmp_path / "b.pth.tar")
    assert list(read_state_dict(tmp_path / "b.pth.tar")) == ["w"]


# -------------------------------------------------------------------------------------------------- whole or not at all


@pytest.mark.parametrize("suffix", [".safetensors", ".pth.tar"])
@pytest.mark.parametrize("failing", ["os.replace", "os.fsync", "writer"])
def test_a_failing_write_leaves_the_old_file_intact(tmp_path, monkeypatch, suffix, failing):
    path, net = tmp_path / f"a{suffix}", small_quantized()
    save_checkpoint(path, net)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if failing == "writer":
        monkeypatch.setattr(*((safetensors.torch, "save_file") if suffix == ".safetensors" else (torch, "save")), fail)
    else:
        monkeypatch.setattr(os, failing.removeprefix("os."), fail)
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(path, small_quantized())
    assert str(caught.value) == f"cannot write {path}: No space left on device; free some space or choose another folder"
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CheckpointError, match=r"^cannot write .*/file/sub/a.safetensors: .*; a file has the name of its folder, choose"
    ):
        save_checkpoint(tmp_path / "file" / "sub" / "a.safetensors", SmallNet())


def test_layers_that_share_a_tensor_are_saved_too(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    save_checkpoint(tmp_path / "a.safetensors", net)
    twin = load_checkpoint(tmp_path / "a.safetensors", model=net)
    assert torch.equal(twin[2].weight, net[0].weight)


# ------------------------------------------------------------------------------------------------------- damaged, foreign


def refusal(path, **options):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth.tar"])
@pytest.mark.parametrize("keep", [0, 1, 7, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, suffix, keep):
    path = tmp_path / f"a{suffix}"
    save_checkpoint(path, small_quantized())
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    assert "damaged" in refusal(path, model=SmallNet())


def test_an_altered_length_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, small_quantized())
    content = bytearray(path.read_bytes())
    content[3] ^= 0x40
    path.write_bytes(content)
    assert "damaged" in refusal(path, model=SmallNet())


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth.tar"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02garbage", b"PK\x03\x04" + bytes(60), bytes(200)])
def test_a_file_of_another_program_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert "damaged" in refusal(tmp_path / name)


@pytest.mark.parametrize("header", ["not json", "[]", "{}", json.dumps({"format": "one"})])
def test_a_header_that_makes_no_sense_is_refused(tmp_path, header):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w": torch.ones(1)}, path, {"nbsnn": header})
    refusal(path)


def test_a_file_without_our_header_points_to_the_reference_loader(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w": torch.ones(1)}, path)
    said = f"{path}: holds no nbsnn header; for a file of the authors' code call nbsnn.load_reference_checkpoint"
    assert refusal(path) == said
    torch.save({"state_dict": {}}, tmp_path / "b.pth.tar")
    assert "holds no nbsnn header" in refusal(tmp_path / "b.pth.tar")
    torch.save([1, 2], tmp_path / "c.pth.tar")
    assert refusal(tmp_path / "c.pth.tar") == f"{tmp_path / 'c.pth.tar'}: holds a list, not a dictionary of tensors"


def test_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    forge(path, {"format": FORMAT_VERSION + 1, "colour": "unknown today"}, {"w": torch.ones(1)})
    assert refusal(path) == f"{path}: format 2 is newer than this package's 1; upgrade nbsnn"


def test_a_missing_file_is_refused(tmp_path):
    assert refusal(tmp_path / "no.safetensors") == f"{tmp_path / 'no.safetensors'}: no such checkpoint file"


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pth.tar").write_bytes(pickle.dumps({"state_dict": Bomb()}, protocol=2))
    torch.save({"state_dict": Bomb()}, tmp_path / "b.pth.tar")
    for name in ("a.pth.tar", "b.pth.tar"):
        assert "holds posix.mkdir, which could execute code when it is read" in refusal(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_keys_that_do_not_fit_are_each_named(tmp_path):
    net, path = SmallNet(), tmp_path / "a.safetensors"
    save_checkpoint(path, net)
    header, tensors = read_tensors(path)
    tensors["extra.weight"] = tensors.pop("head.bias")
    tensors["conv1.bias"] = torch.zeros(9)
    write_tensors(path, tensors, header)
    assert refusal(path, model=SmallNet()) == (
        f"{path} does not fit the network: missing head.bias; not expected extra.weight; "
        "conv1.bias has shape [9] instead of [5]"
    )


def test_another_network_than_the_saved_one_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", small_quantized())
    other = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(NbsnnError, match=r"act1|conv1"):
        load_checkpoint(tmp_path / "a.safetensors", model=other)


def test_a_checkpoint_loaded_into_another_network_is_refused_by_layer(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", small_quantized())
    with pytest.raises(CheckpointError, match=r"a.safetensors does not fit the network: unknown layer"):
        load_checkpoint(tmp_path / "a.safetensors", model=nn.Sequential(nn.Linear(2, 2)))


def test_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "other").touch()
    for name in ("a.safetensors", "a.pth.tar"):
        save_checkpoint(tmp_path / name, small_quantized())
        assert (tmp_path / name).stat().st_mode == (tmp_path / "other").stat().st_mode
