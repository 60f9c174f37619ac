"""`nbsnn init`: its recipe runs as it is, for drawn or own images, and replaces nothing."""

import tomllib

import pytest
from command_line import printed, refusal
from own_project import CLASSES, draw, make_project

from nbsnn.project.drawing import EXAMPLES
from nbsnn.project.survey import survey
from nbsnn.recipes import load_recipe

SHORT = ["--set", "phase.all.epochs=1", "--set", "data.workers=0"]


def test_a_project_from_nothing_runs_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = printed(capsys, "init", "shapes")
    assert {"shapes/recipe.toml", "shapes/model.py", "shapes/images"} == set(made["written"])
    assert survey(tmp_path / "shapes/images") == EXAMPLES
    words = ["-r", "shapes/recipe.toml", *SHORT]  # from beside the folder; its images and its model are found there
    phases = printed(capsys, "train", *words, "--device", "cpu")["phases"]
    assert [phase["bits"] for phase in phases] == [32, 4, 3, 2]
    best, own = phases[-1]["checkpoint"], ["--model", "shapes.model:net"]
    results = printed(capsys, "convert", best, *own, "--schedule", "settle", "--limit", "4")["results"]
    assert results[0]["off"] == 0
    assert (
        printed(capsys, "lower", best, *own, "--out", "integer.safetensors", "--fidelity-images", "8")["fidelity"]["off"] == 0
    )
    assert len(printed(capsys, "report", *words, "--limit", "2")["phases"]) == 4
    monkeypatch.chdir(tmp_path / "shapes")
    assert load_recipe("recipe.toml").hash == load_recipe("../shapes/recipe.toml").hash
    assert refusal(capsys, "init").endswith("recipe.toml exists, and is not replaced; remove it, or choose another folder")


def test_the_recipe_fits_the_images_and_the_network(tmp_path, monkeypatch, capsys):
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project)
    (project / "recipe.toml").unlink()
    assert refusal(capsys, "init").endswith("model.py exists, and is not replaced; remove it, or choose another folder")
    assert printed(capsys, "init", "--root", "photos", "--model", "model:net")["classes"] == list(CLASSES)
    recipe = tomllib.loads((project / "recipe.toml").read_text())
    assert recipe["model"] == {"name": "model:net", "args": {"num_classes": 3, "channels": 1}}
    data = recipe["data"]
    assert (data["root"], data["channels"], data["split"]) == ("photos", 1, 0.2)
    assert data["image_size"] <= 16
    assert load_recipe("recipe.toml").data.batch_size * 2 <= 28
    (project / "recipe.toml").unlink()
    printed(capsys, "init", "--root", "photos", "--model", "model:net", "--model-args", '{"num_classes": 7}')
    assert load_recipe("recipe.toml").model.args == {"num_classes": 7}


def test_a_tree_of_train_and_val_needs_no_split(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val"):
        draw(tmp_path / "photos" / part, count=4)
    printed(capsys, "init", "here", "--root", "photos")
    data = tomllib.loads((tmp_path / "here/recipe.toml").read_text())["data"]
    assert "split" not in data
    assert data["root"] == "../photos"
    assert load_recipe("here/recipe.toml").data.root == "here/../photos"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--root nothing", "nothing"),
        ("--root empty", "holds no class folders"),
        ("--model nomodel:net", "there is no module nomodel"),
        ("--model-args {}", "--model-args is for your own network; add --model MODULE:FUNCTION"),
    ],
)
def test_nothing_is_written_after_an_error(tmp_path, monkeypatch, capsys, words, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, "init", "new", *words.split())
    assert not (tmp_path / "new").exists()
