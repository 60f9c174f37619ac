"""The ledger counts what happens, one by one; prices are read strictly; energy is prices times counts."""

import json
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from command_line import printed, refusal
from integer_nets import PAIRS, assembled, images_for
from integer_oracle import convolve
from nets import randomize_
from pooled_nets import pooled_net
from test_places import CHAINS, Middle

import nbsnn
from nbsnn.energy.prices import FORMS
from nbsnn.energy.pricing import price
from nbsnn.errors import ConfigError
from nbsnn.integer.nodes import Resample


def reached(node, x):
    """Each place of a pool, map or flattening counts the places that it adds up."""
    kind = type(node).__name__
    if kind == "Flatten":
        return x.reshape(-1)
    if kind == "Resample":
        rows, columns = ((axis.matrix() != 0).long().numpy() for axis in (node.map.rows, node.map.columns))
        return (rows @ x.reshape(len(x), *(1, *x.shape[1:])[-2:]) @ columns.T).reshape(node.shape)
    (kh, kw), (sy, sx), (py, px) = node.kernel, node.stride, node.padding
    padded = np.pad(x.reshape(len(x), *(1, *x.shape[1:])[-2:]), ((0, 0), (py, py), (px, px)))
    shape = (1, 1, *node.shape[1:])[-2:]
    out = np.zeros((len(padded), *shape), np.int64)
    for y, z in np.ndindex(*shape):
        out[:, y, z] = padded[:, y * sy : y * sy + kh, z * sx : z * sx + kw].sum((1, 2))
    return out.reshape(node.shape)


@lru_cache(256)
def connections(branch):
    """The branch with a weight of 1 at every synapse."""
    return replace(branch, weight=torch.ones(branch.weight.shape, dtype=torch.int8), after=None)


def taps(branch, x, shape):
    """Spikes times the kernel elements that they meet, over all neurons."""
    if branch.weight is None:
        return int(x.sum())
    ones = connections(branch)
    if ones.weight.dim() == 4:
        x = x.reshape(len(x), *(1, 1, *x.shape[1:])[-2:])
    if branch.after is None:
        return int(convolve(x, ones, shape).sum())
    summed = convolve(x, ones, (shape[0], *branch.after.size))
    return int(reached(Resample("", "", branch.after, shape), summed).sum())


def products(branch, shape_of_source):
    """Dense products: kernel elements that are not on padding, before a map of their sums."""
    plain = replace(branch, after=None)
    ones = np.ones(shape_of_source, np.int64)
    if branch.weight.dim() == 2:
        return branch.weight.numel()
    source = ones.reshape(len(ones), *(1, 1, *ones.shape[1:])[-2:])
    (sy, sx), (py, px), (dy, dx) = branch.stride, branch.padding, branch.dilation
    _, _, kh, kw = branch.weight.shape
    sides = zip(source.shape[1:], (py, px), (dy, dx), (kh, kw), (sy, sx), strict=True)
    places = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sides]
    return taps(plain, source, (len(branch.weight), *places))


def brute_force(network, images, neuron, schedule):
    """Reader → counts, from the spikes of every step and loops over all synapses."""
    program = network.program
    names = [node.name for node in program.sending]
    seen = network.record(images, layers=names, neuron=neuron, schedule=schedule)
    steps, T = len(next(iter(seen.spikes.values()))), program.timesteps
    result = {}
    for name, node in [*((unit.name, unit) for unit in program.units), ("head", program.head)]:
        changing = [branch for branch in node.branches if branch.source not in program.constants]
        additions, fetches, arrivals = (np.zeros(steps, np.int64) for _ in range(3))
        for step in range(steps):
            for image in range(len(images)):
                values = {other: spikes[step, image].abs().numpy().astype(np.int64) for other, spikes in seen.spikes.items()}
                for other in program.nodes:
                    if other.name not in values and other.name not in program.constants:
                        values[other.name] = reached(other, values[other.source])
                for branch in changing:
                    found = taps(branch, values[branch.source], node.shape)
                    additions[step] += found
                    fetches[step] += found if branch.weight is not None else 0
                    sender = branch.source
                    while sender not in seen.spikes:
                        sender = program.by_name[sender].source
                    arrivals[step] += values[sender].sum()
        shapes = {branch: program.shapes[branch.source] for branch in node.branches}
        dense = {branch: products(branch, shapes[branch]) for branch in node.branches if branch.weight is not None}
        if schedule == "barrier":
            depth = program.depths.get(name, program.depth)
            active = [len(images) * ((depth - (name != "head")) * T <= step < (depth + 1) * T) for step in range(steps)]
        else:
            active = [int((seen.steps > step).sum()) for step in range(steps)]
        neurons = int(np.prod(node.shape))
        result[name] = {
            "additions": additions.tolist(), "weight_fetches": fetches.tolist(), "arrivals": arrivals.tolist(),
            "updates": [neurons * number for number in active],
            "macs": len(images) * sum(n for branch, n in dense.items() if branch in changing),
            "image_products": len(images) * sum(n for branch, n in dense.items() if branch not in changing),
            "skips": len(images) * neurons * sum(branch.weight is None for branch in changing),
            "positive": (seen.spikes[name] > 0).flatten(1).sum(1).tolist() if name != "head" else None,
            "negative": (seen.spikes[name] < 0).flatten(1).sum(1).tolist() if name != "head" else None,
        }  # fmt: skip
    return result


def mapped(kind):
    torch.manual_seed(1)
    net = nbsnn.quantize(Middle(CHAINS[kind]).double(), nbsnn.QuantSpec(4, 2), example=images_for(0, 1)).eval()
    randomize_(net)
    return net


NETS = {
    "strides, skips": lambda: (assembled(3, ["strided", "identity"], [2]), images_for(1, 2)),
    "groups, dilation": lambda: (assembled(4, ["grouped", "dilated", "grouped concatenation"], [2]), images_for(1, 2)),
    "average pools": lambda: (assembled(5, ["padded pool", "convolution, pool", "pooled shortcut"], [2]), images_for(1, 2)),
    "max pool": lambda: (pooled_net(3, "overlapping", "skip", 2), torch.randn(2, 2, 7, 6, dtype=torch.float64)),
    "maps": lambda: (mapped("bilinear"), images_for(1, 1)),
}


@pytest.mark.parametrize("kind", NETS)
def test_counts_equal_a_loop_over_all_spikes_and_synapses(kind):
    quantized, images = NETS[kind]()
    network = nbsnn.lower(quantized, images[:1])
    for neuron, schedule in PAIRS:
        ledger = nbsnn.energy_ledger(network, images, neuron=neuron, schedule=schedule)
        expected = brute_force(network, images, neuron, schedule)
        assert [layer.name for layer in ledger.layers] == list(expected)
        for layer in ledger.layers:
            found = layer.to_dict() | (layer.to_dict()["sent"] or {"positive": None, "negative": None})
            assert {key: found[key] for key in expected[layer.name]} == expected[layer.name], (layer.name, schedule)
        cost = nbsnn.count_synops(network.using(engine="spikes", neuron=neuron, schedule=schedule), images)
        assert ledger.totals["additions"] == cost.synops
        assert ledger.totals["spikes"] == cost.spikes
        assert torch.equal(ledger.steps, cost.steps)


def test_a_quantized_network_is_lowered_and_options_are_used(monkeypatch):
    quantized, images = NETS["strides, skips"]()
    network = nbsnn.lower(quantized, images[:1]).using(schedule="settle")
    ledger, seen = nbsnn.energy_ledger(network, images), []
    monkeypatch.setattr("nbsnn.integer.network._MOST_IN_FLIGHT", 1)
    again = nbsnn.energy_ledger(quantized, images, schedule="settle", progress=seen.append)
    assert json.loads(json.dumps(again.to_dict())) == ledger.to_dict()
    assert (ledger.neuron, ledger.schedule, seen) == ("signed", "settle", [1, 1])
    with pytest.raises(ConfigError, match="give the quantized network that it was made from"):
        nbsnn.energy_ledger(nbsnn.to_spiking(quantized, images[:1]), images)


def test_energy_is_prices_times_counts_and_breaks_even_where_it_says(tmp_path):
    quantized, images = NETS["strides, skips"]()
    ledger = nbsnn.energy_ledger(quantized, images, schedule="settle")
    totals = ledger.totals
    found = price(ledger, "operations")
    dense = totals["macs"] + totals["skips"] + totals["image_products"]
    assert found.quantized == found.unquantized == pytest.approx(dense / 2)
    assert found.spiking == pytest.approx((totals["additions"] + totals["image_products"]) / 2)
    for layer in found.layers[1:]:
        assert layer.break_even == pytest.approx(1), "an addition costs a product: one spike per synapse breaks even"
        assert layer.ratio == pytest.approx(layer.activity)
    assert found.layers[0].activity is None
    assert found.layers[0].ratio == 1
    for name in nbsnn.list_energy_models():
        energy = price(ledger, name)
        assert energy.spiking == pytest.approx(sum(layer.spiking for layer in energy.layers))
        for layer, counted in zip(energy.layers, ledger.layers, strict=True):
            if layer.break_even:  # the same layer with as many spikes as break even
                table = energy.model.spiking
                moving = sum(table.get(key, 0) * int(getattr(counted, key).sum()) for key in FORMS["spiking"][:3]) / 2
                assert layer.spiking + moving * (layer.break_even / layer.activity - 1) == pytest.approx(layer.quantized)
    every = tmp_path / "own.toml"
    every.write_text(
        'title="t"\nunit="pJ"\nsource="me"\nimage_every_step=true\n[spiking]\nimage_products=2\n[quantized]\nmacs=1\n'
    )
    assert price(ledger, every).spiking == totals["image_products"] * ledger.timesteps
    assert price(ledger, every).float_ratio is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("additions", "adition"), r"unknown operation of spiking 'adition'; did you mean additions, constant_additions\?"),
        (("= 1\n", '= "1"\n'), "spiking.additions=1 must be a number of 0 or more"),
        (("= 1\n", "= -1\n"), "spiking.additions=-1 must be a number of 0 or more"),
        (("unit", "units"), r"unknown key 'units'; did you mean unit\?"),
        (('unit = "x"\n', ""), "unit is missing"),
        (("[quantized]", "[quantized"), "not a TOML file"),
    ],
)
def test_a_faulty_model_is_refused_by_what_is_wrong(change, message, tmp_path):
    text = 'title = "t"\nunit = "x"\nsource = "s"\n[spiking]\nadditions = 1\n[quantized]\nmacs = 1\n'
    path = tmp_path / "own.toml"
    path.write_text(text)
    assert nbsnn.load_energy_model(path).spiking == {"additions": 1.0}
    path.write_text(text.replace(*change, 1))
    with pytest.raises(ConfigError, match=message):
        nbsnn.load_energy_model(path)
    with pytest.raises(ConfigError, match="unknown energy model 'horowitz'; did you mean horowitz-"):
        nbsnn.load_energy_model("horowitz")


def test_the_verb_prints_the_ledger_and_the_energy(capsys):
    words = ("energy", "zoo:cifar10/resnet20-w2a2", "--data", "sample", "--limit", "2", "--schedule", "settle")
    told = printed(capsys, *words, "--prices", "horowitz-int8", "--prices", "operations")
    assert [energy["model"]["name"] for energy in told["energies"]] == ["horowitz-int8", "operations"]
    planes = [(3, 16, 94), *[(16, 16, 94)] * 6, (16, 32, 47), *[(32, 32, 46)] * 5, (32, 64, 23), *[(64, 64, 22)] * 5]
    products = sum(i * o * side**2 for i, o, side in planes) + 16 * 32 * 16**2 + 32 * 64 * 8**2 + 64 * 10
    assert told["ledger"]["totals"]["macs"] + told["ledger"]["totals"]["image_products"] == 2 * products
    assert nbsnn.cli.main([*words, "--layers"]) == 0
    text = capsys.readouterr().out
    assert "stage3.2.second.act" in text
    assert "break-even" in text
    assert "unknown energy model 'horowits'" in refusal(capsys, *words, "--prices", "horowits")
