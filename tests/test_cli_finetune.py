"""`nbsnn finetune` end to end on digits, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

import nbsnn
from nbsnn.cli import main
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import read_tensors

FEW = ["--limit-train", "40", "--held-out", "20", "--limit", "20"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized network that has seen no training, with the digits' recipe."""
    path = tmp_path_factory.mktemp("net") / "q.safetensors"
    torch.manual_seed(0)
    net = nbsnn.build_model("cifar10/resnet20", in_channels=1, image_size=8)
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(2, 2), images=torch.randn(32, 1, 8, 8)).eval()
    nbsnn.save_checkpoint(path, quantized, recipe=load_recipe("digits/resnet20"))
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What the verb prints on standard output."""
    capsys.readouterr()
    assert main(["finetune", *map(str, words)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("method", ["layerwise", "end-to-end", "calibrate"])
def test_each_method_writes_a_spiking_network_and_says_what_it_did(
    method: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ft.safetensors"
    text = run(
        capsys, checkpoint, "--method", method, *FEW, "--force", "--out", out, "--json", "--seed", 3, "--neuron", "signed"
    )
    figures = json.loads(text)
    assert figures["train_images"] == 40
    assert figures["held_out_images"] == figures["test"]["images"] == 20
    assert figures["settings"]["augment"] is False, "the digits' recipe says so"
    assert len(figures["held_out"]["changes"]) == {"layerwise": 18, "end-to-end": 1, "calibrate": 1}[method]
    header, tensors = read_tensors(out)
    assert header["form"] == "spiking"
    assert header["seed"] == 3
    assert header["metrics"]["finetuned_for"] == "signed fixed"
    assert header["metrics"]["top1"] == figures["test"]["after_top1"]
    assert header["metrics"]["source"] == str(checkpoint)
    source = read_tensors(checkpoint)[1]
    assert any(not torch.equal(tensors[key], source[key]) for key in source)
    assert main(["eval", str(out), "--limit", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(figures["test"]["after_top1"], abs=1e-3)


def test_the_table_shows_before_and_after(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, checkpoint, "--method", "end-to-end", "--calibrate-first", *FEW, "-n", 2, "--lr", 1e-3, "-b", 20)
    for expected in ("quantized", "spiking before", "spiking after", "seconds", "held-out, 20 images", "test, 20 images"):
        assert expected in text
    assert "of 3" in text


def test_the_change_lines_go_to_standard_error(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", str(checkpoint), "--method", "calibrate", *FEW, "--neuron", "unsigned", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["test"]["neuron"] == "unsigned"
    assert "biases: held-out spiking" in captured.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--method", "layer"], "method=layer: must be layerwise or"),
        (["--neuron", "sign"], "neuron=sign: must be signed or unsigned"),
        (["--epochs", "0"], "epochs=0: must be 1 or more"),
        (["--epochs", "many"], "'--epochs'"),
        (["--lr", "-1"], "lr=-1.0: must be"),
        (["--limit-train", "-1"], "'--limit-train'"),
        (["--held-out", "0"], "'--held-out'"),
        (["--data", "digit"], "unknown data set 'digit'"),
        (["--data", "cifar10", "--root", "nowhere"], "no cifar-10-batches-py folder"),
        (["--device", "gpu0"], "device=gpu0"),
    ],
)
def test_bad_options_give_one_line_and_code_2(
    words: list[str], expected: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", str(checkpoint), *words]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert expected in captured.err
    assert captured.out == ""


def test_only_a_quantized_checkpoint_is_taken(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantized = nbsnn.load_checkpoint(checkpoint)
    nbsnn.save_checkpoint(tmp_path / "s.safetensors", nbsnn.to_spiking(quantized, torch.zeros(1, 1, 8, 8)))
    for name, expected in (("s", "holds a spiking network"), ("none", "no such checkpoint file")):
        assert main(["finetune", str(tmp_path / f"{name}.safetensors")]) == 2
        assert expected in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["finetune", str(checkpoint), "--out", str(tmp_path / "file" / "ft.safetensors")]) == 2
    captured = capsys.readouterr()
    assert "file/ft.safetensors" in captured.err
    assert "held-out" not in captured.err
