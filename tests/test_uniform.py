"""The uniform format: its arithmetic and gradients, and networks in it from training to the integer network."""

import pytest
import torch
import torch.nn.functional as F
from nets import RandomNet, SmallNet, randomize_
from torch import nn

import nbsnn
from nbsnn.evaluation.fidelity import measure_integer_fidelity
from nbsnn.export.packed import save_packed
from nbsnn.quant.formats import Uniform
from nbsnn.quant.functional import quantize_uniform_weight
from nbsnn.training.optim import keep_positive_


def test_levels_are_multiples_of_the_step_up_to_the_clip():
    weight = torch.tensor([[-9.0, -0.6, -0.2, 0.0, 0.26, 0.7, 0.9, 2.0]])
    expected = torch.tensor([[-1.0, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1, 1]])
    assert torch.allclose(quantize_uniform_weight(weight, torch.tensor(1.0), bits=3), expected)
    assert quantize_uniform_weight(weight * 5, torch.tensor([[5.0]]), bits=2).unique().tolist() == [-5, 0, 5]


@pytest.mark.parametrize("scale", ["tensor", "channel"])
def test_more_bits_come_closer_and_every_row_has_its_clip(scale):
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3) * torch.logspace(-6, 2, 8).view(-1, 1, 1, 1)
    errors = []
    for bits in range(2, 9):
        fmt = Uniform(bits, scale=scale)
        errors.append(float((fmt.quantize(weight, fmt.first_scale(weight)) - weight).norm() / weight.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02
    values = Uniform(8, scale=scale).quantize(weight, Uniform(8, scale=scale).first_scale(weight))
    small = (values[0] - weight[0]).norm() / weight[0].norm()
    assert small < 0.01 if scale == "channel" else small > 0.9


def test_gradients_are_those_of_a_clip_with_a_rounding_residue():
    torch.manual_seed(0)
    weight = torch.randn(5, 40, dtype=torch.float64, requires_grad=True)
    clip = torch.rand(5, 1, dtype=torch.float64).add(0.5).requires_grad_()
    grad = torch.randn(5, 40, dtype=torch.float64)
    quantize_uniform_weight(weight, clip, bits=3).backward(grad)
    inside = weight.detach().abs() < clip.detach()
    assert weight.grad.equal(grad * inside)
    level = (weight / clip).clamp(-1, 1).mul(3).round() / 3
    expected = (grad * torch.where(inside, level - weight / clip, level)).sum(1, keepdim=True).detach()
    assert torch.allclose(clip.grad, expected * (27 / 40) ** 0.5)


@pytest.mark.parametrize("scale", ["tensor", "channel"])
def test_a_net_in_8_bits_is_near_its_float_form_and_goes_the_whole_way(scale, tmp_path):
    """8 bits choose the format; statistics of pretrained norms are kept; files and integers hold the same weights."""
    torch.manual_seed(0)
    net, images = RandomNet(["chain", "identity", "concatenation"]), torch.randn(64, 2, 6, 6)
    randomize_(net)
    net.eval()
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(8, 8, scale=scale), images=images)
    assert quantized.stem[1].running_mean.equal(net.stem[1].running_mean)
    with torch.no_grad():
        wanted, logits = net(images), quantized(images)
        assert (logits - wanted).norm() < 0.02 * wanted.norm()
        save_packed(tmp_path / "b.safetensors", quantized)
        packed = nbsnn.load_checkpoint(tmp_path / "b.safetensors", model=RandomNet(["chain", "identity", "concatenation"]))
        assert packed(images).equal(logits)
        assert nbsnn.unpack(packed)(images).equal(logits)
    program = nbsnn.lower(quantized.double(), images[:1].double())
    assert not program.program.notes  # no weight was rounded again
    fidelity = measure_integer_fidelity(quantized, program, images[:16].double())
    assert fidelity.off < 5  # T = 255
    assert max(layer.largest for layer in fidelity.layers) <= 8


def test_scales_train_and_small_ones_are_not_raised():
    torch.manual_seed(0)
    images, labels = torch.randn(16, 2, 6, 6), torch.arange(16) % 4
    net = SmallNet()
    net.conv2.weight.data[0] *= 1e-5
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(4, 4, weight_format="uniform"), images=images).train()
    before = quantized.conv2.weight_scale.detach().clone()
    assert float(before[0]) < 1e-4
    keep_positive_(quantized)
    assert quantized.conv2.weight_scale.equal(before)  # only training may raise it
    optimizer = torch.optim.SGD(quantized.parameters(), lr=0.2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(quantized(images), labels)
        loss.backward()
        optimizer.step()
        keep_positive_(quantized)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = quantized.conv2.weight_scale.detach()
    assert not after.equal(before)
    assert (after > 0).all()
    nbsnn.set_bits_(quantized, weight_bits=2)
    assert quantized.conv2.quantized_weight().detach()[1].unique().numel() <= 3


# ----------------------------------------------------------------------------------------------------------- 1-bit activations


@pytest.mark.parametrize(("neuron", "schedule"), nbsnn.spiking.schedules.valid_pairs())
def test_with_one_bit_every_schedule_is_exact(neuron, schedule):
    """T = 1: a neuron sees one current, so that even `fixed` rounds as the quantizer does, in any depth."""
    torch.manual_seed(0)
    net = RandomNet(["chain", "identity", "projection", "pool"])
    randomize_(net)
    images = torch.randn(8, 2, 6, 6, dtype=torch.float64)
    quantized = nbsnn.quantize(net.double(), nbsnn.QuantSpec(4, 1), images=images).eval()
    spiking = nbsnn.to_spiking(quantized, images[:1], neuron=neuron, schedule=schedule)
    assert spiking.timesteps == 1
    assert nbsnn.measure_fidelity(quantized, spiking, images).differing == 0
    torch.testing.assert_close(spiking(images), quantized(images))


def test_one_bit_runs_in_both_engines_and_files(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    images = torch.randn(6, 2, 6, 6)
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(8, 1), images=images).eval()
    nbsnn.save_checkpoint(tmp_path / "a.safetensors", quantized)
    again = nbsnn.load_checkpoint(tmp_path / "a.safetensors", model=net)
    assert again(images).equal(quantized(images))
    program = nbsnn.lower(quantized, images[:1])
    program.save(tmp_path / "p.safetensors")
    program = nbsnn.IntegerNetwork.load(tmp_path / "p.safetensors")
    counts = program.run(images, engine="counts")
    for backend in ("torch", "native"):
        for neuron, schedule in nbsnn.spiking.schedules.valid_pairs():
            assert program.run(images, engine="spikes", neuron=neuron, schedule=schedule, backend=backend).equal(counts)
