"""The operators of ONNX that are read, and the function for each: from a node to a step, a constant or a quantizer."""

from collections.abc import Callable

from nbsnn.importers.onnx.arithmetic import read_arithmetic, read_concatenation, read_negative, read_sum
from nbsnn.importers.onnx.constants import compute, pass_on, read_constant, read_shape
from nbsnn.importers.onnx.operation import Operand, Operation
from nbsnn.importers.onnx.places import (
    read_depth_to_space,
    read_gather,
    read_pad,
    read_reshape,
    read_slice,
    read_space_to_depth,
    read_split,
    read_transpose,
)
from nbsnn.importers.onnx.pools import read_average_pool, read_largest, read_max_pool, read_mean
from nbsnn.importers.onnx.quantizers import (
    read_bound,
    read_clip,
    read_dequantize,
    read_floor,
    read_leaky,
    read_prelu,
    read_quantize,
    read_relu,
)
from nbsnn.importers.onnx.resizing import read_resize
from nbsnn.importers.onnx.weights import read_convolution, read_gemm, read_matmul, read_norm, read_transposed

OPERATORS: dict[str, Callable[[Operation], Operand | tuple[Operand, ...]]] = {
    "QuantizeLinear": read_quantize,
    "DequantizeLinear": read_dequantize,
    "Clip": read_clip,
    "Relu": read_relu,
    "LeakyRelu": read_leaky,
    "PRelu": read_prelu,
    "Min": read_bound,
    "Max": read_bound,
    "Floor": read_floor,
    "Conv": read_convolution,
    "ConvTranspose": read_transposed,
    "Gemm": read_gemm,
    "MatMul": read_matmul,
    "BatchNormalization": read_norm,
    "Add": read_arithmetic,
    "Sub": read_arithmetic,
    "Mul": read_arithmetic,
    "Div": read_arithmetic,
    "Sum": read_sum,
    "Mean": read_sum,
    "Neg": read_negative,
    "Concat": read_concatenation,
    "MaxPool": read_max_pool,
    "GlobalMaxPool": read_largest,
    "ReduceMax": read_largest,
    "AveragePool": read_average_pool,
    "GlobalAveragePool": read_mean,
    "ReduceMean": read_mean,
    "ReduceSum": read_mean,
    "Flatten": read_reshape,
    "Reshape": read_reshape,
    "Squeeze": read_reshape,
    "Unsqueeze": read_reshape,
    "Transpose": read_transpose,
    "Slice": read_slice,
    "Split": read_split,
    "Gather": read_gather,
    "Pad": read_pad,
    "Resize": read_resize,
    "Upsample": read_resize,
    "DepthToSpace": read_depth_to_space,
    "SpaceToDepth": read_space_to_depth,
    "Constant": read_constant,
    "ConstantOfShape": compute,
    "Identity": pass_on,
    "Dropout": pass_on,
    "Cast": pass_on,
    "Shape": read_shape,
}
