"""Exporters: the bundled ones by name, and one from outside, as docs/design.md tells to add one."""

import json

import pytest
import torch
from nets import digits_net

import nbsnn
from nbsnn.errors import ConfigError
from nbsnn.export import Exporter, export, register, registry
from nbsnn.files import write_text
from nbsnn.integer.network import IntegerNetwork

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def integer():
    return nbsnn.lower(digits_net().eval(), IMAGES[:1])


@pytest.fixture
def as_json(monkeypatch):
    """Neurons and thresholds of an integer network as JSON, for a chip that reads that."""

    def write(path, network, origin):
        units = [
            {"name": unit.name, "shape": unit.shape, "threshold": 2**unit.fraction_bits, "bias": unit.bias.tolist()}
            for unit in network.program.units
        ]
        write_text(path, json.dumps({"timesteps": network.timesteps, "units": units, "from": origin and origin["source"]}))

    monkeypatch.setattr(registry, "EXPORTERS", dict(registry.EXPORTERS))
    return register(Exporter("json", "a description in JSON", "integer", write, suffix=".json"))


def test_an_exporter_from_outside_writes_a_network_by_its_name(as_json, integer, tmp_path):
    file = tmp_path / "net.json"
    size = export(file, integer, "json", origin={"source": "best.safetensors"})
    written = json.loads(file.read_text())
    assert size == file.stat().st_size
    assert (written["timesteps"], written["from"]) == (15, "best.safetensors")
    assert [unit["name"] for unit in written["units"]] == [unit.name for unit in integer.program.units]
    assert written["units"][0]["bias"] == integer.program.units[0].bias.tolist()


def test_what_an_exporter_does_not_take_is_refused(as_json, integer, tmp_path):
    with pytest.raises(ConfigError, match=r"net.txt: a description in JSON is a .json file$"):
        export(tmp_path / "net.txt", integer, "json")
    with pytest.raises(
        ConfigError, match=r"is written from the integer form, and this network is quantized; see nbsnn\.lower$"
    ):
        export(tmp_path / "net.json", digits_net(), "json")
    with pytest.raises(ConfigError, match=r"^unknown exporter 'jsn'; did you mean json"):
        export(tmp_path / "net.json", integer, "jsn")
    with pytest.raises(ConfigError, match=r"^exporter 'packed' exists; choose another name$"):
        register(Exporter("packed", "a box", "quantized", print))
    assert list(tmp_path.iterdir()) == []


def test_the_bundled_exporters_write_what_the_package_reads(integer, tmp_path):
    quantized, file = digits_net().eval(), tmp_path / "packed.safetensors"
    assert export(file, quantized, "packed") == file.stat().st_size
    loaded = nbsnn.load_checkpoint(file, model=digits_net(quantized=False))
    assert torch.equal(loaded(IMAGES), quantized(IMAGES))
    export(tmp_path / "integer.safetensors", integer, "integer", origin={"source": "here"})
    read = IntegerNetwork.load(tmp_path / "integer.safetensors")
    assert read.program.origin == {"source": "here"}
    assert torch.equal(read.run(IMAGES), integer.run(IMAGES))
