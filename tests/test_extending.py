"""The recipes of docs/design.md, each followed from outside the package: one file adds the thing, and it runs end to end."""

import copy

import pytest
import torch
from nets import DigitsNet, random_quantized

import nbsnn
from nbsnn.errors import CheckpointError, ConfigError, ConversionError
from nbsnn.integer.backends import BACKENDS, Backend, backend_facts, base
from nbsnn.integer.backends import torch as torch_backend
from nbsnn.integer.nodes import Unit
from nbsnn.spiking import schedules
from nbsnn.spiking.schedules import Schedule, schedule_named, valid_pairs

IMAGES = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------ a schedule


def patient(membrane, count, limits):
    """Fire at the threshold below the cap; take back only what is half a threshold too much."""
    up = (membrane >= limits.threshold) & (count < limits.levels)
    down = (2 * membrane <= -limits.threshold) & (count > 0) & limits.signed
    return up.to(torch.int8) - down.to(torch.int8)


@pytest.fixture
def twice(monkeypatch):
    monkeypatch.setattr(schedules, "SCHEDULES", dict(schedules.SCHEDULES))
    return schedules.register(Schedule("twice", neurons=("signed",), reason="it takes spikes back", rule=patient, windows=2))


@pytest.fixture(scope="module")
def quantized():
    return random_quantized(5, ["identity", "chain"], [2])


def by_hand(current, threshold, steps, extra):
    """Counts [B] of one neuron by the rule above, written with Python numbers."""
    counts = []
    for x in current.tolist():
        membrane, count = threshold / 2, 0
        for step in range(steps + extra):
            membrane += x if step < steps else 0.0
            spike = (membrane >= threshold and count < steps) - (membrane <= -threshold / 2 and count > 0)
            membrane, count = membrane - spike * threshold, count + spike
        counts.append(count)
    return counts


def test_a_schedule_from_outside_runs_as_a_spiking_network_and_in_whole_numbers(twice, quantized, tmp_path):
    spiking = nbsnn.to_spiking(quantized, IMAGES[:1], schedule="twice")
    assert spiking.neuron == "signed"
    assert ("signed", "twice") in valid_pairs()
    result = spiking.simulate(IMAGES, keep_counts=True)
    assert set(result.steps.tolist()) == {6}
    with torch.no_grad():
        current = quantized.stem[1](quantized.stem[0](IMAGES))
    theta = quantized.stem[2].threshold.item()
    assert result.counts["stem.2"].flatten().int().tolist() == by_hand(current.flatten(), theta, 3, 3)
    network = nbsnn.lower(quantized, IMAGES[:1], float_weight_bits=16)
    whole = network.simulate(IMAGES, engine="spikes", schedule="twice", keep_counts=True)
    assert whole.backend == "torch", "the kernel has no mode for it"
    assert set(whole.steps.tolist()) == {6}
    differing = sum(int((result.counts[name] != count).sum()) for name, count in whole.counts.items())
    assert differing <= 0.01 * sum(count.numel() for count in whole.counts.values())
    fixed = nbsnn.to_spiking(quantized, IMAGES[:1]).simulate(IMAGES, keep_counts=True)
    assert any(not torch.equal(count, fixed.counts[name]) for name, count in result.counts.items())
    fidelity = nbsnn.measure_fidelity(quantized, spiking, IMAGES)
    assert fidelity.images == 12
    spiking(IMAGES).sum().backward()
    assert all(p.grad is not None for p in spiking.parameters())


def test_files_name_a_schedule_from_outside(twice, tmp_path, monkeypatch):
    quantized = nbsnn.quantize(DigitsNet(), nbsnn.QuantSpec(2, 2)).eval()
    image = torch.randn(3, 1, 8, 8)
    spiking, file = nbsnn.to_spiking(quantized, image, schedule="twice"), tmp_path / "twice.safetensors"
    nbsnn.save_checkpoint(file, spiking)
    with torch.no_grad():
        assert torch.equal(nbsnn.load_checkpoint(file, model=DigitsNet())(image), spiking(image))
        monkeypatch.setattr(schedules, "SCHEDULES", {k: v for k, v in schedules.SCHEDULES.items() if k != "twice"})
        with pytest.raises(CheckpointError, match="unknown schedule 'twice'"):
            nbsnn.load_checkpoint(file, model=DigitsNet())
        with pytest.raises(ConversionError, match="unknown schedule 'twice'"):
            spiking(image)


def test_what_a_schedule_cannot_do_is_refused_not_run_as_another_one(twice, quantized):
    network = nbsnn.lower(quantized, IMAGES[:1])
    with pytest.raises(ConversionError, match="does not go with schedule='twice': it takes spikes back; use neuron='signed'"):
        nbsnn.to_spiking(quantized, IMAGES[:1], neuron="unsigned", schedule="twice")
    mixed = nbsnn.set_bits_(copy.deepcopy(quantized), act_bits=3, only=["stem.*"])
    with pytest.raises(ConversionError, match="in a fixed number of steps this is not exact; use schedule='settle'"):
        nbsnn.to_spiking(mixed, IMAGES[:1], schedule="twice")
    with pytest.raises(ConfigError, match="the kernel has no signed neurons under schedule='twice'; use backend='torch'"):
        network.run(IMAGES, engine="spikes", schedule="twice", backend="native")
    pixels = torch.zeros(1, 2, 6, 6, dtype=torch.int32)
    for run in (backend.run_spikes for backend in BACKENDS.values()):
        with pytest.raises(ConversionError, match="unknown schedule 'thrice'; did you mean twice"):
            run(network.program, pixels, neuron="signed", schedule="thrice")
    with pytest.raises(ConfigError, match="schedule 'fixed' exists; choose another name"):
        schedules.register(Schedule("fixed", neurons=("signed",), rule=patient))
    for wrong in ({"neurons": ()}, {"neurons": ("both",)}, {"order": "random"}, {"windows": 0}):
        with pytest.raises(ConfigError, match="schedule 'x': "):
            Schedule(**{"name": "x", "neurons": ("signed",), "rule": patient, **wrong})
    assert schedule_named("twice") is twice


# ------------------------------------------------------------------------------------------------------------- a backend


def counts_in_double(program, pixels, *, keep_counts=False):
    """The quantized network in double precision, node by node; every sum is an integer below 2^53."""
    T, values, counts = program.timesteps, {"image": pixels.double()}, {}

    def branch_sum(branch, shape):
        x, weight = values[branch.source], branch.weight
        if weight is not None and weight.dim() == 2:
            x = torch.nn.functional.linear(x, weight.double())
        elif weight is not None:
            x = torch.nn.functional.conv2d(
                x, weight.double(), None, branch.stride, branch.padding, branch.dilation, branch.groups
            )
        return x.reshape(-1, *shape)

    for node in program.nodes:
        if not isinstance(node, Unit):
            values[node.name] = node.apply(values[node.source])
            continue
        place = (-1, *(1 for _ in node.shape[1:]))
        total = T * node.bias.double().view(place).expand(node.shape)
        for branch in node.branches:
            product = branch_sum(branch, node.shape) * branch.multiplier.double().view(place)
            constant = branch.source in program.constants
            total = total + (T * (product / 2**branch.shift + 0.5).floor() if constant else product)
        count = ((total + 2 ** (node.fraction_bits - 1)) / 2**node.fraction_bits).floor().clamp(0, node.levels)
        values[node.name] = count.expand(len(pixels), *node.shape)
        counts[node.name] = values[node.name].int()
    head = program.head
    sums = tuple(branch_sum(branch, head.shape).long() for branch in head.branches)
    spikes = {name: count.flatten(1).sum(1) for name, count in counts.items()}
    return nbsnn.integer.program.Outcome(sums, torch.full((len(pixels),), T), spikes, counts if keep_counts else {})


@pytest.fixture
def double(monkeypatch):
    monkeypatch.setattr(base, "BACKENDS", dict(base.BACKENDS))
    monkeypatch.setattr(nbsnn.integer.backends, "BACKENDS", base.BACKENDS)
    return base.register(
        Backend(
            "double", counts_in_double, torch_backend.run_spikes, torch_backend.bytes_per_image,
            lambda request: "it only counts" if request.engine == "spikes" else None,
        )
    )  # fmt: skip


def test_a_backend_from_outside_runs_integer_networks(double, quantized):
    network = nbsnn.lower(quantized, IMAGES[:1])
    wanted = network.simulate(IMAGES, backend="torch", keep_counts=True)
    result = network.simulate(IMAGES, backend="double", keep_counts=True)
    assert result.backend == "double"
    assert torch.equal(result.logits, wanted.logits)
    assert all(torch.equal(count, wanted.counts[name]) for name, count in result.counts.items())
    assert all(torch.equal(count, wanted.spikes[name]) for name, count in result.spikes.items())
    chosen = network.using(backend="double")
    assert chosen.backend == "double"
    assert torch.equal(chosen.run(IMAGES), wanted.logits)
    batches = [(IMAGES.float(), torch.arange(12) % 3)]
    assert nbsnn.evaluate(chosen, batches).top1 == nbsnn.evaluate(network, batches).top1
    with pytest.raises(ConfigError, match=r"backend='double' cannot run: it only counts; use backend='(native|torch)'"):
        network.run(IMAGES, engine="spikes", backend="double")
    assert network.simulate(IMAGES).backend == backend_facts()["backend"], "auto does not choose what was added"
    for name in ("torch", "auto"):
        with pytest.raises(ConfigError, match=f"backend '{name}' exists; choose another name"):
            base.register(Backend(name, counts_in_double, torch_backend.run_spikes, torch_backend.bytes_per_image))
