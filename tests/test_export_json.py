"""Networks as JSON: complete, valid by the schema, and run bit for bit by a reader that shares no code with the package."""

import importlib.util
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled import flat
from test_export_c import NETWORKS, made

import nbsnn
from nbsnn.cli import main
from nbsnn.integer.pixels import to_integers

READER = Path(__file__).parent.parent / "examples" / "run_json.py"


@pytest.fixture(scope="module")
def reader():
    """The example, as a module."""
    spec = importlib.util.spec_from_file_location("run_json", READER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_schema(description):
    """Compare with the JSON Schema, where the package for that is installed."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(resources.files("nbsnn.export").joinpath("network.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(description, schema)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_reader_in_numpy_gives_the_bits_and_counts_of_the_engine(name, reader, tmp_path):
    network, images = made(name)
    size = nbsnn.export_json(tmp_path / "net.json", network)
    assert size == sum(file.stat().st_size for file in tmp_path.iterdir())
    read = reader.Network(tmp_path / "net.json")
    wanted, counts = flat(network.run(images)), network.counts(images)
    for index, image in enumerate(to_integers(network.program.pixels, images).numpy()):
        outputs, seen = read.run(image)
        assert np.array_equal(np.concatenate([output.reshape(-1) for output in outputs]), wanted[index].numpy())
        assert seen.keys() == counts.keys()
        assert all(np.array_equal(seen[unit], count[index].numpy()) for unit, count in counts.items())


def test_the_reader_refuses_other_numbers(reader, tmp_path):
    nbsnn.export_json(tmp_path / "net.json", made("vectors")[0])
    data = bytearray((tmp_path / "net.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "net.bin").write_bytes(data)
    with pytest.raises(ValueError, match="binary file is damaged"):
        reader.Network(tmp_path / "net.json")


def test_a_bundled_network_on_photographs(reader, tmp_path, capsys):
    file = tmp_path / "resnet20.json"
    assert main(["export", "zoo:cifar10/resnet20-w2a2", "--format", "json", "--out", str(file)]) == 0
    description = json.loads(file.read_text())
    assert description["origin"]["source"] == "zoo:cifar10/resnet20-w2a2".rpartition("/")[2]
    assert description["nodes"][1]["branches"][0]["values"] == [-1, 0, 1]
    sample = nbsnn.load_data("sample").test
    pixels = sample.pixels(slice(0, 1))
    quantized = nbsnn.load_checkpoint("zoo:cifar10/resnet20-w2a2")
    network = nbsnn.lower(quantized, sample.normalized(pixels), mean=sample.mean, std=sample.std)
    (logits,), _ = reader.Network(file).run(pixels[0].numpy())
    assert torch.equal(torch.from_numpy(logits), network.run(pixels)[0])
    again = tmp_path / "again" / "resnet20.json"
    nbsnn.export_json(again, network)
    assert (tmp_path / "resnet20.bin").read_bytes() == again.with_suffix(".bin").read_bytes()
    assert {**json.loads(again.read_text()), "origin": description["origin"]} == description


@pytest.mark.parametrize("name", ["every branch", "bilinear", "a max pool after a concatenation", "several outputs"])
def test_the_files_follow_the_schema(name, tmp_path):
    nbsnn.export_json(tmp_path / "net.json", made(name)[0])
    description = json.loads((tmp_path / "net.json").read_text())
    check_schema(description)
    jsonschema = pytest.importorskip("jsonschema")
    description["nodes"][0]["speed"] = 1
    with pytest.raises(jsonschema.ValidationError):
        check_schema(description)
