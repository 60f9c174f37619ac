"""A killed training process goes on by itself and ends with the same bits; a full disk leaves the last good checkpoint."""

import os
import random
import resource
import signal
import subprocess
import time
from contextlib import contextmanager

import kill_resume
import pytest
import torch
from digits_recipe import digits_recipe
from nets import digits_net

from nbsnn.cli import main
from nbsnn.data.images import Splits
from nbsnn.data.sets.digits import load_digits
from nbsnn.errors import CheckpointError
from nbsnn.recipe import Phase
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import read_tensors
from nbsnn.training.loop import fit
from nbsnn.training.observer import Observer

RECIPE = load_recipe("digits/resnet20", ["data.batch_size=32"])


def run_here(recipe, out, *options):
    """The run to its end in this process, with one thread like those that are killed: a start of Python takes seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main([*kill_resume.command(recipe, out)[3:], *options]) == 0
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nobody disturbed, and its recipe."""
    folder = tmp_path_factory.mktemp("reference")
    recipe = folder / "short.toml"
    recipe.write_text(digits_recipe(kill_resume.TABLES, validation=1357, batch_size=16))  # 5 steps in each of 3 epochs
    run_here(recipe, folder / "run")
    return recipe, folder / "run"


@pytest.mark.slow
def test_a_process_killed_at_two_random_moments_ends_with_the_same_bits(tmp_path, reference):
    recipe, untouched = reference
    moments = random.Random(0)
    killed = sum(kill_resume.run_and_kill(recipe, tmp_path, moments.randint(1, 5)).killed for _ in range(2))
    assert killed == 2
    run_here(recipe, tmp_path)
    assert kill_resume.differences(untouched, tmp_path) == []
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    names = ("best.safetensors", "finished.safetensors", "last.safetensors", "log.csv", "log.jsonl")
    kept = [f"{phase}/{name}" for phase in sorted(kill_resume.PHASES) for name in names]
    assert left == [name for name in kept if name != "32bit/finished.safetensors"]


@pytest.mark.slow
def test_the_comparison_sees_a_difference(tmp_path, reference):
    recipe, untouched = reference
    other = tmp_path / "other.toml"
    other.write_text(recipe.read_text().replace("[optim]", "[optim]\nmomentum = 0.8"))
    run_here(other, tmp_path / "run")
    assert len(kill_resume.differences(untouched, tmp_path / "run")) > 50


@pytest.mark.slow
def test_a_signal_saves_and_leaves(tmp_path, reference):
    recipe, untouched = reference
    command = [*kill_resume.command(recipe, tmp_path), "--save-every", "1000"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=kill_resume.ENVIRONMENT
    )
    while not list(tmp_path.glob("*/training.safetensors")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "; run the same command to resume" in said
    assert "Traceback" not in said
    run_here(recipe, tmp_path, "--resume")
    assert kill_resume.differences(untouched, tmp_path) == []


def test_resume_without_a_run_is_refused(tmp_path, capsys):
    assert main(["train", "--recipe", "digits/resnet20", "--out", str(tmp_path), "--resume"]) == 2
    assert "holds no run to resume; name its folder, or leave --resume out" in " ".join(capsys.readouterr().err.split())


@contextmanager
def largest_file(size):
    """While open, no file of this process grows beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


class FullDiskAfter(Observer):
    """The disk fills up after the first epoch."""

    def on_epoch(self, row):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk_is_one_line_and_leaves_the_last_good_checkpoint(tmp_path):
    full = load_digits()
    splits = Splits(full.train.take(slice(0, 100)), full.validation.take(slice(0, 20)), full.test)
    phase = Phase(3, lr=0.1)
    refusal = r"^cannot write .*: .*; free some space or choose another folder$"
    with largest_file(-1), pytest.raises(CheckpointError, match=refusal):
        fit(digits_net(), splits, RECIPE, phase, out=tmp_path, observer=FullDiskAfter())
    assert read_tensors(tmp_path / "last.safetensors")[0]["metrics"]["epoch"] == 1
    assert not list(tmp_path.glob(".*.part"))
    resumed = fit(digits_net(), splits, RECIPE, phase, out=tmp_path)
    fresh = fit(digits_net(), splits, RECIPE, phase, out=tmp_path / "fresh")
    first, second = (read_tensors(result.last)[1] for result in (resumed, fresh))
    assert all(first[key].equal(second[key]) for key in first)
