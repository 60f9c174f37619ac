"""NeuroBench's harness on our spikes: its additions and ours differ by what we say, to the last one."""

import sys

import pytest
import torch
from integer_nets import assembled, images_for
from nets import digits_net
from pooled_nets import pooled_images, pooled_net

import nbsnn
from nbsnn.errors import ConfigError, MissingDependencyError
from nbsnn.evaluation.neurobench import FoldedNetwork, neurobench
from nbsnn.integer.pixels import to_integers

KINDS = ("identity", "projection", "concatenation", "grouped", "padded pool", "convolution, pool", "shuffle")
NETS = {
    "every kind": lambda: (assembled(3, KINDS, (2,)), images_for(3)),
    "a max pool": lambda: (pooled_net(4, "overlapping", "concatenation", 2), pooled_images(4, 3)),
    "digits": lambda: (digits_net().eval(), torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("schedule", ["fixed", "settle", "barrier"])
def test_layers_on_recorded_spikes_give_the_logits_and_the_exact_count(name, schedule):
    """Without the harness: what it is shown is the network, and the kinds of operations add up to `count_synops`."""
    net, images = NETS[name]()
    network = nbsnn.lower(net, images[:1])
    folded = FoldedNetwork(network, schedule=schedule)
    logits = folded(to_integers(network.program.pixels, images))
    ours = network.using(engine="spikes", schedule=schedule)
    assert torch.allclose(logits, ours.run(images).double(), rtol=1e-6, atol=1e-6 * float(logits.abs().max()))
    counted = nbsnn.count_synops(ours, images)
    assert folded.counted["synops"] == counted.synops > 0
    assert min(folded.counted.values()) >= 0


def test_the_harness_counts_what_we_explain():
    pytest.importorskip("neurobench")
    for net, images in (make() for make in NETS.values()):
        network = nbsnn.lower(net, images[:1])
        for schedule in ("fixed", "settle", "barrier"):
            measured = neurobench(network, images, schedule=schedule)
            assert measured.explained == pytest.approx(measured.synops, abs=1e-6)
            recorded = network.record(images, schedule=schedule)
            trains = recorded.spikes.values()
            silent = sum(int((x == 0).sum()) for x in trains) / sum(x.numel() for x in trains)
            if not any(type(node).__name__ == "MaxPool" for node in network.program.nodes):
                assert measured.activation_sparsity == pytest.approx(silent)
            branches = [branch for node in (*network.program.units, network.program.head) for branch in node.branches]
            stored = [branch.weight for branch in branches if branch.weight is not None]
            assert measured.footprint > sum(weight.numel() * weight.element_size() for weight in stored)


def test_it_is_refused_in_one_line(monkeypatch):
    network = nbsnn.lower(digits_net().eval(), torch.rand(1, 1, 8, 8))
    monkeypatch.setitem(sys.modules, "neurobench", None)
    monkeypatch.setitem(sys.modules, "neurobench.benchmarks", None)
    with pytest.raises(MissingDependencyError, match=r"^the NeuroBench harness needs the package neurobench: pip install"):
        neurobench(network, torch.rand(1, 1, 8, 8))
    assert issubclass(ConfigError, ValueError)
