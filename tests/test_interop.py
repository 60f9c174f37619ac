"""Other simulators, each where it is installed: `make test-interop` runs this file in an environment for each."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest
import torch
from integer_nets import assembled, images_for
from interop_worker import SIMULATORS, run
from step_spikes import on_grid

import nbsnn
from nbsnn.errors import ConversionError
from nbsnn.interop import to_spikingjelly
from nbsnn.spiking.neuron import IFNeuron

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_patched_neurons_fire_our_unsigned_spikes(simulator, tmp_path):
    """As imported they do not, or cannot be run; patched, no count differs."""
    pytest.importorskip(simulator)
    images = images_for(5, 8)
    network = nbsnn.lower(assembled(5, ["projection", "concatenation", "padded pool"], [3]), images[:1])
    ours = network.simulate(images, engine="spikes", neuron="unsigned", schedule="fixed", keep_counts=True)
    found = run(simulator, network, on_grid(network, images), tmp_path / "patched.nir", patched=True)
    assert {name: int((found["counts"][name] != count).sum()) for name, count in ours.counts.items()} == dict.fromkeys(
        ours.counts, 0
    )
    assert torch.allclose(found["logits"].float(), ours.logits, atol=1e-5)
    try:
        plain = run(simulator, network, on_grid(network, images), tmp_path / "plain.nir", patched=False)
    except (TypeError, RuntimeError):
        return
    assert any(bool((plain["counts"][name] != count).any()) for name, count in ours.counts.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spikingjelly_neurons_fire_our_spikes(dtype):
    pytest.importorskip("spikingjelly")
    images = images_for(6, 8).to(dtype)
    quantized = assembled(6, ["projection", "concatenation", "identity"], [3]).to(dtype)
    spiking = nbsnn.to_spiking(quantized, images[:1], neuron="unsigned").eval()
    module, fired, ours = to_spikingjelly(spiking), [], []
    for name, layer in spiking.network.named_modules():
        if isinstance(layer, IFNeuron):
            layer.register_forward_hook(lambda _layer, _given, out: ours.append(out))
            module.network.get_submodule(name).register_forward_hook(lambda _layer, _given, out: fired.append(out))
    with torch.no_grad():
        assert torch.equal(module(images), spiking(images))
    assert len(fired) == len(ours) > 5
    assert all(torch.equal(a, b) for a, b in zip(fired, ours, strict=True))
    module(images.requires_grad_()).sum().backward()
    assert bool(images.grad.any())


def test_neurons_that_spikingjelly_lacks_are_refused():
    pytest.importorskip("spikingjelly")
    images = images_for(6, 1)
    spiking = nbsnn.to_spiking(assembled(6, ["chain"], [2]), images)
    with pytest.raises(
        ConversionError, match=r"no counterpart of neuron='signed' with schedule='fixed'; convert with .*'fixed'\)$"
    ):
        to_spikingjelly(spiking)


@pytest.mark.parametrize(
    ("example", "package"), [("to_spikingjelly", "spikingjelly"), ("export_nir", "nirtorch.nir_interpreter")]
)
def test_the_example_runs(example, package, tmp_path, monkeypatch, capsys):
    try:
        importlib.import_module(package)
    except ImportError:
        pytest.skip(f"{package} is not installed")
    if example == "export_nir" and "v_reset" not in pytest.importorskip("nir").IF.__dataclass_fields__:
        pytest.skip("needs nir 1.0.6")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [example, "--images", "1"])
    runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "equal: True" in printed
    assert "0 counts differ" in printed or example != "export_nir"
