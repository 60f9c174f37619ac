"""NIR files, run by nirtorch: "exact" fires our spikes in every step, and each profile says what it does not keep."""

import pytest
import torch
from integer_nets import assembled, images_for, quantized_at_random
from pooled_nets import pooled_images, pooled_net
from step_spikes import on_grid, step_spikes
from torch import nn

import nbsnn
from nbsnn.errors import ConfigError, ConversionError, LoweringError
from nbsnn.export.nir.windows import Window, fitted_together, ungrouped, window_of
from nbsnn.integer.maps import AxisMap
from nbsnn.interop import patch, run_nir

pytest.importorskip("nir")
pytest.importorskip("nirtorch")


def run_both(network, images, path, *, neuron, schedule):
    """Our spikes and logits, and what nirtorch makes of the file in the same steps."""
    spikes, logits = step_spikes(network, images, neuron=neuron, schedule=schedule)
    steps = len(next(iter(spikes.values())))
    run = run_nir(path, on_grid(network, images), timesteps=network.timesteps, steps=steps, watch=tuple(spikes))
    return spikes, logits, run


def skips():
    return assembled(1, ["projection", "identity", "strided"], [2]), images_for(1)


def places():
    return assembled(2, ["concatenation", "padded pool", "depthwise", "subsampled"], [3], mean=True), images_for(2)


def max_pools():
    return pooled_net(3, "overlapping", "concatenation", 2), pooled_images(3, 2)


def min_pools():
    return pooled_net(4, "min", "flattened", 2), pooled_images(4, 2)


@pytest.mark.parametrize(
    ("make", "neuron", "schedule"),
    [
        (skips, "signed", "fixed"), (skips, "signed", "settle"), (places, "signed", "fixed"), (places, "unsigned", "fixed"),
        (max_pools, "signed", "fixed"), (max_pools, "signed", "settle"), (min_pools, "signed", "settle"),
    ],
)  # fmt: skip
def test_the_file_fires_our_spikes_in_every_step(make, neuron, schedule, tmp_path):
    quantized, images = make()
    network, path = nbsnn.lower(quantized, images[:1]), tmp_path / "net.nir"
    size = nbsnn.export_nir(network.using(neuron=neuron), path, "exact-settle" if schedule == "settle" else "exact")
    assert size == path.stat().st_size
    spikes, logits, run = run_both(network, images, path, neuron=neuron, schedule=schedule)
    assert all(bool(fired.any()) for fired in spikes.values())
    assert [name for name, fired in spikes.items() if not torch.equal(run.values[name], fired.double())] == []
    assert torch.equal(run.output[-1].float(), logits)


def test_layers_of_different_levels_settle(tmp_path):
    quantized, images = pooled_net(3, "halves", "plain", 2, 2, 3), pooled_images(3, 2)
    network, path = nbsnn.lower(quantized, images[:1]), tmp_path / "net.nir"
    with pytest.raises(LoweringError, match=r"has fewer levels than T = 7.*; use profile='exact-settle'$"):
        nbsnn.export_nir(network, path)
    assert not path.exists()
    nbsnn.export_nir(network, path, "exact-settle")
    spikes, _, run = run_both(network, images, path, neuron="signed", schedule="settle")
    assert all(torch.equal(run.values[name], fired.double()) for name, fired in spikes.items())
    assert torch.equal(run.output[-1].float(), network.run(images))


def test_the_graph_is_that_of_the_spiking_network(tmp_path):
    """A spiking network keeps its neuron and schedule; a quantized one needs an example."""
    quantized, images = assembled(3, ["chain"], [2]), images_for(3)
    spiking = nbsnn.to_spiking(quantized, images[:1], neuron="unsigned")
    nbsnn.export_nir(spiking, tmp_path / "spiking.nir")
    nbsnn.export_nir(nbsnn.lower(quantized, images[:1]).using(neuron="unsigned"), tmp_path / "integer.nir")
    runs = [run_nir(tmp_path / f"{n}.nir", images, timesteps=3, watch=("act",)) for n in ("spiking", "integer")]
    assert torch.equal(runs[0].values["act"], runs[1].values["act"])
    with pytest.raises(ConfigError, match=r"give example=, such as images\[:1\]"):
        nbsnn.export_nir(quantized, tmp_path / "quantized.nir")
    with pytest.raises(ConfigError, match=r"^unknown profile 'exct'; did you mean exact"):
        nbsnn.export_nir(spiking, tmp_path / "quantized.nir", "exct")
    with pytest.raises(ConversionError, match=r"'barrier' has no NIR form.*profile='exact-settle' has the same counts$"):
        nbsnn.export_nir(nbsnn.to_spiking(quantized, images[:1], schedule="barrier"), tmp_path / "barrier.nir")
    with pytest.raises(ConfigError, match=r"^unknown node 'atc'; did you mean act"):
        run_nir(tmp_path / "integer.nir", images, timesteps=3, watch=("atc",))


class Wide(nn.Module):
    """A kernel of 1×2, which cannot be a square; or a max pool and a border of two sides."""

    def __init__(self, last):
        super().__init__()
        self.stem, self.act = nn.Conv2d(2, 3, 3, padding=1), nn.ReLU()
        self.last, self.act2, self.head = last, nn.ReLU(), nn.LazyLinear(2)

    def forward(self, x):
        return self.head(self.act2(self.last(self.act(self.stem(x)))).flatten(1))


def wide(last):
    net = Wide(last)
    net(torch.zeros(1, 2, 6, 6))
    return nbsnn.lower(quantized_at_random(net, [2]), images_for(1))


def test_what_cannot_be_expressed_is_refused_before_writing(tmp_path, caplog):
    path = tmp_path / "net.nir"
    with pytest.raises(LoweringError, match=r"act2.current0 has a kernel of 1×2, which NIR cannot express.*odd or both even$"):
        nbsnn.export_nir(wide(nn.Conv2d(3, 2, (1, 2))), path)
    with pytest.raises(LoweringError, match=r"conv has 4096 groups, .* written out .* 150,994,944 weights"):
        ungrouped(torch.zeros(4096, 1, 3, 3), 4096, "conv")
    pooled = nbsnn.lower(pooled_net(3, "halves", "plain", 2), pooled_images(1))
    with pytest.raises(LoweringError, match=r"is a max pool, which plain neurons cannot express; use profile='exact'"):
        nbsnn.export_nir(pooled, path, "if")
    assert list(tmp_path.iterdir()) == []
    caplog.clear()
    nbsnn.export_nir(wide(nn.Conv2d(3, 4, (1, 3), groups=1, padding=(0, 1))), path, "if")
    assert [record.getMessage() for record in caplog.records] == [
        "plain neurons are unsigned: without negative spikes more counts differ from the quantized network's",
        "the initial half threshold is spread over the bias, which changes counts",
        "NIR's neurons reset to 0, ours subtract the threshold: nbsnn.interop.patch mends that in other simulators",
        "the image's current is not rounded as in the integer network",
    ]


def test_plain_neurons_between_the_same_currents(tmp_path):
    """Of the profile "if" the first layer's neurons, which reset by value, fire first when ours do."""
    quantized, images = assembled(5, ["projection", "concatenation", "padded pool"], [2]), images_for(5)
    network = nbsnn.lower(quantized, images[:1])
    nbsnn.export_nir(network, tmp_path / "net.nir", "if")
    spikes, _ = step_spikes(network, images, neuron="unsigned", schedule="fixed")
    import nir

    graph = nir.read(str(tmp_path / "net.nir"))
    assert {type(node).__name__ for node in graph.nodes.values()} == {"Input", "Conv2d", "IF", "Affine", "Flatten", "Output"}
    run = run_nir(graph, on_grid(network, images), timesteps=3, watch=("stem.2", "act"))
    assert torch.equal(run.values["stem.2"].amax(0), spikes["stem.2"].amax(0).double())
    assert run.values["act"].shape == spikes["act"].shape


def test_patch_names_what_it_knows():
    with pytest.raises(ConversionError, match=r"no integrate-and-fire neurons to patch; known are spikingjelly's IFNode"):
        patch(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("sides", "padding", "stride", "size"),
    [
        ((1, 3), (0, 1), (1, 1), (6, 6)),
        ((3, 5), (1, 0), (2, 1), (7, 8)),
        ((2, 4), (1, 1), (1, 2), (6, 6)),
        ((1, 2), (0, 0), (1, 2), (5, 5)),
    ],
)  # fmt: skip
def test_kernels_become_squares_with_the_same_result(sides, padding, stride, size):
    from nbsnn.export.nir.windows import dilated, spread

    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(2, 3, *sides, generator=generator), torch.randn(1, 3, *size, generator=generator)
    expected = nn.functional.conv2d(x, weight, stride=stride, padding=padding)
    windows = [Window(dilated(n, 1), s, p) for n, s, p in zip(sides, stride, padding, strict=True)]
    square = fitted_together(windows, size, tuple(expected.shape[2:]), -1)
    kernel = spread(weight, square)
    assert kernel.shape[2] == kernel.shape[3]
    found = nn.functional.conv2d(x, kernel, stride=stride, padding=tuple(w.padding for w in square))
    assert torch.allclose(found, expected, atol=1e-5)


def test_maps_of_an_axis_as_windows():
    crop = AxisMap.choosing(torch.tensor([1, 2, 3]), 5)
    assert window_of(crop) == Window((0, 1), 1, 0)
    assert window_of(AxisMap.choosing(torch.tensor([-1, 0, 1, 2, -1]), 3)) == Window((1,), 1, 1)
    assert window_of(AxisMap.choosing(torch.tensor([0, 2, 4]), 6)) == Window((1,), 2, 0)
    for places in (torch.arange(3).repeat_interleave(2), torch.tensor([2, 1, 0])):  # an enlargement, a flip
        window = window_of(AxisMap.choosing(places, 3))
        taps = torch.tensor(window.taps, dtype=torch.float32).view(1, 1, -1)
        found = nn.functional.conv1d(torch.arange(3.0).view(1, 1, 3), taps, stride=window.stride, padding=window.padding)
        assert found.flatten()[: len(places)].tolist() == places.tolist()
    assert window_of(AxisMap.choosing(torch.arange(40).repeat_interleave(2), 40)) is None
