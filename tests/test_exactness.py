"""Under "settle" and "barrier" every count is the quantized activation, whatever the network; under "fixed" it is not."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import JUNCTIONS, random_quantized, small_quantized
from torch import nn

from nbsnn.errors import ConversionError
from nbsnn.evaluation.fidelity import measure_fidelity
from nbsnn.quant.layers import QuantReLU
from nbsnn.quant.quantize import quantize
from nbsnn.recipe import QuantSpec
from nbsnn.spiking.convert import to_spiking
from nbsnn.spiking.neuron import IFNeuron
from nbsnn.spiking.schedules import schedule_named
from nbsnn.surgery import tap

EXACT = ("settle", "barrier")
junctions = st.lists(st.sampled_from(JUNCTIONS), min_size=1, max_size=4)
bits = st.lists(st.sampled_from([2, 3, 4]), min_size=1, max_size=3)


def images_for(seed, count=3, *, dtype=torch.float64):
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def counts_of(quantized, spiking, images):
    """Counts per layer: from the quantized activations, and from all spikes of the network."""
    acts = {n: m for n, m in quantized.named_modules() if isinstance(m, QuantReLU)}
    neurons = {n: m for n, m in spiking.network.named_modules() if isinstance(m, IFNeuron)}
    for act in acts.values():
        act.tie_tolerance = schedule_named("settle").tie_tolerance(images.dtype)
    with torch.no_grad(), tap(acts) as wanted, tap(neurons) as seen:
        quantized(images), spiking(images)
    for act in acts.values():
        act.tie_tolerance = 0.0
    for name, act in acts.items():
        want = wanted[name][0] * act.levels / act.threshold
        chunks = [out.unflatten(0, (-1, len(images))) for out in seen[name] if len(out) > 1]  # the rest stage sees one image
        yield name, want.round(), (torch.cat(chunks).sum(0) / neurons[name].height()).round()


# ------------------------------------------------------------------------------------------------------ random networks


@settings(max_examples=10)
@given(st.integers(0, 10**6), junctions, bits, st.sampled_from([2, 3, 4, 5, 32]), st.sampled_from(EXACT))
def test_every_count_and_logit_of_a_random_network_is_exact(seed, junctions, bits, weight_bits, schedule):
    quantized, images = random_quantized(seed, junctions, bits, weight_bits=weight_bits), images_for(seed)
    spiking = to_spiking(quantized, images[:1], schedule=schedule)
    for name, want, got in counts_of(quantized, spiking, images):
        assert torch.equal(want, got), name
    with torch.no_grad():
        assert (spiking(images) - quantized(images)).abs().max() < 1e-9


@pytest.mark.parametrize("schedule", EXACT)
def test_measure_fidelity_finds_no_differing_count(schedule):
    quantized, images = random_quantized(1, list(JUNCTIONS), [2, 3]), images_for(1, 4)
    fidelity = measure_fidelity(quantized, to_spiking(quantized, images[:1], schedule=schedule), images)
    assert fidelity.differing == 0
    assert all(layer.differing == 0 and layer.largest == 0 and layer.neurons > 0 for layer in fidelity.layers)
    assert fidelity.agreement == 100.0
    assert len(fidelity.layers) == sum(isinstance(m, QuantReLU) for m in quantized.modules())


@pytest.mark.parametrize("neuron", ["signed", "unsigned"])
def test_measure_fidelity_sees_that_fixed_is_not_exact_deeper_in(neuron):
    quantized, images = random_quantized(2, ["chain"] * 6, [3]), images_for(2, 4)
    fidelity = measure_fidelity(quantized, to_spiking(quantized, images[:1], neuron=neuron), images)
    assert fidelity.layers[0].differing == 0  # its current is constant
    assert fidelity.differing > 0
    assert fidelity.off == pytest.approx(100 * fidelity.differing / sum(layer.neurons for layer in fidelity.layers))


def test_measure_fidelity_counts_labels_and_progress():
    quantized, images = small_quantized(), torch.randn(53, 2, 6, 6)
    labels, chunks = quantized(images).argmax(1), []
    spiking = to_spiking(quantized, images[:1], schedule="barrier")
    fidelity = measure_fidelity(quantized, spiking, images, labels=labels, progress=chunks.append)
    assert (fidelity.quantized_top1, fidelity.spiking_top1, fidelity.images) == (100.0, 100.0, 53)
    assert sum(chunks) == 53
    assert fidelity.steps.shape == (53,)
    assert fidelity.to_dict()["differing"] == 0


def test_measure_fidelity_leaves_the_training_mode_and_the_statistics_alone():
    quantized, images = small_quantized(), torch.randn(4, 2, 6, 6)
    spiking = to_spiking(quantized, images[:1], schedule="barrier")
    before = quantized.norm1.running_mean.clone()
    quantized.train()
    assert measure_fidelity(quantized, spiking, images).differing == 0
    assert quantized.training
    assert torch.equal(quantized.norm1.running_mean, before)


def test_measure_fidelity_holds_for_a_threshold_below_the_floor():
    quantized, images = small_quantized(), torch.randn(4, 2, 6, 6)
    with torch.no_grad():
        quantized.act2.threshold.fill_(1e-5)  # acts as 1e-3
    assert measure_fidelity(quantized, to_spiking(quantized, images[:1], schedule="barrier"), images).differing == 0


# ---------------------------------------------------------------------------------------------------- steps and batches


@pytest.mark.parametrize("schedule", [*EXACT, "fixed"])
def test_an_image_gives_the_same_logits_and_steps_alone_and_in_a_batch(schedule):
    quantized, images = (
        random_quantized(3, ["identity", "projection", "chain"], [2, 3] if schedule != "fixed" else [2]),
        images_for(3, 5),
    )
    spiking = to_spiking(quantized, images[:1], schedule=schedule)
    with torch.no_grad():
        together, steps = spiking(images), spiking.steps
        alone = [(spiking(image[None]), spiking.steps) for image in images]
    assert torch.allclose(together, torch.cat([logits for logits, _ in alone]), rtol=0, atol=1e-9)
    assert torch.equal(steps, torch.cat([taken for _, taken in alone]))


def test_settle_takes_at_least_T_steps_and_no_more_than_the_worst_case():
    quantized, images = random_quantized(4, ["chain"] * 4, [3]), images_for(4, 6)
    spiking = to_spiking(quantized, images[:1], schedule="settle")
    spiking(images)
    assert spiking.timesteps == 7
    assert spiking.depth == 6
    assert spiking.steps.min() >= 7
    assert spiking.steps.max() <= 7 + (spiking.depth - 1) * 6
    assert len(spiking.steps.unique()) > 1  # each image has its own


def test_barrier_takes_depth_plus_one_times_T_steps():
    quantized, images = random_quantized(5, ["identity", "concatenation"], [2, 3]), images_for(5)
    spiking = to_spiking(quantized, images[:1], schedule="barrier")
    spiking(images)
    assert spiking.depth == 5  # stem, block, block and its merge, hidden
    assert spiking.steps.tolist() == [(5 + 1) * 7] * 3


def test_the_bias_is_a_current_of_the_first_T_steps_only():
    """One neuron with a bias alone: after T steps nothing more may come, or its count would run to the cap."""
    net = nn.Sequential(nn.Linear(1, 1), QuantReLU(3, 1.0), nn.Linear(1, 1), QuantReLU(3, 1.0), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for index, (weight, bias) in enumerate([(0.0, 0.45), (1.0, -0.2), (1.0, 0.3)]):
            net[2 * index].weight.fill_(weight)
            net[2 * index].bias.fill_(bias)
    image = torch.zeros(2, 1, dtype=torch.float64)
    for schedule in EXACT:
        logits = to_spiking(net, image[:1], schedule=schedule)(image)
        assert torch.allclose(logits, torch.full((2, 1), 2 / 7 + 0.3, dtype=torch.float64))  # 3/7 − 0.2 rounds to 2/7


# ----------------------------------------------------------------------------------------------------------- exact ties


def tie_net(dtype):
    """Integer weights and θ = L/2, so that one step of an activation is ½ and currents tie at exact quarters."""
    torch.manual_seed(11)
    layers = [nn.Linear(6, 12), QuantReLU(2, 1.5), nn.Linear(12, 12), QuantReLU(2, 1.5), nn.Linear(12, 12), QuantReLU(2, 1.5)]
    net = nn.Sequential(*layers, nn.Linear(12, 4))
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(torch.randint(-1, 2, layer.weight.shape))
                layer.bias.copy_(torch.randint(-1, 3, layer.bias.shape) / 4)
    return net.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", EXACT)
def test_exact_ties_agree_in_single_and_double_precision(dtype, schedule):
    net, images = tie_net(dtype), (torch.randint(-2, 5, (64, 6)) / 4).to(dtype)
    current = net[2](net[1](net[0](images)))
    ties = ((current * 2 + 0.5) % 1 == 0) & (current > 0) & (current < 1.5)
    assert ties.double().mean() > 0.05
    spiking = to_spiking(net, images[:1], schedule=schedule)
    assert all(torch.equal(want, got) for _, want, got in counts_of(net, spiking, images))
    assert (spiking(images) - net(images)).abs().max() < 1e-4


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_settle_equals_a_chain_that_settles_event_by_event_in_any_order(seed):
    rng = np.random.default_rng(seed)
    sizes, T = (3, 4, 4, 3), 3
    weights = [rng.integers(-4, 5, (b, a)) / 4 for a, b in pairwise(sizes)]
    biases = [rng.integers(-2, 3, b) / 4 for b in sizes[1:]]
    thresholds, image = [Fraction(3, 2)] * 3, rng.integers(-2, 5, 3) / 4
    by_events = oracles.settle_chain(image, weights, biases, thresholds, T, rng)
    assert by_events == oracles.quantize_chain(image, weights, biases, thresholds, T)
    net = nn.Sequential()
    for weight, bias in zip(weights, biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0]).double()
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias))
        net.extend([linear, QuantReLU(2, 1.5).double()])
    net.append(nn.Linear(3, 2).double())
    images = torch.from_numpy(image).expand(2, -1)
    spiking = to_spiking(net, images[:1], schedule="settle")
    assert [got[0].int().tolist() for _, _, got in counts_of(net, spiking, images)] == by_events


# -------------------------------------------------------------------------------------------------------------- no trace


@pytest.mark.parametrize("schedule", [*EXACT, "fixed"])
def test_a_call_leaves_no_trace_even_one_that_fails(schedule):
    quantized, images = random_quantized(6, ["chain", "identity"], [2]), images_for(6)
    spiking = to_spiking(quantized, images[:1], schedule=schedule)
    with torch.no_grad():
        first = spiking(images)
        assert torch.equal(spiking(images), first)
        handle = spiking.network.head.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError("stop")))
        with pytest.raises(KeyError):
            spiking(images)
        handle.remove()
        with pytest.raises(ConversionError, match="a neuron steps within a call of its SpikingNetwork"):
            spiking.network(images)
        assert torch.equal(spiking(images), first)


def test_the_spiking_network_is_a_new_object_with_the_same_state_dict():
    quantized = small_quantized()
    before = {k: v.clone() for k, v in quantized.state_dict().items()}
    spiking = to_spiking(quantized, torch.randn(1, 2, 6, 6))
    assert list(spiking.state_dict()) == list(before)
    assert all(torch.equal(spiking.state_dict()[k], v) for k, v in before.items())
    with torch.no_grad():
        next(iter(spiking.parameters())).zero_()
    assert all(torch.equal(quantized.state_dict()[k], v) for k, v in before.items())
    assert spiking.load_state_dict(before) is not None
    assert torch.equal(spiking.network.conv1.weight, quantized.conv1.weight)


def test_gradients_flow_through_the_average_of_the_head():
    quantized = small_quantized()
    spiking = to_spiking(quantized, torch.randn(1, 2, 6, 6))
    spiking(torch.randn(2, 2, 6, 6)).sum().backward()
    assert spiking.network.head.weight.grad.abs().sum() > 0


def test_the_bound_of_settle_is_attained():
    """A chain in which each neuron hears nothing that counts until the last spike of the one before, and then owes T."""
    for T, depth in ((3, 5), (7, 3)):
        chain = []
        for place in range(depth):
            # The first fires once, in step T; the next ones cross from 0 to T with the last spike that they hear.
            weight, bias = {0: (1.0, 0.0), 1: (float(T * T), 0.0)}.get(place, (float(T), float(1 - T)))
            layer = nn.Linear(1, 1)
            nn.init.constant_(layer.weight, weight)
            nn.init.constant_(layer.bias, bias)
            chain += [layer, nn.ReLU()]
        network = nn.Sequential(*chain, nn.Linear(1, 2)).double()
        spec = QuantSpec(32, (T + 1).bit_length() - 1, edge_bits=32)
        quantized = quantize(network, spec).eval()
        for module in quantized.modules():
            if isinstance(module, QuantReLU):
                nn.init.constant_(module.threshold, 1.0)
        image = torch.full((1, 1), 0.5 / (T - 0.5), dtype=torch.float64)
        spiking = to_spiking(quantized, image, schedule="settle")
        assert [(int(want), int(got)) for _, want, got in counts_of(quantized, spiking, image)] == [(1, 1)] + [(T, T)] * (
            depth - 1
        )
        assert spiking.steps.tolist() == [T + (depth - 1) * (T - 1)]
