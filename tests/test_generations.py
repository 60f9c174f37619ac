"""What a run goes on from: two generations of its state, under the conditions it had, and a finished phase that goes on."""

import json
import logging
import random
import shutil
from dataclasses import asdict, replace

import pytest
import safetensors.torch
import torch
from nets import digits_net
from observers import StopAfter

from nbsnn.checkpoint import describe
from nbsnn.data.images import Splits
from nbsnn.data.photos import PhotoSet
from nbsnn.data.sets.digits import load_digits
from nbsnn.errors import CheckpointError, Interrupted
from nbsnn.recipe import Phase
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import read_tensors, write_tensors
from nbsnn.training import conditions
from nbsnn.training.execution import Execution
from nbsnn.training.history import finished_phase
from nbsnn.training.loop import fit
from nbsnn.training.observer import Observer
from nbsnn.training.options import FitOptions

RECIPE = load_recipe("digits/resnet20", ["data.batch_size=32", "phase.all.epochs=2"])
PHASE = RECIPE.phase["4"]
STEPS = 4  # in an epoch
NEWEST, PREVIOUS, FINISHED = "training.safetensors", "training.previous.safetensors", "finished.safetensors"


@pytest.fixture(scope="module")
def splits():
    full = load_digits()
    return Splits(full.train.take(slice(0, 100)), full.validation.take(slice(0, 40)), full.test)


@pytest.fixture
def train(tmp_path, splits):
    """Train in a folder, from fresh weights, until a step if one is given."""

    def train(stop=None, *, name="run", phase=PHASE, **options):
        observer = StopAfter(stop) if stop else Observer()
        given = {"splits": splits, "recipe": RECIPE} | {key: options.pop(key) for key in ("splits", "recipe") if key in options}
        how = FitOptions(**{"save_every": 0} | options)
        try:
            return fit(digits_net(), phase=phase, out=tmp_path / name, options=how, observer=observer, **given)
        except Interrupted as stopped:
            return stopped

    return train


@pytest.fixture(scope="module")
def untouched(tmp_path_factory, splits):
    return fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path_factory.mktemp("untouched"))


def same(first, second):
    """Whether two runs ended with equal networks."""
    pairs = [(read_tensors(a)[1], read_tensors(b)[1]) for a, b in ((first.best, second.best), (first.last, second.last))]
    return all(a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a) for a, b in pairs)


def flip(path, *, seed=0):
    """Flip one bit of the second half of a file: in a tensor."""
    content = bytearray(path.read_bytes())
    content[random.Random(seed).randrange(len(content) // 2, len(content))] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def edited(path, tensors=lambda _: None, **header):
    """Change a training state, and give it the hash that goes with the change."""
    old, content = read_tensors(path)
    tensors(content)
    write_tensors(path, content, old | header)


DAMAGE = {
    "a flipped bit": flip,
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a step beyond the epoch": lambda path: edited(path, step=1_000_000),
    "an epoch beyond the phase": lambda path: edited(path, epoch=3),
    "more hits than images": lambda path: edited(path, correct=10**6),
    "a history of the future": lambda path: edited(path, history=[asdict_row(7)]),
    "no momenta": lambda path: edited(path, lambda t: [t.pop(k) for k in list(t) if k.startswith("momentum.")]),
    "no momenta, as the header says": lambda path: edited(
        path, lambda t: [t.pop(k) for k in list(t) if k.startswith("momentum.")], momenta=0
    ),
    "one momentum less": lambda path: edited(path, lambda t: t.pop("momentum.head.bias")),
    "a momentum of shape [1]": lambda path: edited(path, lambda t: t.update({"momentum.head.weight": torch.ones(1)})),
    "a weight less": lambda path: edited(path, lambda t: t.pop("model.head.weight")),
    "weights in double precision": lambda path: edited(path, lambda t: t.update({"model.head.bias": torch.ones(10).double()})),
    "a tensor of nothing": lambda path: edited(path, lambda t: t.update({"extra": torch.ones(1)})),
    "another kind of file": lambda path: write_tensors(path, {}, describe(torch.nn.Identity())),
}  # fmt: skip


def asdict_row(epoch):
    return {"epoch": epoch, "loss": 1.0, "train_top1": 1.0, "top1": 1.0, "lr": 1.0, "seconds": 1.0, "images_per_second": 1.0}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_run_whose_newest_state_is_damaged_resumes_from_the_one_before(tmp_path, train, untouched, caplog, damage):
    """Cases 18 and 19: the line says so, and the run ends with the same bits."""
    train(5)
    damage(tmp_path / "run" / NEWEST)
    there = (tmp_path / "run" / NEWEST).exists()
    with caplog.at_level(logging.WARNING):
        assert same(train(), untouched)
    said = [line for line in caplog.messages if line.endswith("resuming from the state before it, epoch 2 after step 0")]
    assert len(said) == there
    assert all(line.startswith(f"{tmp_path / 'run' / NEWEST}: ") and "\n" not in line for line in said)


def test_the_state_before_is_kept_until_a_new_one_is_whole(tmp_path, train, untouched):
    """A damaged newest state never takes the place of the good one."""
    train(6)
    flip(tmp_path / "run" / NEWEST)
    (tmp_path / "run" / "log.csv").unlink()
    (tmp_path / "run" / "log.csv").mkdir()  # the run ends in the middle
    with pytest.raises(CheckpointError, match=r"log.csv: it is a folder"):
        train(save_every=1e9)
    assert read_tensors(tmp_path / "run" / PREVIOUS)[0]["step"] == 1
    (tmp_path / "run" / "log.csv").rmdir()
    flip(tmp_path / "run" / NEWEST)
    assert same(train(), untouched)


def test_without_a_state_that_is_whole_the_run_is_refused(tmp_path, train):
    train(3)
    flip(tmp_path / "run" / NEWEST)
    flip(tmp_path / "run" / PREVIOUS)
    files = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(CheckpointError, match=r"restore it from a copy, or train the phase from the start \(overwrite=True\)$"):
        train()
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == files
    train(overwrite=True)  # the remedy


def test_a_state_of_another_recipe_is_refused_and_not_taken_for_damaged(tmp_path, train):
    train(3)
    with pytest.raises(CheckpointError, match="holds an unfinished run of another recipe, or of the same with another start"):
        train(recipe=load_recipe("digits/resnet20", ["data.batch_size=32", "phase.all.epochs=2", "seed=3"]))
    assert (tmp_path / "run" / NEWEST).is_file()


def test_a_state_of_an_earlier_version_is_loaded_with_a_warning(tmp_path, train, untouched, caplog):
    """One generation, no hash, no conditions, no count of momenta."""
    for stop in (3, 4):  # within an epoch, and at its end
        train(stop, name=str(stop))
        path = tmp_path / str(stop) / NEWEST
        (tmp_path / str(stop) / PREVIOUS).unlink()
        header, tensors = read_tensors(path)
        old = {key: value for key, value in header.items() if key not in ("content_hash", "conditions", "extended", "momenta")}
        safetensors.torch.save_file(tensors, path, {"nbsnn": json.dumps(old)})
        caplog.clear()
        assert same(train(name=str(stop)), untouched)
        assert [line.partition(": ")[2][:57] for line in caplog.messages] == [
            "from an earlier version of nbsnn, without a hash of its c",
            "from an earlier version of nbsnn, which did not store pre",
        ]


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("damage", [flip, lambda path: path.unlink()])
@pytest.mark.parametrize("stop", [5, 8])  # within the second epoch, and after its last step
def test_damaged_checkpoints_of_an_unfinished_run_are_rewritten(tmp_path, train, untouched, damage, stop, caplog):
    train(stop)
    for name in ("best.safetensors", "last.safetensors"):
        (tmp_path / "spare").write_bytes((tmp_path / "run" / name).read_bytes())
        damage(tmp_path / "run" / name)
        train(1, save_every=1e9) if stop == 5 and name == "best.safetensors" else None
    assert same(train(), untouched) or "takes its place" in caplog.text


def test_a_lost_best_network_is_replaced_with_a_warning(tmp_path, train, caplog):
    train(6)
    flip(tmp_path / "run" / "best.safetensors")
    flip(tmp_path / "run" / "last.safetensors")
    result = train()
    said = f"{result.best}: damaged, missing or of another run, and the network of epoch 1, the best so far, is lost"
    assert f"{said}; that of the next epoch" in caplog.text
    assert result.best_epoch.epoch == 2 == read_tensors(result.best)[0]["metrics"]["epoch"]


def test_a_best_network_of_another_run_is_never_taken(tmp_path, train, untouched, caplog):
    """Its recipe or its accuracy in the log tells: the next phase, or a report, would rest on another network."""
    other = train(name="other", recipe=replace(RECIPE, seed=1))
    train(6)
    shutil.copy(other.best, tmp_path / "run" / "best.safetensors")
    result = train()
    assert same(result, untouched)  # `last` held the best network too
    assert finished_phase(RECIPE, 4, tmp_path / "run") is not None

    shutil.copy(other.best, result.best)
    assert finished_phase(RECIPE, 4, tmp_path / "run") is None  # the last state is there, to restore it from
    assert f"{result.best}: holds a network of another run; restore it from a copy; resuming from" in caplog.text
    (tmp_path / "run" / FINISHED).unlink()
    with pytest.raises(CheckpointError, match=r"best.safetensors: holds a network of another run; .*; or delete .* to train"):
        finished_phase(RECIPE, 4, tmp_path / "run")

    header, tensors = read_tensors(result.last)
    header["metrics"]["validation_top1"] = 99.5
    write_tensors(result.best, tensors, header)
    with pytest.raises(CheckpointError, match="holds a network of another run"):
        finished_phase(RECIPE, 4, tmp_path / "run")


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
def test_a_damaged_checkpoint_of_a_finished_phase_comes_back_from_its_last_state(tmp_path, train, untouched, name, caplog):
    result = train()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "best.safetensors", FINISHED, "last.safetensors", "log.csv", "log.jsonl",
    ]  # fmt: skip
    flip(tmp_path / "run" / name)
    assert finished_phase(RECIPE, 4, tmp_path / "run") is None
    again = train()
    assert read_tensors(again.last)[1].keys() == read_tensors(untouched.last)[1].keys()
    if name == "last.safetensors" or result.best_is_last:
        assert same(again, untouched)
        assert [line.rpartition("; ")[2][:14] for line in caplog.messages] == ["resuming from "]
    else:
        assert "is lost; that of epoch 2 takes its place" in caplog.text
        assert again.best_epoch.epoch == 2
    assert finished_phase(RECIPE, 4, tmp_path / "run").history == again.history


def test_without_its_last_state_a_damaged_checkpoint_is_refused_with_what_helps(tmp_path, train):
    train()
    (tmp_path / "run" / FINISHED).unlink()
    flip(tmp_path / "run" / "best.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"best.safetensors: .*, restore it from a copy; or delete {tmp_path / 'run'} to train"
    ):
        finished_phase(RECIPE, 4, tmp_path / "run")


@pytest.mark.parametrize(
    "content", [None, "", "garbage", '{"epoch": 1}\n', "[" * 100_000, "1\n2\n", "\x00", '{"epoch": 1, "loss']
)
def test_a_damaged_log_is_no_loss(tmp_path, train, untouched, content):
    """The state is what counts; after it, the other one of the two files."""
    train(6)
    log = tmp_path / "run" / "log.jsonl"
    whole = log.read_text()

    def damage():
        log.unlink() if content is None else log.write_text(content)

    damage()
    result = train()
    assert [row.epoch for row in result.history] == [1, 2]
    assert log.read_text().startswith(whole)
    damage()
    (tmp_path / "run" / "log.csv").write_text("epoch\n1")
    assert finished_phase(RECIPE, 4, tmp_path / "run").history == result.history  # from its last state
    train(name="other")
    (tmp_path / "other" / FINISHED).unlink()
    log = tmp_path / "other" / "log.jsonl"
    damage()
    assert [row.epoch for row in finished_phase(RECIPE, 4, tmp_path / "other").history] == [1, 2]  # from log.csv
    (tmp_path / "other" / "log.csv").unlink()
    with pytest.raises(CheckpointError, match=r"log.jsonl: damaged or missing, and so is log.csv; restore one of them"):
        finished_phase(RECIPE, 4, tmp_path / "other")


# ----------------------------------------------------------------------------------------------------------- conditions


def test_a_run_is_not_resumed_in_another_precision(tmp_path, train):
    """Case 23."""
    train(3, execution=Execution(autocast=torch.bfloat16))
    with pytest.raises(CheckpointError, match=r"with precision bf16, and this one has float32; use the same precision \(bf16"):
        train()
    train(execution=Execution(autocast=torch.bfloat16))


def test_a_run_is_not_resumed_with_other_images(tmp_path, train, splits):
    train(3)
    other = replace(splits, train=replace(splits.train, images=splits.train.images.flip(0)))
    with pytest.raises(CheckpointError, match=r"holds a run with images \w+ \w+, and this one has"):
        train(splits=other)
    with pytest.raises(CheckpointError, match="use the same images"):
        train(splits=replace(splits, train=replace(splits.train, labels=splits.train.labels.flip(0))))


def test_a_run_is_not_resumed_at_another_first_epoch(tmp_path, train):
    train(3, first_epoch=1)
    with pytest.raises(CheckpointError, match="with first epoch 1, and this one has 0"):
        train()


def test_what_changes_rounding_alone_is_named_in_one_line(tmp_path, train, untouched, caplog, monkeypatch):
    train(3)
    found = conditions.conditions_of
    other = {"threads": "64", "torch": "1.0", "processes": "8", "device": "a GPU"}
    monkeypatch.setattr("nbsnn.training.run.conditions_of", lambda *args: found(*args) | other)
    assert same(train(), untouched)
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path / 'run'}: resumes with device a GPU (was cpu), threads 64 (was ")
    assert line.endswith("; the weights will not equal those of an uninterrupted run bit for bit")


@pytest.mark.parametrize(
    ("name", "change", "restore", "now"),
    [
        ("products", lambda: torch.set_float32_matmul_precision("medium"),
         lambda: torch.set_float32_matmul_precision("highest"), "matmul=medium"),
        ("oneDNN", lambda: setattr(torch.backends.mkldnn, "enabled", False),
         lambda: setattr(torch.backends.mkldnn, "enabled", True), "off"),
        ("denormals", lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False), "flushed to zero"),
        ("algorithms", lambda: torch.use_deterministic_algorithms(True),
         lambda: torch.use_deterministic_algorithms(False), "deterministic"),
    ],
)  # fmt: skip
def test_every_setting_of_the_process_that_changes_sums_is_named(splits, name, change, restore, now, caplog):
    def found():
        return conditions.conditions_of(splits, Execution(), torch.device("cpu"))

    then = found()
    try:
        change()
        conditions.compare_conditions(then, found(), "run")
    finally:
        restore()
    (line,) = caplog.messages
    assert line.startswith(f"run: resumes with {name} {now}")
    assert found() == then


def test_a_run_without_the_extension_for_quantizers_is_named(splits, caplog, monkeypatch):
    def found():
        return conditions.conditions_of(splits, Execution(), torch.device("cpu"))

    monkeypatch.setattr("nbsnn.fused.obstacle", lambda: None)
    then = found()
    monkeypatch.setattr("nbsnn.fused.obstacle", lambda: "switched off")
    conditions.compare_conditions(then, found(), "run")
    assert caplog.messages[0].startswith("run: resumes with quantizers torch (was C++); the weights will not equal")


def test_a_run_is_not_resumed_with_files_of_other_sizes(tmp_path):
    files = [tmp_path / f"{i}.jpg" for i in range(3)]
    for file in files:
        file.write_bytes(b"a photograph")
    photos = PhotoSet([str(file) for file in files], torch.arange(3), (0.5,) * 3, (0.2,) * 3, ("a", "b", "c"))

    def found():
        return conditions.conditions_of(Splits(photos, photos, photos), Execution(), torch.device("cpu"))

    then = found()
    conditions.compare_conditions(then, found(), "run")
    files[1].write_bytes(b"smaller")
    with pytest.raises(CheckpointError, match=r"holds a run with image files .*; use the same files, choose another folder"):
        conditions.compare_conditions(then, found(), "run")


# --------------------------------------------------------------------------------------------------------- more epochs


def test_a_finished_phase_continues_when_it_is_given_more_epochs(tmp_path, train, untouched, caplog):
    """Case 35."""
    first = train()
    more = replace(PHASE, epochs=4)
    recipe = replace(RECIPE, phase=RECIPE.phase | {"4": more})
    stopped = train(2, phase=more, recipe=recipe)
    assert str(stopped).startswith("stopped in epoch 3 at step 2")
    result = train(phase=more, recipe=recipe)
    assert result.history[:2] == first.history
    assert [row.epoch for row in result.history] == [1, 2, 3, 4]
    said = "continues after the 2 epochs of a finished phase; from there the learning rate follows the schedule of 4 epochs"
    assert caplog.text.count(said) == 1
    header, _ = read_tensors(result.last)
    assert header["metrics"]["extended_after"] == [2]
    assert header["recipe_hash"] == recipe.hash
    assert finished_phase(recipe, 4, tmp_path / "run") is not None
    assert not same(result, untouched)


@pytest.mark.parametrize("change", [{"epochs": 1}, {"epochs": 3, "lr": 0.01}])
def test_a_finished_phase_with_fewer_epochs_or_other_settings_is_refused(tmp_path, train, change):
    train()
    with pytest.raises(CheckpointError, match="holds a finished phase, of this or another recipe or start"):
        train(phase=Phase(**asdict(PHASE) | change))


def test_a_finished_phase_whose_state_is_gone_is_refused(tmp_path, train):
    train()
    (tmp_path / "run" / FINISHED).unlink()
    with pytest.raises(CheckpointError, match="choose another folder, or overwrite it"):
        train(phase=replace(PHASE, epochs=3))
