"""Speed of single layers, and which engine measures a spiking network."""

import pytest
import torch
from nets import small_quantized

import nbsnn
from nbsnn.evaluation.comparison import compare
from nbsnn.evaluation.layer_speed import measure_layers
from nbsnn.integer.backends import library

needs_native = pytest.mark.skipif(library.why_not() is not None, reason="there is no native backend")


@needs_native
@pytest.mark.parametrize("options", [{"engine": "counts"}, {"engine": "spikes", "neuron": "signed"}])
def test_layers_are_timed_and_their_work_is_counted(options):
    images = torch.randn(3, 2, 6, 6)
    network = nbsnn.lower(small_quantized(), images).using(**options)
    speeds = measure_layers(network, images, repeats=1)
    planes = 2 if options["engine"] == "counts" else 3
    synapses = {"act1": 5 * 2 * 9 * 36, "act2": 6 * 5 * 9 * 4, "act3": 8 * 24, "head": 4 * 8}
    assert {layer.name: layer.synapses for layer in speeds.layers} == synapses
    assert [layer.work for layer in speeds.layers] == [synapses["act1"], *(planes * n for n in list(synapses.values())[1:])]
    assert sum(layer.work_share for layer in speeds.layers) == pytest.approx(100)
    assert sum(layer.time_share for layer in speeds.layers) == pytest.approx(100)
    assert all(layer.seconds > 0 and layer.ratio == pytest.approx(layer.achieved / layer.limit) for layer in speeds.layers)
    assert {rate.kind for rate in speeds.rates} >= {"look-up", "float"}
    assert all(r.per_second > 0 for r in speeds.rates)


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_native), False])
def test_a_comparison_says_which_engine_measured_it(native, monkeypatch):
    """Both give the same accuracy; without the native backend the reason is given."""
    if not native:
        monkeypatch.setenv("NBSNN_NATIVE", "0")
    pixels = torch.randint(0, 256, (6, 2, 6, 6), dtype=torch.uint8)
    images = nbsnn.ImageSet(pixels, torch.arange(6) % 4, (0.5, 0.5), (0.25, 0.25), ("a", "b", "c", "d"))
    result = next(compare(small_quantized(), images, pairs=[("signed", "settle")], fidelity_images=2))
    wanted = "integer, native" if native else "float simulation: switched off by NBSNN_NATIVE=0"
    assert result.engine == result.to_dict()["engine"] == wanted
    assert result.quantized_top1 == result.spiking_top1
    assert result.fidelity.images == 2
