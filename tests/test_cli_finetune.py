"""`nbsnn finetune` and its benchmark end to end on digits, and what they refuse."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetune as benchmark
import measure
import pytest
import sections
import torch

import nbsnn
from nbsnn import console
from nbsnn.cli import main
from nbsnn.data.sets.digits import load_digits
from nbsnn.errors import ConfigError
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import read_tensors
from nbsnn.training.finetune import FinetuneResult
from nbsnn.training.finetune_spec import START, Change, FinetuneSpec

FEW = ["--limit-train", "16", "--held-out", "8", "--limit", "6"]


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
    assert figures["train_images"] == 16
    assert (figures["held_out_images"], figures["test"]["images"]) == (8, 6)
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
    assert main(["eval", str(out), "--limit", "6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(figures["test"]["after_top1"], abs=1e-3)


def test_the_table_shows_before_and_after(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, checkpoint, "--method", "end-to-end", "--calibrate-first", *FEW, "-n", 2, "--lr", 1e-3, "-b", 8)
    for expected in ("quantized", "spiking before", "spiking after", "seconds", "held-out, 8 images", "test, 6 images"):
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
        (["--method", "layer"], "--method layer: must be layerwise or"),
        (["--neuron", "sign"], "--neuron sign: must be signed or unsigned"),
        (["--epochs", "0"], "--epochs 0: must be 1 or more"),
        (["--epochs", "many"], "--epochs many: "),
        (["--lr", "-1"], "--lr -1.0: must be"),
        (["--distillation", "0.3"], "--distillation 0.3: must be left out with --method layerwise"),
        (["--method", "calibrate", "--calibrate-first"], "--calibrate-first: must be left out with --method calibrate"),
        (["--method", "calibrate", "--no-weights"], "--no-weights: must be left out with --method calibrate"),
        (["--limit-train", "-1"], "--limit-train -1: must be 0 or more"),
        (["--held-out", "0"], "--held-out 0: must be 1 or more"),
        (["--data", "digit"], "unknown data set 'digit'"),
        (["--data", "cifar10", "--root", "nowhere"], "no cifar-10-batches-py folder"),
        (["--device", "gpu0"], "--device gpu0"),
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


def test_an_interrupted_run_leaves_what_was_kept(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, note = tmp_path / "ft.safetensors", console.note

    def note_until_the_second_unit(text: str) -> None:
        if text.startswith("stage1.0.second.act"):
            raise KeyboardInterrupt
        note(text)

    monkeypatch.setattr(console, "note", note_until_the_second_unit)
    assert main(["finetune", str(checkpoint), *FEW, "--force", "--out", str(out), "--seed", "3"]) == 130
    monkeypatch.undo()
    header, tensors = read_tensors(out)
    source = read_tensors(checkpoint)[1]
    changed = {key.removeprefix("network.") for key in source if not torch.equal(tensors[key], source[key])}
    assert "stage1.0.first.conv.weight" in changed
    assert all(key.startswith("stage1.0.first.") for key in changed)
    assert header["form"] == "spiking"
    assert header["seed"] == 3
    metrics = header["metrics"]
    assert metrics["last_change"] == "stage1.0.first.act"
    assert f"stage1.0.first.act: held-out spiking {metrics['held_out_top1']:.2f} %, kept" in capsys.readouterr().err
    assert metrics["method"] == "layerwise"
    assert metrics["top1"] is None, "the test images were not reached"
    assert main(["eval", str(out), "--limit", "6", "--json"]) == 0


def test_only_a_kept_change_is_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, written = tmp_path / "ft.safetensors", []

    def finetune(model, *_, on_change, **__):  # type: ignore[no-untyped-def]
        spiking = nbsnn.to_spiking(model, torch.zeros(1, 1, 8, 8))
        for change in (
            Change(START, None, 10.0, True, 0.0),
            Change("a", 1.0, 9.0, False, 0.0),
            Change("b", 1.0, 11.0, True, 0.0),
        ):
            on_change(change, spiking)
            written.append(out.is_file())
        raise KeyboardInterrupt

    monkeypatch.setattr("nbsnn.pipeline.finetune", finetune)
    assert main(["finetune", str(checkpoint), *FEW, "--out", str(out)]) == 130
    assert written == [False, False, True]
    assert read_tensors(out)[0]["metrics"]["held_out_top1"] == 11.0
    out.unlink()
    assert main(["finetune", str(checkpoint), *FEW]) == 130
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["layerwise"], ["end-to-end", "--weights"]])
def test_training_the_weights_of_a_packed_network_is_refused_with_the_remedy(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", "zoo:cifar10/resnet20-w2a2", "--root", "nowhere", "--method", *words]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "trains weights, and those of a packed network are fixed; leave them as they are (--no-weights" in said


# -------------------------------------------------------------------------------------------------------- the benchmark


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Runs the benchmark on digits with the words given, for two 2-bit networks that differ in their recipes; its rows.

    What fine-tuning does is not looked at here, so it does nothing.
    """
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in enumerate(paths, start=1):
        torch.manual_seed(seed)
        net = nbsnn.quantize(nbsnn.build_model("cifar10/resnet20", in_channels=1, image_size=8), nbsnn.QuantSpec(2, 2)).eval()
        recipe = load_recipe("digits/resnet20", [f"seed={seed}"])
        nbsnn.save_checkpoint(path, net, recipe=recipe, metrics={"epoch": 7})
    spiking = nbsnn.to_spiking(net, torch.zeros(1, 1, 8, 8))
    result = FinetuneResult(spiking, 12.0, 10.0, 11.0, 0.0, (Change("a", None, 11.0, True, 0.0),))
    monkeypatch.setattr(benchmark, "finetune", lambda *_, **__: result)
    monkeypatch.setattr(benchmark, "load_data", lambda spec: load_digits())
    file = tmp_path / "rows.json"

    def run(*words: str) -> list[dict[str, Any]]:
        few = ["--train", "8", "--held-out", "8", "--test", "8", "--json", str(file)]
        monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, paths), *few, *words])
        benchmark.main()
        rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
        return rows

    return run


def test_the_benchmark_has_rows_of_its_own_for_each_network_and_measures_none_twice(
    measured: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = measured("--methods", "calibrate", "layerwise", "--force")
    assert [row["method"] for row in rows] == [None, "calibrate", "layerwise"] * 2
    assert len({(row["recipe_hash"], row["method"]) for row in rows}) == 6
    assert {row["epoch"] for row in rows} == {7}
    assert [row["settings"]["force"] for row in rows[1:3]] == [False, True], "only layerwise is forced"
    printed = capsys.readouterr().out
    for row in (rows[0], rows[3]):
        assert f"| {row['recipe_hash']}, epoch 7 | 2 | 3 | calibrate | 256 | 8 |" in printed
        assert f"| {row['recipe_hash']}, epoch 7 | 2 | 3 | layerwise, forced | 8 | 8 |" in printed
    assert measured("--methods", "calibrate", "layerwise", "--force") == rows


def test_a_network_without_recipe_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^a\.safetensors: its header names no recipe or no epoch"):
        measure.trained_by({"recipe_hash": None, "metrics": {"epoch": 1}}, Path("a.safetensors"))


@pytest.mark.parametrize(
    ("settings", "kept", "expected"),
    [
        ({"method": "calibrate"}, [True], "| calibrate | 256 |"),
        ({"method": "layerwise", "force": True}, [True, True], "| layerwise, forced | 5,000 |"),
        ({"method": "layerwise"}, [True, False, False], "| 1 of 3 | 60 |"),
        (
            {"method": "end-to-end", "calibrate_first": True},
            [True, False],
            "| end-to-end, calibrated first, distillation 0.5, rate",
        ),
        ({"method": "end-to-end", "calibrate_first": True}, [True, False], "| undone | 60 |"),
        ({"method": "end-to-end"}, [True], "| kept | 60 |"),
        ({"method": "end-to-end", "weights": True}, [True], "| end-to-end, weights too, distillation 0.5, rate 0.003 |"),
        ({"method": "layerwise", "weights": False}, [True], "| layerwise, without weights |"),
    ],
)
def test_a_row_of_the_benchmark_says_how_it_was_tuned_and_what_was_kept(
    settings: dict[str, Any], kept: list[bool], expected: str
) -> None:
    spec = FinetuneSpec(**settings)
    row = {"bits": 2, "recipe_hash": "0123456789ab", "epoch": 4, "timesteps": 3, "method": spec.method,
           "settings": spec.to_dict(), "train_images": 5000, "test_images": 10000, "quantized_top1": 80.0,
           "spiking_top1_before": 70.0, "spiking_top1": 79.0, "gap": 1.0, "processor_seconds": 60.0,
           "held_out": {"changes": [{"kept": value} for value in kept]}}  # fmt: skip
    text = sections.finetune_section({"data": "digits", "rows": [{"method": None}, row]})
    (line,) = (line for line in text.splitlines() if line.startswith("| 0123456789ab, epoch 4 |"))
    assert expected in line
