"""The state of a call belongs to the call: shared networks answer several threads as if each was alone."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from integer_nets import PAIRS
from nets import RandomNet, random_quantized, small_quantized
from torch import nn

import nbsnn
from nbsnn.errors import ConfigError, ConversionError
from nbsnn.integer.backends.native import why_not
from nbsnn.quant.layers import QuantReLU
from nbsnn.spiking.neuron import IFNeuron
from nbsnn.surgery import evaluation_mode, tap

BACKENDS = ["torch", *(["native"] if why_not() is None else [])]
SCHEDULES = ["fixed", "settle", "barrier"]
THREADS = 4


def in_threads(work, parts):
    """work(part) for each part, by threads that start together."""
    ready = threading.Barrier(THREADS)

    def run(mine):
        ready.wait()
        return [work(part) for part in mine]

    with ThreadPoolExecutor(THREADS) as pool:
        dealt = [parts[i::THREADS] for i in range(THREADS)]
        results = list(pool.map(run, dealt))
    return [results[i % THREADS][i // THREADS] for i in range(len(parts))]


@pytest.fixture(scope="module")
def quantized():
    return random_quantized(4, ["identity"], [2]).float()


@pytest.fixture(scope="module")
def images():
    return torch.randn(256, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def mixed_parts(images):
    """Single images and batches of several sizes, in turn."""
    return [*images[:160].split(1), *images[160:].split([1, 7, 2, 30, 16, 8, 5, 27])]


# --------------------------------------------------------------------------------------------------- spiking networks


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_spiking_network_called_from_four_threads_gives_the_sequential_results(quantized, images, schedule):
    """Case 4: 256 images, single and in batches; logits and steps of each call are those of a call alone."""
    spiking, parts = nbsnn.to_spiking(quantized, images[:1], schedule=schedule), mixed_parts(images)

    def work(part):
        with torch.no_grad():
            return spiking(part), spiking.steps

    expected = [work(part) for part in parts]
    for (logits, steps), (alone, taken) in zip(in_threads(work, parts), expected, strict=True):
        assert torch.equal(logits, alone)
        assert torch.equal(steps, taken)


@pytest.mark.parametrize("gradient", ["proxy", "surrogate"])
def test_gradients_of_threads_do_not_mix(quantized, images, gradient):
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule="settle", gradient=gradient)
    parts = [part.clone().requires_grad_() for part in images[:24].split(3)]

    def work(part):
        return torch.autograd.grad(spiking(part).square().sum(), part)[0]

    expected = [work(part) for part in parts]
    assert all(map(torch.equal, in_threads(work, parts), expected))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_replicas_of_data_parallel_share_no_state(quantized, images, schedule):
    """What nn.DataParallel makes: copies of the modules' dictionaries, each called by a thread of its own."""
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule=schedule)

    def replica(module):
        made = module._replicate_for_data_parallel()
        for name, child in module._modules.items():
            made._modules[name] = replica(child)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            setattr(made, name, tensor if tensor is None else tensor.view_as(tensor))
        return made

    replicas, parts = [replica(spiking) for _ in range(THREADS)], images[:32].split(8)

    def work(pair):
        return pair[0](pair[1])

    got = in_threads(work, list(zip(replicas, parts, strict=True)))
    with torch.no_grad():
        assert torch.equal(torch.cat(got), torch.cat([spiking(part) for part in parts]))
    torch.cat(got).square().sum().backward()
    assert all(p.grad is not None for p in spiking.parameters())


def test_a_call_within_a_call_leaves_the_outer_one_alone(quantized, images):
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule="settle")
    with torch.no_grad():
        expected, inner = spiking(images[:4]), spiking(images[4:9])
        depth = []

        def call_again(*_):
            depth.append(len(depth))
            if len(depth) == 2:  # in the middle of the outer call, when its first layers hold charge
                assert torch.equal(spiking(images[4:9]), inner)

        handle = spiking.network.blocks[0].register_forward_hook(call_again)
        assert torch.equal(spiking(images[:4]), expected)
        handle.remove()
    assert len(depth) > 4


def test_the_steps_of_a_thread_are_those_of_its_own_last_call(quantized, images):
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule="fixed")
    integer = nbsnn.lower(quantized, images[:1])
    with torch.no_grad():
        spiking(images[:3]), integer.run(images[:3])
        others = in_threads(
            lambda n: (spiking(images[:n]), integer.run(images[:n]), spiking.steps, integer.steps), [5, 6, 7, 8]
        )
    assert [(len(mine), len(same)) for _, _, mine, same in others] == [(5, 5), (6, 6), (7, 7), (8, 8)]
    assert len(spiking.steps) == len(integer.steps) == 3
    fresh = nbsnn.to_spiking(quantized, images[:1])
    assert fresh.steps.tolist() == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_copies_and_pickles_of_a_called_network_are_like_it(quantized, images, schedule, tmp_path):
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule=schedule)
    with torch.no_grad():
        expected = spiking(images[:4])
        torch.save(spiking, tmp_path / "network.pt")
        loaded = torch.load(tmp_path / "network.pt", weights_only=False)
        for other in (copy.deepcopy(spiking), pickle.loads(pickle.dumps(spiking)), loaded):
            assert torch.equal(other(images[:4]), expected)


# --------------------------------------------------------------------------------------------------- integer networks


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pair", [None, *PAIRS], ids=str)
def test_an_integer_network_called_from_four_threads_gives_the_sequential_results(quantized, images, backend, pair):
    options = {} if pair is None else {"engine": "spikes", "neuron": pair[0], "schedule": pair[1]}
    parts = mixed_parts(images)[140:] if backend == "torch" else mixed_parts(images)
    expected = nbsnn.lower(quantized, images[:1]).simulate(torch.cat(parts), backend="torch", keep_counts=True, **options)
    network = nbsnn.lower(quantized, images[:1]).using(backend=backend, **options)  # its weights are prepared by four at once

    def work(part):
        return network.run(part), network.steps

    results = in_threads(work, parts)
    assert torch.equal(torch.cat([logits for logits, _ in results]), expected.logits)
    assert torch.equal(torch.cat([steps for _, steps in results]), expected.steps)


def test_the_message_of_a_backend_that_cannot_run_names_an_argument_that_exists(quantized, images, monkeypatch):
    """Case 28: what the message says is an argument of `simulate`, and following it works."""
    network = nbsnn.lower(quantized, images[:1])
    expected = network.run(images[:2])
    monkeypatch.setenv("NBSNN_NATIVE", "0")
    with pytest.raises(ConfigError, match=r"backend='native' cannot run: switched off by NBSNN_NATIVE=0; use backend='torch'$"):
        network.run(images[:2], backend="native")
    assert torch.equal(network.run(images[:2], backend="torch"), expected)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"is on meta; move it with \.to\('cpu'\), or use backend='torch'$"):
        network.to("meta").run(images[:2], backend="native")
    assert torch.equal(network.to("cpu").run(images[:2], backend="torch"), expected)


# -------------------------------------------------------------------------------------------------------- measurements


def test_fidelity_measured_by_several_threads_at_once_is_right(images):
    """Thresholds at ties: where two comparisons shared a tie tolerance, an inexact one would get the exact one's."""
    quantized = random_quantized(2, ["chain", "projection"], [2])
    networks = [nbsnn.to_spiking(quantized, images[:1].double(), schedule=s) for s in SCHEDULES]
    before = {name: module.training for name, module in quantized.train().named_modules()}

    def work(spiking):
        return nbsnn.measure_fidelity(quantized, spiking, images[:40])

    expected = [work(spiking) for spiking in networks]
    assert [result.differing == 0 for result in expected] == [False, True, True]
    results = in_threads(work, networks * 4)
    for result, wanted in zip(results, expected * 4, strict=True):
        assert result.to_dict() == wanted.to_dict()
    assert before == {name: module.training for name, module in quantized.named_modules()}
    assert not any(module._forward_hooks for module in quantized.modules())


def test_accuracy_measured_by_several_threads_at_once_leaves_the_modes(images):
    network, labels = RandomNet(["chain"]).train(), torch.randint(0, 3, (64,))
    network.stem.eval()
    before = {name: module.training for name, module in network.named_modules()}
    batches = list(zip(images[:64].split(8), labels.split(8), strict=True))
    state = copy.deepcopy(network.state_dict())
    expected = nbsnn.evaluate(network, batches).top1
    assert [r.top1 for r in in_threads(lambda _: nbsnn.evaluate(network, batches), range(8))] == [expected] * 8
    assert before == {name: module.training for name, module in network.named_modules()}
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_modes_are_restored_in_any_order_of_leaving_contexts():
    net = nn.Sequential(nn.ReLU()).train()
    first, second = evaluation_mode(net), evaluation_mode(net)
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert not net.training
    second.__exit__(None, None, None)
    assert net.training
    assert net[0].training
    with evaluation_mode(net):
        net[0].train()
        with evaluation_mode(net):
            assert not net[0].training
        assert net[0].training
        assert not net.training
    assert net.training


def test_a_tap_hears_its_own_thread_alone(images):
    net = small_quantized()
    with torch.no_grad(), tap({"act1": net.act1}) as seen:
        net(images[:3])
        in_threads(net, images[:16].split(4))
    assert [len(output) for output in seen["act1"]] == [3]


# ------------------------------------------------------------------------------------------------------ half precision

HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("schedule", ["settle", "barrier"])
@pytest.mark.parametrize("dtype", HALF)
def test_exact_schedules_are_refused_in_half_precision(quantized, images, schedule, dtype):
    """Case 27: at conversion, afterwards, and under autocast; the remedy of the message works."""
    image, short = images[:2], str(dtype).removeprefix("torch.")
    message = rf"schedule='{schedule}' counts exactly, and {short} would break that; .* \.float\(\), .* schedule='fixed'"
    spiking = nbsnn.to_spiking(quantized, image, schedule=schedule)
    with torch.no_grad():
        expected = spiking(image)
        for change in (lambda n: n.to(dtype), lambda n: n.half() if dtype == torch.float16 else n.bfloat16()):
            with pytest.raises(ConversionError, match=message):
                change(spiking)
            with pytest.raises(ConversionError, match=message):
                change(nn.Sequential(spiking))
        assert torch.equal(spiking(image), expected), "a refusal leaves the network as it was"
        with pytest.raises(ConversionError, match=message):
            nbsnn.to_spiking(copy.deepcopy(quantized).to(dtype), image.to(dtype), schedule=schedule)
        spiking.network.to(dtype)
        with pytest.raises(ConversionError, match=message):
            spiking(image.to(dtype))
        spiking.float()
        assert spiking(image).dtype == torch.float32
        spiking.double()
        assert spiking(image.double()).dtype == torch.float64


@pytest.mark.parametrize("schedule", ["settle", "barrier"])
def test_a_part_in_half_precision_is_refused_too(quantized, images, schedule):
    """A threshold that was rounded is another one than the quantized network's."""
    part = copy.deepcopy(quantized)
    next(module for module in part.modules() if isinstance(module, QuantReLU)).half()
    with pytest.raises(nbsnn.ConversionError, match=r"float16 would break that; keep the network in float32 with \.float\(\)"):
        nbsnn.to_spiking(part, images[:1], schedule=schedule)
    nbsnn.to_spiking(part.float(), images[:1], schedule=schedule)
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule=schedule)
    next(module for module in spiking.modules() if isinstance(module, IFNeuron)).bfloat16()
    with pytest.raises(nbsnn.ConversionError, match="bfloat16 would break that"):
        spiking(images)


@pytest.mark.parametrize("schedule", ["settle", "barrier"])
def test_exact_schedules_are_refused_under_autocast(quantized, images, schedule):
    spiking = nbsnn.to_spiking(quantized, images[:1], schedule=schedule)
    with torch.no_grad():
        expected = spiking(images[:2])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with pytest.raises(ConversionError, match=r"autocast would break that; .* torch\.autocast\('cpu', enabled=False\)"):
                spiking(images[:2])
            with pytest.raises(ConversionError, match="autocast would break that"):
                nbsnn.to_spiking(quantized, images[:1], schedule=schedule)
            with torch.autocast("cpu", enabled=False):
                assert torch.equal(spiking(images[:2]), expected)


@pytest.mark.parametrize("dtype", HALF)
def test_the_fixed_schedule_runs_in_half_precision(quantized, images, dtype):
    spiking = nbsnn.to_spiking(quantized, images[:1]).to(dtype)
    with torch.no_grad():
        assert spiking(images[:2].to(dtype)).dtype == dtype


# ------------------------------------------------------------------------------------------------------ torch.compile


def test_a_spiking_network_compiles_into_one_graph():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    images = torch.randn(6, 1, 4, 4)
    spiking = nbsnn.to_spiking(nbsnn.quantize(net, nbsnn.QuantSpec(2, 2)), images[:1])
    with torch.no_grad():
        compiled = torch.compile(spiking, backend="eager", fullgraph=True)
        assert torch.equal(compiled(images[:3]), spiking(images[:3]))
        assert torch.equal(compiled(images[3:]), spiking(images[3:]))


# ------------------------------------------------------------------------------------------------- edits of the numbers

WRITES = {
    "in place": lambda w: w.neg_(),
    "without gradient": lambda w: torch.no_grad()(lambda: w.mul_(2))(),
    "through .data": lambda w: w.data.add_(1),
    "another .data": lambda w: setattr(w, "data", torch.zeros_like(w)),
    "an entry": lambda w: w.view(-1).__setitem__(0, 3),
    "a row": lambda w: w[0].zero_(),
    "a view of a view": lambda w: w.detach().flatten()[1:].unsqueeze(0).fill_(1),
    "copy_": lambda w: w.copy_(torch.zeros_like(w)),
    "out=": lambda w: torch.add(w, 1, out=w),
    "all at once": lambda w: torch._foreach_add_([w], 1),
    "an operator": lambda w: torch.ops.aten.relu_(w),
    "in a module": lambda w: torch.nn.functional.relu(w, inplace=True),
    "as a parameter": lambda w: nn.Parameter(w, requires_grad=False).data.zero_(),
    "as another class": lambda w: w.as_subclass(torch.Tensor).zero_(),
    "numpy": lambda w: w.numpy().__imul__(0),
    "numpy.asarray": lambda w: np.asarray(w).fill(0),
    "its memory": lambda w: w.untyped_storage().fill_(0),
    "its type": lambda w: w.to(w.dtype).zero_(),
}


@pytest.mark.parametrize("write", WRITES)
def test_an_edit_of_an_integer_networks_numbers_is_refused(quantized, images, write):
    """Case 26: one line with the remedy, and both backends go on with the same weights."""
    network = nbsnn.lower(quantized, images[:1], mean=(0.5, 0.5), std=(0.2, 0.2))
    program, batch = network.program, images[:3].clamp(-2, 2)
    expected = {backend: network.run(batch, backend=backend) for backend in BACKENDS}
    unit, head = program.units[1], program.head
    for numbers in (unit.branches[0].weight, unit.branches[0].multiplier, unit.bias, head.bias, program.pixels.table):
        with pytest.raises((nbsnn.LoweringError, ValueError), match=r"cannot be changed in place; make another one|read-only"):
            WRITES[write](numbers)
    fresh = nbsnn.IntegerNetwork(program)
    for backend in BACKENDS:
        assert torch.equal(network.run(batch, backend=backend), expected[backend])
        assert torch.equal(fresh.run(batch, backend=backend), expected["torch"])


def test_an_integer_networks_numbers_are_not_swapped_for_others(quantized, images):
    weight = nbsnn.lower(quantized, images[:1]).program.units[1].branches[0].weight
    with pytest.raises(RuntimeError, match="weakref"):
        torch.utils.swap_tensors(weight, torch.zeros_like(weight))


def test_a_program_copies_the_tensors_that_it_is_made_from(quantized, images):
    program = nbsnn.lower(quantized, images[:1]).program
    unit = program.units[1]
    bias = unit.bias + 0
    changed = replace(unit, bias=bias)
    assert not isinstance(bias, type(unit.bias))
    network = nbsnn.IntegerNetwork(replace(program, nodes=tuple(changed if n is unit else n for n in program.nodes)))
    expected = network.run(images[:3], backend="torch")
    bias.zero_()
    for backend in BACKENDS:
        assert torch.equal(network.run(images[:3], backend=backend), expected)
        assert torch.equal(nbsnn.IntegerNetwork(network.program).run(images[:3], backend=backend), expected)


def test_frozen_numbers_read_like_any_other(quantized, images, tmp_path):
    network = nbsnn.lower(quantized, images[:1])
    weight = network.program.units[1].branches[0].weight
    assert weight.dtype == torch.int8
    same = torch.tensor(weight.tolist(), dtype=torch.int8)
    assert torch.equal(weight, same)
    assert repr(weight) == repr(same)
    assert (weight.numpy() == same.numpy()).all()
    assert type(weight + 1) is type(weight.float()) is type(weight.clone()) is torch.Tensor
    weight.clone().zero_()
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        network.run(images[:2])
        assert torch.equal(copied.run(images[:2]), network.run(images[:2]))
        assert torch.equal(copied.program.units[1].branches[0].weight, weight)
        with pytest.raises(nbsnn.LoweringError):
            copied.program.units[1].branches[0].weight.zero_()
    torch.save(weight, tmp_path / "weight.pt")
    assert torch.equal(torch.load(tmp_path / "weight.pt", weights_only=False), same)
