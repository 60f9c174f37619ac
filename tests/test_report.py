"""The report of a run: every figure measured, and the results page is what the committed figures say."""

import json

import pytest
import sections
import tables
from digits_recipe import digits_recipe

from nbsnn.cli import main

# Each bit-width costs seconds, so two of them stand for all; bundled recipes have three.
RECIPE = digits_recipe("[phase.32]\nepochs = 1\n[phase.3]\nepochs = 1\n[phase.2]\nepochs = 1\n", validation=1340, batch_size=40)


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    out, recipe = run / "figures.json", run / "short.toml"
    recipe.write_text(RECIPE)
    assert main(["train", "--recipe", str(recipe), "--out", str(run)]) == 0
    words = ["--run", str(run), "--out", str(out), "--limit", "6", "--spiking-limit", "4", "--label", "Digits (8×8)"]
    words += ["--note", "Trained for the tests.", "--note", "Not for long."]
    assert main(["report", "--recipe", str(recipe), *words]) == 0
    return json.loads(out.read_text())


@pytest.mark.slow
def test_every_phase_and_every_schedule_is_measured(figures):
    assert figures["data"] == "Digits (8×8)"
    assert figures["test_images"] == 6
    assert figures["machine"]["torch"]
    assert len(figures["recipe_hash"]) == 12
    assert {phase["spiking_images"] for phase in figures["phases"][1:]} == {4}
    assert [phase["bits"] for phase in figures["phases"]] == [32, 3, 2]
    assert "spiking" not in figures["phases"][0]
    for phase in figures["phases"][1:]:
        rows = {(row["neuron"], row["schedule"]): row for row in phase["spiking"]}
        assert set(rows) == {("unsigned", "fixed"), ("signed", "fixed"), ("signed", "settle"), ("unsigned", "barrier")}
        for pair in (("signed", "settle"), ("unsigned", "barrier")):
            assert rows[pair]["off"] == 0
            assert rows[pair]["layers_off"] == 0
            assert rows[pair]["top1"] == phase["spiking_counts_top1"]
        assert rows["signed", "fixed"]["steps"] == phase["timesteps"] == 2 ** phase["bits"] - 1
        assert rows["signed", "settle"]["steps"] >= phase["timesteps"]


@pytest.mark.slow
def test_the_figures_become_a_section(figures):
    text = sections.accuracy_section(figures)
    assert "Digits (8×8), 6 test images. Recipe " in text
    assert text.count("| unsigned barrier |") == 2
    assert "neurons compared on 6.\nTrained for the tests.\nNot for long.\n\n| bits |" in text
    assert f"| 2 | 1 | {figures['phases'][2]['last_top1']:.2f} |" in text


def test_the_results_page_is_up_to_date():
    for path, text in tables.pages().items():
        assert path.read_text() == text, "run python benchmarks/tables.py"
    assert tables.chart_is_current(), "run python benchmarks/tables.py"


def test_a_chart_names_every_line_and_the_points_that_it_shows():
    pytest.importorskip("matplotlib")
    series = {"one": [(0, 1.0), (50, 3.0)], "two": [(10, 0.5)]}
    text = tables.line_chart("title", "milliseconds", "y", series)
    for word in ("one", "two", "title", "milliseconds", tables.fingerprint(series)):
        assert f"{word}</" in text
    assert text == tables.line_chart("title", "milliseconds", "y", series)
    assert tables.fingerprint(series) != tables.fingerprint({"one": [(0, 1.0), (50, 3.1)], "two": [(10, 0.5)]})


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
