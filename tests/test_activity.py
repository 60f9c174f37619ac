"""Rates, clipped currents and dead channels of activations in training, and where they are shown."""

import io

import pytest
import torch
from digits_recipe import digits_recipe
from rich.console import Console
from torch import nn

from nbsnn.cli import main
from nbsnn.console import screen
from nbsnn.console.dashboard import sparkline
from nbsnn.quant.layers import QuantReLU
from nbsnn.training.activity import LayerActivity, activity_line, measure_activity
from nbsnn.training.execution import Execution
from nbsnn.training.observer import Epoch
from nbsnn.training_dashboard import Dashboard


def test_activity_counts_rates_clipped_currents_and_dead_channels():
    net = nn.Sequential(QuantReLU(2, 1.5), nn.Dropout(0.9)).train()
    images = torch.tensor([[[-1.0, 0.4], [-2.0, -3.0]], [[1.6, 9.0], [-1.0, -1.0]]])[..., None]  # [2, 2 channels, 2, 1]
    (layer,) = measure_activity(net, images)
    assert layer == LayerActivity("0", 1.5, pytest.approx((1 + 3 + 3) / 3 / 8), 2 / 8, 0.5)
    assert net.training
    assert not net[0]._forward_hooks


def test_a_float_network_has_no_activity():
    assert measure_activity(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.zeros(1, 2)) == ()


def test_one_line_names_the_worst_layers():
    layers = [LayerActivity("a", 1.0, 0.1, 0.02, 0.0), LayerActivity("b", 1.0, 0.4, 0.01, 0.25)]
    assert activity_line(layers) == "rates 0.10 to 0.40, clipped up to 2.0 % (a), dead channels up to 25.0 % (b)"


def test_sparkline_spans_least_to_largest():
    assert sparkline([0, 1, 2, 7], 3) == "▁▂█"
    assert sparkline([3.0, 3.0], 9, unicode=False) == "__"


def test_the_dashboard_shows_the_layers_that_fit(monkeypatch):
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=100, height=12, color_system=None, legacy_windows=False)
    monkeypatch.setattr(screen, "err", terminal)
    monkeypatch.setattr("nbsnn.console.progress.err", terminal)
    board = Dashboard()
    with board:
        board.on_phase("2 bits", 2, 1, Execution())
        board.on_activity(1, [LayerActivity(f"stage{i}.act", 1.0, 0.2, 0.01 * i, 0.0) for i in range(9)])
        board.on_epoch(Epoch(1, 0.5, 50.0, 60.0, 0.1, 1.0, 10.0))
    text = shown.getvalue()
    assert "stage8.act" in text
    assert "stage0.act" not in text
    assert "5 more layers" in text
    assert "60.00 %" in text


def test_without_a_terminal_each_epoch_has_one_more_line(tmp_path, capsys):
    recipe = tmp_path / "short.toml"
    recipe.write_text(digits_recipe("[phase.2]\nepochs = 1\n", validation=1300))
    assert main(["train", "-r", str(recipe), "--out", str(tmp_path / "run"), "--device", "cpu", "--dashboard"]) == 0
    assert not screen.err.is_terminal
    lines = [line for line in capsys.readouterr().err.splitlines() if "rates" in line]
    assert len(lines) == 1
    assert "2 bits: epoch 1/1" in lines[0]
