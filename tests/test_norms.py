"""Norm statistics taken anew: what they are, what they leave alone, and what they change in training."""

import pytest
import torch
from nets import digits_net
from torch import nn

from nbsnn.data.images import Splits
from nbsnn.data.sets.digits import load_digits
from nbsnn.errors import ConfigError
from nbsnn.norms import recalibrate_norms_
from nbsnn.recipe import OptimSpec, Phase
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import read_tensors
from nbsnn.training.loop import fit


def batches():
    g = torch.Generator().manual_seed(1)
    return [2 + (1 + i) * torch.randn(16, 2, 4, 4, generator=g) for i in range(3)]


def test_statistics_are_the_mean_over_the_batches_and_all_else_is_left():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(2, momentum=0.3), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).train()
    net[1].running_mean.fill_(100)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    recalibrate_norms_(net, batches())
    first = net[1]
    torch.testing.assert_close(first.running_mean, torch.stack([x.mean((0, 2, 3)) for x in batches()]).mean(0))
    torch.testing.assert_close(first.running_var, torch.stack([x.var((0, 2, 3)) for x in batches()]).mean(0))
    assert first.momentum == 0.3
    assert all(module.training for module in net.modules())
    assert all(torch.equal(parameter, before[key]) for key, parameter in net.named_parameters())


def test_without_a_batch_nothing_is_lost():
    net = nn.BatchNorm2d(2)
    net.running_mean.fill_(3)
    recalibrate_norms_(net, [])
    assert net.running_mean.tolist() == [3, 3]


def test_training_with_recalibrated_batch_norm_changes_only_its_statistics(tmp_path):
    full = load_digits()
    splits = Splits(full.train.take(slice(0, 200)), full.validation.take(slice(0, 60)), full.test)
    found = []
    for count in (0, 2):
        recipe = load_recipe("digits/resnet20", ["data.batch_size=32", f"optim.recalibrate_batches={count}"])
        result = fit(digits_net(), splits, recipe, Phase(2, lr=0.02), out=tmp_path / str(count))
        found.append(read_tensors(result.last)[1])
    running, anew = found
    moved = {key for key in running if not torch.equal(running[key], anew[key])}
    assert moved == {key for key in running if key.endswith(("running_mean", "running_var", "batches_tracked"))}


def test_frozen_and_recalibrated_batch_norm_exclude_each_other():
    with pytest.raises(ConfigError, match=r"^recalibrate_batches=5: must be 0 where optim.freeze_norms is set$"):
        OptimSpec(freeze_norms=True, recalibrate_batches=5)
