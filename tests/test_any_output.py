"""Networks that return several tensors, maps or numbers: exact in spikes and integers, and grouped as by the network."""

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from nets import randomize_
from torch import nn

import nbsnn
from nbsnn.integer.backends.native import why_not
from nbsnn.integer.readout import grouped
from nbsnn.structure import map_outputs, pick_output
from nbsnn.tracing import tensors_in

BACKENDS = ["torch", *(["native"] if why_not() is None else [])]
Boxes = namedtuple("Boxes", "scores corners")


class Body(nn.Module):
    """A convolution on [B, 2, 6, 6], a coarser one, and an `end` that makes the output of both, given some layers."""

    def __init__(self, end, **layers):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.end = end
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        fine = self.fine(x)
        return self.end(self, x, fine, self.coarse(fine))


def segmentation(net, x, fine, coarse):
    """As DeepLab: a dict, enlarged to the image after a 3×3 head, with an auxiliary head of another size."""
    out = F.interpolate(net.head(coarse), size=x.shape[-2:], mode="bilinear", align_corners=False)
    return {"out": out, "aux": F.interpolate(net.aux(fine), scale_factor=2)}


def detector(net, x, fine, coarse):
    """As YOLO: 5-d tensors of two scales, and all boxes in one list with sizes and a grid."""
    levels = [head(part).view(len(x), 2, 5, *part.shape[2:]).permute(0, 1, 3, 4, 2)
              for head, part in ((net.head, fine), (net.aux, coarse))]  # fmt: skip
    grid = torch.arange(6, dtype=x.dtype)[None, None, None, :, None]
    boxes = torch.cat([(level * (0.5 + n)).reshape(len(x), -1, 5) for n, level in enumerate(levels)], 1)
    return levels, (levels[0] + grid, boxes[..., :4])


def sum_of_heads(net, x, fine, coarse):
    upper = F.interpolate(net.aux(coarse), scale_factor=2, mode="bilinear")
    return Boxes(net.head(fine) + upper, (net.head(fine).flatten(2) - 1).transpose(1, 2))


def places_pooled(net, x, fine, coarse):
    return F.adaptive_avg_pool2d(net.head(fine), 1).flatten(1)[:, [2, 0]], None, net.aux(coarse).flatten(1)


NETS = {
    "segmentation": lambda: Body(segmentation, head=nn.Conv2d(6, 3, 3, padding=1), aux=nn.Conv2d(4, 3, 1)),
    "detector": lambda: Body(detector, head=nn.Conv2d(4, 10, 1), aux=nn.Conv2d(6, 10, 1)),
    "sum of heads": lambda: Body(sum_of_heads, head=nn.Conv2d(4, 3, 3, padding=1), aux=nn.Conv2d(6, 3, 1)),
    "pooled places": lambda: Body(places_pooled, head=nn.Conv2d(4, 3, 3, padding=1), aux=nn.Conv2d(6, 2, 1)),
}


def quantized_net(make, images):
    torch.manual_seed(3)
    net = nbsnn.quantize(make().double(), nbsnn.QuantSpec(4, 2), example=images[:1]).eval()
    randomize_(net)
    return net


def images_of(*shape):
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def pairs(first, second):
    return zip(tensors_in(first), tensors_in(second), strict=True)


def same(first, second):
    return all(torch.equal(a, b) for a, b in pairs(first, second))


def assert_exact(net, images, tmp_path):
    """Numbers of the quantized network under exact schedules; the same bits in all engines and backends, also from a file."""
    with torch.no_grad():
        wanted = net(images)
        for schedule in ("settle", "barrier"):
            spiking = nbsnn.to_spiking(net, images[:1], schedule=schedule).eval()
            assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in pairs(spiking(images), wanted))
            fidelity = nbsnn.measure_fidelity(net, spiking, images)
            assert fidelity.differing == 0
            assert fidelity.output_difference < 1e-9  # the counts are equal; sums of floats are rounded
        assert type(nbsnn.to_spiking(net, images[:1])(images)) is type(wanted)
    network = nbsnn.lower(net, images[:1], float_weight_bits=16)
    results = [network.run(images, backend=backend) for backend in BACKENDS]
    results += [network.run(images, engine="spikes", schedule="settle", backend=backend) for backend in BACKENDS]
    results += [network.run(images, engine="spikes", schedule="barrier", backend=backend) for backend in BACKENDS]
    network.save(tmp_path / "net.safetensors")
    results.append(nbsnn.IntegerNetwork.load(tmp_path / "net.safetensors").run(images))
    assert all(same(result, results[0]) for result in results)
    assert nbsnn.measure_integer_fidelity(net, network, images).output_difference < 1e-3
    for number, exact in pairs(results[0], wanted):
        assert number.shape == exact.shape
        assert torch.allclose(number.double(), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    return wanted, results[0]


@pytest.mark.parametrize("name", NETS)
def test_maps_and_boxes_are_the_quantized_networks(name, tmp_path):
    images = images_of(2, 6, 6)
    wanted, found = assert_exact(quantized_net(NETS[name], images), images, tmp_path)
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
    else:
        assert [x is None for x in found] == [x is None for x in wanted]


def test_a_regression_on_a_table_is_exact(tmp_path):
    def make():
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1))

    assert_exact(quantized_net(make, images_of(5)), images_of(5), tmp_path)


def test_a_network_on_lines_is_exact(tmp_path):
    def make():
        return nn.Sequential(
            nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(4, 4, 3, groups=2),
            nn.ReLU(), nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2),
            nn.Conv1d(3, 2, 1),
        )  # fmt: skip

    images = images_of(2, 12)
    net = quantized_net(make, images)
    assert_exact(net, images, tmp_path)
    network = nbsnn.lower(net, images[:1])
    assert network.counts(images)["2"].shape == (3, 4, 12)
    assert nbsnn.count_synops(network, images).images == 3
    with pytest.raises(nbsnn.ConfigError, match=r"images has shape \[3, 2, 12, 1\]; give a batch \[B, C, L\]"):
        nbsnn.measure_fidelity(net, nbsnn.to_spiking(net, images[:1]), images[..., None])


def test_the_gradient_of_several_outputs_reaches_the_first_layer():
    images = images_of(2, 6, 6)
    spiking = nbsnn.to_spiking(quantized_net(NETS["segmentation"], images), images[:1], schedule="settle").train()
    sum(output.sum() for output in spiking(images).values()).backward()
    assert bool(spiking.network.fine[0].weight.grad.abs().sum() > 0)


def test_accuracy_is_of_one_output():
    images, labels = images_of(2, 6, 6), torch.tensor([0, 1, 1])
    net = quantized_net(NETS["pooled places"], images)
    network = nbsnn.lower(net, images[:1])
    assert nbsnn.evaluate(net, [(images, labels)]).top1 == nbsnn.evaluate(network, [(images, labels)], output=0).top1
    assert nbsnn.evaluate(net, [(images, labels)], output=2).images == 3
    with pytest.raises(nbsnn.ConfigError, match=r"output=7: the network returns no such tensor; choose one of 0, 1, 2"):
        nbsnn.evaluate(net, [(images, labels)], output=7)
    dense = quantized_net(NETS["segmentation"], images)
    with pytest.raises(nbsnn.ConfigError, match=r"the network returns \[3, 3, 6, 6\]; evaluate takes logits \[B, classes\]"):
        nbsnn.evaluate(dense, [(images, labels)], output="out")
    with pytest.raises(nbsnn.ConfigError, match=r"labels are classes of images, and the output has places"):
        nbsnn.measure_fidelity(dense, nbsnn.to_spiking(dense, images[:1]), images, labels=labels)


def test_what_is_no_tensor_is_refused():
    images = images_of(2, 6, 6)
    with pytest.raises(nbsnn.ConversionError, match=r"the network returns a str; return tensors, in tuples, lists or dicts"):
        quantized_net(lambda: Body(lambda net, x, fine, coarse: (coarse, "coarse")), images)
    with pytest.raises(TypeError, match="str"):
        grouped((images, "name"), [])


def test_results_are_mapped_and_picked():
    tree = {"a": (torch.ones(1), None), "b": Boxes(torch.zeros(2), [torch.ones(3)])}
    doubled = map_outputs(lambda x, y: x + y, tree, tree)
    assert isinstance(doubled["b"], Boxes)
    assert float(doubled["a"][0]) == 2
    assert pick_output(tree).shape == (1,)
    assert pick_output(tree, "b").shape == (2,)
    with pytest.raises(nbsnn.ConfigError, match=r"output='a': the network returns no such tensor; leave it out"):
        pick_output(torch.ones(1), "a")
