"""Exporters: the bundled ones by name, and one from outside, as docs/design.md tells to add one."""

import json

import pytest
import torch
from nets import digits_net

import nbsnn
from nbsnn.cli import main
from nbsnn.errors import ConfigError
from nbsnn.export import Exporter, export, register, registry
from nbsnn.files import write_text
from nbsnn.integer.network import IntegerNetwork
from nbsnn.spiking.convert import to_quantized

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def integer():
    return nbsnn.lower(digits_net().eval(), IMAGES[:1])


@pytest.fixture
def as_json(monkeypatch):
    """Neurons and thresholds of an integer network as JSON, for a chip that reads that."""

    def write(path, network, options):
        origin = options.origin
        units = [
            {"name": unit.name, "shape": unit.shape, "threshold": 2**unit.fraction_bits, "bias": unit.bias.tolist()}
            for unit in network.program.units
        ]
        write_text(path, json.dumps({"timesteps": network.timesteps, "units": units, "from": origin and origin["source"]}))

    monkeypatch.setattr(registry, "EXPORTERS", dict(registry.EXPORTERS))
    return register(Exporter("outside", "a description in JSON", ("integer",), write, suffix=".json"))


def test_an_exporter_from_outside_writes_a_network_by_its_name(as_json, integer, tmp_path):
    file = tmp_path / "net.json"
    size = export(file, integer, "outside", origin={"source": "best.safetensors"})
    written = json.loads(file.read_text())
    assert size == file.stat().st_size
    assert (written["timesteps"], written["from"]) == (15, "best.safetensors")
    assert [unit["name"] for unit in written["units"]] == [unit.name for unit in integer.program.units]
    assert written["units"][0]["bias"] == integer.program.units[0].bias.tolist()


def test_what_an_exporter_does_not_take_is_refused(as_json, integer, tmp_path):
    with pytest.raises(ConfigError, match=r"net.txt: a description in JSON is a .json file; choose a name such as net.json$"):
        export(tmp_path / "net.txt", integer, "outside")
    with pytest.raises(ConfigError, match=r"from the integer form: give example=, such as images\[:1\], to convert the quanti"):
        export(tmp_path / "net.json", digits_net(), "outside")
    with pytest.raises(ConfigError, match=r"from the integer form, and this network is float; see nbsnn\.lower$"):
        export(tmp_path / "net.json", digits_net(quantized=False), "outside")
    with pytest.raises(ConfigError, match=r"^profile=small: a description in JSON is written in one way only"):
        export(tmp_path / "net.json", integer, "outside", profile="small")
    with pytest.raises(ConfigError, match=r"^unknown format 'outsde'; did you mean outside"):
        export(tmp_path / "net.json", integer, "outsde")
    with pytest.raises(ConfigError, match=r"^exporter 'packed' exists; choose another name$"):
        register(Exporter("packed", "a box", ("quantized",), print))
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


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A network of each form on [1, 8, 8] images, by form."""
    folder = tmp_path_factory.mktemp("forms")
    net = nbsnn.build_model("cifar10/resnet20", in_channels=1, image_size=8).eval()
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(2, 2)).eval()
    nbsnn.save_checkpoint(folder / "float.safetensors", net)
    nbsnn.save_checkpoint(folder / "quantized.safetensors", quantized)
    nbsnn.save_checkpoint(folder / "spiking.safetensors", nbsnn.to_spiking(quantized, IMAGES[:1], schedule="settle"))
    nbsnn.lower(quantized, IMAGES[:1], mean=(0.305,), std=(0.376,)).save(folder / "integer.safetensors")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def as_two_files(monkeypatch):
    """A format of two files and two profiles, whose target knows no padding."""

    def write(path, network, options):
        write_text(path, f"{options.profile} {network.timesteps} {options.origin['source']}")
        write_text(path.with_suffix(".log"), str(network.program.pixels.table is not None))

    def limits(network, options):
        return [f"{unit.name}: padding is written as zeros" for unit in network.program.units[:2]]

    monkeypatch.setattr(registry, "EXPORTERS", dict(registry.EXPORTERS))
    monkeypatch.setattr("nbsnn.export.EXPORTERS", registry.EXPORTERS)
    register(Exporter("two", "a pair of files", ("integer",), write, suffix=".txt", limits=limits,
                      files=lambda path: (path, path.with_suffix(".log")), profiles=("plain", "fancy")))  # fmt: skip
    register(Exporter("absent", "a file of absent", ("integer",), write, package="absent_package", extra="absent"))


@pytest.mark.parametrize("form", ["quantized", "spiking", "integer"])
def test_the_verb_takes_each_form_and_says_what_the_target_lacks(as_two_files, checkpoints, form, tmp_path, capsys):
    data = [] if form == "integer" else ["--data", "digits"]
    words = ["export", str(checkpoints[form]), "--format", "two", "--out", str(tmp_path / "net.txt"), *data]
    assert main([*words, "--profile", "fancy"]) == 0
    printed = capsys.readouterr()
    assert "stem.act: padding is written as zeros" in printed.err
    assert ("lowered to an integer network" in printed.err) == (form != "integer")
    assert ("took the quantized form" in printed.err) == (form == "spiking")
    assert (tmp_path / "net.txt").read_text() == f"fancy 3 {form}.safetensors"
    assert (tmp_path / "net.log").read_text() == "True"
    assert "net.log" in printed.out
    assert main(words) == 2
    assert f"{tmp_path / 'net.txt'}: exists; name another file, or set --overwrite" in " ".join(capsys.readouterr().err.split())
    assert main([*words, "--overwrite", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert [file["bytes"] for file in written["files"]] == [len(f"plain 3 {form}.safetensors"), 4]
    assert (written["profile"], len(written["limits"])) == ("plain", 2)


def test_the_verb_refuses_in_one_line_and_writes_nothing(as_two_files, checkpoints, tmp_path, capsys):
    out = tmp_path / "net.txt"
    own = checkpoints["integer"].parent / "copy.txt"
    own.write_bytes(checkpoints["integer"].read_bytes())
    for words, line in {
        ("quantized", "--format", "tow", "--out", out): "unknown format 'tow'; did you mean two?",
        (
            "quantized",
            "--format",
            "two",
            "--profile",
            "fancier",
            "--out",
            out,
        ): "unknown profile 'fancier'; did you mean fancy?",
        ("quantized", "--format", "two", "--out", tmp_path / "net.h"): "net.h: a pair of files is a .txt file",
        ("quantized", "--format", "two", "--out", own): "holds an integer network, which would be lost",
        ("float", "--format", "two", "--out", out): "this network is float; see nbsnn.lower",
        ("quantized", "--format", "absent", "--out", out): "needs the package absent_package: pip install 'nbsnn[absent]'",
        ("integer", "--format", "packed", "--out", tmp_path / "n.safetensors"): "name the network that it was lowered from",
    }.items():
        assert main(["export", str(checkpoints[words[0]]), *map(str, words[1:]), "--data", "digits", "--overwrite"]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert line in said
    assert list(tmp_path.iterdir()) == []


def test_a_spiking_network_is_quantized_again_bit_for_bit(checkpoints):
    quantized = nbsnn.load_checkpoint(checkpoints["quantized"])
    spiking = nbsnn.load_checkpoint(checkpoints["spiking"])
    again = to_quantized(spiking)
    assert torch.equal(again(IMAGES), quantized(IMAGES))
    assert again.state_dict().keys() == spiking.state_dict().keys()
