"""Learning rates as functions of progress, parameter groups, and the step from one bit-width to the next."""

import pytest
import torch
from nets import DigitsNet, digits_net

from nbsnn.errors import ConfigError
from nbsnn.models import build_model
from nbsnn.quant.formats.apot import least_error_scale
from nbsnn.quant.layers import QuantReLU
from nbsnn.quant.plans import read_plan
from nbsnn.recipe import OptimSpec, Phase
from nbsnn.recipes import load_recipe
from nbsnn.training.optim import keep_positive_, learning_rate, make_optimizer, set_learning_rate_
from nbsnn.training.progressive import next_form

RECIPE = load_recipe("digits/resnet20")
PHASE = Phase(2, lr=0.04, weight_decay=1e-4)


def test_the_step_schedule_divides_at_its_milestones():
    spec = OptimSpec(milestones=(0.5, 0.75), lr_gamma=0.1)
    rates = [learning_rate(p, spec) for p in (0.0, 0.49, 0.5, 0.74, 0.75, 0.99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_cosine_schedule_falls_from_one_to_zero_after_the_warm_up():
    spec = OptimSpec(schedule="cosine", warmup=0.2)
    rates = [learning_rate(p, spec) for p in (0.0, 0.1, 0.2, 0.6, 0.9999)]
    assert rates == pytest.approx([1e-3, 0.5, 1, 0.5, 0], abs=1e-6)


def test_thresholds_and_scales_have_groups_and_rates_of_their_own():
    model = digits_net()
    optimizer = make_optimizer(model, PHASE, OptimSpec(threshold_lr=0.5, scale_lr=0.1, momentum=0.8))
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(list(model.parameters())) - 3, 2, 1]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    set_learning_rate_(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.1, 0.02])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {PHASE.weight_decay}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}
    assert len(make_optimizer(DigitsNet(), PHASE, OptimSpec()).param_groups) == 1


def test_thresholds_and_scales_below_the_floor_are_brought_back():
    model = digits_net()
    with torch.no_grad():
        model.act1.threshold.fill_(-1e6)
        model.conv2.weight_scale.fill_(-3)
    keep_positive_(model)
    assert model.act1.threshold.item() == model.conv2.weight_scale.item() == pytest.approx(1e-3)


# ----------------------------------------------------------------------------------------------------------- progressive


def test_the_next_form_is_a_new_object_that_keeps_what_was_learned():
    images = torch.randn(64, 1, 8, 8)
    float_net = digits_net(quantized=False)
    assert next_form(float_net, RECIPE, 32, images) is not float_net
    four = next_form(float_net, RECIPE, 4, images)
    assert {fmt.bits for name, fmt in read_plan(four).items() if name not in ("conv1", "head")} == {4}
    with torch.no_grad():
        four.act1.threshold.fill_(1.7)
        four.conv2.weight_scale.fill_(2.5)
    two = next_form(four, RECIPE, 2, images)
    assert two is not four
    assert (two.act1.threshold.item(), two.conv2.weight_scale.item()) == (pytest.approx(1.7), pytest.approx(2.5))
    assert (two.act1.bits, two.conv2.weight_bits, four.act1.bits) == (2, 2, 4)
    with pytest.raises(ConfigError, match=r"^phase 32 must be the first: a quantized network does not become float again$"):
        next_form(two, RECIPE, 32, images)


def test_scales_are_refitted_where_the_phase_says_so():
    images = torch.randn(64, 1, 8, 8)
    recipe = load_recipe("digits/resnet20", ["phase.4.refit_scales=true", "phase.2.refit_scales=true"])
    four = next_form(digits_net(quantized=False), recipe, 4, images)
    assert four.conv2.weight_scale.equal(least_error_scale(four.conv2.weight, 4))
    assert not four.conv2.weight_scale.equal(next_form(digits_net(quantized=False), RECIPE, 4, images).conv2.weight_scale)
    kept, three = four.conv2.weight_scale.item(), next_form(four, recipe, 3, images)
    assert three.conv2.weight_scale.item() == kept
    two = next_form(three, recipe, 2, images)
    assert two.conv2.weight_scale.equal(least_error_scale(two.conv2.weight, 2))
    assert two.act1.threshold.equal(three.act1.threshold)
    floats = load_recipe("cifar10/resnet18", ["phase.4.refit_scales=true"])
    assert next_form(build_model("cifar10/resnet20", in_channels=1), floats, 4, torch.randn(8, 1, 8, 8))
    with pytest.raises(ConfigError, match=r"^phase.32.refit_scales=True: must be false: a float net has no scales$"):
        load_recipe("digits/resnet20", ["phase.32.refit_scales=true"])


def test_with_float_weights_only_the_activations_follow():
    recipe = load_recipe("cifar10/resnet18")
    model = build_model("cifar10/resnet20", in_channels=1)
    four = next_form(model, recipe, 4, torch.randn(8, 1, 8, 8))
    two = next_form(four, recipe, 2, torch.randn(8, 1, 8, 8))
    assert {m.bits for m in two.modules() if isinstance(m, QuantReLU)} == {2}
    assert not [m for m in two.modules() if hasattr(m, "weight_bits")]
