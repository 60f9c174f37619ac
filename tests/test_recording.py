"""What `record` shows is what the engines do: every spike and membrane of every step, by the plain interpreter of the tests."""

import numpy as np
import pytest
import torch
from integer_nets import PAIRS, assembled, images_for
from integer_oracle import Oracle
from pooled_nets import pooled_net
from test_places import BACKENDS

import nbsnn
from nbsnn.errors import ConfigError
from nbsnn.integer.pixels import to_integers
from nbsnn.spiking.recording import Recording


class Watched(Oracle):
    """The interpreter, with the spikes of each step and of each value."""

    def __init__(self, program, pixels):
        super().__init__(program, pixels)
        self.frames = []

    def propagate(self, fire):
        values, accumulators = super().propagate(fire)
        self.frames.append({name: np.asarray(value) for name, value in values.items()})
        return values, accumulators


@pytest.fixture(scope="module")
def skipped():
    quantized = assembled(3, ["identity", "concatenation"], [2])
    return quantized, nbsnn.lower(quantized, images_for(0, 1)), images_for(1, 4)


@pytest.mark.parametrize(("neuron", "schedule"), PAIRS[:3])
@pytest.mark.parametrize("kind", ["skips", "max pool"])
def test_spikes_of_an_integer_network_are_those_of_the_interpreter_in_every_step(kind, neuron, schedule, skipped):
    if kind == "skips":
        _, network, images = skipped
    else:
        images = torch.randn(3, 2, 7, 6, dtype=torch.float64)
        network = nbsnn.lower(pooled_net(3, "overlapping", "skip", 2), images[:1])
    names = [node.name for node in network.program.sending]
    seen = network.record(images, layers=names, neuron=neuron, schedule=schedule)
    assert list(seen.layers) == names
    for index, pixels in enumerate(to_integers(network.program.pixels, images).numpy()):
        oracle = Watched(network.program, pixels)
        oracle.step_until(neuron, schedule)
        steps = int(seen.steps[index])
        for name in names:
            for step, frame in enumerate(oracle.frames[:steps]):
                assert np.array_equal(seen.spikes[name][step, index], frame[name]), (name, step)
            assert not seen.spikes[name][steps:, index].any()
    check_totals(network, images, seen, neuron, schedule)


def check_totals(network, images, seen, neuron, schedule):
    """Both backends fire the spikes that were recorded, and no membrane has gained or lost charge."""
    for backend in BACKENDS:
        result = network.simulate(images, engine="spikes", neuron=neuron, schedule=schedule, backend=backend, keep_counts=True)
        assert torch.equal(result.steps, seen.steps)
        for name, count in result.counts.items():
            assert torch.equal(seen.counts()[name].int(), count)
            assert torch.equal(seen.fired()[name].flatten(1).sum(1), result.spikes[name])
    for name, unit in network.neurons.items():
        assert seen.thresholds[name] == unit.threshold == 2**unit.fraction_bits
        potentials = seen.potentials(name)
        assert potentials.dtype == seen.membranes[name].dtype == torch.int32
        if schedule == "fixed":
            assert torch.equal(seen.spikes[name] > 0, potentials >= unit.threshold)


def test_barrier_integrates_in_one_window_and_sends_in_the_next(skipped):
    quantized, network, images = skipped
    seen = network.record(images, schedule="barrier")
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule="barrier")
    simulated = spiking.record(images)
    T, depths = network.timesteps, network.program.depths
    assert len(seen.spikes["stem.2"]) == (network.program.depth + 1) * T
    assert spiking.depths == {name: depths[name] for name in seen.layers}
    check_totals(network, images, seen, "unsigned", "barrier")
    for name in seen.layers:
        for recording in (seen, simulated):
            active = recording.spikes[name].flatten(1).any(1).nonzero().flatten()
            assert (active // T == depths[name]).all()
            before = recording.membranes[name][: (depths[name] - 1) * T]
            assert (before - recording.thresholds[name] / 2).abs().max() <= 1e-8 if len(before) else True
        assert torch.equal(seen.counts()[name], simulated.counts()[name])
        scale = seen.heights[name] / seen.thresholds[name]
        assert torch.allclose(seen.membranes[name][-1].double() * scale, simulated.membranes[name][-1], atol=1e-2)


@pytest.mark.parametrize(("neuron", "schedule"), PAIRS[:3])
def test_a_simulated_network_has_the_spikes_of_the_integer_one_and_conserves_charge(neuron, schedule, skipped):
    quantized, network, images = skipped
    spiking = nbsnn.to_spiking(quantized, images[:1], neuron=neuron, schedule=schedule)
    seen, exact = spiking.record(images), network.record(images, neuron=neuron, schedule=schedule)
    result = spiking.simulate(images, keep_counts=True)
    assert torch.equal(seen.steps, result.steps)
    for name, spikes in exact.spikes.items():
        assert torch.equal(seen.spikes[name], spikes)
        assert torch.equal(seen.counts()[name], result.counts[name].long())
        scale = exact.heights[name] / exact.thresholds[name]
        assert torch.allclose(seen.membranes[name], exact.membranes[name].double() * scale, atol=1e-2)
        assert torch.allclose(seen.rates()[name], exact.rates()[name])
        if schedule == "fixed":
            assert torch.equal(seen.spikes[name] > 0, seen.potentials(name) >= seen.thresholds[name])


def test_layers_and_positions_are_chosen_and_chunks_joined(skipped, monkeypatch):
    quantized, network, images = skipped
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule="settle")
    for made in (network.using(schedule="settle"), spiking):
        whole = made.record(images)
        some = made.record(images, layers="blocks.*", positions=[(1, 2, 3), (0, 0, -1)])
        assert set(some.layers) == {name for name in whole.layers if name.startswith("blocks.")}
        for name in some.layers:
            assert some.positions[name] == ((1, 2, 3), (0, 0, -1))
            for tensors, all_ in ((some.spikes, whole.spikes), (some.membranes, whole.membranes)):
                assert torch.equal(tensors[name][:, :, 0], all_[name][:, :, 1, 2, 3])
                assert torch.equal(tensors[name][:, :, 1], all_[name][:, :, 0, 0, -1])
        one = made.record(images, layers=["stem.2", "act"], positions={"act": [(5,)]})
        assert one.spikes["act"].shape[2:] == (1,)
        assert one.spikes["stem.2"].shape[2:] == (4, 6, 6)
        with pytest.raises(ConfigError, match=r"unknown layer of neurons 'stem.3'; did you mean stem\.2"):
            made.record(images, layers="stem.3")
        with pytest.raises(
            ConfigError, match=r"position \(0, 6, 0\) is not in stem.2, whose neurons have the shape \[4, 6, 6\]"
        ):
            made.record(images, layers="stem.2", positions=[(0, 6, 0)])
        with pytest.raises(ConfigError, match="unknown recorded layer 'act'"):
            made.record(images, layers="stem.2", positions={"act": [(0,)]})
    monkeypatch.setattr("nbsnn.integer.network._MOST_IN_FLIGHT", 1)
    parts = network.record(images, schedule="settle")
    whole = nbsnn.IntegerNetwork(network.program).record(images, schedule="settle")
    for name in whole.layers:
        assert torch.equal(parts.spikes[name], whole.spikes[name])
        assert torch.equal(parts.membranes[name], whole.membranes[name])


def test_statistics_of_a_known_train():
    spikes = torch.tensor([[[1, 0]], [[0, 0]], [[-1, 1]], [[1, 0]]], dtype=torch.int8)  # [4, 1, 2]
    names = {"a": 0.5}
    seen = Recording({"a": spikes}, {"a": torch.zeros(4, 1, 2)}, names, names, torch.tensor([4]), 3, "signed", "settle",
                     {"a": (2,)}, {"a": None})  # fmt: skip
    assert seen.counts()["a"].tolist() == [[1, 1]]
    assert seen.fired()["a"].tolist() == [[3, 1]]
    assert seen.rates()["a"].tolist() == [[0.5 / 3, 0.5 / 3]]
    assert seen.activity()["a"].tolist() == [0.5, 0, 1, 0.5]
    assert seen.intervals("a").tolist() == [2, 1]
    found = seen.interval_statistics()["a"]
    assert (found.number, found.mean, found.deviation, found.shortest, found.longest) == (2, 1.5, 0.5, 1, 2)
    assert found.variation == 1 / 3
    assert seen.potentials("a")[:, 0, 0].tolist() == [0.5, 0, -0.5, 0.5]
    arrays = seen.to_numpy()
    assert arrays["spikes"]["a"].dtype == np.int8
    assert arrays["steps"].tolist() == [4]
    assert "4 steps, 1 images, 1 layers" in repr(seen)


def test_integer_weights_and_thresholds_are_found_by_layer_name(skipped, tmp_path):
    quantized, network, _ = skipped
    network.save(tmp_path / "net.safetensors")
    for made in (network, nbsnn.IntegerNetwork.load(tmp_path / "net.safetensors")):
        convolution = made.layers["blocks.0.conv"]
        unit = made.neurons[convolution.neurons]
        assert (convolution.neurons, convolution.source) == ("blocks.0.act", "stem.2")
        assert (convolution.threshold, convolution.height) == (unit.threshold, unit.height)
        real = quantized.blocks[0].conv.quantized_weight().detach()
        sign = torch.sign((convolution.weight * real).flatten(1).sum(1))  # a negative gain of the norm is in the weight
        ratio = (sign.view(-1, 1, 1, 1) * real)[convolution.weight != 0] / convolution.weight[convolution.weight != 0]
        assert torch.allclose(ratio, ratio[:1].expand_as(ratio))
        assert torch.equal(convolution.bias, unit.bias)
        assert {"blocks.1.merge:blocks.1.act", "blocks.1.merge:blocks.0.act", "head"} <= set(made.layers)
        assert made.layers["head"].threshold is None
        with pytest.raises(ConfigError, match=r"unknown weight layer 'block\.0\.conv'; did you mean blocks\.0\.conv"):
            made.layers["block.0.conv"]
