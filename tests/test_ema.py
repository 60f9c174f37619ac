"""Averaged weights: what is kept and evaluated is the average, what is trained on are the weights themselves."""

import pytest
import torch
from nets import digits_net

from nbsnn.checkpoint import load_checkpoint
from nbsnn.data.images import Splits, evaluation_batches
from nbsnn.data.sets.digits import load_digits
from nbsnn.errors import ConfigError
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.recipe import Phase, recipe_from_dict
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import read_tensors
from nbsnn.training.ema import WeightEMA
from nbsnn.training.loop import fit
from nbsnn.training.observer import Observer


class Follower(Observer):
    """Averages the parameters of a network by hand."""

    def __init__(self, net, decay):
        self.net, self.decay, self.count = net, decay, 0
        self.means = {name: p.detach().double().clone() for name, p in net.named_parameters()}

    def on_step(self, *_):
        self.count += 1
        decay = min(self.decay, self.count / (self.count + 10))
        for name, p in self.net.named_parameters():
            self.means[name] = decay * self.means[name] + (1 - decay) * p.detach().double()


def test_the_ema_is_evaluated_and_saved_and_the_weights_train_on(tmp_path):
    full = load_digits()
    splits = Splits(full.train.take(slice(0, 200)), full.validation.take(slice(0, 60)), full.test)
    settings = ["data.batch_size=32", "data.augment=true", "optim.recalibrate_batches=2"]
    recipe = load_recipe("digits/resnet20", settings)
    net = digits_net()
    follower = Follower(net, 0.8)
    found = fit(net, splits, recipe, Phase(2, lr=0.1, ema_decay=0.8), out=tmp_path / "averaged", observer=follower)
    kept = read_tensors(found.last)[1]
    plain = digits_net()
    other = fit(plain, splits, recipe, Phase(2, lr=0.1), out=tmp_path / "plain")
    assert [row.loss for row in found.history] == [row.loss for row in other.history]
    for name, mean in follower.means.items():
        assert torch.allclose(kept[name].double(), mean, atol=1e-6), name
        if name.endswith("conv2.weight"):  # a threshold may never move
            assert not torch.allclose(kept[name], plain.get_parameter(name), atol=1e-6)
    seen = evaluate(load_checkpoint(found.last, model=digits_net(quantized=False)), evaluation_batches(splits.validation)).top1
    assert seen == found.history[-1].top1
    assert all(value.equal(kept[name]) for name, value in net.state_dict().items())


def test_a_state_is_gone_on_with():
    net = digits_net()
    first, second = WeightEMA(net, 0.5), WeightEMA(digits_net(), 0.5)
    with torch.no_grad():
        net.head.weight.add_(1)
    first.update_()
    second.restore_(first.state())
    assert second.steps == 1
    assert all(value.equal(second.values[name]) for name, value in first.values.items())
    own = net.head.weight.clone()
    with first.in_place():
        assert net.head.weight.equal(first.values["head.weight"])
        assert not net.head.weight.equal(own)
    assert net.head.weight.equal(own)


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_share_outside_its_range_is_refused(value):
    with pytest.raises(ConfigError, match=rf"^ema_decay={value}: must be 0 \(off\) or a decay in \(0, 1\)"):
        Phase(1, ema_decay=value)


def test_averaged_weights_with_statistics_of_others_are_refused():
    message = r"^phase.32.ema_decay=0.9: must be 0 unless optim.recalibrate_batches is set \(60, say\)"
    with pytest.raises(ConfigError, match=message):
        load_recipe("digits/resnet20", ["phase.32.ema_decay=0.9"])
    for settled in ("optim.recalibrate_batches=2", "optim.freeze_norms=true"):
        assert load_recipe("digits/resnet20", ["phase.32.ema_decay=0.9", settled]).phase["32"].ema_decay == 0.9


def test_a_header_with_the_setting_where_it_was_is_read_unless_it_was_used():
    table = load_recipe("digits/resnet20").to_dict()
    table["optim"]["average"] = 0.0
    assert recipe_from_dict(table) == load_recipe("digits/resnet20")
    table["optim"]["average"] = 0.9
    with pytest.raises(
        ConfigError, match=r"^optim\.average=0\.9: must be left out: it is a setting of a phase, phase\.BITS\.ema_decay"
    ):
        recipe_from_dict(table)
