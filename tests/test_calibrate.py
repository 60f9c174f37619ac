"""Where thresholds and scales start: at the least error, with statistics estimated anew, and the mode left as it was."""

import pytest
import torch
from nets import RandomNet, randomize_

from nbsnn.errors import QuantizationError
from nbsnn.quant.calibrate import half_normal_threshold, least_error_threshold, refit_scales_
from nbsnn.quant.formats.apot import least_error_scale
from nbsnn.quant.functional import apot_weight, quantize_activation
from nbsnn.quant.layers import QuantReLU
from nbsnn.quant.quantize import quantize
from nbsnn.recipe import QuantSpec


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_threshold_loses_no_more_than_a_fine_search(bits):
    x = torch.randn(5_000).double()
    relu = x.clamp_min(0)

    def error(theta):
        return float((quantize_activation(x, torch.as_tensor(theta).double(), bits=bits) - relu).square().mean())

    best = min(error(theta) for theta in torch.linspace(0.2, 4, 80).tolist())
    assert error(least_error_threshold(x, bits)) <= 1.03 * best
    assert error(half_normal_threshold(bits)) <= 1.2 * best  # of a normal distribution, not of this sample of it


def test_currents_without_a_positive_value_give_the_default_threshold():
    assert float(least_error_threshold(-torch.rand(10), 2)) == pytest.approx(half_normal_threshold(2))


def test_images_set_thresholds_and_statistics_and_leave_the_mode_alone():
    net = RandomNet(["chain", "identity"])
    randomize_(net)
    net.train()
    net.blocks.eval()
    images = torch.randn(200, 2, 6, 6) * 3 + 1
    quantized = quantize(net, QuantSpec(2, 2, norms="recalibrate"), images=images)
    assert [m.training for m in quantized.modules()] == [m.training for m in net.modules()]
    assert quantized.stem[1].momentum == net.stem[1].momentum
    thresholds = [m.threshold.item() for m in quantized.modules() if isinstance(m, QuantReLU)]
    assert len(set(thresholds)) == len(thresholds)
    quantized.eval()
    seen = []
    handle = quantized.stem[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    quantized(images)
    handle.remove()
    assert torch.allclose(quantized.stem[1].running_mean, seen[0].mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(quantized.stem[1].running_var, seen[0].var((0, 2, 3)), rtol=0.05)


def test_calibration_halves_the_loss_of_signal():
    net = RandomNet(["chain"] * 3)
    images = torch.randn(256, 2, 6, 6) * 4
    net.train()(images)
    wanted = net.eval()(images).detach()

    def error(quantized):
        return ((quantized.eval()(images) - wanted).square().mean() / wanted.var()).item()

    assert error(quantize(net, QuantSpec(5, 8), images=images)) < 0.5 * error(quantize(net, QuantSpec(5, 8)))


def test_calibration_takes_any_number_of_images():
    images = torch.randn(129, 2, 6, 6)  # a chunk of 128, and one left over
    quantized = quantize(RandomNet(["chain"]), QuantSpec(4, 4), images=images).eval()
    assert quantized(images).isfinite().all()


@pytest.mark.parametrize("shape", [(0, 2, 8, 8), (1, 2, 8, 8)])
def test_too_few_images_are_refused(shape):
    with pytest.raises(QuantizationError, match=r"^images has shape \[.*\]; give at least 2 images, \[B, C, H, W\]$"):
        quantize(RandomNet(["chain"]), QuantSpec(4, 4), images=torch.zeros(shape))


def test_a_network_without_parameters_is_quantized_too():
    quantized = quantize(torch.nn.Sequential(torch.nn.ReLU()), QuantSpec(act_bits=2))
    with torch.no_grad():
        assert torch.equal(quantized(torch.tensor(9.0)), quantized[0].threshold)


@pytest.mark.parametrize(("bits", "known"), [(2, 1.22), (3, 2.3), (4, 2.6)])
def test_the_scale_loses_no_more_than_a_fine_search(bits, known):
    weight = torch.randn(64, 32, 3, 3) * 0.05 + 0.01
    unit = (weight - weight.mean()) / weight.std()

    def error(scale):
        return float((apot_weight(weight, torch.as_tensor(scale), bits=bits).values - unit).square().mean())

    found = least_error_scale(weight, bits)
    assert error(found) <= 1.01 * min(error(scale) for scale in torch.linspace(0.3, 5, 200).tolist())
    assert found.item() == pytest.approx(known, abs=0.35)
    assert least_error_scale(torch.zeros(9), bits).isfinite()


def test_scales_are_refitted_and_nothing_else_changes():
    quantized = quantize(RandomNet(["chain", "identity"]), QuantSpec(2, 2))
    before = {key: value.clone() for key, value in quantized.state_dict().items()}
    refit_scales_(quantized)
    changed = {key for key, value in quantized.state_dict().items() if not value.equal(before[key])}
    assert changed == {key for key in before if key.endswith("weight_scale")}
