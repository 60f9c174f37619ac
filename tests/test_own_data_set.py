"""A data set from outside the package, as docs/design.md tells to add one: two files, then everything takes it by its name."""

import json
import sys

import pytest
import torch

import nbsnn
from nbsnn.cli import main
from nbsnn.data import DataSet, choices, data_set, list_data_sets, register
from nbsnn.errors import ConfigError
from nbsnn.recipe import recipe_from_dict

STRIPES = '''
"""Stripes: upright or lying, 8×8, grey."""

import torch

from nbsnn import ImageSet, Splits
from nbsnn.data import DataSet
from nbsnn.data.images import split_validation


def load(spec, *, size, progress):
    def images(count, seed):
        draw = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 2
        upright = torch.arange(8).expand(8, 8) % 2 * 200
        both = torch.stack([upright, upright.T])
        noise = torch.randint(0, 40, (count, 1, 8, 8), generator=draw)
        return ImageSet((both[labels][:, None] + noise).to(torch.uint8), labels, (0.5,), (0.3,), ("upright", "lying"))

    return split_validation(images(60, 0), images(20, 1), spec.validation)


DATA_SET = DataSet(load, validation=20)
'''
RECIPE = {
    "model": {"name": "cifar10/resnet20", "num_classes": 2, "in_channels": 1, "image_size": 8},
    "data": {"name": "stripes", "validation": 20, "batch_size": 10, "augment": False},
    "phase": {"32": {"epochs": 1, "lr": 0.05}},
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a module and the metadata that its installer writes of an entry point."""
    (tmp_path / "stripes.py").write_text(STRIPES)
    info = tmp_path / "stripes-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes\nVersion: 1\n")
    points = ["stripes = stripes:DATA_SET", "broken = stripes:load", "lost = nowhere:DATA_SET"]
    (info / "entry_points.txt").write_text("\n".join(["[nbsnn.data_sets]", *points, ""]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("nbsnn.data.registry._registered", {})
    yield tmp_path
    sys.modules.pop("stripes", None)


def test_an_installed_package_brings_a_data_set_that_trains_and_evaluates_by_name(package, tmp_path, capsys):
    assert "stripes" in list_data_sets()
    assert len(nbsnn.load_data("stripes").validation) == 20
    (result,) = nbsnn.train(recipe_from_dict(RECIPE), tmp_path / "api")
    assert result.last.images == 20
    toml = "\n".join(
        f"[{table}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        for table, values in {"model": RECIPE["model"], "data": RECIPE["data"], "phase.32": RECIPE["phase"]["32"]}.items()
    )
    (tmp_path / "stripes.toml").write_text(toml)
    assert main(["train", "--recipe", str(tmp_path / "stripes.toml"), "--out", str(tmp_path / "cli"), "--device", "cpu"]) == 0
    best = "32bit/best.safetensors"
    first, second = (nbsnn.load_checkpoint(tmp_path / run / best).state_dict() for run in ("api", "cli"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "cli" / best), "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 20
    assert main(["eval", str(tmp_path / "cli" / best), "--data", "strips"]) == 2
    assert "unknown data set 'strips'; did you mean stripes?" in capsys.readouterr().err


def test_a_data_set_is_registered_for_a_process(package):
    given = {}
    exec(STRIPES, given)
    register("bands", given["DATA_SET"])
    register("bands", given["DATA_SET"])  # again, as when a notebook's cell runs twice
    assert data_set("bands") is given["DATA_SET"]
    assert nbsnn.load_data("bands", validation=0).train.classes == ("upright", "lying")
    with pytest.raises(ConfigError, match=r"^data set 'digits' exists; choose another name$"):
        register("digits", given["DATA_SET"])
    with pytest.raises(ConfigError, match=r"^data set 'broken': nbsnn.data_sets names a function, not a nbsnn.data.DataSet$"):
        data_set("broken")
    with pytest.raises(ConfigError, match=r"^data set 'lost': nowhere:DATA_SET cannot be loaded \(No module"):
        data_set("lost")
    assert choices() == "bands, cifar10, digits, folder, imagenet, sample or stripes"
    register("empty", DataSet(lambda spec, *, size, progress: None))
    with pytest.raises(ConfigError, match=r"^data set 'empty': its load gives a NoneType, not nbsnn.Splits$"):
        nbsnn.load_data("empty")
