"""ONNX files in onnxruntime: integer networks with the bits of the engine `counts`, quantized ones on their own grids."""

import copy
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import printed
from integer_nets import KINDS, assembled, images_for
from nets import digits_net, randomize_
from pooled_nets import pooled_images, pooled_net
from programs import KINDS as PROGRAM_KINDS
from programs import random_pixels, random_program
from test_places import CHAINS, Middle
from torch import nn

import nbsnn
from nbsnn.errors import ConfigError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def run(path, images, *, optimized=True):
    """The outputs of a file by name, of images in the type that it takes."""
    options = ort.SessionOptions()
    if not optimized:  # onnxruntime may compute a MatMul with a dequantized weight with activations of 8 bits
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    outputs = [output.name for output in session.get_outputs()]
    return dict(zip(outputs, session.run(None, {given.name: images.numpy()}), strict=True))


def assert_same_bits(network, images, path, **options):
    """The file gives the bits of the network, for one image and for all."""
    nbsnn.export_onnx(network, path, **options)
    expected = network.run(images)
    assert np.array_equal(run(path, images)["logits"], expected.numpy())
    assert np.array_equal(run(path, images[:1])["logits"], expected[:1].numpy())


def assert_near(net, images, path):
    """The file of the quantized network gives its logits, computed in float64."""
    nbsnn.export_onnx(net, path, example=images[:1])
    with torch.no_grad():
        expected = copy.deepcopy(net).double()(images.double())
    assert np.allclose(run(path, images.float())["logits"], expected.numpy(), atol=1e-4)


# ------------------------------------------------------------------------------------------------------------- integers


@pytest.mark.parametrize("options", [
    {"kinds": list(PROGRAM_KINDS), "timesteps": 7},
    {"kinds": ["pooled", "int16", "minimum", "wide"], "timesteps": 255, "mixed": True, "weight": 120},
])  # fmt: skip
def test_every_kind_of_node_has_the_bits_of_the_engine(options, tmp_path):
    program = random_program(**options)
    images = random_pixels(program, 4).float() / 2**program.pixels.fraction_bits
    assert_same_bits(nbsnn.IntegerNetwork(program), images, tmp_path / "net.onnx")


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", ["transposed convolutions", "bicubic", "uneven averages", "a focus", "filled border"])
def test_maps_of_places_keep_every_bit_and_the_grid(name, tmp_path):
    torch.manual_seed(1)
    images = torch.randn(3, 2, 6, 6)
    net = nbsnn.quantize(Middle(CHAINS[name]), nbsnn.QuantSpec(4, 2), example=images[:1].float()).eval()
    randomize_(net)
    assert_same_bits(nbsnn.lower(net, images[:1]), images, tmp_path / "net.onnx")
    assert_near(net, images, tmp_path / "qdq.onnx")


@pytest.mark.parametrize(("pool", "place"), [("ceil", "concatenation"), ("adaptive min", "skip"), ("gaps", "flattened")])
def test_max_and_min_pools(pool, place, tmp_path):
    net, images = pooled_net(3, pool, place, 3, 2), pooled_images(3).float()
    assert_same_bits(nbsnn.lower(net, images[:1]), images, tmp_path / "net.onnx")
    assert_near(net, images, tmp_path / "qdq.onnx")


class Line(nn.Module):
    """[B, 3, 12] lines to a dict of two outputs, one of them a tuple."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(3, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU())
        self.depth = nn.Sequential(nn.Conv1d(6, 6, 5, stride=2, groups=6, bias=False), nn.BatchNorm1d(6), nn.ReLU())
        self.places, self.classes = nn.Conv1d(6, 4, 1), nn.Linear(6, 5)

    def forward(self, x):
        x = self.depth(self.stem(x))
        return {"places": self.places(x).transpose(1, 2), "more": (self.classes(x.mean(2)), None)}


class Row(nn.Module):
    """[B, 9] rows, without places."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.head = nn.Linear(9, 300), nn.ReLU(), nn.Linear(300, 4)

    def forward(self, x):
        return self.head(self.act(self.first(x)))


def test_lines_and_several_outputs(tmp_path):
    torch.manual_seed(2)
    images = torch.randn(5, 3, 12)
    net = nbsnn.quantize(Line(), nbsnn.QuantSpec(3, 3), example=images[:1]).eval()
    randomize_(net)
    network = nbsnn.lower(net, images[:1])
    nbsnn.export_onnx(network, tmp_path / "net.onnx")
    nbsnn.export_onnx(net, tmp_path / "qdq.onnx", example=images[:1])
    expected, logits = network.run(images), net(images)
    whole, grid = run(tmp_path / "net.onnx", images), run(tmp_path / "qdq.onnx", images)
    assert list(whole) == list(grid) == ["places", "more.0"]
    for name, value, wanted in (
        ("places", expected["places"], logits["places"]),
        ("more.0", expected["more"][0], logits["more"][0]),
    ):
        assert np.array_equal(whole[name], value.numpy())
        assert np.allclose(grid[name], wanted.detach().numpy(), atol=1e-4)


def test_rows_with_eight_bits_in_the_spiking_form(tmp_path):
    torch.manual_seed(3)
    images = torch.randn(5, 9)
    net = nbsnn.quantize(Row(), nbsnn.QuantSpec(8, 8), images=images).eval()
    assert_same_bits(nbsnn.lower(net, images[:1]), images, tmp_path / "net.onnx")
    assert_near(net, images, tmp_path / "qdq.onnx")
    nbsnn.export_onnx(nbsnn.to_spiking(net, images[:1], schedule="barrier"), tmp_path / "spiking.onnx")
    assert np.array_equal(run(tmp_path / "spiking.onnx", images)["logits"], run(tmp_path / "qdq.onnx", images)["logits"])


def test_pixels_are_looked_up_in_the_table(tmp_path):
    pixels = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    quantized, norm = digits_net().eval(), {"mean": (0.305,), "std": (0.376,)}
    network = nbsnn.lower(quantized, torch.zeros(1, 1, 8, 8), **norm)
    assert_same_bits(network, pixels, tmp_path / "net.onnx", profile="integer-pixels")
    nbsnn.export_onnx(quantized, tmp_path / "same.onnx", profile="integer-pixels", example=torch.zeros(1, 1, 8, 8), **norm)
    assert np.array_equal(run(tmp_path / "same.onnx", pixels)["logits"], network.run(pixels).numpy())


# ------------------------------------------------------------------------------------------------------------------ QDQ


@pytest.mark.parametrize("first", [0, 7, 14])
def test_logits_of_a_quantized_network(first, tmp_path):
    net, images = assembled(first, KINDS[first : first + 7], [2, 3], mean=bool(first % 2)), images_for(first, 8)
    assert_near(net, images, tmp_path / "net.onnx")


def test_weights_that_the_network_leaves_in_float_are_float(tmp_path):
    torch.manual_seed(7)
    images = torch.rand(4, 1, 8, 8)
    net = nbsnn.quantize(digits_net(quantized=False), nbsnn.QuantSpec(32, 3), images=images).eval()
    assert_near(net, images, tmp_path / "net.onnx")


def test_halves_round_up_as_in_the_neuron(tmp_path):
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    net = nbsnn.quantize(net, nbsnn.QuantSpec(8, 2), example=torch.zeros(1, 1)).eval()
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.fill_(1), layer.bias.zero_()
        net[1].threshold.fill_(3.0)
    nbsnn.export_onnx(net, tmp_path / "net.onnx", example=torch.zeros(1, 1))
    ties = torch.tensor([[-0.5], [0.5], [1.5], [2.5], [3.5]])
    assert run(tmp_path / "net.onnx", ties)["logits"].flatten().tolist() == [0, 1, 2, 3, 3]


def test_a_file_names_layers_and_has_grids_as_integers(tmp_path):
    net = digits_net().eval()
    nbsnn.export_onnx(net, tmp_path / "net.onnx", example=torch.zeros(1, 1, 8, 8), mean=(0.305,), std=(0.376,))
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model, full_check=True)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    layers = [name for name, module in net.named_modules() if hasattr(module, "weight_bits")]
    assert all(weights[f"{layer}.weight"].dtype == np.int8 for layer in layers)
    acts = [name for name, module in net.named_modules() if hasattr(module, "threshold")]
    assert set(acts) <= {node.name for node in model.graph.node if node.op_type == "DequantizeLinear"}
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert (facts["nbsnn.form"], facts["nbsnn.timesteps"]) == ("quantized", "15")
    assert "mean (0.305,) and std (0.376,)" in facts["nbsnn.input"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_same_network_makes_the_same_bytes(tmp_path):
    nets = (digits_net().eval(), nbsnn.lower(digits_net().eval(), torch.zeros(1, 1, 8, 8)))
    for net in nets:
        files = [tmp_path / f"{number}.onnx" for number in range(2)]
        for file in files:
            nbsnn.export_onnx(net, file, example=torch.zeros(1, 1, 8, 8))
        assert files[0].read_bytes() == files[1].read_bytes()


def test_what_cannot_be_written_is_said_first(tmp_path):
    net, file = digits_net().eval(), tmp_path / "net.onnx"
    with pytest.raises(ConfigError, match=r"not one of nbsnn.list_models\(\): give example=, such as images\[:1\]"):
        nbsnn.export_onnx(net, file)
    with pytest.raises(ConfigError, match=r"8-bit pixels need the mean and std of their normalization"):
        nbsnn.export_onnx(nbsnn.lower(net, torch.zeros(1, 1, 8, 8)), file, profile="integer-pixels")
    with pytest.raises(ConfigError, match=r"an ONNX file is written from the quantized form, and this network is float"):
        nbsnn.export_onnx(digits_net(quantized=False), file)
    with pytest.raises(ConfigError, match=r"unknown profile 'qdp'; did you mean qdq"):
        nbsnn.export_onnx(net, file, profile="qdp")
    assert not file.exists()


def test_the_verb_writes_each_profile_and_says_what_is_lost(tmp_path, capsys):
    net = "zoo:cifar10/resnet20-w2a2"
    for profile, form in (("qdq", "quantized"), ("integer-pixels", "integer")):
        file = tmp_path / f"{profile}.onnx"
        told = printed(capsys, "export", net, "--format", "onnx", "--profile", profile, "--out", str(file), "--data", "sample")
        assert told["profile"] == profile
        assert "time steps and spikes are not in the file" in told["limits"][0]
        assert {entry.key: entry.value for entry in onnx.load(file).metadata_props}["nbsnn.form"] == form


def test_the_example_runs(tmp_path, capsys):
    pytest.importorskip("PIL")
    runpy.run_path(str(Path(__file__).parent.parent / "examples" / "onnx_files.py"))["main"](tmp_path)
    printed = capsys.readouterr().out
    assert "the same class for 20 of 20 images" in printed
    assert "0 of 200 logits differ in any bit" in printed
