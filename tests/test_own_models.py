"""Own networks on the command line: by the function that makes them, with state dicts of any program; files run no code."""

import shutil
import sys

import pytest
import safetensors.torch
import torch
from command_line import printed, refusal
from own_project import CLASSES, draw, make_project

import nbsnn
from nbsnn.cli import main
from nbsnn.errors import CheckpointError, ConfigError, DataError
from nbsnn.importers.states import load_state_
from nbsnn.models.own import own_network
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import read_tensors

BEST = "runs/recipe/3bit/best.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project whose recipe has been trained."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "-r", "recipe.toml", "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


# ------------------------------------------------------------------------------------------------------- every verb


def test_a_recipe_trains_an_own_network_and_records_what_later_verbs_need(here):
    header, _ = read_tensors(here / BEST)
    assert header["model"] == {"name": "model:net", "args": {"num_classes": 3}}
    data = header["recipe"]["data"]
    assert tuple(data["classes"]) == CLASSES
    assert data["normalization"] == "computed"
    assert 0.1 < data["mean"][0] < 0.9
    assert len(data["std"]) == 1
    assert header["recipe_hash"] == load_recipe("recipe.toml").hash  # what is computed follows from the images


def test_every_verb_takes_a_checkpoint_of_an_own_network(here, tmp_path, capsys):
    own = ["--model", "model:net"]
    spiking, integer = tmp_path / "s.safetensors", tmp_path / "i.safetensors"
    (row,) = printed(capsys, "convert", BEST, *own, "--schedule", "settle", "--out", str(spiking))["results"]
    assert row["off"] == 0
    lowered = printed(capsys, "lower", BEST, *own, "--out", str(integer))
    assert lowered["fidelity"]["off"] == 0
    accuracy = {printed(capsys, "eval", str(path), *own)["top1"] for path in (BEST, spiking, integer)}
    assert len(accuracy) == 1
    assert printed(capsys, "bench", BEST, *own, "--repeats", "1", "--limit", "2")["images"] == 2
    assert printed(capsys, "info", BEST)["model"]["name"] == "model:net"  # no code is run to describe a file
    packed = tmp_path / "p.safetensors"
    assert printed(capsys, "pack", BEST, *own, "--out", str(packed))["bytes"] > 0
    assert printed(capsys, "info", str(packed), *own)["parameters"] == printed(capsys, "info", BEST)["parameters"]
    guesses = printed(capsys, "classify", BEST, "photos/ring/0.png", *own)["photos/ring/0.png"]
    assert sorted(guess["name"] for guess in guesses) == list(CLASSES)
    figures = printed(capsys, "report", "-r", "recipe.toml", "--fidelity-images", "2")
    assert [phase["bits"] for phase in figures["phases"]] == [32, 3]
    assert {row["off"] for row in figures["phases"][1]["spiking"] if row["schedule"] != "fixed"} == {0}


def test_training_starts_from_a_state_dict_and_finds_its_phases_again(here, tmp_path, capsys):
    torch.save(own_network("model:net").state_dict(), tmp_path / "w.pth")
    words = ["train", "-r", "recipe.toml", "--set", "phase.32.lr=1e-9", "--state", str(tmp_path / "w.pth"), "--device", "cpu"]
    words += ["--out", str(tmp_path / "run")]
    printed(capsys, *words)
    before = (tmp_path / "run/3bit/last.safetensors").read_bytes()
    printed(capsys, *words)
    assert (tmp_path / "run/3bit/last.safetensors").read_bytes() == before
    trained = nbsnn.load_checkpoint(tmp_path / "run/32bit/last.safetensors", model=own_network("model:net"))
    given = torch.load(tmp_path / "w.pth", weights_only=True)
    assert torch.allclose(trained.state_dict()["0.weight"], given["0.weight"], atol=1e-5)
    assert refusal(capsys, *words[:-1], str(tmp_path / "run"), "--init", BEST).endswith("give one of them")


def test_a_network_as_people_write_it_goes_all_the_way(here, tmp_path, capsys):
    own, words = ["--model", "model:Plain"], ["-r", "recipe.toml", "--out", str(tmp_path / "run"), "--set", "phase.32.epochs=1"]
    found = printed(capsys, "check", *own, "--data", "recipe.toml")
    assert found["refused"] == 0
    assert {finding["status"] for finding in found["findings"]} >= {"changed", "handled"}
    printed(capsys, "train", *words, *own, "--device", "cpu")
    best = str(tmp_path / "run/3bit/best.safetensors")
    (row,) = printed(capsys, "convert", best, *own, "--schedule", "settle")["results"]
    assert row["off"] == 0
    assert printed(capsys, "lower", best, *own, "--out", str(tmp_path / "i.safetensors"))["fidelity"]["off"] == 0
    assert printed(capsys, "info", best)["model"]["name"] == "model:Plain"


def test_what_cannot_be_converted_is_refused_before_training(here, tmp_path, capsys):
    words = ["train", "-r", "recipe.toml", "--model", "model:Gated", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert "the network cannot be converted after training" in refusal(capsys, *words)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert main(["check", "--model", "model:Gated", "--data", "recipe.toml"]) == 1
    assert "refused" in capsys.readouterr().out


def test_arguments_on_file_are_used_unless_others_are_given(here, capsys):
    words = ["eval", BEST, "--model", "model:net"]
    assert printed(capsys, *words)["images"] == 9
    assert "8.weight has shape [3, 8] instead of [5, 8]" in refusal(capsys, *words, "--model-args", '{"num_classes": 5}')


# ------------------------------------------------------------------------------------------------------- no code from files


def test_a_file_runs_no_code_that_it_names(here, tmp_path, capsys):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    network = own_network("model:net")
    network.model_spec = nbsnn.recipe.ModelSpec("trap:net")
    nbsnn.save_checkpoint(tmp_path / "trap.safetensors", network)
    path = str(tmp_path / "trap.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert refusal(capsys, "eval", path, "--data", "digits").endswith("to run that, add --model trap:net")
        with pytest.raises(CheckpointError, match=r"made by trap:net\(\), and reading a file runs no code that it names"):
            nbsnn.load_checkpoint(path)
        assert printed(capsys, "info", path)["form"] == "float"
        assert "trap" not in sys.modules
        assert "trap:net cannot be imported: SystemExit: imported" in refusal(capsys, "eval", path, "--model", "trap:net")


def test_a_recipe_runs_only_what_lies_beside_it_unless_told(here, tmp_path, capsys):
    shutil.copy("recipe.toml", tmp_path / "recipe.toml")
    other = (tmp_path / "recipe.toml").read_text().replace("model:net", "subprocess:check_output")
    (tmp_path / "recipe.toml").write_text(other)
    line = refusal(capsys, "train", "-r", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run"))
    assert (
        "neither beside the recipe nor in this folder; to run code from elsewhere, add --model subprocess:check_output" in line
    )
    with pytest.raises(ConfigError, match="no code that a recipe names is run; make the network and pass model="):
        next(nbsnn.train(load_recipe("recipe.toml"), tmp_path / "api"))


def test_a_module_of_the_same_name_in_another_folder_is_another_one(tmp_path):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "parts.py").write_text(f"WIDTH = {number}")
        (tmp_path / str(number) / "samename.py").write_text(
            "from torch import nn\nimport parts\n\ndef net():\n    return nn.Linear(1, parts.WIDTH)\n"
        )
    assert [own_network("samename:net", folder=tmp_path / str(n)).out_features for n in (1, 2, 1)] == [1, 2, 1]


def test_a_module_that_is_named_as_one_of_python_is_refused(tmp_path):
    (tmp_path / "json.py").write_text("def net():\n    pass\n")
    with pytest.raises(ConfigError, match=r"json:net: another module is called json and is loaded already .*; rename yours"):
        own_network("json:net", folder=tmp_path)


# ------------------------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("words", "message"),
    {
        "no module": ("--model nomodel:net", "nomodel:net: there is no module nomodel in this folder"),
        "no function": ("--model model:nett", "unknown function of model 'nett'; did you mean net?"),
        "no name": ("--model model", "model: name your network's function as package.module:function, such as model:net"),
        "no network": ("--model model:number", "model:number() returns a int; return the network, a torch.nn.Module"),
        "not called": ("--model model:torch", "model:torch is a module; name a function that returns a network"),
        "fails": ("--model model:broken", "model:broken() fails: ValueError: no such file (model.py:"),
        "arguments": ("""--model model:net --model-args {"classes":2}""", "it takes (num_classes=3, channels=1)"),
        "no JSON": ("--model model:net --model-args x", "--model-args x: must be a JSON object"),
        "two inputs": ("--model model:Two", "missing 1 required positional argument: 'more'"),
        "two outputs": ("--model model:Pair", "gives a tuple for one image of folder; return class scores"),
        "few classes": ("""--model model:net --model-args {"num_classes":2}""", "tells 2 classes apart, but folder has 3"),
        "channels": ("""--model model:net --model-args {"channels":3}""", "set data.image_size and data.channels"),
        "no state": ("--model model:net --state nothing.pt", "nothing.pt"),
        "state alone": ("--state nothing.pt", "--state is for your own network; add --model MODULE:FUNCTION"),
        "nothing": ("", "name a checkpoint, or your own network with --model MODULE:FUNCTION"),
    }.values(),
    ids=lambda value: "" if isinstance(value, tuple) else None,
)
def test_bad_values_give_one_line(here, capsys, words, message):
    assert message in refusal(capsys, "eval", *words.split(), "--data", "recipe.toml")


@pytest.mark.parametrize("verb", ["convert", "lower", "bench"])
def test_a_float_network_is_to_be_quantized_first(here, capsys, verb):
    words = [verb, "--model", "model:net", *(["--out", "x.safetensors"] if verb == "lower" else [])]
    assert "but --model makes a float one: run nbsnn quantize first" in refusal(capsys, *words)


# ------------------------------------------------------------------------------------------------------- state dicts


def test_state_dicts_of_any_program_are_read(here, tmp_path):
    network = own_network("model:net")
    state = network.state_dict()
    files = {
        "plain.pt": state,
        "nested.pth": {"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
        "lightning.pt": {"state_dict": {f"net.{key}": value for key, value in state.items()}},
        "old.pt": {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
        "half.pt": {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    safetensors.torch.save_file(state, tmp_path / "plain.safetensors")
    nbsnn.save_checkpoint(tmp_path / "ours.safetensors", network)
    for name in [*files, "plain.safetensors", "ours.safetensors"]:
        loaded = load_state_(own_network("model:net"), tmp_path / name).state_dict()
        for key, value in state.items():
            assert torch.allclose(loaded[key], value, atol=1e-3 if name == "half.pt" else 0), (name, key)


def test_a_state_dict_that_does_not_fit_is_refused_with_close_names(here, tmp_path):
    state = own_network("model:net").state_dict()
    torch.save({"first.weight" if key == "0.weight" else key: value for key, value in state.items()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"missing 0.weight \(is it first.weight\?\); not expected first.weight$"):
        load_state_(own_network("model:net"), tmp_path / "a.pt")
    torch.save({"model": state, "ema": state}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="holds several dictionaries of tensors, model, ema; save the one to load alone"):
        load_state_(own_network("model:net"), tmp_path / "b.pt")
    torch.save(own_network("model:net"), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="which could execute code when it is read"):
        load_state_(own_network("model:net"), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="holds no float network; name that file as the checkpoint"):
        load_state_(own_network("model:net"), here / BEST)


# ------------------------------------------------------------------------------------------------------- folders


def test_a_tree_without_train_and_val_is_divided_the_same_way_each_time(tmp_path):
    draw(tmp_path / "photos")
    settings = {"root": tmp_path / "photos", "split": 0.25, "validation": 0, "channels": 1, "image_size": 10, "workers": 0}
    splits = nbsnn.load_data("folder", **settings)
    assert (len(splits.train), len(splits.test)) == (27, 9)
    assert splits.test.labels.bincount().tolist() == [3, 3, 3]
    assert not set(splits.train.paths) & set(splits.test.paths)
    assert splits.train.shape == (1, 10, 10)
    assert splits.train.mean == (0.449,)  # ImageNet's, in gray
    draw(tmp_path / "more", count=13)
    more = nbsnn.load_data("folder", **settings | {"root": tmp_path / "more"})
    names = [{path.split("/", -1)[-1] for path in part.test.paths} for part in (splits, more)]
    assert len(names[0] - names[1]) <= 1  # a further image moves at most one other
    with pytest.raises(DataError, match=r"photos/val: no such folder; .*, or set data.split=0.2 to test on a fifth"):
        nbsnn.load_data("folder", **settings | {"split": 0})
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no image files"):
        nbsnn.load_data("folder", root=tmp_path / "empty", split=0.2)
    (tmp_path / "photos" / "val").mkdir()
    with pytest.raises(DataError, match=r"has a folder val to test on; leave data.split out"):
        nbsnn.load_data("folder", **settings)


def test_mean_and_std_are_those_of_the_training_images_or_as_given(tmp_path):
    draw(tmp_path / "photos")
    settings = {"root": tmp_path / "photos", "split": 0.25, "validation": 0, "image_size": 10, "workers": 0}
    splits = nbsnn.load_data("folder", **settings, normalization="computed")
    normalized = splits.train.normalized()
    assert normalized.mean((0, 2, 3)).abs().max() < 1e-4
    assert (normalized.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4
    assert splits.test.mean == splits.train.mean
    given = nbsnn.load_data("folder", **settings, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    assert (given.test.mean, given.test.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    for wrong, message in {
        "mean": "data.mean=(0.5,): must be 3 numbers",
        "std": "data.std=(0.5, 0.5, 0.5): must be given if mean is",
    }.items():
        with pytest.raises(ConfigError) as caught:
            nbsnn.load_data("folder", **settings, **{wrong: (0.5,) if wrong == "mean" else (0.5, 0.5, 0.5)})
        assert message in str(caught.value)
    with pytest.raises(ConfigError, match=r"^data.split=0.25: images of digits are not read from files; leave it out$"):
        nbsnn.load_data("digits", split=0.25)


def test_augmentation_is_that_of_the_recipe(tmp_path):
    draw(tmp_path / "photos")
    settings = {"root": tmp_path / "photos", "split": 0.25, "validation": 0, "image_size": 10, "workers": 0, "channels": 1}
    whole = nbsnn.load_data("folder", **settings, crop_area=1.0, flip=False, center=1.0).train
    for augmented in (True, False):
        images, _ = next(iter(nbsnn.Batches(whole, 8, augment=augmented)))
        assert images.shape == (8, 1, 10, 10)
    digits = nbsnn.load_data("digits", flip=False, padding="black").train
    assert not digits.flip


def test_hashes_of_recipes_without_these_settings_stand():
    """The hash of a folder recipe of the version before."""
    recipe = nbsnn.recipe.recipe_from_dict(
        {"model": {"name": "cifar10/resnet20"}, "data": {"name": "folder"}, "phase": {"32": {"epochs": 1}}}
    )
    assert recipe.hash == "b5e0c81c0870"


HEADS = """
from torch import nn

class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.act, self.pool = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.maps, self.scores = nn.Conv2d(4, 2, 1), nn.Linear(4, 10)

    def forward(self, x):
        x = self.act(self.stem(x))
        return {"maps": self.maps(x), "scores": self.scores(self.pool(x).flatten(1))}
"""


def test_the_class_scores_are_chosen_among_several_outputs(tmp_path, monkeypatch, capsys):
    (tmp_path / "heads.py").write_text(HEADS)
    monkeypatch.chdir(tmp_path)
    own, scores = ["--model", "heads:Heads", "--data", "digits", "--limit", "16"], ["--output", "scores"]
    assert "or choose them with --output, which quantize, convert, lower and eval take" in refusal(capsys, "eval", *own)
    assert "--output here: the network returns no such tensor" in refusal(capsys, "eval", *own, "--output", "here")
    assert "the network gives [1, 2, 8, 8]" in refusal(capsys, "eval", *own, "--output", "maps")
    assert printed(capsys, "quantize", *own, *scores, "--images", "32", "--out", "q.safetensors")["top1"] <= 100
    (row,) = printed(capsys, "convert", "q.safetensors", *own, *scores, "--schedule", "settle")["results"]
    assert row["off"] == 0
    lowered = printed(capsys, "lower", "q.safetensors", *own[:4], *scores, "--fidelity-images", "16", "--out", "i.safetensors")
    assert lowered["fidelity"]["agreement"] == 100
    for file in ("q.safetensors", "i.safetensors"):
        assert printed(capsys, "eval", file, *own, *scores, "--engine", "counts")["images"] == 16
