"""Packed networks made trainable: equal logits to the bit at first, and everything trains."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import DigitsNet, SmallNet, randomize_, small_quantized

import nbsnn
from nbsnn.data.images import Batches
from nbsnn.errors import ConfigError, QuantizationError
from nbsnn.quant.formats import Apot, EdgeUniform
from nbsnn.quant.plans import read_plan
from nbsnn.zoo import list_zoo

WARNING = "weights of a packed network are fixed: only norms, biases and thresholds train"


def packed_of(quantized, folder, model):
    nbsnn.save_packed(folder / "packed.safetensors", quantized)
    return nbsnn.load_checkpoint(folder / "packed.safetensors", model=model)


def assert_same_bits(first, second):
    assert torch.equal(first, second)
    assert torch.equal(first.signbit(), second.signbit())


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from([Apot(b, own_scale=own) for b in (2, 3, 4, 5) for own in (False, True)] + [EdgeUniform(8, "max_abs")]),
    st.sampled_from([(3, 4), (4, 3, 3, 3), (16, 8, 3, 3), (40, 60)]),
    st.sampled_from(["normal", "skewed", "heavy", "shifted"]),
    st.one_of(st.floats(0.4, 4.0), st.sampled_from([1e-3, 0.03, 8.0, 30.0])),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_a_float_weight_is_found_for_every_quantized_one(seed, fmt, shape, kind, scale, dtype):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=g, dtype=dtype)
    w = {"normal": w, "skewed": w.exp() - 1, "heavy": w**3, "shifted": 0.02 * w + 0.01}[kind]
    scale = None if fmt.first_scale(w) is None else torch.tensor(scale, dtype=dtype)
    values, unit = fmt.quantize(w, scale), fmt.unit(w, scale)
    found = fmt.float_weight(values, unit)
    assert found is not None
    assert found[0].dtype == dtype
    assert_same_bits(fmt.quantize(*found), values)


@pytest.mark.parametrize("bits", [4, 5])
def test_a_float_weight_is_found_where_weights_of_one_code_must_differ(bits):
    """All positive levels are below the clip, so that no shift and stretch of the levels has the deviation."""
    for seed in range(3):
        w = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(seed)).exp() - 1
        fmt, scale = Apot(bits), torch.tensor(1.0)
        values = fmt.quantize(w, scale)
        found = fmt.float_weight(values, scale)
        assert found is not None
        assert_same_bits(fmt.quantize(*found), values)


def test_the_step_of_an_edge_weight_is_found_wherever_it_rounds():
    for seed in range(300):
        w = torch.randn(5, 9, generator=torch.Generator().manual_seed(seed)) * (1 + seed / 7)
        for fmt in (EdgeUniform(8, "max_abs"), EdgeUniform(8, "max")):
            values = fmt.quantize(w, None)
            found = fmt.float_weight(values, fmt.unit(w, None))
            assert found is not None
            assert torch.equal(fmt.quantize(*found), values)


@pytest.mark.parametrize("name", [name for name in list_zoo() if "resnet20-w2" in name or "resnet20-w4" in name])
def test_a_bundled_network_starts_at_equal_logits_and_trains_all_over(name):
    """Case 32: `trainable=True` is `unpack`; after one step of an optimizer every parameter has moved."""
    packed, network = nbsnn.load_checkpoint(f"zoo:{name}"), nbsnn.load_checkpoint(f"zoo:{name}", trainable=True)
    sample = nbsnn.load_data("sample").test
    images, labels = sample.normalized(sample.images[:8]), sample.labels[:8]
    assert not network.training
    with torch.no_grad():
        assert torch.equal(network(images), packed(images))
        assert torch.equal(nbsnn.unpack(packed)(images), packed(images))
    assert not any(fmt.fixed for fmt in read_plan(network).values() if hasattr(fmt, "fixed"))
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.Adam(network.train().parameters(), lr=1e-3)
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert not torch.equal(parameter, before[key]), key


def test_a_packed_network_warns_of_what_does_not_train(tmp_path):
    """Case 32: once, when it is put into training mode; every parameter that asks for a gradient gets one."""
    packed = packed_of(small_quantized(), tmp_path, SmallNet())
    images = torch.randn(4, 2, 6, 6)
    spiking = nbsnn.to_spiking(packed, images)
    for network in (packed, spiking):
        with pytest.warns(UserWarning, match=WARNING):
            network.train()
        network.zero_grad()
        network(images).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        packed.eval(), packed.train(), packed.train()
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed.eval()
        nbsnn.unpack(packed).train()
        nbsnn.unpack(spiking).train()


def test_an_unpacked_network_is_an_ordinary_quantized_one(tmp_path):
    quantized, images = small_quantized(3), torch.randn(5, 2, 6, 6)
    packed = packed_of(quantized, tmp_path, SmallNet())
    network = nbsnn.unpack(packed)
    with torch.no_grad():
        wanted = quantized(images)
        assert torch.equal(network(images), wanted)
        assert torch.equal(packed_of(network, tmp_path, SmallNet())(images), wanted)
        nbsnn.save_checkpoint(tmp_path / "again.safetensors", network)
        assert torch.equal(nbsnn.load_checkpoint(tmp_path / "again.safetensors", model=SmallNet())(images), wanted)
        spiking = nbsnn.to_spiking(packed, images, schedule="settle")
        assert torch.equal(nbsnn.unpack(spiking)(images), spiking(images))
    assert read_plan(network) == read_plan(quantized)
    assert torch.equal(nbsnn.lower(network, images).run(images), nbsnn.lower(packed, images).run(images))
    with pytest.raises(QuantizationError, match="not a packed one: its weights train already"):
        nbsnn.unpack(network)
    assert nbsnn.load_checkpoint(tmp_path / "again.safetensors", model=SmallNet(), trainable=True) is not None


def test_values_that_no_weight_quantizes_to_are_refused_by_name(tmp_path):
    packed = packed_of(small_quantized(), tmp_path, SmallNet())
    with torch.no_grad():
        packed.conv2.weight.copy_(packed.conv2.weight.abs().max())  # all at one level: no mean of zero
    with pytest.raises(QuantizationError, match=r"^conv2 holds values that no float weight is quantized to \(APoT, 2 bits\)"):
        nbsnn.unpack(packed)


def test_an_unpacked_network_learns(tmp_path):
    torch.manual_seed(0)
    splits, net = nbsnn.load_data("digits"), DigitsNet()
    start = splits.train.normalized(splits.train.images[:256])
    packed = packed_of(nbsnn.quantize(net, nbsnn.QuantSpec(2, 2), images=start), tmp_path, DigitsNet())
    network, test = nbsnn.unpack(packed).train(), Batches(splits.test, 120)
    levels = network.conv2.quantized_weight().detach().clone()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for pixels, labels in Batches(splits.train, 50, shuffle=True, seed=1):
        optimizer.zero_grad()
        F.cross_entropy(network(pixels), labels).backward()
        optimizer.step()
    assert nbsnn.evaluate(network, test).top1 > nbsnn.evaluate(packed, test).top1 + 30
    assert not torch.equal(network.conv2.quantized_weight().sign(), levels.sign()), "weights change their levels"


def test_fine_tuning_takes_an_unpacked_network(tmp_path):
    quantized = small_quantized()
    randomize_(quantized)
    packed = packed_of(quantized, tmp_path, SmallNet())
    images = nbsnn.ImageSet(
        torch.randint(0, 255, (8, 2, 6, 6), dtype=torch.uint8), torch.arange(8) % 4, (0.5, 0.5), (0.2, 0.2), tuple("abcd")
    )
    spec = nbsnn.FinetuneSpec(method="layerwise", epochs=1, augment=False, force=True, weights=True)
    with pytest.raises(ConfigError, match=r"or give nbsnn\.unpack\(network\)$"):
        nbsnn.finetune(packed, images, images, spec)
    tuned = nbsnn.finetune(nbsnn.unpack(packed), images, images, spec).spiking
    assert not torch.equal(tuned.network.conv2.weight, nbsnn.unpack(packed).conv2.weight)
