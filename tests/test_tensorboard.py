"""`train --tensorboard`: event files of every phase, where tensorboard is installed; one line where it is not."""

import sys

import pytest
from digits_recipe import digits_recipe
from torch import nn

from nbsnn.cli import main
from nbsnn.errors import MissingDependencyError
from nbsnn.training.execution import Execution
from nbsnn.training.observer import Epoch, Observer, Observers
from nbsnn.training.tensorboard import TensorBoard

RECIPE = digits_recipe("[phase.32]\nepochs = 1\n[phase.2]\nepochs = 2\n", validation=1300)


def scalars(folder):
    """Tag → (step, value) of all event files in a folder, as TensorBoard itself reads them."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore")  # tensorboard's own
def test_a_run_leaves_scalars_and_thresholds_of_every_phase(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    recipe = tmp_path / "short.toml"
    recipe.write_text(RECIPE)
    assert main(["train", "-r", str(recipe), "--out", str(tmp_path / "run"), "--device", "cpu", "--tensorboard"]) == 0
    board = tmp_path / "run" / "tensorboard"
    assert sorted(p.name for p in board.iterdir()) == ["2-bits", "float"]
    assert not any(tag.startswith("threshold") for tag in scalars(board / "float"))
    values = scalars(board / "2-bits")
    assert [step for step, _ in values["top-1 %/validation"]] == [2, 4]  # two batches an epoch
    assert {"loss/epoch", "learning rate", "top-1 %/training", "images per second"} <= values.keys()
    assert len([tag for tag in values if tag.startswith("threshold/")]) == 19
    assert all(value > 0 for _, value in values["threshold/stem.act"])
    assert len(values["weight scale/stage1.0.first.conv"]) == 2
    for tag in ("rate/stem.act", "clipped %/stem.act", "dead channels %/stem.act"):
        assert [step for step, _ in values[tag]] == [2, 4]


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_replaces_the_values_that_it_repeats(tmp_path):
    pytest.importorskip("tensorboard")
    row = Epoch(1, 1.0, 50.0, 40.0, 0.1, 1.0, 10.0)
    for resumed in (False, True):
        board = TensorBoard(tmp_path, every=1)
        board.on_phase("4 bits", 3, 2, Execution())
        if resumed:
            board.on_resume(1, 0)
        for epoch in (2,) if resumed else (1, 2, 3):
            board.on_step(epoch - 1, 1, 2.0, 30.0, 8)
            board.on_network(epoch, nn.Linear(2, 2))
            board.on_epoch(Epoch(**{**vars(row), "epoch": epoch, "loss": 5.0 if resumed else 1.0}))
        board.close()
    values = scalars(tmp_path / "4-bits")
    assert values["loss/epoch"] == [(2, 1.0), (4, 5.0)]
    assert [step for step, _ in values["loss/so far in the epoch"]] == [1, 3]


def test_without_tensorboard_the_line_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'nbsnn\[tensorboard\]'"):
        TensorBoard(tmp_path)
    assert main(["train", "-r", "digits/resnet20", "--out", str(tmp_path / "run"), "--device", "cpu", "--tensorboard"]) == 2
    assert "pip install 'nbsnn[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_several_observers_are_all_called():
    told = []

    class Noting(Observer):
        def __init__(self, stop):
            self.stop = stop

        def on_step(self, *values):
            told.append(values)

        def should_stop(self):
            told.append("asked")
            return self.stop

    both = Observers(Noting(True), Noting(False))
    both.on_step(0, 1, 2.0, 3.0, 4)
    assert told == [(0, 1, 2.0, 3.0, 4)] * 2
    assert both.should_stop()
    assert told[2:] == ["asked"] * 2
    both.close()
