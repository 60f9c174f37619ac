"""Synaptic operations are counted, not estimated: every spike at every tap that it reaches (case 8)."""

import itertools
import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from integer_nets import KINDS, PAIRS, assembled, images_for
from integer_oracle import Oracle
from torch import nn

import nbsnn
from nbsnn.cli import main
from nbsnn.errors import ConfigError
from nbsnn.evaluation.bench import bench
from nbsnn.integer.fanout import fan_outs
from nbsnn.integer.pixels import to_integers
from nbsnn.quant.layers import QuantConv2d
from nbsnn.quant.quantize import quantize


def windows(source, places, kernel, stride, padding, dilation):
    """(output place, tap, input place) of a window, tap by tap, those on the padding left out."""
    for place in itertools.product(*map(range, places)):
        for tap in itertools.product(*map(range, kernel)):
            at = tuple(p * s - q + t * d for p, s, q, t, d in zip(place, stride, padding, tap, dilation, strict=True))
            if all(0 <= a < n for a, n in zip(at, source, strict=True)):
                yield place, at


def brute_force_reach(program):
    """Value → fan-out of each place, by a loop over all neurons and their taps."""
    reach = {name: np.zeros(shape, np.int64) for name, shape in program.shapes.items()}
    for node in (program.head, *reversed(program.nodes)):
        if type(node).__name__ == "Flatten":
            reach[node.source] += reach[node.name].reshape(reach[node.source].shape)
        elif type(node).__name__ == "MaxPool":
            continue  # it sends changes of its own
        elif type(node).__name__ == "SumPool":
            (_, *source), (_, *places) = program.shapes[node.source], node.shape
            for place, at in windows(source, places, node.kernel, node.stride, node.padding, (1, 1)):
                reach[node.source][:, *at] += reach[node.name][:, *place]
        else:
            for branch in node.branches:
                if branch.weight is None:
                    reach[branch.source] += 1
                elif branch.weight.dim() == 2:
                    reach[branch.source] += branch.weight.shape[0]
                else:
                    outputs, inputs, *kernel = branch.weight.shape
                    (_, *source), (_, *places) = program.shapes[branch.source], (*node.shape, 1, 1)[:3]
                    for _, at in windows(source, places, kernel, branch.stride, branch.padding, branch.dilation):
                        for output in range(outputs):
                            first = output // (outputs // branch.groups) * inputs
                            reach[branch.source][first : first + inputs, *at] += 1
    return reach


@pytest.mark.parametrize("kind", KINDS)
def test_case_8_synops_equal_a_loop_over_all_spikes_and_taps(kind):
    network = nbsnn.lower(assembled(3, [kind, "strided"], [2]), images_for(0, 1))
    program, images = network.program, images_for(1, 2)
    reach = brute_force_reach(program)
    assert all(np.array_equal(places, reach[name]) for name, places in fan_outs(program).items())
    pixels = to_integers(program.pixels, images).numpy()
    for neuron, schedule in (("unsigned", "fixed"), ("signed", "fixed"), ("signed", "settle"), ("unsigned", "barrier")):
        spikes, synops = defaultdict(int), defaultdict(int)
        for image in pixels:
            oracle = Oracle(program, image)
            _ = oracle.barrier() if schedule == "barrier" else oracle.step_until(neuron, schedule)
            for name, fired in oracle.fired.items():
                spikes[name] += int(fired.sum())
                synops[name] += int((fired * reach[name]).sum())
        cost = nbsnn.count_synops(network.using(engine="spikes", neuron=neuron, schedule=schedule), images)
        assert {layer.name: layer.spikes for layer in cost.layers} == spikes
        assert {layer.name: layer.synops for layer in cost.layers} == synops
        assert cost.synops == sum(synops.values())


class Strided(nn.Sequential):
    """Convolutions with strides, paddings, dilation and groups, one after the other."""

    def __init__(self):
        options = ({"stride": 2}, {"padding": 2, "groups": 2}, {"padding": (2, 0), "dilation": (2, 1)}, {"stride": (1, 2)})
        layers, channels = [], 2
        for option in options:
            layers += [nn.Conv2d(channels, 4, 3, **option), nn.BatchNorm2d(4), nn.ReLU()]
            channels = 4
        super().__init__(*layers, nn.Flatten(), nn.Linear(48, 3))


def test_case_8_a_spike_costs_what_the_layers_of_the_quantized_network_say():
    """Nothing of the integer network is used here but its spikes: the taps are those of the modules."""
    quantized = quantize(Strided(), nbsnn.QuantSpec(2, 2), images=torch.randn(8, 2, 13, 13)).eval()
    images = torch.randn(2, 2, 13, 13)
    network = nbsnn.lower(quantized, images[:1]).using(engine="spikes", schedule="settle")
    fired = network.simulate(images, keep_fired=True, **network.options).fired
    readers = [module for module in quantized if isinstance(module, QuantConv2d)][1:]
    expected = dict.fromkeys(fired, 0)
    for (name, spikes), reader, after in zip(fired.items(), [*readers, None], [*list(fired.values())[1:], None], strict=True):
        for image, channel, y, x in spikes.nonzero().tolist():
            reached = 3  # of the head, after the flattening
            if reader is not None:
                reached = reader.out_channels // reader.groups
                options = (reader.kernel_size, reader.stride, reader.padding, reader.dilation, after.shape[2:])
                for at, size, stride, padding, dilation, places in zip((y, x), *options, strict=True):
                    starts = [at + padding - tap * dilation for tap in range(size)]
                    reached *= sum(start % stride == 0 and 0 <= start // stride < places for start in starts)
            expected[name] += reached * int(spikes[image, channel, y, x])
    cost = nbsnn.count_synops(network, images)
    assert {layer.name: layer.synops for layer in cost.layers} == expected
    mean = {name: float(places.double().mean()) for name, places in fan_outs(network.program).items()}
    estimate = sum(layer.spikes * mean[layer.name] for layer in cost.layers)
    assert abs(estimate / cost.synops - 1) > 0.01, "the mean fan-out would have been off"


def test_spikes_of_each_neuron_add_up_to_those_of_its_unit_by_both_backends():
    network = nbsnn.lower(assembled(5, ["identity", "even"], [3]), images_for(0, 1))
    images = images_for(2, 40)  # enough for bit planes
    for engine, (neuron, schedule) in (("counts", (None, "fixed")), *(("spikes", pair) for pair in PAIRS)):
        way = network.using(engine=engine, neuron=neuron, schedule=schedule)
        cost = nbsnn.count_synops(way, images)
        for backend in ("torch", "auto"):
            result = way.simulate(images, **way.options | {"backend": backend})
            assert {layer.name: layer.spikes for layer in cost.layers} == {n: int(s.sum()) for n, s in result.spikes.items()}
            assert torch.equal(cost.steps, result.steps)
            assert result.fired == result.counts == {}


def test_chunks_and_progress_do_not_change_the_count(monkeypatch):
    network = nbsnn.lower(assembled(5, ["chain"], [2]), images_for(0, 1)).using(engine="spikes", schedule="settle")
    whole = nbsnn.count_synops(network, images_for(2, 7))
    monkeypatch.setattr("nbsnn.evaluation.synops._BYTES_AT_A_TIME", 1)
    seen = []
    with torch.inference_mode():
        parts = nbsnn.count_synops(network, images_for(2, 7), progress=seen.append)
    assert (parts.layers, parts.spikes) == (whole.layers, whole.spikes)
    assert seen == [1] * 7
    assert json.loads(json.dumps(parts.to_dict()))["synops"] == whole.synops


def test_the_native_backend_says_what_it_does_not_keep():
    network = nbsnn.lower(assembled(5, ["chain"], [2]), images_for(0, 1))
    with pytest.raises(ConfigError, match=r"does not return the spikes of each signed neuron; use backend='torch'$"):
        nbsnn.count_synops(network.using(engine="spikes", schedule="settle", backend="native"), images_for(0, 1))


def test_bench_prints_what_was_counted(capsys):
    quantized = assembled(5, ["strided"], [2]).float()
    images = images_for(2, 5).float()
    network = nbsnn.lower(quantized, images[:1])
    seen = []
    result = bench(quantized, quantized, network, images, repeats=1, progress=lambda what, count: seen.append((what, count)))
    for speed in result.speeds[3:]:
        neuron, schedule = speed.name.removeprefix("spikes, ").split()
        cost = nbsnn.count_synops(network.using(engine="spikes", neuron=neuron, schedule=schedule), images)
        assert speed.additions == cost.synops / 5
        assert speed.spikes == cost.spikes / 5
        assert [layer.additions for layer in result.layers[speed.name]] == [layer.synops / 5 for layer in cost.layers]
    assert ("counting spikes, signed settle", 5) in seen
    assert main(["bench", "zoo:cifar10/resnet20-w2a2", "--data", "sample", "--limit", "2", "--repeats", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = [sum(layer["additions"] for layer in layers) for layers in told["layers"].values()]
    assert rows == pytest.approx([speed["additions"] for speed in told["speeds"] if speed["additions"] is not None])
