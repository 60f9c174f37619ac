"""What cannot be lowered is refused by the layer's name with a remedy; what could overflow is widened or refused."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from integer_nets import PAIRS, assembled, assert_equals_oracle, images_for
from nets import SmallNet, small_quantized
from probes import IMAGE, quantized_probe
from torch import nn

import nbsnn
from nbsnn.data.images import ImageSet
from nbsnn.integer.backends.native import why_not
from nbsnn.integer.backends.torch import even_spikes, run_counts, run_spikes
from nbsnn.integer.nodes import IMAGE as PIXELS
from nbsnn.integer.nodes import Branch, Head, Pixels, Unit
from nbsnn.integer.pixels import to_integers
from nbsnn.integer.program import Program
from nbsnn.spiking.functional import integrate_and_fire

OWN = "the network's own forward"
BACKENDS = ["torch", *(["native"] if why_not() is None else [])]


def refusal(net, **options):
    """The message, one line."""
    with pytest.raises(nbsnn.LoweringError) as caught:
        nbsnn.lower(net, options.pop("example", IMAGE), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FUNCTIONS = {
    "matrix product": (
        lambda net, x: torch.matmul(x, torch.eye(6)),
        "matmul() has no integer form at {own}; between activations write convolutions, linear layers, sums, products with "
        "constants per channel, average pools, interpolation, concatenation and reshapes",
    ),
    "product per place": (
        lambda net, x: x * torch.linspace(0, 1, 6),
        "currents are multiplied by other numbers from place to place at conv2; use one number per channel",
    ),
    "odd enlargement": (
        lambda net, x: F.interpolate(x, scale_factor=1.2718, mode="bilinear"),
        "interpolate() has weights without a small common divisor at {own}; choose an output size or a scale_factor that is a "
        "ratio of small integers, such as size=(2 * h, 2 * w)",
    ),
    "mean over channels": (
        lambda net, x: x - x.mean(1, keepdim=True),
        "a mean or sum over other axes than height and width at {own}; reduce over dim=(2, 3)",
    ),
    "other axes": (
        lambda net, x: x + x.transpose(2, 3),
        "currents rearranged to [4, 6, 6] are used at conv2; choose or move whole channels, rows and columns before the last "
        "weight layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_step_without_integer_form_is_refused(name):
    function, message = FUNCTIONS[name]
    assert refusal(quantized_probe(function)) == message.format(own=OWN)


def test_two_weight_layers_in_a_row_are_refused():
    net = quantized_probe(module=nn.Conv2d(4, 4, 1, bias=False))
    assert refusal(net) == "one weight layer follows another at conv2; put an nn.ReLU between them, or merge them"


def test_what_happens_behind_the_operations_is_noticed():
    def behind(net, x):
        part = x[:, :2]
        part += 1  # changes x as well
        return x

    said = refusal(quantized_probe(behind))
    assert said.startswith("the current of act2 differs from its recorded operations (by ")
    assert said.endswith("; avoid operations in place on views, and code that looks at values")


def test_what_the_audit_refuses_is_refused_as_there():
    with pytest.raises(nbsnn.ConversionError, match=r"sigmoid\(\) is smooth, and spike counts are not at module"):
        nbsnn.lower(quantized_probe(module=nn.Sigmoid(), spec=nbsnn.QuantSpec(2, 2, skip=("module",))), IMAGE)
    assert refusal(SmallNet().eval()) == "the network is not quantized; call nbsnn.quantize first"


def test_settings_are_checked():
    net = small_quantized()
    with pytest.raises(nbsnn.ConfigError, match=r"float_weight_bits=4: choose 8 or 16"):
        nbsnn.lower(net, IMAGE, float_weight_bits=4)
    with pytest.raises(nbsnn.ConfigError, match=r"membrane_bits=16: choose 32 or 64"):
        nbsnn.lower(net, IMAGE, membrane_bits=16)
    with pytest.raises(nbsnn.ConfigError, match=r"mean and std go together"):
        nbsnn.lower(net, IMAGE, mean=(0.5, 0.5))
    with pytest.raises(nbsnn.ConfigError, match=r"mean=\(0.5,\): give 2 numbers, one for each channel"):
        nbsnn.lower(net, IMAGE, mean=(0.5,), std=(1.0,))


def test_the_source_is_left_as_it_was():
    net = small_quantized().train()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    net.eval()
    nbsnn.lower(net, IMAGE)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in state.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


# -------------------------------------------------------------------------------------------------------------- images


def test_bytes_and_normalised_floats_give_the_same_integers():
    mean, std = (0.4914, 0.4465), (0.247, 0.2616)
    bytes_ = torch.randint(0, 256, (5, 2, 6, 6), dtype=torch.uint8)
    image_set = ImageSet(bytes_, torch.zeros(5, dtype=torch.int64), mean, std, ("one",))
    network = nbsnn.lower(small_quantized(), IMAGE, mean=mean, std=std)
    assert torch.equal(network.run(bytes_), network.run(image_set.normalized()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_may_lie_in_memory_as_they_like(dtype, backend):
    network = nbsnn.lower(small_quantized(), IMAGE, mean=(0.5, 0.5), std=(0.25, 0.25)).using(backend=backend)
    bytes_ = torch.randint(0, 256, (5, 2, 6, 6), dtype=torch.uint8)
    images = bytes_ if dtype == torch.uint8 else (bytes_ / 255 - 0.5) / 0.25
    rows_first = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as decoders give them
    assert not rows_first.is_contiguous()
    wanted = network.run(images)
    for other in (rows_first, images.contiguous(memory_format=torch.channels_last), images.repeat(1, 1, 1, 2)[..., :6]):
        assert to_integers(network.program.pixels, other).is_contiguous()
        assert torch.equal(network.run(other), wanted)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 2, 5, 6), r"images of shape \[2, 2, 5, 6\]; the network takes \[B, 2, 6, 6\]"),
        (torch.zeros(0, 2, 6, 6), r"images has shape \[0, 2, 6, 6\]; give one image or more"),
        (torch.full((1, 2, 6, 6), 9.0), r"images reach beyond \[-8, 8\]; give nbsnn.lower their mean and std"),
        (torch.full((1, 2, 6, 6), float("nan")), r"images: 72 of 72 values are not finite"),
        (torch.zeros(1, 2, 6, 6, dtype=torch.uint8), r"8-bit images, but the network was lowered without mean and std"),
        (torch.zeros(1, 2, 6, 6, dtype=torch.int64), r"images has type torch.int64; give floats"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(nbsnn.LoweringError, match=message):
        nbsnn.lower(small_quantized(), IMAGE).run(images)


def test_unknown_engines_and_schedules_are_refused():
    network = nbsnn.lower(assembled(1, ["chain"], [2, 3]), images_for(1))
    with pytest.raises(nbsnn.ConfigError, match=r"unknown engine 'count'; did you mean counts\?"):
        network.run(images_for(1), engine="count")
    with pytest.raises(nbsnn.ConfigError, match=r"unknown backend 'numpy'; known: auto, native, torch"):
        network.run(images_for(1), backend="numpy")
    with pytest.raises(nbsnn.ConversionError, match=r"unknown schedule"):
        network.run(images_for(1), engine="spikes", schedule="fix")
    with pytest.raises(nbsnn.ConfigError, match=r"has 3 levels where T is 7: a fixed number of steps is not exact"):
        network.run(images_for(1), engine="spikes")


# ------------------------------------------------------------------------------------------------------------ overflow


def scaled_up(factor, *, bits=2):
    """A small network whose second activation sees currents `factor` times as large."""
    torch.manual_seed(8)
    net = small_quantized(bits)
    with torch.no_grad():
        net.norm2.weight *= factor
        net.norm2.bias *= factor
    return net


def test_fraction_bits_shrink_with_the_currents_and_no_sum_reaches_the_limit():
    rows = []
    for factor in (1, 16, 256):
        network = nbsnn.lower(scaled_up(factor), IMAGE)
        unit = network.program.by_name["act2"]
        rows.append(unit.fraction_bits)
        assert 2**29 <= unit.bound < 2**31
        assert not unit.wide
        assert_equals_oracle(network, 2 * torch.randn(2, 2, 6, 6))
    assert rows[0] - 4 == rows[1]
    assert rows[1] - 4 == rows[2]


def test_a_unit_that_32_bits_do_not_hold_is_widened():
    network = nbsnn.lower(scaled_up(2.0**14), IMAGE)
    unit = network.program.by_name["act2"]
    assert unit.wide
    assert 2**31 <= unit.bound < 2**52
    assert unit.bias.dtype == unit.branches[0].multiplier.dtype == torch.int64
    assert_equals_oracle(network, torch.randn(2, 2, 6, 6))


def test_a_unit_that_52_bits_do_not_hold_is_refused():
    said = refusal(scaled_up(2.0**60))
    assert said.startswith("the currents of act2 overflow 52 bits relative to its threshold of ")


def test_a_coarse_gain_is_logged(caplog):
    net = small_quantized(3)
    with torch.no_grad():
        net.norm2.weight[0] = 1e-6
    nbsnn.lower(net, IMAGE)
    assert "act2: smallest multiplier" in caplog.text


def test_a_channel_without_weights_gets_no_multiplier(caplog):
    net = small_quantized(2)
    with torch.no_grad():
        net.conv2.weight[1] = 0
        net.norm2.running_var[1] = 0  # as calibration leaves it: the gain of a current that never changes
    network = nbsnn.lower(net, IMAGE)
    multiplier = network.program.by_name["act2"].branches[0].multiplier
    assert multiplier[1] == 0
    assert (multiplier[[0, 2, 3, 4, 5]] > 0).all()
    assert "smallest multiplier" not in caplog.text
    assert_equals_oracle(network, 2 * torch.randn(2, 2, 6, 6))


def test_float_weights_are_rounded_and_said_so():
    torch.manual_seed(4)
    net = nbsnn.quantize(SmallNet(), nbsnn.QuantSpec(32, 3, edge_bits=32)).eval()
    images = torch.randn(64, 2, 6, 6)
    off = {}
    for bits in (8, 16):
        network = nbsnn.lower(net, images, float_weight_bits=bits)
        assert network.program.notes[0] == f"conv1: weights rounded to {bits} bits per output channel"
        assert len(network.program.notes) == 4
        off[bits] = nbsnn.measure_integer_fidelity(net, network.using(backend="torch"), images).off
        assert_equals_oracle(network, images[:2])
    assert off[16] < off[8] < 3


@pytest.mark.parametrize(("std", "bits"), [(None, 26), ((0.5, 0.5), 28), ((0.01, 0.02), 23)])
def test_membranes_of_64_bits_have_more_precise_gains_and_pixels(std, bits):
    net, images = small_quantized(3), torch.rand(64, 2, 6, 6) - 0.5
    options = {"mean": (0.5, 0.5), "std": std} if std else {}
    images = images / torch.tensor(std or (0.5, 0.5)).view(2, 1, 1)
    narrow, wide = (nbsnn.lower(net, images, membrane_bits=width, **options) for width in (32, 64))
    assert wide.program.pixels.fraction_bits == bits
    assert narrow.program.pixels.fraction_bits == 20
    assert {(unit.wide, unit.fraction_bits) for unit in wide.program.units} == {(True, 40)}
    assert all(unit.bound < 2**52 for unit in wide.program.units)
    assert not any(unit.wide for unit in narrow.program.units)
    reference = copy.deepcopy(net).double()
    assert nbsnn.measure_integer_fidelity(reference, wide, images.double()).off == 0
    assert_equals_oracle(wide, images[:2])


def test_many_pixels_in_a_sum_leave_fewer_bits_to_each():
    net = nbsnn.quantize(nn.Sequential(nn.Linear(16000, 2), nn.ReLU(), nn.Linear(2, 2)), nbsnn.QuantSpec(32, 3, edge_bits=32))
    network = nbsnn.lower(net.eval(), torch.rand(1, 16000), membrane_bits=64, float_weight_bits=16)
    assert network.program.pixels.fraction_bits == 20


# ---------------------------------------------------------------------------------------------------------------- ties


def tie_program(bias, *, T=3, levels=3, retract=-(2**10)):
    """One neuron with F = 12 that receives `bias` in each step, and a head that counts its spikes."""
    nothing = Branch("image/flat", torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int8), shift=1)
    numbers = {"fraction_bits": 12, "levels": levels, "height": 1.0, "retract": retract, "bound": 2**20}
    unit = Unit("act", (1,), (nothing,), torch.tensor([bias], dtype=torch.int32), **numbers)
    flat = nbsnn.integer.nodes.Flatten("image/flat", PIXELS, (1,))
    head = Head((1,), (Branch("act", torch.ones(1, dtype=torch.float64)),), torch.zeros(1, dtype=torch.float64))
    return Program(T, Pixels((1, 1, 1), 20, -(2**20), 2**20), (flat, unit), head)


@pytest.mark.parametrize(
    ("bias", "count"),
    [(2**11, 2), (2**11 - 1, 1), (2**12 // 6, 0), (0, 0), (-1, 0), (2**13, 3)],
)
def test_a_neuron_fires_on_the_threshold_itself(bias, count):
    """Half a threshold in each step: the membrane is at 1, ½, 1 thresholds before firing; a tie counts."""
    program, pixels = tie_program(bias), torch.zeros(1, 1, 1, 1, dtype=torch.int32)
    results = [run_counts(program, pixels, keep_counts=True)]
    results += [run_spikes(program, pixels, neuron=n, schedule=s, keep_counts=True) for n, s in PAIRS]
    assert [int(r.counts["act"]) for r in results] == [count] * 5
    assert [int(r.accumulators[0]) for r in results] == [count] * 5
    assert [int(r.steps) for r in results] == [3, 3, 3, 3, 6]  # T at least, also when the last spike comes earlier


def test_the_cap_and_the_depth_follow_the_program():
    program = tie_program(2**13)
    pixels = torch.zeros(1, 1, 1, 1, dtype=torch.int32)
    capped = replace(program, nodes=(program.nodes[0], replace(program.units[0], levels=2)))
    assert int(run_counts(capped, pixels, keep_counts=True).counts["act"]) == 2
    assert int(run_spikes(capped, pixels, neuron="signed", schedule="settle", keep_counts=True).counts["act"]) == 2
    assert program.depth == 1
    assert int(run_spikes(program, pixels, neuron="unsigned", schedule="barrier").steps) == 6


def test_the_product_with_the_image_is_rounded_half_up():
    """(4095 + 1) >> 1 is half a threshold, which fires in two of three steps; 4095 >> 1 would fire in one."""
    program = tie_program(0)
    branch = replace(program.units[0].branches[0], multiplier=torch.ones(1).long(), weight=torch.ones(1, 1).to(torch.int8))
    program = replace(program, nodes=(program.nodes[0], replace(program.units[0], branches=(branch,))))
    pixels = torch.full((1, 1, 1, 1), 4095, dtype=torch.int32)
    assert int(run_counts(program, pixels, keep_counts=True).counts["act"]) == 2
    assert int(run_spikes(program, pixels, neuron="signed", schedule="fixed", keep_counts=True).counts["act"]) == 2


@pytest.mark.parametrize(("retract", "signed"), [(-3, 1), (-2, 0)])
def test_a_signed_neuron_cancels_at_its_level_and_not_before(retract, signed):
    """The second neuron fires in step 2 and ends at a membrane of -2."""
    first = tie_program(2**11)
    branch = Branch("act", torch.tensor([4977], dtype=torch.int32), torch.full((1, 1), -1, dtype=torch.int8))
    second = replace(
        first.units[0], name="act2", branches=(branch,), bias=torch.tensor([4000], dtype=torch.int32), retract=retract
    )
    program = replace(first, nodes=(*first.nodes, second))
    pixels = torch.zeros(1, 1, 1, 1, dtype=torch.int32)
    found = [int(run_spikes(program, pixels, neuron=n, schedule=s, keep_counts=True).counts["act2"]) for n, s in PAIRS]
    assert found == [1, signed, 0, 0]


@pytest.mark.parametrize("timesteps", [3, 7, 15])
def test_barrier_gives_counts_out_as_a_constant_current_would(timesteps):
    count = torch.arange(timesteps + 1)
    train = torch.stack([even_spikes(count, step, timesteps) for step in range(1, timesteps + 1)])
    current = (count.double() / timesteps).expand(timesteps, -1)
    assert torch.equal(train.double(), integrate_and_fire(current + 1e-9, torch.tensor(1.0).double(), signed=False))
