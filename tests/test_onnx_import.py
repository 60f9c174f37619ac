"""Quantized networks from ONNX files: those of onnxruntime's quantizer, of Brevitas' layout, our own, and damaged ones."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from command_line import printed, refusal
from nets import digits_net
from pooled_nets import pooled_images, pooled_net
from test_onnx import run

import nbsnn
from nbsnn.errors import CheckpointError

onnx = pytest.importorskip("onnx")
h = onnx.helper
FLOAT = onnx.TensorProto.FLOAT


def tensor(name, array):
    return onnx.numpy_helper.from_array(np.asarray(array), name)


def saved(path, nodes, tensors, *, image=(2, 6, 6), output="logits", opset=17):
    """A file of nodes, each (operator, inputs, output, attributes)."""
    made = []
    for kind, inputs, result, options in nodes:
        results = [result] if isinstance(result, str) else list(result)
        made.append(h.make_node(kind, list(inputs), results, name=f"/{results[0]}", **options))
    inputs = [h.make_tensor_value_info("x", FLOAT, ["batch", *image])]
    outputs = [h.make_tensor_value_info(output, FLOAT, None)]
    graph = h.make_graph(made, "net", inputs, outputs, [tensor(name, array) for name, array in tensors.items()])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=8), path)
    return path


RANDOM = np.random.default_rng(3)


def normal(*shape):
    return (RANDOM.standard_normal(shape) * 0.4).astype(np.float32)


def float_cnn(path):
    """Convolutions, one grouped, a max pool, a skip and a mean, in float."""
    nodes = [
        ("Conv", ("x", "first.weight", "first.bias"), "a", {"pads": [1, 1, 1, 1]}), ("Relu", ("a",), "b", {}),
        ("MaxPool", ("b",), "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", ("p", "second.weight"), "c", {"pads": [1, 1, 1, 1], "group": 2}), ("Relu", ("c",), "d", {}),
        ("Conv", ("d", "third.weight"), "e", {}), ("Add", ("e", "p"), "f", {}), ("Relu", ("f",), "g", {}),
        ("GlobalAveragePool", ("g",), "m", {}), ("Flatten", ("m",), "n", {}),
        ("Gemm", ("n", "head.weight", "head.bias"), "logits", {"transB": 1}),
    ]  # fmt: skip
    tensors = {
        "first.weight": normal(4, 2, 3, 3), "first.bias": normal(4), "second.weight": normal(4, 2, 3, 3),
        "third.weight": normal(4, 4, 1, 1), "head.weight": normal(5, 4), "head.bias": normal(5),
    }  # fmt: skip
    return saved(path, nodes, tensors)


@pytest.fixture(scope="module")
def images():
    return torch.randn(40, 2, 6, 6, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_file_of_onnxruntimes_quantizer(symmetric, images, tmp_path, caplog):
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        batches = iter([{"x": images.numpy()}])

        def get_next(self):
            return next(self.batches, None)

    kind = quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8
    quantization.quantize_static(
        str(float_cnn(tmp_path / "float.onnx")), str(tmp_path / "net.onnx"), Reader(), per_channel=not symmetric,
        activation_type=kind, extra_options={"ActivationSymmetric": symmetric},
    )  # fmt: skip
    net = nbsnn.load_onnx(tmp_path / "net.onnx")
    assert "the image is not quantized" in caplog.text
    assert "the output is not quantized" in caplog.text
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "net.onnx").graph.initializer}
    zero = int(scales["x_zero_point"])
    low, high = np.iinfo(scales["x_zero_point"].dtype).min - zero, np.iinfo(scales["x_zero_point"].dtype).max - zero
    on_grid = (images / float(scales["x_scale"])).round().clamp(low, high) * float(scales["x_scale"])
    file = run(tmp_path / "net.onnx", on_grid, optimized=False)["logits"]  # 8-bit sums saturate on some processors
    error = np.abs(file - net(on_grid).detach().numpy())
    assert np.quantile(error, 0.9) <= 0.51 * float(scales["logits_scale"])  # the file rounds its output
    spiking = nbsnn.to_spiking(net, images[:1], schedule="barrier")
    assert nbsnn.measure_fidelity(net, spiking, images[:3]).differing == 0


def qcdq(name, x, *, levels, scale=0.05, kind=np.uint8):
    """Quant, clip, dequant, as Brevitas writes it."""
    tensors = {f"{name}.scale": np.float32(scale), f"{name}.zero": kind(0), f"{name}.low": kind(levels[0]),
               f"{name}.high": kind(levels[1])}  # fmt: skip
    return [
        ("QuantizeLinear", (x, f"{name}.scale", f"{name}.zero"), f"{name}.q", {}),
        ("Clip", (f"{name}.q", f"{name}.low", f"{name}.high"), f"{name}.c", {}),
        ("DequantizeLinear", (f"{name}.c", f"{name}.scale", f"{name}.zero"), name, {}),
    ], tensors  # fmt: skip


def brevitas_like(path, *, levels=(0, 7), signed=(-7, 7), opset=17):
    """Weights of 4 bits per channel in Quant-Clip-Dequant, a norm, an average pool, a concatenation, a signed activation."""
    act, first = qcdq("act", "r", levels=levels, scale=0.2)
    pair, second = qcdq("pair", "s", levels=signed, scale=0.1, kind=np.int8)
    weights = {"w1": normal(4, 2, 3, 3), "w2": normal(4, 4, 3, 3), "w3": normal(8, 3)}
    nodes, tensors = [], {**first, **second}
    for name, axis in (("w1", 0), ("w2", 0), ("w3", 1)):
        ends = np.abs(weights[name]).max(tuple(i for i in range(weights[name].ndim) if i != axis))
        tensors |= {name: weights[name], f"{name}.s": (ends / 7).astype(np.float32), f"{name}.z": np.zeros(len(ends), np.int8)}
        nodes += [
            ("QuantizeLinear", (name, f"{name}.s", f"{name}.z"), f"{name}.q", {"axis": axis}),
            ("Clip", (f"{name}.q", "minus7", "plus7"), f"{name}.c", {}),
            ("DequantizeLinear", (f"{name}.c", f"{name}.s", f"{name}.z"), f"{name}.d", {"axis": axis}),
        ]  # fmt: skip
    tensors |= {"minus7": np.int8(-7), "plus7": np.int8(7), "shape": np.array([-1, 8]), "bias": normal(3)}
    tensors |= {"g": np.abs(normal(4)) + 1, "b": normal(4), "mean": normal(4), "var": np.abs(normal(4)) + 0.5}
    nodes += [
        ("Conv", ("x", "w1.d"), "y", {"pads": [0, 1, 1, 1]}), ("BatchNormalization", ("y", "g", "b", "mean", "var"), "n", {}),
        ("Relu", ("n",), "r", {}), *act, ("Conv", ("act", "w2.d"), "s", {"pads": [1, 1, 1, 1]}), *pair,
        ("Concat", ("act", "pair"), "both", {"axis": 1}),
        ("AveragePool", ("both",), "pool", {"kernel_shape": [5, 6]}), ("Reshape", ("pool", "shape"), "flat", {}),
        ("MatMul", ("flat", "w3.d"), "product", {}), ("Add", ("product", "bias"), "logits", {}),
    ]  # fmt: skip
    return saved(path, nodes, tensors, opset=opset)


def test_quant_clip_dequant_as_brevitas_writes_it(images, tmp_path, capsys):
    file = brevitas_like(tmp_path / "net.onnx")
    net = nbsnn.load_onnx(file)
    assert np.allclose(net(images).detach().numpy(), run(file, images, optimized=False)["logits"], atol=1e-4)
    bits = {name: module.weight_bits for name, module in net.named_modules() if hasattr(module, "weight_bits")}
    assert sorted(bits.values()) == [4, 4, 4]
    for schedule in ("settle", "barrier"):
        spiking = nbsnn.to_spiking(net, images[:1], schedule=schedule)
        assert spiking.timesteps == 7
        assert nbsnn.measure_fidelity(net, spiking, images[:4]).differing == 0
    out = tmp_path / "net.safetensors"
    told = printed(capsys, "import", str(file), "--out", str(out))
    assert (told["weight_bits"], told["act_bits"]) == ([4, 4, 4], [3, 3, 3])
    assert torch.equal(nbsnn.load_checkpoint(out)(images), net(images))
    assert printed(capsys, "info", str(out))["form"] == "quantized"


@pytest.mark.parametrize("make", [
    lambda: (digits_net().eval(), torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(6))),
    lambda: (pooled_net(3, "overlapping", "skip", 3, 2).float(), pooled_images(3).float()),
    lambda: (pooled_net(4, "ceil", "concatenation", 2).float(), pooled_images(4).float()),
])  # fmt: skip
def test_our_own_files_come_back_with_the_same_logits(make, tmp_path):
    net, images = make()
    nbsnn.export_onnx(net, tmp_path / "net.onnx", example=images[:1])
    back = nbsnn.load_onnx(tmp_path / "net.onnx")
    assert torch.allclose(back(images), net(images), atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- refusals


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        nbsnn.load_onnx(path)
    assert "\n" not in str(caught.value)


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path, capsys):
    whole, file = brevitas_like(tmp_path / "whole.onnx").read_bytes(), tmp_path / "net.onnx"
    refused(tmp_path / "absent.onnx", r"absent.onnx: no such ONNX file$")
    refused(tmp_path, r"is a folder")
    for content in (b"", b"PK\3\4 no protobuf", whole[: len(whole) // 2], b"\x0a" * 500, b"\xff" * 64):
        file.write_bytes(content)
        refused(file, r"net.onnx: not an ONNX file, or damaged \(.*\); export it again$")
    random = np.random.default_rng(1)
    for _ in range(60):  # a damaged byte is an error, or changes a number
        at = int(random.integers(len(whole)))
        file.write_bytes(whole[:at] + bytes([int(random.integers(256))]) + whole[at + 1 :])
        with suppress(nbsnn.NbsnnError):
            nbsnn.load_onnx(file)
    file.write_bytes(b"not onnx")
    assert "not an ONNX file" in refusal(capsys, "import", str(file), "--out", str(tmp_path / "out.safetensors"))
    assert not (tmp_path / "out.safetensors").exists()


def test_files_that_would_take_memory_or_other_files_are_refused(tmp_path):
    file = tmp_path / "net.onnx"
    model = onnx.load(brevitas_like(file))
    bomb = b"\x3a" + _varint(6 * 2**20) + b"\x0a\x00" * (3 * 2**20)  # three million empty nodes in six megabytes
    file.write_bytes(bomb)
    refused(file, r"damaged \(too many parts that are no weights\)")
    large = onnx.ModelProto.FromString(model.SerializeToString())
    large.graph.initializer[0].dims[:] = [2**20, 2**20]
    onnx.save(large, file)
    refused(file, r"has a shape that is not read")
    large.graph.initializer[0].dims[:] = [2**14, 2**14]
    onnx.save(large, file)
    refused(file, r"fewer numbers|is damaged")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    file.write_bytes(model.SerializeToString())
    refused(file, r"is in another file; export with all data in one file")
    sized = onnx.load(brevitas_like(file))
    sized.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**40
    onnx.save(sized, file)
    refused(file, r"4 million values")


def test_a_damaged_node_is_named_in_one_line(tmp_path):
    file, malformed = tmp_path / "net.onnx", r"has other inputs or attributes than its operator \("
    refused(saved(file, [("Conv", ("x",), "logits", {})], {}), malformed)
    refused(saved(file, [("Add", ("x",), "logits", {})], {}), malformed)
    refused(saved(file, [("QuantizeLinear", ("x", "s", "s"), "logits", {})], {"s": np.float32(1)}), malformed)
    nameless = onnx.load(saved(file, [("Sigmoid", ("x",), "logits", {})], {}))
    del nameless.graph.node[0].output[:], nameless.graph.output[1:]
    nameless.graph.node[0].name = ""
    onnx.save(nameless, file)
    refused(file, r"node without a name: unknown operator 'Sigmoid'")
    border = {"p": np.array([0, 0, 2**30, 0, 0, 0, 0, 0])}
    refused(saved(file, [("Pad", ("x", "p"), "logits", {})], border), r"values of one image, and 67108864 are the most")


def _varint(value):
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def test_what_has_no_quantized_form_is_named(tmp_path):
    file = tmp_path / "net.onnx"
    weights = {"w": normal(2, 2, 1, 1), "s": np.float32(0.1), "z": np.uint8(0), "far": np.float32(2.0)}
    refused(float_cnn(file), r"second\w*|/c reads the output of an activation that is not quantized; put QuantizeLinear")
    refused(saved(file, [("Sigmoid", ("x",), "logits", {})], weights), r"unknown operator 'Sigmoid'")
    refused(
        saved(file, [("Conv", ("x", "w"), "logits", {})], weights), r"has no quantized activation; quantize the float network"
    )
    refused(saved(file, [("Mul", ("x", "x"), "logits", {})], weights), r"multiplies or divides two signals")
    refused(brevitas_like(file, levels=(0, 5)), r"act has 5 levels beside 0, where 2\^b − 1")
    refused(brevitas_like(file, opset=9), r"operators of version 9, and 10 to 30 are read")
    refused(
        saved(file, [("Loop", ("x",), "logits", {"body": h.make_graph([], "g", [], [])})], weights), r"unknown operator 'Loop'"
    )
    foreign = onnx.load(brevitas_like(file))
    foreign.graph.node[0].domain = "com.example"
    onnx.save(foreign, file)
    refused(file, r"operator com.example.QuantizeLinear is not of ONNX itself")


def test_nothing_that_a_checkpoint_describes_is_called_but_steps(images, tmp_path):
    net = nbsnn.load_onnx(brevitas_like(tmp_path / "net.onnx"))
    net.model_spec.args["steps"][0][0] = "system"
    nbsnn.save_checkpoint(tmp_path / "net.safetensors", net)
    with pytest.raises(CheckpointError, match=r"unknown kind of step 'system'"):
        nbsnn.load_checkpoint(tmp_path / "net.safetensors")
