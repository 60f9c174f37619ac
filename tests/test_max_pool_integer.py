"""Max and min pools in integer networks: the bits of the oracle, in every engine, on both backends, and in files."""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from integer_nets import PAIRS, assert_equals_oracle
from integer_oracle import Oracle
from pooled_nets import PLACES, POOLS, pooled_images, pooled_net
from test_synops import brute_force_reach

import nbsnn
from nbsnn.errors import LoweringError
from nbsnn.integer.backends import native
from nbsnn.integer.fanout import fan_outs, unit_of
from nbsnn.integer.maps import AxisMap, PlaneMap
from nbsnn.integer.nodes import MaxPool, SumPool
from nbsnn.integer.pixels import to_integers

BACKENDS = ("torch", *(["native"] if native.why_not() is None else []))
CASES = [(pool, PLACES[i % len(PLACES)]) for i, pool in enumerate(POOLS)] + [("overlapping", place) for place in PLACES]


@pytest.mark.parametrize(("pool", "place"), CASES)
def test_the_engines_give_the_bits_of_the_oracle(pool, place):
    images = pooled_images(1, 2)
    network = nbsnn.lower(pooled_net(len(pool), pool, place, 2 + len(pool + place) % 3), images[:1])
    assert any(isinstance(node, MaxPool) and node.lowest == ("min" in pool) for node in network.program.nodes)
    for backend in BACKENDS:
        assert_equals_oracle(network, images, backend=backend)


@pytest.mark.parametrize(("pool", "place"), CASES[::2])
def test_counts_are_those_of_the_quantized_network(pool, place):
    net, images = pooled_net(3 + len(pool), pool, place, 3), pooled_images(2)
    network = nbsnn.lower(net, images[:1])
    assert nbsnn.measure_integer_fidelity(net, network, images).off < 0.5  # of rounded multipliers
    logits = network.run(images)
    for neuron, schedule in (("signed", "settle"), ("unsigned", "barrier")):
        for backend in BACKENDS:
            options = {"engine": "spikes", "neuron": neuron, "schedule": schedule, "backend": backend}
            assert torch.equal(network.run(images, **options), logits)
            assert torch.equal(torch.cat([network.run(image, **options) for image in images.split(1)]), logits)
    assert network.program.depth == nbsnn.to_spiking(net, images[:1]).depth


def test_layers_of_different_levels():
    net, images = pooled_net(3, "overlapping", "concatenation", 2, 4), pooled_images(3, 2)
    for backend in BACKENDS:
        assert_equals_oracle(nbsnn.lower(net, images[:1]), images, backend=backend, pairs=PAIRS[2:])


def test_a_file_keeps_every_bit(tmp_path):
    net, images = pooled_net(4, "min", "shuffle", 2), pooled_images(4)
    network = nbsnn.lower(net, images[:1])
    network.save(tmp_path / "net.safetensors")
    again = nbsnn.IntegerNetwork.load(tmp_path / "net.safetensors")
    assert torch.equal(again.run(images), network.run(images))
    settle = {"engine": "spikes", "schedule": "settle"}
    assert torch.equal(again.run(images, **settle), network.run(images, **settle))


@pytest.mark.parametrize("place", ["plain", "twice", "concatenation", "skip", "flattened", "average after"])
def test_synops_equal_a_loop_over_all_spikes_and_changes(place):
    """A spike costs an addition behind a max pool only if it changes the maximum."""
    images = pooled_images(5, 2)
    network = nbsnn.lower(pooled_net(6, "overlapping", place, 2), images[:1])
    program = network.program
    reach = brute_force_reach(program)
    assert all((places.numpy() == reach[name]).all() for name, places in fan_outs(program).items())
    for neuron, schedule in PAIRS:
        synops = defaultdict(int)
        for image in to_integers(program.pixels, images).numpy():
            oracle = Oracle(program, image)
            _ = oracle.barrier() if schedule == "barrier" else oracle.step_until(neuron, schedule)
            for name, sent in (oracle.fired | oracle.changes).items():
                synops[unit_of(program, name)] += int((sent * reach[name]).sum())
        cost = nbsnn.count_synops(network.using(engine="spikes", neuron=neuron, schedule=schedule), images)
        assert {layer.name: layer.synops for layer in cost.layers} == synops
        assert cost.synops > 0


def edited(program, **change):
    return replace(program, nodes=tuple(replace(n, **change) if isinstance(n, MaxPool) else n for n in program.nodes))


def test_what_a_file_may_not_ask_of_a_max_pool():
    program = nbsnn.lower(pooled_net(7, "overlapping", "plain", 2), pooled_images(6, 1)).program
    node = next(node for node in program.nodes if isinstance(node, MaxPool))
    rows = node.map.rows

    def with_rows(**change):
        return edited(program, map=replace(node.map, rows=replace(rows, **change)))

    sums = SumPool("sums", node.source, (3, 3), (1, 1), (1, 1), program.shapes[node.source])
    currents = edited(program, source="sums")
    cases = {
        "of the image": (edited(program, source="image", shape=(2, *node.shape[1:])), "compares what is no count"),
        "of sums": (replace(currents, nodes=(currents.nodes[0], sums, *currents.nodes[1:])), "compares what is no count"),
        "a place twice": (with_rows(index=rows.index * 0, weight=rows.weight * 0 + 1), "has a place twice in a window"),
        "another shape": (edited(program, shape=(4, 9, 9)), "has a wrong shape"),
        "an empty window": (with_rows(index=rows.index * 0 - 1, weight=rows.weight * 0), "has a window without a place"),
        "weights": (with_rows(weight=rows.weight * 2), "has weights"),
        "places outside": (with_rows(index=rows.index + 1), "has a map that leaves its source"),
        "no flag": (edited(program, lowest=2), "lowest=2"),
    }
    for wrong, said in cases.values():
        with pytest.raises(LoweringError, match=said):
            nbsnn.IntegerNetwork(wrong)
    same = replace(node, map=PlaneMap(*(AxisMap.choosing(torch.arange(n), n) for n in program.shapes[node.source][1:])))
    shape, behind = program.shapes[node.source], edited(program, source="p8")
    chain = [replace(same, name=f"p{i}", source=f"p{i - 1}" if i else node.source, shape=shape) for i in range(9)]
    with pytest.raises(LoweringError, match="10 pools in a row"):
        nbsnn.IntegerNetwork(replace(behind, nodes=(behind.nodes[0], *chain, *behind.nodes[1:])))
