"""The command line end to end on digits: every verb, every option, through the same `main` that the shell calls."""

import json
from pathlib import Path
from typing import Annotated

import pytest
import torch
import typer
from digits_recipe import digits_recipe

import nbsnn
from nbsnn import console
from nbsnn.cli import app, demo, main
from nbsnn.cli.networks import load
from nbsnn.cli.options import Checkpoint
from nbsnn.quant.layers import QuantReLU
from nbsnn.zoo import PREFIX, list_zoo, locate

# 157 images to train on, in two batches: what is trained matters to no test.
SHORT = ["--set", "phase.all.epochs=1", "--set", "data.batch_size=80", "--set", "data.validation=1280"]
FEW = {"validation": 1280, "augment": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: float, 4, 3 and 2 bits, an epoch each."""
    folder = tmp_path_factory.mktemp("run")
    assert main(["train", "-r", "digits/resnet20", *SHORT, "--out", str(folder), "--device", "cpu", "--seed", "3"]) == 0
    return folder


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints on standard output."""
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_training_leaves_checkpoints_and_logs_of_every_phase(run: Path) -> None:
    for bits, form in ((32, "float"), (4, "quantized"), (3, "quantized"), (2, "quantized")):
        folder = run / f"{bits}bit"
        state = {"finished.safetensors"} if bits == 2 else set()  # of the last phase, which may be given more epochs
        assert {p.name for p in folder.iterdir()} == {"best.safetensors", "last.safetensors", "log.csv", "log.jsonl"} | state
        assert len((folder / "log.jsonl").read_text().splitlines()) == 1
        assert nbsnn.checkpoint.form_of(nbsnn.load_checkpoint(folder / "best.safetensors")) == form


def test_training_again_finds_everything_done_and_prints_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "2bit" / "last.safetensors").stat().st_mtime_ns
    words = ["train", "-r", "digits/resnet20", *SHORT, "--out", str(run), "--seed", "3", "--json"]
    result = json.loads(output(capsys, *words))
    assert [phase["bits"] for phase in result["phases"]] == [32, 4, 3, 2]
    assert result["recipe"]["seed"] == 3
    assert (run / "2bit" / "last.safetensors").stat().st_mtime_ns == before


def test_another_recipe_does_not_overwrite_results_by_default(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "-r", "digits/resnet20", *SHORT, "--out", str(run), "--seed", "4"]
    assert main(words) == 2
    assert "another recipe" in capsys.readouterr().err


def test_a_run_with_another_start_is_not_taken_for_this_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(digits_recipe("[phase.3]\nepochs = 1\nlr = 0.01\n", **FEW))
    words = ["train", "-r", str(recipe), "--out", str(tmp_path / "out"), "--init"]
    first, second = (str(run / f"{bits}bit" / "best.safetensors") for bits in (32, 4))
    assert main([*words, first]) == 0
    before = (tmp_path / "out/3bit/last.safetensors").read_bytes()
    assert main([*words, first]) == 0  # finished
    assert main([*words, second]) == 2
    assert "of this or another recipe or start" in capsys.readouterr().err
    assert (tmp_path / "out/3bit/last.safetensors").read_bytes() == before


def test_a_start_of_another_architecture_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = str(run / "32bit" / "best.safetensors")
    data = ["--set", "data.name=digits", "--set", "data.validation=180"]
    assert main(["train", "-r", "cifar10/alexnet", *data, "--init", start, "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "the start is cifar10/resnet20 (10 classes, 1×8×8), but the recipe trains cifar10/alexnet" in message.replace(
        "\n", " "
    )
    assert not list(tmp_path.iterdir())


def test_resume_and_overwrite_exclude_each_other(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-r", "digits/resnet20", *SHORT, "--out", str(run), "--seed", "3", "--resume", "--overwrite"]) == 2
    assert "give one of the two" in capsys.readouterr().err


def test_init_and_overwrite_start_from_a_checkpoint(run: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(digits_recipe("[phase.3]\nepochs = 1\nlr = 0.01\n", **FEW))
    words = ["train", "-r", str(recipe), "--init", str(run / "32bit" / "best.safetensors"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert main([*words, "--seed", "9", "--overwrite"]) == 0
    header, _ = nbsnn.tensorfile.read_tensors(tmp_path / "out" / "3bit" / "best.safetensors")
    assert header["seed"] == 9
    assert header["plan"]["stem.act"]["bits"] == 3


def test_training_starts_from_a_packed_network_and_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    recipe, packed = tmp_path / "own.toml", str(tmp_path / "packed.safetensors")
    recipe.write_text(digits_recipe("[phase.3]\nepochs = 1\nlr = 0.05\n", **FEW))
    assert main(["pack", str(run / "4bit" / "best.safetensors"), "--out", packed]) == 0
    assert main(["train", "-r", str(recipe), "--init", packed, "--out", str(tmp_path / "out")]) == 0
    assert "the start is a packed network: it is unpacked" in caplog.text
    start = nbsnn.load_checkpoint(packed, trainable=True)
    trained = nbsnn.load_checkpoint(tmp_path / "out" / "3bit" / "last.safetensors")
    conv = "stage1.0.first.conv.weight"
    assert not nbsnn.quant.unpacking.has_fixed_weights(trained)
    assert not trained.get_parameter(conv).equal(start.get_parameter(conv))


@pytest.mark.slow
def test_eval_reports_each_form(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = output(capsys, "eval", str(run / "32bit" / "best.safetensors"))
    assert "float" in table
    assert "360" in table
    report = json.loads(
        output(capsys, "eval", str(run / "2bit" / "best.safetensors"), "--split", "validation", "--limit", "50", "--json")
    )
    assert report["images"] == 50
    assert report["form"] == "quantized"
    assert report["steps"] is None
    spiking = tmp_path / "s.safetensors"
    output(
        capsys, "convert", str(run / "2bit" / "best.safetensors"), "--schedule", "settle", "--out", str(spiking), "--limit", "9"
    )
    words = ["--data", "digits", "-b", "20", "--limit", "40", "--device", "cpu", "--json"]
    report = json.loads(output(capsys, "eval", str(spiking), *words))
    assert report["form"] == "spiking"
    assert report["steps"] >= 3


def test_convert_compares_every_pair_and_the_exact_ones_are_exact(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(output(capsys, "convert", str(run / "3bit" / "best.safetensors"), "--limit", "20", "--json"))
    rows = {f"{row['neuron']} {row['schedule']}": row for row in result["results"]}
    assert set(rows) == {"signed fixed", "unsigned fixed", "signed settle", "unsigned barrier"}
    for name in ("signed settle", "unsigned barrier"):
        assert rows[name]["fidelity"]["differing"] == 0
        assert rows[name]["spiking_top1"] == rows[name]["quantized_top1"]
    assert rows["unsigned barrier"]["steps"] == 20 * 7
    assert rows["unsigned fixed"]["steps"] == 7
    assert rows["unsigned fixed"]["off"] > 0


def test_convert_shows_layers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(run / "2bit" / "best.safetensors")
    table = output(
        capsys, "convert", path, "--schedule", "fixed", "--neuron", "unsigned", "--layers", "--fidelity-images", "20",
        "--limit", "40", "--root", "anywhere", "--split", "test",
    )  # fmt: skip
    assert "stage3.2.second.act" in table
    assert "unsigned fixed" in table


def test_info_tells_form_bits_layers_and_sizes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(run / "2bit" / "best.safetensors")
    text = output(capsys, "info", path)
    for expected in ("quantized form", "edge, max_abs", "APoT", "2 bits", "16×1×3×3", "stem.act", "MB"):
        assert expected in text
    facts = json.loads(output(capsys, "info", path, "--json"))
    assert facts["form"] == "quantized"
    assert facts["parameters"] == sum(p.numel() for p in nbsnn.load_checkpoint(path).parameters())
    assert "torch" in output(capsys, "info", "--system")
    assert json.loads(output(capsys, "info", "--system", "--json"))["threads"] >= 1


def test_info_counts_what_packed_weights_unpack_to(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Case 34: 272,513 parameters and every layer of the packed ResNet-20."""
    text = output(capsys, "info", "zoo:cifar10/resnet20-w2a2")
    assert "quantized form, packed: 272,513 parameters, " in text
    assert "MB on disk" in text
    network = nbsnn.load_checkpoint("zoo:cifar10/resnet20-w2a2")
    named = {line.split()[0] for line in text.splitlines()[3:] if line}
    layers = {name for name, layer in network.named_modules() if list(layer.parameters(recurse=False)) or "act" in name}
    assert layers <= named
    assert "64×64×3×3" in text
    facts = json.loads(output(capsys, "info", "zoo:cifar10/resnet20-w2a2", "--json"))
    assert facts["parameters"] == 272_513
    assert facts["file_bytes"] == locate("zoo:cifar10/resnet20-w2a2").stat().st_size
    own = nbsnn.quantize(
        torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)), nbsnn.QuantSpec(2, 2)
    )
    nbsnn.save_packed(tmp_path / "own.safetensors", own)
    assert "own network, quantized form, packed: at most " in output(capsys, "info", str(tmp_path / "own.safetensors"))


def test_a_verb_from_outside_the_package_runs_like_the_others(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The recipe "A verb" of docs/design.md: a function decorated with `app.command` is all it takes."""

    @app.command()
    def activations(checkpoint: Checkpoint, at_least: Annotated[int, typer.Option("--at-least")] = 0) -> None:
        """Count the activations of a checkpoint."""
        if at_least < 0:
            raise nbsnn.ConfigError("at_least=-1: must be 0 or more")
        network, _ = load(checkpoint, "cpu")
        count = sum(isinstance(module, QuantReLU) for module in network.modules())
        console.show_table("Activations", ("checkpoint", "number"), [(str(checkpoint), str(count))])

    try:
        assert "zoo:cifar10/resnet20-w2a2      19" in output(capsys, "activations", "zoo:cifar10/resnet20-w2a2")
        assert "activations  Count the activations of a checkpoint." in output(capsys)
        assert main(["activations", "zoo:cifar10/resnet20-w2a2", "--at-least", "-1"]) == 2
        assert capsys.readouterr().err == "error: --at-least -1: must be 0 or more\n"
        assert main(["activation"]) == 2
        assert "did you mean activations" in capsys.readouterr().err
    finally:
        app.registered_commands.pop()


def test_recipes_lists_all_and_shows_one(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "recipes")
    assert "cifar10/resnet20:fast" in text
    assert json.loads(output(capsys, "recipes", "cifar10/alexnet"))["phase"]["32"]["epochs"] == 300
    assert "digits/resnet20" in json.loads(output(capsys, "recipes", "--json"))


@pytest.mark.slow
def test_demo_resumes_a_run_and_prints_every_neuron_and_schedule(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(output(capsys, "demo", "--out", str(run), *SHORT, "--seed", "3", "--limit", "6", "--json"))
    assert len(result["results"]) == 3 * 4
    assert {row["bits"] for row in result["results"]} == {4, 3, 2}
    assert all(row["off"] == 0 for row in result["results"] if row["schedule"] != "fixed")


@pytest.mark.slow
def test_the_demo_ends_with_the_bundled_networks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in list_zoo() if name.endswith("resnet20-w2a2")]
    monkeypatch.setattr(demo, "list_zoo", lambda: names)
    demo._show_zoo()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "zoo:" in line]
    assert [line[0] for line in lines] == [PREFIX + name for name in names]
    assert all(float(top1) > 75 for line in lines for top1 in line[1:3])


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("train", "eval", "convert", "finetune", "recipes", "info", "demo"):
        assert "--json" in output(capsys, verb, "--help")
