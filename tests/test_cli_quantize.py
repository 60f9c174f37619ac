"""`nbsnn quantize`: a float network, own or registered, becomes a quantized checkpoint that knows its images."""

import json

import pytest
import torch
from own_project import CLASSES, make_project

import nbsnn
from nbsnn.cli import main
from nbsnn.models.own import own_network
from nbsnn.tensorfile import read_tensors


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = make_project(tmp_path_factory.mktemp("quantize"))
    network = own_network("model:net", folder=folder)
    torch.save(network.state_dict(), folder / "float.pt")
    return folder


def test_a_state_dict_is_quantized_and_later_verbs_know_the_images(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    words = ["quantize", "--model", "model:net", "--state", "float.pt", "--data", "recipe.toml", "--out", "q.safetensors"]
    assert main([*words, "-w", "3", "-a", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["calibration_images"] == 27
    header, _ = read_tensors(project / "q.safetensors")
    assert header["form"] == "quantized"
    assert header["model"] == {"name": "model:net", "args": {}}
    assert tuple(header["recipe"]["data"]["classes"]) == CLASSES
    assert {entry["bits"] for name, entry in header["plan"].items() if "format" not in entry} >= {2}
    assert main(["convert", "q.safetensors", "--model", "model:net", "--schedule", "settle", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["off"] == 0
    assert main(["quantize", "q.safetensors", "--model", "model:net", "--out", "r.safetensors"]) == 2
    assert "q.safetensors is quantized already; for fewer bits, train it" in capsys.readouterr().err
    assert main([*words, "-w", "9", "--overwrite"]) == 2
    assert "weight_bits" in capsys.readouterr().err.replace("--weight-bits", "weight_bits")


def test_a_float_checkpoint_is_quantized(tmp_path, capsys):
    net = nbsnn.build_model("cifar10/resnet20", in_channels=1, image_size=8)
    nbsnn.save_checkpoint(tmp_path / "f.safetensors", net)
    words = ["quantize", str(tmp_path / "f.safetensors"), "--data", "digits", "--images", "64", "--limit", "20"]
    assert main([*words, "--out", str(tmp_path / "q.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["act_bits"] == 4
    assert nbsnn.checkpoint.form_of(nbsnn.load_checkpoint(tmp_path / "q.safetensors")) == "quantized"
