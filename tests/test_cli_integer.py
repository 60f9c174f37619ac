"""The verbs for integer networks, on a bundled network and bundled photographs."""

import json
import os
import subprocess
import sys

import pytest
import torch

import nbsnn
from nbsnn.cli import main
from nbsnn.data.sets.sample import load_sample
from nbsnn.pipeline import integer_form

NET = "zoo:cifar10/resnet20-w2a2"
SAMPLE = ["--data", "sample"]


@pytest.fixture(scope="module")
def lowered(tmp_path_factory):
    """The bundled 2-bit ResNet-20 as an integer network in a file."""
    path = tmp_path_factory.mktemp("lowered") / "r20.safetensors"
    assert main(["lower", NET, "--out", str(path), *SAMPLE, "--fidelity-images", "0"]) == 0
    return path


def output(capsys, *words):
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr().out


def refusal(capsys, *words):
    capsys.readouterr()
    assert main(list(words)) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_counts_of_a_trained_network_are_those_of_spikes_on_real_images(bits):
    quantized = nbsnn.load_checkpoint(f"zoo:cifar10/resnet20-w{bits}a{bits}")
    sample = load_sample().test
    network = integer_form(quantized, sample)
    images = sample.images[:4]
    wanted = network.simulate(images, keep_counts=True)
    for schedule in ("settle", "barrier"):
        result = network.simulate(images, engine="spikes", schedule=schedule, keep_counts=True)
        assert all(torch.equal(result.counts[name], count) for name, count in wanted.counts.items())
        assert torch.equal(result.logits, wanted.logits)
    fidelity = nbsnn.measure_integer_fidelity(quantized, network, sample.normalized(images), labels=sample.labels[:4])
    # Rounded multipliers decide near-ties otherwise; such differences start rare and grow with depth.
    assert all(layer.off < 0.1 for layer in fidelity.layers if layer.name.startswith(("stem", "stage1.0", "stage1.1")))
    assert fidelity.off < (2 if bits == 4 else 1)  # the 4-bit network has 1.25 on these images
    assert fidelity.agreement == 100
    assert fidelity.quantized_top1 == fidelity.spiking_top1


def test_lower_prints_every_unit_and_how_far_counts_are_off(capsys, tmp_path):
    words = ["lower", NET, "--out", str(tmp_path / "n.safetensors"), *SAMPLE, "--fidelity-images", "10"]
    text = output(capsys, *words)
    for expected in ("stage2.0.second.act", "int8 ±1 + int8 ±1", "int8 ±1 + skip", "min |M|", "of 31", "on 10 images"):
        assert expected in text
    result = json.loads(output(capsys, *words, "--json", "--float-weight-bits", "16"))
    assert result["timesteps"] == 3
    assert [unit["name"] for unit in result["units"]][::19] == ["stem.act", "head"]
    assert result["notes"] == []
    assert result["fidelity"]["agreement"] == 100
    assert repr(nbsnn.IntegerNetwork.load(result["file"])) == "IntegerNetwork(T=3, 19 units, depth 19, on cpu)"


def test_info_describes_a_lowered_file(lowered, capsys):
    text = output(capsys, "info", str(lowered))
    for expected in ("cifar10/resnet20, integer form, T = 3", "stem.act", "int8 ±127", "hash"):
        assert expected in text
    facts = json.loads(output(capsys, "info", str(lowered), "--json"))
    assert facts["form"] == "integer"
    assert len(facts["units"]) == 20
    assert "integer backend" in json.loads(output(capsys, "info", "--system", "--json"))


def test_eval_runs_engines_on_lowered_files_and_on_checkpoints(lowered, capsys):
    words = [*SAMPLE, "--limit", "6", "--json"]
    plain = json.loads(output(capsys, "eval", str(lowered), *words))
    assert plain["form"].startswith("integer, counts")
    assert plain["steps"] == 3
    for source in (str(lowered), NET):
        for backend in ("auto", "torch"):
            options = ["--engine", "spikes", "--schedule", "settle", "--neuron", "signed", "--backend", backend]
            report = json.loads(output(capsys, "eval", source, *options, *words))
            assert report["top1"] == plain["top1"]
            assert report["steps"] > 3
            assert report["form"].startswith("integer, spikes signed settle")
    assert "integer, spikes fixed" in output(capsys, "eval", NET, "--engine", "spikes", *words)


def test_bench_times_every_form_and_counts_what_spikes_cost(capsys):
    words = ["bench", NET, *SAMPLE, "--limit", "2", "--repeats", "1", "--batch-size", "1"]
    result = json.loads(output(capsys, *words, "--json"))
    speeds = {speed["name"]: speed for speed in result["speeds"]}
    assert list(speeds)[:3] == ["float", "quantized", "counts"]
    assert len(speeds) == 7
    assert speeds["float"]["ratio"] == 1
    assert all(speed["images_per_second"] > 0 for speed in speeds.values())
    barrier, settle = speeds["spikes, unsigned barrier"], speeds["spikes, signed settle"]
    assert barrier["spikes"] < settle["spikes"]
    assert barrier["steps"] == 60
    assert 100 < settle["additions"] / settle["spikes"] < 400
    for name, layers in result["layers"].items():
        assert len(layers) == 19
        assert sum(layer["additions"] for layer in layers) == pytest.approx(speeds[name]["additions"])
    text = output(capsys, *words, "--layers", "--split", "test")
    assert "stage3.2.second.act" in text
    assert "unsigned barrier" in text


def test_what_does_not_fit_is_refused_in_one_line(lowered, capsys, tmp_path):
    assert "--neuron and --schedule need spikes: add --engine spikes" in refusal(
        capsys, "eval", NET, *SAMPLE, "--schedule", "settle"
    )
    assert "unknown engine 'count'; did you mean counts?" in refusal(capsys, "eval", NET, *SAMPLE, "--engine", "count")
    assert "bench takes a quantized one" in refusal(capsys, "bench", str(lowered), *SAMPLE)
    assert "lower takes a quantized one" in refusal(capsys, "lower", str(lowered), "--out", "x.safetensors", *SAMPLE)
    assert "convert takes a quantized one" in refusal(capsys, "convert", str(lowered), *SAMPLE)
    said = refusal(capsys, "eval", "zoo:cifar10/resnet20-w2a2", "--backend", "torch", *SAMPLE)
    assert "--backend torch applies to integer networks: add --engine counts" in said
    nbsnn.save_checkpoint(tmp_path / "float.safetensors", nbsnn.build_model("cifar10/resnet20"))
    said = refusal(capsys, "eval", str(tmp_path / "float.safetensors"), *SAMPLE, "--engine", "counts")
    assert "--engine runs integer and quantized networks, and this is a float one" in said


SWITCHED_OFF = """
import json, sys, torch, nbsnn
from nbsnn.cli import main

network, images = nbsnn.IntegerNetwork.load(sys.argv[1]), torch.load(sys.argv[2])
result = network.simulate(images, engine="spikes", schedule="settle")
print(json.dumps({"backend": result.backend, "logits": result.logits.tolist(), "steps": result.steps.tolist()}))
sys.exit(main(["info", "--system"]))
"""


def test_without_the_native_engine_torch_gives_the_same_logits_and_says_why(lowered, tmp_path):
    images = load_sample().test.images[:2]
    torch.save(images, tmp_path / "images.pt")
    words = [sys.executable, "-c", SWITCHED_OFF, str(lowered), str(tmp_path / "images.pt")]
    environment = os.environ | {"NBSNN_NATIVE": "0", "OMP_NUM_THREADS": "1"}  # one thread: it is little work
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found, facts = done.stdout.split("\n", 1)
    wanted = nbsnn.IntegerNetwork.load(lowered).simulate(images, engine="spikes", schedule="settle")  # by what is here
    assert json.loads(found) == {"backend": "torch", "logits": wanted.logits.tolist(), "steps": wanted.steps.tolist()}
    assert "switched off by NBSNN_NATIVE=0" in " ".join(facts.split())


def test_help_teaches(capsys):
    for verb in ("lower", "bench"):
        assert "Example:" in output(capsys, verb, "--help")
