"""The report of a run: every figure measured, and the results page is what the committed figures say."""

import importlib.util
import json
from pathlib import Path

import pytest

from nbsnn.cli import main

spec = importlib.util.spec_from_file_location("tables", Path(__file__).parent.parent / "benchmarks" / "tables.py")
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)

SHORT = ["--recipe", "digits/resnet20", "--set", "phase.all.epochs=1", "--set", "data.validation=900"]


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    assert main(["train", *SHORT, "--out", str(run)]) == 0
    out = run / "figures.json"
    assert main(["report", *SHORT, "--run", str(run), "--out", str(out), "--limit", "60", "--label", "Digits (8×8)"]) == 0
    return json.loads(out.read_text())


def test_every_phase_and_every_schedule_is_measured(figures):
    assert figures["data"] == "Digits (8×8)"
    assert figures["test_images"] == 60
    assert figures["machine"]["torch"]
    assert len(figures["recipe_hash"]) == 12
    assert [phase["bits"] for phase in figures["phases"]] == [32, 4, 3, 2]
    assert "spiking" not in figures["phases"][0]
    for phase in figures["phases"][1:]:
        rows = {(row["neuron"], row["schedule"]): row for row in phase["spiking"]}
        assert set(rows) == {("unsigned", "fixed"), ("signed", "fixed"), ("signed", "settle"), ("unsigned", "barrier")}
        for pair in (("signed", "settle"), ("unsigned", "barrier")):
            assert rows[pair]["off"] == 0
            assert rows[pair]["layers_off"] == 0
            assert rows[pair]["top1"] == phase["counts_top1"]
        assert rows["signed", "fixed"]["steps"] == phase["timesteps"] == 2 ** phase["bits"] - 1
        assert rows["signed", "settle"]["steps"] >= phase["timesteps"]


def test_the_figures_become_a_section(figures):
    text = tables.accuracy_section(figures)
    assert "Digits (8×8), 60 test images. Recipe digits/resnet20" in text
    assert text.count("| unsigned barrier |") == 3
    assert f"| 2 | 1 | {figures['phases'][3]['last_top1']:.2f} |" in text


def test_the_results_page_is_up_to_date():
    assert tables.PAGE.read_text() == tables.page(), "run python benchmarks/tables.py"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "nowhere"], "nowhere holds no finished phase of the recipe digits/resnet20 ("),
        (["--set", "phase.2.epochs=3", "--run", "nowhere"], "nowhere holds no finished phase of the recipe"),
    ],
)
def test_a_run_that_is_not_there_is_refused(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--recipe", "digits/resnet20", *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
