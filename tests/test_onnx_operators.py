"""Operators of ONNX behind a quantized activation: the imported network computes what onnxruntime does, and becomes spikes."""

import numpy as np
import pytest
import torch
from test_onnx import run
from test_onnx_import import qcdq, refused, saved

import nbsnn

onnx = pytest.importorskip("onnx")

RANDOM = np.random.default_rng(11)
STEP = 0.2999  # of the activation: no multiple of 1/256 is half-way between two levels, on any processor


def eighths(*shape):
    """Numbers whose sums of products are exact in float32."""
    return (RANDOM.integers(-8, 9, shape) / 8).astype(np.float32)


def whole(*values):
    return np.array(values, np.int64)


def factors(*values):
    return np.array(values, np.float32)


def file_of(path, nodes, tensors=(), *, image=(4, 6, 7), opset=17, levels=(0, 7)):
    """Image, convolution, activation of 3 bits ("a"), the nodes, the output "y"."""
    axes = len(image) - 1
    before = [("Conv", ("x", "w0"), "c0", {"pads": [1] * 2 * axes}), ("Relu", ("c0",), "r0", {})]
    act, numbers = qcdq("a", "r0", levels=levels, scale=STEP)
    if opset < 11:  # QuantizeLinear of version 10, and a Clip that takes no integers
        act = [(kind, inputs, "a.c" if result == "a.q" else result, o) for kind, inputs, result, o in act if kind != "Clip"]
        act[0] = ("QuantizeLinear", ("k", *act[0][1][1:]), "a.c", {})
        act = [("Clip", ("r0",), "k", {"min": 0.0, "max": 255 * STEP}), *act]
    tensors = {"w0": eighths(image[0], image[0], *[3] * axes) / 4, **dict(tensors)}
    weights = {name: (array * 32).astype(np.int8) for name, array in tensors.items() if name.startswith("w")}
    numbers |= {"unit": np.float32(1 / 32), **{f"{name}.i": array for name, array in weights.items()}}
    numbers |= {name: array for name, array in tensors.items() if name not in weights}
    read = [("DequantizeLinear", (f"{name}.i", "unit"), name, {}) for name in weights]
    return saved(path, [*read, *before, *act, *nodes], numbers, image=image, output="y", opset=opset)


def images_of(image, count=3):
    return torch.from_numpy(eighths(count, *image))


def assert_computes_the_same(path, image=(4, 6, 7), *, spikes=True, opset=17):
    images = images_of(image)
    net = nbsnn.load_onnx(path)
    expected, made = run(path, images, optimized=False)["y"], net(images).detach().numpy()
    assert made.shape == expected.shape
    assert np.abs(made - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    assert np.ptp(expected) > 0
    if spikes:
        integer = nbsnn.lower(net, images[:1])
        assert np.abs(integer.run(images).numpy() - expected).max() <= 1e-4 * np.abs(expected).max()
    return net


def conv(result, weight, x="a", **options):
    return ("Conv", (x, weight), result, options)


W3, W5, T3, T2 = eighths(5, 4, 3, 3), eighths(6, 4, 5, 2), eighths(4, 3, 3, 3), eighths(4, 2, 3, 2)
WINDOWS = {
    "same upper": ([conv("y", "w", auto_pad="SAME_UPPER", strides=[2, 2])], {"w": W3}),
    "same lower": ([conv("y", "w", auto_pad="SAME_LOWER", strides=[2, 1])], {"w": W5}),
    "valid": ([conv("y", "w", auto_pad="VALID")], {"w": W3}),
    "dilated": ([conv("y", "w", dilations=[2, 1], pads=[2, 0, 1, 3], strides=[1, 2])], {"w": W3}),
    "transposed": ([("ConvTranspose", ("a", "w"), "y", {})], {"w": T3}),
    "transposed, padded": ([("ConvTranspose", ("a", "w", "b"), "y", {
        "strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]})], {"w": T3, "b": eighths(3)}),
    "transposed, other sides": ([("ConvTranspose", ("a", "w", "b"), "y", {
        "strides": [2, 3], "pads": [0, 2, 1, 0], "dilations": [1, 2]})], {"w": T3, "b": eighths(3)}),
    "transposed, far end": ([("ConvTranspose", ("a", "w", "b"), "y", {
        "strides": [3, 3], "pads": [2, 1, 0, 1], "output_padding": [2, 1]})], {"w": T3, "b": eighths(3)}),
    "transposed, groups": ([("ConvTranspose", ("a", "w"), "y", {"group": 2, "strides": [1, 2]})], {"w": T2}),
    "transposed, same upper": ([("ConvTranspose", ("a", "w"), "y", {"auto_pad": "SAME_UPPER", "strides": [2, 2]})], {"w": T3}),
    "transposed, same lower": ([("ConvTranspose", ("a", "w"), "y", {"auto_pad": "SAME_LOWER", "strides": [2, 2]})], {"w": T3}),
    "transposed, shape": ([("ConvTranspose", ("a", "w"), "y", {"output_shape": [12, 13], "strides": [2, 2]})], {"w": T3}),
    "max, ceil": ([("MaxPool", ("a",), "y", {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": 1})], {}),
    "max, same upper": ([("MaxPool", ("a",), "y", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"})], {}),
    "max, valid": ([("MaxPool", ("a",), "y", {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "VALID"})], {}),
    "max, dilated": ([("MaxPool", ("a",), "y", {"kernel_shape": [2, 3], "dilations": [3, 2], "pads": [1, 1, 1, 1]})], {}),
    "max of all": ([("GlobalMaxPool", ("a",), "y", {})], {}),
    "max reduced": ([("ReduceMax", ("a",), "y", {"axes": [2, -1], "keepdims": 0})], {}),
    "average": ([("AveragePool", ("a",), "y", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})], {}),
    "average, counted": ([("AveragePool", ("a",), "y", {
        "kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1, "strides": [2, 2]})], {}),
    "average, counted, other sides": ([("AveragePool", ("a",), "y", {
        "kernel_shape": [3, 2], "pads": [0, 1, 1, 0], "count_include_pad": 1})], {}),
    "average, other sides": ([("AveragePool", ("a",), "y", {
        "kernel_shape": [3, 2], "pads": [0, 0, 1, 1], "strides": [2, 2]})], {}),
    "average, ceil": ([("AveragePool", ("a",), "y", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1})], {}),
    "average, ceil, counted": ([("AveragePool", ("a",), "y", {
        "kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1, "count_include_pad": 1})], {}),
    "average, ceil, counted, other sides": ([("AveragePool", ("a",), "y", {
        "kernel_shape": [2, 2], "strides": [1, 4], "pads": [1, 0, 0, 1], "ceil_mode": 1, "count_include_pad": 1})], {}),
    "average, same upper": ([("AveragePool", ("a",), "y", {
        "kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"})], {}),
    "average of all": ([("GlobalAveragePool", ("a",), "y", {})], {}),
    "mean of rows": ([("ReduceMean", ("a",), "y", {"axes": [-2], "keepdims": 0})], {}),
    "sum": ([("ReduceSum", ("a", "axes"), "y", {"keepdims": 0})], {"axes": whole(2, 3)}),
}  # fmt: skip
PLACES = {
    "pad": ([("Pad", ("a", "p"), "y", {})], {"p": whole(0, 0, 1, 2, 0, 0, 0, -1)}),
    "pad channels": ([("Pad", ("a", "p"), "y", {})], {"p": whole(0, 1, 0, 0, 0, 2, 0, 0)}),
    "pad with a value": ([("Pad", ("a", "p", "v"), "y", {})], {"p": whole(0, 0, 1, 0, 0, 0, 0, 2), "v": np.float32(0.5)}),
    "pad reflected": ([("Pad", ("a", "p"), "y", {"mode": "reflect"})], {"p": whole(0, 0, 1, 2, 0, 0, 0, 1)}),
    "pad with the edge": ([("Pad", ("a", "p"), "y", {"mode": "edge"})], {"p": whole(0, 0, 1, 2, 0, 0, 3, 1)}),
    "flatten": ([("Flatten", ("a",), "y", {"axis": -3})], {}),
    "reshape": ([("Reshape", ("a", "s"), "y", {})], {"s": whole(0, 0, -1)}),
    "reshape to rows": ([("Reshape", ("a", "s"), "y", {})], {"s": whole(-1, 2, 84)}),
    "transpose": ([("Transpose", ("a",), "y", {"perm": [0, 2, 3, 1]})], {}),
    "slice": ([("Slice", ("a", "b", "e", "i", "s"), "y", {})],
              {"b": whole(1, -1), "e": whole(2**62, 0), "i": whole(1, 3), "s": whole(2, -2)}),
    "split and concatenated": ([("Split", ("a", "s"), ("l", "r"), {"axis": 1}), ("Concat", ("r", "l"), "y", {"axis": 1})],
                               {"s": whole(1, 3)}),
    "concatenated rows": ([("Concat", ("a", "a"), "y", {"axis": -2})], {}),
    "one channel": ([("Gather", ("a", "i"), "y", {"axis": 1})], {"i": np.array(2)}),
    "reversed channels": ([("Gather", ("a", "i"), "y", {"axis": 1})], {"i": whole(3, 1, -3)[:2]}),
    "squeezed": ([("Unsqueeze", ("a", "i"), "u", {}), ("Squeeze", ("u", "i"), "y", {})], {"i": whole(2)}),
    "depth to space": ([("DepthToSpace", ("a",), "y", {"blocksize": 2})], {}),
    "depth to space, channel first": ([("DepthToSpace", ("a",), "y", {"blocksize": 2, "mode": "CRD"})], {}),
}  # fmt: skip
SUMS = {
    "affine": ([("Mul", ("a", "g"), "m", {}), ("Add", ("s", "m"), "y", {})],
               {"g": eighths(4, 1, 1), "s": eighths(1, 4, 1, 1)}),
    "from a number": ([("Sub", ("n", "a"), "y", {})], {"n": np.float32(0.75)}),
    "sum of three": ([("Neg", ("a",), "n", {}), ("Mul", ("a", "g"), "m", {}), ("Sum", ("a", "m", "n"), "y", {})],
                     {"g": eighths(4, 1, 1)}),
    "mean of two": ([("Mul", ("a", "g"), "m", {}), ("Mean", ("a", "m"), "y", {})], {"g": eighths(4, 1, 1)}),
    "norm": ([("BatchNormalization", ("a", "g", "b", "m", "v"), "y", {"epsilon": 0.01})],
             {"g": eighths(4), "b": eighths(4), "m": eighths(4), "v": np.abs(eighths(4)) + 1}),
    "gemm": ([("Flatten", ("a",), "f", {}), ("Gemm", ("f", "w", "b"), "y", {"alpha": -0.5, "beta": 2.0})],
             {"w": eighths(168, 3), "b": eighths(1, 3)}),
    "gemm turned": ([("Flatten", ("a",), "f", {}), ("Gemm", ("f", "w", "b"), "y", {"transB": 1, "alpha": 3.0})],
                    {"w": eighths(3, 168), "b": eighths(1)}),
    "matmul and add": ([("Flatten", ("a",), "f", {}), ("MatMul", ("f", "w"), "m", {}), ("Add", ("m", "b"), "y", {})],
                       {"w": eighths(168, 3), "b": eighths(3)}),
}  # fmt: skip


@pytest.mark.parametrize("name", [*WINDOWS, *PLACES, *SUMS])
def test_an_operator_computes_what_onnxruntime_does(name, tmp_path):
    nodes, tensors = (WINDOWS | PLACES | SUMS)[name]
    opset = 21 if "ceil, counted" in name else 17
    assert_computes_the_same(file_of(tmp_path / "net.onnx", nodes, tensors, opset=opset))


def test_blocks_of_places_become_channels(tmp_path):
    file = file_of(tmp_path / "net.onnx", [("SpaceToDepth", ("a",), "y", {"blocksize": 2})], image=(3, 4, 6))
    assert_computes_the_same(file, (3, 4, 6))


# ---------------------------------------------------------------------------------------------------------------- resize

RESIZES = {
    "nearest": ({"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, (2, 3)),
    "nearest, half pixels": ({"coordinate_transformation_mode": "half_pixel"}, (2, 4)),
    "nearest, uneven": ({"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}, (1.5, 2.25)),
    "linear": ({"mode": "linear"}, (2, 3)),
    "linear, smaller": ({"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}, (0.5, 1)),
    "linear to corners": ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, (2, 2)),
    "linear, symmetric": ({"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}, (2, 2)),
    "cubic": ({"mode": "cubic"}, (2, 2)),
    "cubic to corners": ({"mode": "cubic", "coordinate_transformation_mode": "align_corners"}, (2, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", RESIZES)
@pytest.mark.parametrize("by", ["factors", "sizes"])
def test_resizes_that_torch_has(name, by, tmp_path):
    options, (rows, columns) = RESIZES[name]
    numbers = {"f": factors(1, 1, rows, columns)} if by == "factors" else {"n": whole(1, 4, 6 * rows, 8 * columns)}
    given = ("a", "", "f") if by == "factors" else ("a", "", "", "n")
    if by == "sizes":  # of one image: a file fixes the batch with them
        numbers |= {"n": whole(3, 4, int(6 * rows), int(8 * columns))}
    file = file_of(tmp_path / "net.onnx", [("Resize", given, "y", options)], numbers, image=(4, 6, 8))
    assert_computes_the_same(file, (4, 6, 8), spikes=not name.startswith("cubic to"))


def test_resizes_of_some_axes_of_lines_and_to_computed_sizes(tmp_path):
    file = tmp_path / "net.onnx"
    options = {"mode": "linear", "axes": [3]}
    assert_computes_the_same(file_of(file, [("Resize", ("a", "", "f"), "y", options)], {"f": factors(2)}, opset=18))
    line = [("Resize", ("a", "", "f"), "y", {"mode": "linear"})]
    assert_computes_the_same(file_of(file, line, {"f": factors(1, 1, 2)}, image=(3, 9)), (3, 9))
    refused(
        file_of(file, line, {"f": factors(1, 1, 2)}, image=(1, 5000)), r"makes \[10000\] places of \[5000\]; resize smaller"
    )
    nodes = [  # as torch.onnx exports F.interpolate(a, size=(2 * h, 2 * w))
        ("Shape", ("a",), "s", {}), ("Slice", ("s", "zero", "two"), "front", {}), ("Slice", ("s", "two", "four"), "back", {}),
        ("Mul", ("back", "two"), "twice", {}), ("Concat", ("front", "twice"), "n", {"axis": 0}),
        ("Resize", ("a", "", "", "n"), "y", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ]  # fmt: skip
    assert_computes_the_same(file_of(file, nodes, {"zero": whole(0), "two": whole(2), "four": whole(4)}))


@pytest.mark.parametrize(("options", "by", "message"), [
    ({"mode": "linear", "coordinate_transformation_mode": "asymmetric"}, (2, 2), r"mode='linear', 'asymmetric'; export"),
    ({"nearest_mode": "ceil", "coordinate_transformation_mode": "asymmetric"}, (2, 2), r"nearest_mode='ceil'; export"),
    ({"coordinate_transformation_mode": "tf_crop_and_resize"}, (2, 2), r"coordinate_transformation_mode='tf_crop_and_r"),
    ({"mode": "cubic", "exclude_outside": 1}, (2, 2), r"has exclude_outside; export without it"),
    ({"mode": "cubic", "cubic_coeff_a": -0.5}, (2, 2), r"has coordinates that torch has not: mode='cubic'"),
    ({}, (2, 2**19), r"makes the sizes|values of one image|places of"),
])  # fmt: skip
def test_other_resizes_are_refused(options, by, message, tmp_path):
    refused(file_of(tmp_path / "net.onnx", [("Resize", ("a", "", "f"), "y", options)], {"f": factors(1, 1, *by)}), message)


# ------------------------------------------------------------------------------------------------------------ activations


BENT = STEP * 51 / 64  # of an activation behind that, and no tie either


def activated(path, nodes, tensors=(), *, levels=(-7, 7), zero=0, after=(("Identity", ("q",), "y", {}),)):
    """A convolution "c", nodes that make "b", an activation "q" with these levels, and nodes that make "y"."""
    act, numbers = qcdq("q", "b", levels=levels, scale=BENT, kind=np.int8 if levels[0] < 0 else np.uint8)
    if zero:
        numbers["q.zero"] = np.uint8(zero)
    made = [conv("c", "w1", pads=[1, 1, 1, 1]), *nodes, *act, *after]
    return file_of(path, made, {"w1": eighths(4, 4, 3, 3) / 2, **numbers, **dict(tensors)})


BENDS = {
    "relu6": ([("Clip", ("c", "low", "high"), "b", {})], {"low": np.float32(0), "high": np.float32(7 * BENT)}, (0, 7)),
    "hard tanh": ([("Clip", ("c", "low", "high"), "b", {})],
                  {"low": np.float32(-7 * BENT), "high": np.float32(7 * BENT)}, (-7, 7)),
    "bounds": ([("Max", ("zero", "c"), "m", {}), ("Min", ("m", "high"), "b", {})],
               {"zero": np.float32(0), "high": np.float32(7.2 * BENT)}, (0, 7)),
    "leaky": ([("LeakyRelu", ("c",), "b", {"alpha": 0.25})], {}, (-7, 7)),
    "leaky, falling": ([("LeakyRelu", ("c",), "b", {"alpha": -0.5})], {}, (-7, 7)),
    "leaky, pooled": ([("LeakyRelu", ("c",), "l", {"alpha": 0.25}), ("MaxPool", ("l",), "b", {"kernel_shape": [2, 2]})],
                      {}, (-7, 7)),
    "prelu": ([("PRelu", ("c", "p"), "b", {})], {"p": factors(0.5).reshape(1, 1, 1)}, (-7, 7)),
    "prelu of channels": ([("PRelu", ("c", "p"), "b", {})], {"p": factors(0.5, -0.25, 0, 1).reshape(4, 1, 1)}, (-7, 7)),
    "moved before it is quantized": ([("Relu", ("c",), "r", {}), ("MaxPool", ("r",), "m", {"kernel_shape": [2, 2]}),
                                      ("Transpose", ("m",), "t", {"perm": [0, 2, 3, 1]}), ("Flatten", ("t",), "b", {})],
                                     {}, (0, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", BENDS)
def test_activations_of_any_shape(name, tmp_path):
    nodes, tensors, levels = BENDS[name]
    assert_computes_the_same(activated(tmp_path / "net.onnx", nodes, tensors, levels=levels))


@pytest.mark.parametrize("name", ["leaky", "prelu", "hard tanh"])
def test_pools_of_activations_with_two_signs(name, tmp_path):
    nodes, tensors, levels = BENDS[name]
    pool = [("MaxPool", ("q",), "y", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]})]
    net = assert_computes_the_same(activated(tmp_path / "net.onnx", nodes, tensors, levels=levels, after=pool))
    assert "pair" not in {step.kind for step in net.steps}  # nothing reads the activation but its pool


def test_a_leaky_activation_on_uneven_levels(tmp_path, caplog):
    nodes = [("LeakyRelu", ("c",), "b", {"alpha": 0.25})]
    assert_computes_the_same(activated(tmp_path / "net.onnx", nodes, levels=(0, 255), zero=60))
    assert "each sign has 255 levels, where the file has 195 above 0 and 60 below" in caplog.text


def test_activations_that_are_none_are_refused(tmp_path):
    file, number = tmp_path / "net.onnx", {"n": np.float32(1)}
    refused(activated(file, [("Max", ("c", "n"), "b", {})], number), r"clips to \[1, inf\]; only clips around or from 0 on")
    falling = [("LeakyRelu", ("c",), "l", {"alpha": -0.5}), ("MaxPool", ("l",), "b", {"kernel_shape": [2, 2]})]
    refused(activated(file, falling), r"pools an activation that falls for x < 0 before it is quantized; put QuantizeLinear")
    refused(
        activated(file, [("Clip", ("c", "n1", "n"), "b", {})], {**number, "n1": np.float32(-1)}), r"its input ends at 1; choose"
    )
    twice = [("Relu", ("c",), "r", {}), ("LeakyRelu", ("r",), "b", {})]
    refused(activated(file, twice), r"reads another activation that is not quantized; put QuantizeLinear")


# ------------------------------------------------------------------------------------------------- versions, lines, refusals

VERSION_10 = {
    "pad": ([("Pad", ("a",), "y", {"pads": [0, 0, 1, 0, 0, 0, 0, 2], "value": 0.5})], {}),
    "squeezed": ([("Unsqueeze", ("a",), "u", {"axes": [3]}), ("Squeeze", ("u",), "y", {"axes": [3]})], {}),
    "split": ([("Split", ("a",), ("l", "r"), {"axis": 1, "split": [1, 3]}), ("Concat", ("r", "l"), "y", {"axis": 1})], {}),
    "mean": ([("ReduceMean", ("a",), "y", {"axes": [2, 3]})], {}),
    "resize": ([("Resize", ("a", "f"), "y", {"mode": "nearest"})], {"f": factors(1, 1, 2, 2)}),
    "dropout": ([("Dropout", ("a",), "y", {"ratio": 0.5})], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", VERSION_10)
def test_attributes_of_older_versions(name, tmp_path):
    nodes, tensors = VERSION_10[name]
    assert_computes_the_same(file_of(tmp_path / "net.onnx", nodes, tensors, opset=10, levels=(0, 255)))


LINES = {
    "transposed": ([("ConvTranspose", ("a", "w"), "y", {"strides": [2], "pads": [1, 0]})], {"w": eighths(4, 3, 3)}),
    "same lower": ([conv("y", "w", auto_pad="SAME_LOWER", strides=[2])], {"w": eighths(3, 4, 4)}),
    "max of all": ([("GlobalMaxPool", ("a",), "y", {})], {}),
    "average of all": ([("GlobalAveragePool", ("a",), "y", {})], {}),
    "average": ([("AveragePool", ("a",), "y", {"kernel_shape": [3], "strides": [2], "ceil_mode": 1})], {}),
    "nearest": ([("Resize", ("a", "", "f"), "y", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"})],
                {"f": factors(1, 1, 2)}),
    "pad reflected": ([("Pad", ("a", "p"), "y", {"mode": "reflect"})], {"p": whole(0, 0, 1, 0, 0, 2)}),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_operators_on_lines(name, tmp_path):
    nodes, tensors = LINES[name]
    assert_computes_the_same(file_of(tmp_path / "net.onnx", nodes, tensors, image=(4, 9)), (4, 9))


@pytest.mark.parametrize(("nodes", "tensors", "message"), [
    ([("Transpose", ("a",), "y", {})], {}, r"has perm=\[3, 2, 1, 0\]; keep the batch"),
    ([("Reshape", ("a", "s"), "y", {})], {"s": whole(-1, 42)}, r"does not fit its inputs \(one image becomes \[4, 42\]\)"),
    ([("Slice", ("a", "b", "e", "i"), "y", {})], {"b": whole(1), "e": whole(2), "i": whole(0)}, r"slices the batch; slice one"),
    ([("Split", ("a",), ("y", "z"), {"axis": 0})], {}, r"works on axis 0 of 4; keep the batch"),
    ([("Gather", ("a", "i"), "y", {"axis": 1})], {"i": whole(0, 1, 3)}, r"chooses places that are not at even distances"),
    ([("ReduceMean", ("a",), "y", {"axes": [1]})], {}, r"works on axis 1 of 4; work on places only"),
    ([("Pad", ("a", "p"), "y", {"mode": "reflect"})], {"p": whole(0, 1, 0, 0, 0, 0, 0, 0)}, r"copies channels; pad places"),
    ([("AveragePool", ("a",), "y", {"kernel_shape": [3, 3], "dilations": [2, 1]})], {}, r"has dilated windows; use plain"),
    ([("MaxPool", ("a",), "y", {"kernel_shape": [3, 3], "pads": [2, 0, 2, 0]})], {}, r"exceeds half a window; pad both"),
    ([("Gemm", ("a", "w"), "y", {"transA": 1})], {"w": eighths(4, 4)}, r"has transA; export a plain linear layer"),
    ([("MatMul", ("w", "a"), "y", {})], {"w": eighths(4, 6)}, r"depends on the image|input 0"),
    ([("ConvTranspose", ("a", "w"), "y", {"output_padding": [3, 0]})], {"w": T3}, r"has 3 places behind its kernels; give an"),
    ([("Max", ("a", "a"), "y", {})], {}, r"has an input 1 that depends on the image"),
])  # fmt: skip
def test_what_is_refused_is_named(nodes, tensors, message, tmp_path):
    refused(file_of(tmp_path / "net.onnx", nodes, tensors), message)
