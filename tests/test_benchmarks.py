"""What the benchmarks compare with, and a short run of the comparison itself, down to its section of the results."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import ablations
import coverage_models
import coverage_page
import coverage_stages
import inference
import pytest
import random_nets
import rivals
import sections
import tables
import torch
import training
import zoo
from nets import SmallNet

from nbsnn.integer.backends import native
from nbsnn.recipes import load_recipe
from nbsnn.zoo import list_zoo

IMAGES = torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(2))


def test_the_figures_of_bundled_networks_are_of_the_files_that_are_bundled():
    figures = json.loads((tables.RESULTS / "zoo.json").read_text())
    assert {row["name"]: row["file"] for row in figures["rows"]} == {name: zoo.fingerprint(name) for name in list_zoo()}


def test_random_networks_settle_within_the_bound():
    T, signed, unsigned, steps, bound, spikes = random_nets.measure("cifar10/resnet20", 2, torch.randn(4, 3, 8, 8))
    assert (T, bound) == ("3", "39")  # D = 19
    assert 3 < int(steps.split(", ")[1]) <= 39
    assert 0 < int(signed) < int(unsigned) < 100
    assert float(spikes) > 1


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(2)
    return SmallNet().eval()


def test_the_dense_rival_computes_what_the_float_net_does_in_8_bits(net):
    with torch.no_grad():
        expected, rival = net(IMAGES), rivals.dense_int8(net, IMAGES)
        assert 0 < float((rival(IMAGES) - expected).norm() / expected.norm()) < 0.1
    assert any("quantized" in type(module).__module__ for module in rival.modules())


def test_a_peer_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["inference.py", "--peer", "spikingjelly"])
    with pytest.raises(SystemExit, match="2"):
        inference.main()
    assert "--peer spikingjelly: it is not installed; pip install spikingjelly" in capsys.readouterr().err


@pytest.mark.skipif(native.why_not() is not None, reason="the comparison is of the native backend")
def test_the_comparison_runs_and_becomes_a_section(tmp_path, monkeypatch, capsys):
    file = tmp_path / "inference.json"
    options = ["--nets", "cifar10/resnet20", "--bits", "2", "--batches", "2", "--repeats", "1", "--quick", "--no-compile"]
    monkeypatch.setattr(sys, "argv", ["inference.py", *options, "--json", str(file)])
    inference.main()
    figures = json.loads(file.read_text())
    (row,) = figures["rows"]
    assert row["weights"] == "quantized ones trained (cifar10/resnet20-w2a2), float ones random"
    assert row["figures"]["float eager"]["ratio"] == 1
    assert {"dense int8", "counts", "spikes signed fixed", "spikes unsigned barrier"} < row["figures"].keys()
    assert all(f["fastest"] <= f["seconds"] <= f["slowest"] for f in row["figures"].values())
    assert row["work"]["unsigned barrier"]["steps"] == 60  # layer after layer
    section = sections.inference_section(figures)
    assert "### cifar10/resnet20, T = 3, batch 2" in section
    assert "| counts |" in section


def test_an_ablation_trains_each_variant_once_and_becomes_a_section(tmp_path, monkeypatch, capsys):
    file = tmp_path / "ablations.json"
    words = ["--recipe", "digits/resnet20", "--bits", "2", "--set", "phase.2.epochs=1", "--device", "cpu", "--uncalibrated"]
    monkeypatch.setattr(
        sys,
        "argv",
        ["ablations.py", *words, "--variants", "", "phase.2.ema_decay=0.9 optim.recalibrate_batches=2", "--json", str(file)],
    )
    ablations.main()
    rows = json.loads(file.read_text())["rows"]
    assert [row["settings"] for row in rows] == ["", "phase.2.ema_decay=0.9 optim.recalibrate_batches=2"]
    assert rows[0]["train_loss"] == rows[1]["train_loss"]  # the average is looked at, not trained on
    assert {row["epochs"] for row in rows} == {1}
    monkeypatch.setattr(ablations, "measure", None)
    ablations.main()  # all of it stands in the file
    section = sections.ablations_section(json.loads(file.read_text()))
    begun = "| digits/resnet20 phase.2.epochs=1 | 2 | fresh weights; thresholds without images | 1 | 0 |"
    assert f"{begun} as it stands |" in section
    assert f"{begun} phase.2.ema_decay=0.9 optim.recalibrate_batches=2 |" in section
    assert "as it stands" in capsys.readouterr().out


@pytest.mark.slow
def test_training_steps_are_timed_and_become_a_section(tmp_path, monkeypatch, capsys):
    file = tmp_path / "training.json"
    monkeypatch.setattr(
        sys, "argv", ["training.py", "--nets", "cifar10/resnet20", "--batch", "4", "--repeats", "1", "--json", str(file)]
    )
    monkeypatch.setattr(training, "WARM_UP", 1)
    for _ in range(2):
        training.main()
    figures = json.loads(file.read_text())
    assert [row["net"] for row in figures["rows"]] == ["cifar10/resnet20"] * 2
    assert [row["form"] for row in figures["loops"]] == ["float", "quantized"] * 2
    assert all(row["ratio_min"] <= row["ratio"] <= row["ratio_max"] for row in figures["rows"])
    assert sections.training_section(figures).count("| cifar10/resnet20 | float32, eager |") == 6
    capsys.readouterr()


def test_departures_are_the_overrides_that_a_recipe_was_loaded_with():
    given = ["phase.32.epochs=20", "phase.4.distill=0.0", "optim.milestones=0.3,0.6", "data.augment=false", "data.root=other"]
    assert sections.departures(load_recipe("cifar10/resnet20:fast")) == []
    changed = load_recipe("cifar10/resnet20:fast", given)
    assert sorted(sections.departures(changed)) == sorted(given[:-1])
    assert load_recipe("cifar10/resnet20:fast", sections.departures(changed)).hash == changed.hash
    assert sections.departures(changed.until(32)) == [d for d in sections.departures(changed) if not d.startswith("phase.4")]


class Gated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 4)

    def forward(self, x):
        x = self.conv(x).relu()
        return self.fc(x.mean((2, 3))) * torch.sigmoid(x.mean((2, 3)))


def plain(in_size=(32, 32)):
    pooled = ((in_size[0] - 2) // 2) ** 2
    conv, norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    return torch.nn.Sequential(
        conv, norm, torch.nn.LeakyReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(4 * pooled, 3)
    )


@pytest.mark.parametrize("model", [plain, Gated])
def test_a_model_goes_through_every_stage_or_is_refused_with_its_reason(monkeypatch, model):
    """benchmarks/coverage.py, on models of our own in place of pytorchcv's."""
    monkeypatch.setattr(coverage_models, "provider", lambda: SimpleNamespace(_models={"net": model}))
    monkeypatch.setattr(coverage_models, "SIZES", (1, 8))
    row = {"family": "own"}
    coverage_stages.measure(["net"], row, lambda row: None)
    text = coverage_page.page({"package": "a package"}, [row])
    if model is plain:
        assert (row["outcome"], row["image"], row["inexact"]) == ("through", (3, 8, 8), [])
        assert row["settle"]["differing"] == row["barrier"]["differing"] == row["integer_differing"] == 0 < row["neurons"]
        assert "1 families: 1 through" in text
    else:
        assert (row["outcome"], row["stage"], row["inexact"]) == ("refused", "check", ["mul of two signals", "sigmoid"])
        assert "sigmoid" in row["reason"]
        assert "1 refused by check" in text
