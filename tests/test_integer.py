"""The integer network: equal to the oracle in every bit, close to the quantized network, the same however it is run."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_nets import KINDS, PAIRS, assembled, assert_equals_oracle, images_for
from nets import randomize_

import nbsnn
from nbsnn.integer.backends.native import why_not
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.nodes import SumPool, Unit
from nbsnn.quant.layers import QuantReLU, at_least
from nbsnn.surgery import tap

BACKENDS = ["torch", *(["native"] if why_not() is None else [])]
kinds = st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)
bits = st.lists(st.sampled_from([2, 3, 4]), min_size=1, max_size=3)


def quantized_counts(quantized, images):
    """Name → counts of the float simulation."""
    acts = {n: m for n, m in quantized.named_modules() if isinstance(m, QuantReLU)}
    with torch.no_grad(), tap(acts) as seen:
        logits = quantized(images)
    return {n: (seen[n][0] * acts[n].levels / at_least(acts[n].threshold)).round().int() for n in acts}, logits


def allowed(act_bits):
    """Pairs of neuron and schedule that are exact with these bits, or published."""
    return PAIRS if len(set(act_bits)) == 1 else PAIRS[2:]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12)
@given(st.integers(0, 10**6), kinds, bits, st.sampled_from([2, 3, 4, 5, 32]), st.booleans())
def test_each_engine_equals_the_oracle_on_random_networks(backend, seed, kinds, act_bits, weight_bits, mean):
    quantized, images = assembled(seed, kinds, act_bits, weight_bits=weight_bits, mean=mean), images_for(seed, 2)
    act_bits = {m.bits for m in quantized.modules() if isinstance(m, QuantReLU)}
    assert_equals_oracle(nbsnn.lower(quantized, images), images, pairs=allowed(act_bits), backend=backend)


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_that_can_be_lowered_keeps_its_counts(kind):
    quantized, images = assembled(3, [kind, "chain"], [3]), images_for(3, 8)
    counts, logits = quantized_counts(quantized, images)
    network = nbsnn.lower(quantized, images[:1], float_weight_bits=16)
    result = network.simulate(images, keep_counts=True, backend="torch")
    assert set(result.counts) == set(counts)
    off = sum(int((result.counts[name] != count).sum()) for name, count in counts.items())
    assert off <= 0.002 * sum(count.numel() for count in counts.values())
    if off == 0:
        assert (result.logits - logits).abs().max() < 1e-5 * logits.abs().max()
    for backend in BACKENDS:
        assert_equals_oracle(network, images[:1], backend=backend)


@settings(max_examples=8)
@given(st.integers(0, 10**6), kinds, bits)
def test_counts_equal_spikes_that_settle_or_wait_bit_for_bit(seed, kinds, act_bits):
    images = images_for(seed, 5)
    network = nbsnn.lower(assembled(seed, kinds, act_bits), images)
    wanted = network.simulate(images, keep_counts=True, backend="torch")
    for schedule in ("settle", "barrier"):
        result = network.simulate(images, engine="spikes", schedule=schedule, keep_counts=True, backend="torch")
        assert all(torch.equal(result.counts[name], wanted.counts[name]) for name in wanted.counts)
        assert torch.equal(result.logits, wanted.logits)
        spikes = {name: int(s.sum()) for name, s in result.spikes.items()}
        fewest = {name: int(s.sum()) for name, s in wanted.spikes.items()}
        assert spikes == fewest if schedule == "barrier" else all(spikes[name] >= fewest[name] for name in spikes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_results_do_not_depend_on_engine_batch_size_or_threads(size, threads, backend):
    images = images_for(5, 4)
    network = nbsnn.lower(assembled(5, ["identity", "grouped", "padded pool"], [2]), images)
    before = torch.get_num_threads()
    try:
        for pair in (None, *PAIRS):
            options = {} if pair is None else {"engine": "spikes", "neuron": pair[0], "schedule": pair[1]}
            whole = network.simulate(images, backend="torch", **options)
            torch.set_num_threads(threads)
            parts = [network.simulate(part, backend=backend, **options) for part in images.split(size)]
            torch.set_num_threads(before)
            assert torch.equal(torch.cat([p.logits for p in parts]), whole.logits)
            assert torch.equal(torch.cat([p.steps for p in parts]), whole.steps)
            for name in whole.spikes:
                assert torch.equal(torch.cat([p.spikes[name] for p in parts]), whole.spikes[name])
    finally:
        torch.set_num_threads(before)


def test_convolutions_as_matrix_products_give_the_same_bits():
    """The way of a CUDA device, taken on the CPU."""
    images = images_for(6, 3)
    quantized = assembled(6, ["grouped", "depthwise", "dilated", "strided", "even"], [4])
    plain, unrolled = nbsnn.lower(quantized, images), nbsnn.lower(quantized, images)
    unrolled.program.prepared("torch", lambda: nbsnn.integer.products.Products(unrolled.program, unroll=True))
    for pair in (None, *PAIRS):
        options = {} if pair is None else {"engine": "spikes", "neuron": pair[0], "schedule": pair[1]}
        assert torch.equal(plain.run(images, backend="torch", **options), unrolled.run(images, backend="torch", **options))


def changed(program, kind, **change):
    """The program with another first node of a kind."""
    old = next(node for node in program.nodes if isinstance(node, kind))
    return replace(program, nodes=tuple(replace(node, **change) if node is old else node for node in program.nodes))


def test_a_changed_program_shares_nothing_that_an_engine_prepared():
    images = images_for(6, 3)
    network = nbsnn.lower(assembled(6, ["padded pool"], [3]), images)
    program, wanted = network.program, network.run(images, backend="torch")
    (branch,) = program.head.branches
    others = [
        replace(program, head=replace(program.head, branches=(replace(branch, weight=-branch.weight),))),
        changed(program, SumPool, kernel=(1, 1), padding=(0, 0)),  # of the same shape
        changed(program, Unit, bias=program.units[0].bias.flip(0)),
    ]
    for other in others:
        assert not len(other.cache)
        assert not torch.equal(IntegerNetwork(other).run(images, backend="torch"), wanted)
        assert_equals_oracle(IntegerNetwork(other), images)
    assert len({program, replace(program), *others}) == 5  # a program is itself, whatever it holds
    assert torch.equal(network.run(images, backend="torch"), wanted)


def test_counts_run_with_the_backend_of_the_options():
    images = images_for(6)
    network = nbsnn.lower(assembled(6, ["chain"], [2]), images)
    wanted = network.counts(images)
    for options in ({"backend": "torch"}, {"backend": "torch", "engine": "spikes", "schedule": "fixed"}):
        assert all(torch.equal(count, wanted[name]) for name, count in network.using(**options).counts(images).items())
    assert len(network.program.cache) == len(BACKENDS)
    with pytest.raises(nbsnn.ConfigError, match="unknown backend 'numpy'"):
        network.using(backend="numpy").counts(images)
    assert network.using(backend="numpy").counts(images, backend="torch").keys() == wanted.keys()


def test_reduced_precision_of_products_changes_nothing():
    images = images_for(9, 3)
    network = nbsnn.lower(assembled(9, ["identity", "padded pool", "concatenation"], [4]), images)
    wanted = network.run(images, backend="torch")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(network.run(images, backend="torch"), wanted)
    finally:
        torch.set_float32_matmul_precision(before)


# ---------------------------------------------------------------------------------------------------------- bit planes

needs_native = pytest.mark.skipif(why_not() is not None, reason=f"no native backend: {why_not()}")
MANY = (13, 37)  # images: enough for bit planes with AVX2 (12), and a full vector of 32 with a rest


@pytest.fixture
def one_thread(threads_restored):
    """Steps of small networks are thousands of short calls, in which two threads wait for each other on a busy machine."""
    torch.set_num_threads(1)


def assert_native_is_torch(network, images, pairs):
    """Everything that a run tells, of the first images and of all."""
    for pair in (None, *pairs):
        options = {} if pair is None else {"engine": "spikes", "neuron": pair[0], "schedule": pair[1]}
        wanted = network.simulate(images, backend="torch", keep_counts=True, **options)
        for size in MANY:
            result = network.simulate(images[:size], backend="native", keep_counts=True, **options)
            assert torch.equal(result.logits, wanted.logits[:size]), pair
            assert torch.equal(result.steps, wanted.steps[:size]), pair
            for name, count in wanted.counts.items():
                assert torch.equal(result.counts[name], count[:size]), (pair, name)
                assert torch.equal(result.spikes[name], wanted.spikes[name][:size]), (pair, name)


@needs_native
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_residual_network_gives_the_same_bits_by_planes(bits):
    quantized = nbsnn.quantize(nbsnn.build_model("cifar10/resnet20", image_size=8), nbsnn.QuantSpec(bits, bits)).eval()
    randomize_(quantized)
    images = torch.randn(max(MANY), 3, 8, 8)
    assert_native_is_torch(nbsnn.lower(quantized, images), images, PAIRS)


@needs_native
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("bits", [2, 3, 4])
@settings(max_examples=8)
@given(st.integers(0, 10**6), kinds)
def test_random_networks_give_the_same_bits_by_planes(bits, seed, kinds):
    images = images_for(seed, max(MANY))
    assert_native_is_torch(nbsnn.lower(assembled(seed, kinds, [bits], weight_bits=bits), images), images, PAIRS)


# -------------------------------------------------------------------------------------------------------------- models

SIZES = {"cifar10/alexnet": 8, "cifar10/vgg11": 9, "cifar10/resnet18": 4, "imagenet/alexnet": 63, "imagenet/vgg16": 17}
BOTH = {"cifar10/resnet20": PAIRS, "cifar10/resnet32": PAIRS[2:], "cifar10/alexnet": PAIRS[2:3]}


@pytest.mark.parametrize("name", nbsnn.list_models())
def test_every_model_equals_the_oracle(name):
    size = SIZES.get(name, 4)
    net = nbsnn.build_model(name, image_size=size, num_classes=10)
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(2, 2)).eval()
    randomize_(quantized)
    images = torch.randn(1, 3, size, size)
    network = nbsnn.lower(quantized, images)
    assert_equals_oracle(network, images, pairs=BOTH.get(name, PAIRS[1:2]))
    for backend in BACKENDS[1:]:
        for options in ({}, *({"engine": "spikes", "neuron": n, "schedule": s} for n, s in PAIRS[1:3])):
            assert torch.equal(network.run(images, backend=backend, **options), network.run(images, backend="torch", **options))
