"""Training: schedules, groups, the same bits for the same seed, and a killed run that ends like one that was left alone."""

import csv
import json
import os
import signal
from dataclasses import asdict, replace

import pytest
import torch
from nets import DigitsNet, digits_net
from observers import StopAfter

from nbsnn.checkpoint import load_checkpoint, save_checkpoint
from nbsnn.data.images import Splits
from nbsnn.data.sets.digits import load_digits
from nbsnn.errors import CheckpointError, ConfigError, DivergedError, Interrupted
from nbsnn.quant.quantize import quantize
from nbsnn.recipe import Phase, QuantSpec
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import read_tensors
from nbsnn.training import folder, run
from nbsnn.training.execution import Execution
from nbsnn.training.folder import sole_writer
from nbsnn.training.history import finished_phase, write_history
from nbsnn.training.loop import fit
from nbsnn.training.observer import Observer
from nbsnn.training.options import FitOptions
from nbsnn.training_console import TrainingConsole

RECIPE = load_recipe("digits/resnet20", ["data.batch_size=32", "data.augment=true", "phase.all.epochs=2"])
STILL = load_recipe("digits/resnet20", ["data.batch_size=32"])
PHASE = RECIPE.phase["4"]


def changed(*settings):
    """RECIPE but for some settings."""
    return load_recipe("digits/resnet20", ["data.batch_size=32", "data.augment=true", "phase.all.epochs=2", *settings])


@pytest.fixture(scope="module")
def splits():
    full = load_digits()
    return Splits(full.train.take(slice(0, 200)), full.validation.take(slice(0, 60)), full.test)


class Recorder(Observer):
    def __init__(self):
        self.phases, self.steps, self.rows = [], [], []

    def on_phase(self, *args):
        self.phases.append(args)

    def on_step(self, *args):
        self.steps.append(args)

    def on_epoch(self, row):
        self.rows.append(row)


def test_a_short_fit_on_digits_learns_and_writes_its_files(tmp_path, splits):
    recorder = Recorder()
    full = Splits(load_digits().train, splits.validation, splits.test)
    result = fit(
        digits_net(), full, STILL, Phase(3, lr=0.1), out=tmp_path, options=FitOptions(title="four bits"), observer=recorder
    )
    assert result.history[-1].top1 > 70
    assert result.history[-1].loss < result.history[0].loss
    left = ["best.safetensors", "finished.safetensors", "last.safetensors", "log.csv", "log.jsonl"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    table = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [float(row["loss"]) for row in table] == [row["loss"] for row in rows] == [row.loss for row in recorder.rows]
    assert set(rows[0]) == {"epoch", "loss", "train_top1", "top1", "lr", "seconds", "images_per_second"}
    steps = len(load_digits().train) // 32 + 1
    assert recorder.phases == [("four bits", 3, steps, Execution())]
    assert len(recorder.steps) == 3 * steps
    header, _ = read_tensors(result.best)
    best = max(row.top1 for row in result.history)
    assert header["metrics"]["validation_top1"] == best
    assert header["recipe_hash"] == STILL.hash
    assert read_tensors(result.last)[0]["metrics"]["epoch"] == 3


def weights(path):
    return read_tensors(path)[1]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, splits):
    out = tmp_path_factory.mktemp("uninterrupted")
    return fit(digits_net(), splits, RECIPE, PHASE, out=out)


def test_the_same_seed_gives_the_same_bits(tmp_path, splits, uninterrupted):
    again = fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path)
    assert same(weights(again.last), weights(uninterrupted.last))
    assert same(weights(again.best), weights(uninterrupted.best))
    other = fit(
        digits_net(), splits, load_recipe("digits/resnet20", ["data.batch_size=32", "seed=5"]), PHASE, out=tmp_path / "other"
    )
    assert not same(weights(other.last), weights(uninterrupted.last))


@pytest.mark.parametrize("stops", [[1], [3], [7], [3, 2, 6], [13]])  # an epoch has seven steps
def test_an_interrupted_run_ends_like_one_that_was_left_alone(tmp_path, splits, uninterrupted, stops):
    for steps in stops:
        with pytest.raises(Interrupted, match=r"^stopped in epoch \d at step \d; run the same command to resume$"):
            fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path, observer=StopAfter(steps))
        assert (tmp_path / "training.safetensors").is_file()
        torch.manual_seed(99)
    fresh = quantize(DigitsNet(), QuantSpec(4, 4))  # other weights: all must come from the training state
    resumed = fit(fresh, splits, RECIPE, PHASE, out=tmp_path)
    assert same(weights(resumed.last), weights(uninterrupted.last))
    assert same(weights(resumed.best), weights(uninterrupted.best))
    kept = [(row.epoch, row.loss, row.train_top1, row.top1, row.lr) for row in resumed.history]
    assert kept == [(row.epoch, row.loss, row.train_top1, row.top1, row.lr) for row in uninterrupted.history]
    assert not (tmp_path / "training.safetensors").exists()


def test_a_finished_phase_is_recognised_and_one_of_another_recipe_is_not(uninterrupted):
    out = uninterrupted.last.parent
    found = finished_phase(RECIPE, 4, out)
    assert found is not None
    assert found.history == uninterrupted.history
    assert finished_phase(changed("seed=3"), 4, out) is None
    assert finished_phase(changed("phase.4.epochs=3"), 4, out) is None
    assert finished_phase(changed("phase.32.epochs=3"), 4, out) is None
    assert finished_phase(RECIPE, 4, out / "nothing") is None
    # Phases that come later do not decide this one.
    assert finished_phase(changed("phase.3.epochs=7"), 4, out) is not None
    assert changed("phase.3.epochs=7").hash != RECIPE.hash


def test_an_unfinished_phase_is_not_taken_for_a_finished_one(tmp_path, splits):
    with pytest.raises(Interrupted):
        fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path, observer=StopAfter(10))
    assert (tmp_path / "last.safetensors").is_file()
    assert finished_phase(RECIPE, 4, tmp_path) is None
    other = load_recipe("digits/resnet20", ["seed=3"])
    with pytest.raises(CheckpointError, match=r"holds an unfinished run of another recipe, or .*; choose another folder"):
        fit(digits_net(), splits, other, PHASE, out=tmp_path)


def test_results_of_another_recipe_are_not_overwritten_unasked(tmp_path, splits):
    short = Phase(1, lr=0.02)
    fit(digits_net(quantized=False), splits, RECIPE, short, out=tmp_path)
    before = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(
        CheckpointError,
        match=r"holds a finished phase, of this or another recipe or start; choose another folder, or overwrite it",
    ):
        fit(digits_net(quantized=False), splits, RECIPE, Phase(2), out=tmp_path)
    assert (tmp_path / "last.safetensors").read_bytes() == before
    fit(digits_net(quantized=False), splits, RECIPE, Phase(1, lr=0.01), out=tmp_path, options=FitOptions(overwrite=True))
    assert (tmp_path / "last.safetensors").read_bytes() != before


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, splits, monkeypatch):
    """Case 29. A lock is held by an open file: opened twice, even one process holds it only once."""
    monkeypatch.setattr(folder, "_PATIENCE", 0.3)
    with (
        sole_writer(tmp_path),
        pytest.raises(CheckpointError, match="another process trains there; let it end, or choose another folder"),
    ):
        fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path)
    assert not list(tmp_path.iterdir())
    with sole_writer(tmp_path):  # free again
        pass


def test_a_phase_that_starts_late_keeps_the_log_and_the_best_of_what_was_before(tmp_path, splits, uninterrupted):
    write_history(tmp_path, [asdict(replace(row, top1=99.0)) for row in uninterrupted.history[:1]])
    save_checkpoint(tmp_path / "best.safetensors", digits_net(), metrics={"epoch": 1, "validation_top1": 99.0})
    before = (tmp_path / "best.safetensors").read_bytes()
    result = fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path, options=FitOptions(first_epoch=1))
    assert [row.epoch for row in result.history] == [1, 2]
    assert result.best_epoch.epoch == 1
    assert (tmp_path / "best.safetensors").read_bytes() == before


def test_a_state_is_not_loaded_by_a_run_with_another_start(tmp_path, splits):
    with pytest.raises(Interrupted, match="run the same command to resume"):
        fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path, observer=StopAfter(1), options=FitOptions(start="one"))
    with pytest.raises(CheckpointError, match="another start"):
        fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path, options=FitOptions(start="other"))
    again = FitOptions(start="other", overwrite=True)
    with pytest.raises(Interrupted, match="run it again without overwriting"):
        fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path, observer=StopAfter(1), options=again)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_ends_the_run_after_its_step(tmp_path, splits, uninterrupted, number):
    """A terminal that closes (SIGHUP) loses no more than a TERM signal does."""

    class Signalled(TrainingConsole):
        def on_step(self, epoch, step, *figures):
            if step == 3:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with Signalled() as observer, pytest.raises(Interrupted, match=r"^stopped in epoch 1 at step [34]; run the same command"):
        fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path, observer=observer)
    assert signal.getsignal(number) is before
    assert same(weights(fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path).last), weights(uninterrupted.last))


def test_a_hang_up_that_is_ignored_stays_so():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with TrainingConsole() as observer:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not observer.should_stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, splits):
    with pytest.raises(DivergedError, match=r"^the loss is (nan|inf) in epoch 1 at step \d; lower phase\.N\.lr=1e\+30, or set"):
        fit(digits_net(quantized=False), splits, RECIPE, Phase(1, lr=1e30), out=tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path, splits):
    (tmp_path / "file").write_text("")
    recorder = Recorder()
    with pytest.raises(CheckpointError, match=r"^cannot write .*/file/out/"):
        fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path / "file" / "out", observer=recorder)
    assert recorder.steps == []


def test_batches_larger_than_the_training_set_are_refused_with_the_largest(tmp_path, splits):
    """The learning rate would be scaled for images that are not there."""
    images = len(splits.train)
    recipe = load_recipe("digits/resnet20", [f"data.batch_size={images + 1}"])
    with pytest.raises(ConfigError, match=rf": larger than the training set; choose {images} at most$"):
        fit(digits_net(), splits, recipe, PHASE, out=tmp_path)
    recipe = load_recipe("digits/resnet20", [f"data.batch_size={images}"])
    assert len(fit(digits_net(), splits, recipe, PHASE, out=tmp_path).history) == PHASE.epochs


def test_clipping_and_smoothing_are_applied(tmp_path, splits):
    overrides = ["data.batch_size=32", "optim.clip_norm=0.001", "optim.label_smoothing=0.1", "optim.momentum=0.5"]
    overrides.append("optim.nesterov=false")
    model = digits_net(quantized=False)
    before = model.head.weight.detach().clone()
    fit(model, splits, load_recipe("digits/resnet20", overrides), Phase(1, lr=0.1, weight_decay=0), out=tmp_path)
    moved = (model.head.weight - before).norm().item()
    assert 0 < moved < 7 * 0.1 * 0.001 / (1 - 0.5)


def test_the_best_checkpoint_can_be_loaded_with_the_float_net(uninterrupted, splits):
    model = load_checkpoint(uninterrupted.best, model=DigitsNet())
    assert model(splits.test.normalized()[:3]).shape == (3, 10)


# ------------------------------------------------------------------------- figures that are fetched together, as on a GPU


@pytest.fixture
def late(monkeypatch):
    """Figures of five steps are fetched together."""
    monkeypatch.setattr(run, "_steps_at_once", lambda device: 5)


def test_figures_fetched_together_are_those_fetched_one_by_one(tmp_path, splits, monkeypatch):
    recorder, other = Recorder(), Recorder()
    soon = fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path / "soon", observer=recorder)
    monkeypatch.setattr(run, "_steps_at_once", lambda device: 5)
    later = fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path / "later", observer=other)
    assert recorder.steps == other.steps
    assert all(value.equal(weights(later.last)[key]) for key, value in weights(soon.last).items())


def test_a_run_stopped_with_metrics_on_the_device_resumes(tmp_path, splits, late):
    whole = fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path / "whole")
    for steps in (3, 4):
        with pytest.raises(Interrupted, match=rf"^stopped in epoch 1 at step {3 if steps == 3 else 7}; "):
            fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path / "parts", observer=StopAfter(steps))
    parts = fit(digits_net(), splits, RECIPE, PHASE, out=tmp_path / "parts", options=FitOptions(save_every=0))
    assert all(value.equal(weights(parts.last)[key]) for key, value in weights(whole.last).items())
    assert [row.loss for row in parts.history] == [row.loss for row in whole.history]


def test_no_state_is_written_once_a_loss_on_its_way_is_not_finite(tmp_path, splits, late):
    with pytest.raises(DivergedError, match="the loss is"):
        fit(digits_net(), splits, RECIPE, Phase(2, lr=1e12), out=tmp_path)
    kept = read_tensors(tmp_path / "training.safetensors")[1]
    assert all(value.isfinite().all() for key, value in kept.items())
