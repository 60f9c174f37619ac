"""The operators of ONNX that are read, and the function for each: from a node to a step, a constant or a quantizer."""

from collections.abc import Callable

from nbsnn.importers.onnx.arithmetic import added, combined, concatenated, negated
from nbsnn.importers.onnx.constants import computed, constant, same, shape
from nbsnn.importers.onnx.operation import Operand, Operation
from nbsnn.importers.onnx.places import depth_to_space, gathered, pad, reshaped, sliced, space_to_depth, split, transposed
from nbsnn.importers.onnx.pools import average_pool, largest, max_pool, mean
from nbsnn.importers.onnx.quantizers import bound, clip, dequantize, floor, leaky, prelu, quantize, relu
from nbsnn.importers.onnx.resizing import resize
from nbsnn.importers.onnx.weights import convolution, general_product, norm, product, transposed_convolution

OPERATORS: dict[str, Callable[[Operation], Operand | tuple[Operand, ...]]] = {
    "QuantizeLinear": quantize, "DequantizeLinear": dequantize,
    "Clip": clip, "Relu": relu, "LeakyRelu": leaky, "PRelu": prelu, "Min": bound, "Max": bound, "Floor": floor,
    "Conv": convolution, "ConvTranspose": transposed_convolution, "Gemm": general_product, "MatMul": product,
    "BatchNormalization": norm,
    "Add": combined, "Sub": combined, "Mul": combined, "Div": combined, "Sum": added, "Mean": added, "Neg": negated,
    "Concat": concatenated,
    "MaxPool": max_pool, "GlobalMaxPool": largest, "ReduceMax": largest, "AveragePool": average_pool,
    "GlobalAveragePool": mean, "ReduceMean": mean, "ReduceSum": mean,
    "Flatten": reshaped, "Reshape": reshaped, "Squeeze": reshaped, "Unsqueeze": reshaped, "Transpose": transposed,
    "Slice": sliced, "Split": split, "Gather": gathered, "Pad": pad, "Resize": resize, "Upsample": resize,
    "DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth,
    "Constant": constant, "ConstantOfShape": computed, "Identity": same, "Dropout": same, "Cast": same, "Shape": shape,
}  # fmt: skip
