"""Quantized networks from ONNX files with QuantizeLinear and DequantizeLinear, such as Brevitas and onnxruntime write them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import CheckpointError, NbsnnError, shown, unknown
from nbsnn.finite import check_network
from nbsnn.importers.onnx.operation import Operand, Operation
from nbsnn.importers.onnx.reading import OPERATORS
from nbsnn.importers.onnx.signals import Reading
from nbsnn.importers.onnx.values import Constant, Current
from nbsnn.importers.onnx.wire import numbers_of, read_model
from nbsnn.models.steps import INPUT, step_network
from nbsnn.onnx_package import onnx_package
from nbsnn.quant.audit import audit
from nbsnn.quant.layers import QuantReLU, WeightQuantizer
from nbsnn.quant.plans import apply_plan_
from nbsnn.surgery import evaluation_mode

logger = logging.getLogger(__name__)


@checked_arguments
def load_onnx(path: str | Path, *, image_shape: Sequence[int] | None = None) -> nn.Module:
    """The quantized network in an ONNX file, in evaluation mode; `nbsnn.to_spiking` and `nbsnn.lower` take it.

    What the network does differently from the file is logged, a line each: images are not quantized, nor is the output, and
    values exactly between two levels are rounded up.

    Args:
        path: `.onnx`, with QuantizeLinear and DequantizeLinear around weights and activations (QDQ, or QCDQ with Clip).
        image_shape: (C, H, W) of an image, if the file does not say it.
    Raises:
        CheckpointError: the file is missing, damaged, or has an operator or a quantizer without such a form; names it.
        ConversionError: spikes cannot represent the network.
        MissingDependencyError: onnx is not installed.
    """
    path = Path(path)
    model = read_model(path)
    reading, outputs = _read(model.graph, path, image_shape)
    network = step_network([step.plain() for step in reading.steps], [signal.step for signal in outputs])
    quantized = apply_plan_(network, reading.plan).eval()
    _fill_(quantized, reading)
    check_network(quantized, CheckpointError, source=str(path))
    with evaluation_mode(quantized):
        audit(quantized, torch.zeros(1, *reading.image_shape))
    for note in dict.fromkeys(reading.notes):
        logger.warning("%s: %s", path.name, note)
    return quantized


def _read(graph: Any, path: Path, image_shape: Sequence[int] | None) -> tuple[Reading, list[Current]]:
    """Follow the nodes of a graph in order."""
    values: dict[str, Operand] = {tensor.name: numbers_of(tensor, path) for tensor in graph.initializer}
    inputs = [given for given in graph.input if given.name not in values]
    if len(inputs) != 1:
        names = ", ".join(shown(given.name) for given in inputs[:4])
        raise CheckpointError(f"{path}: has {len(inputs)} inputs ({names}); a network with one, the images, is read")
    reading = Reading(str(path), _image_shape(inputs[0], path, image_shape))
    values[inputs[0].name] = Current(INPUT)
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        label = shown(node.name or next(iter(node.output), "without a name"))
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            known = unknown("operator", name, OPERATORS) if not node.domain else f"operator {shown(name)} is not of ONNX itself"
            raise CheckpointError(f"{path}: node {label}: {known}; export without it")
        missing = [name for name in node.input if name and name not in values]
        if missing or not node.output:
            raise CheckpointError(f"{path}: node {label} reads {shown(missing)}, which no earlier node makes, or makes nothing")
        made = _result(node, values, reading, path, outputs)
        values |= zip(node.output, made if isinstance(made, tuple) else (made,), strict=False)
    results = []
    for output in graph.output:
        value = values.get(output.name)
        if not isinstance(value, Current):
            raise CheckpointError(f"{path}: the output {shown(output.name)} is not made of the images by floats; export logits")
        results.append(reading.applied(value, output.name))
    reading.keep(results)
    if not reading.grids:
        raise CheckpointError(f"{path}: has no quantized activation; quantize the float network with nbsnn.quantize")
    return reading, results


def _result(
    node: Any, values: Mapping[str, Operand], reading: Reading, path: Path, outputs: set[str]
) -> Operand | tuple[Operand, ...]:
    """What a node makes; whatever inputs and attributes a damaged file gives it, an error is one line."""
    try:
        with np.errstate(all="ignore"):
            return OPERATORS[node.op_type](Operation(node, values, reading, path, outputs))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, NbsnnError):
            raise
        what = shown((str(error) or type(error).__name__).splitlines()[0])
        raise CheckpointError(
            f"{path}: {node.op_type} {shown(node.name or node.output[0])} has other inputs or attributes than its operator "
            f"({what}); export it again"
        ) from None


def _image_shape(given: Any, path: Path, image_shape: Sequence[int] | None) -> tuple[int, ...]:
    kind = given.type.tensor_type
    if kind.elem_type not in (onnx_package().TensorProto.FLOAT, onnx_package().TensorProto.DOUBLE):
        raise CheckpointError(f"{path}: its input {shown(given.name)} is not of floats; export a network on normalized images")
    sides = tuple(size.dim_value for size in kind.shape.dim[1:])
    if image_shape is not None:
        return tuple(int(size) for size in image_shape)
    if not sides or 0 in sides:
        raise CheckpointError(f"{path}: does not say the size of its images {list(sides)}; give image_shape=(C, H, W)")
    return sides


@torch.no_grad()
def _fill_(network: nn.Module, reading: Reading) -> None:
    """Copy the numbers of a file into the network."""

    def fill(tensor: Tensor, numbers: Constant, name: str) -> None:
        if tuple(numbers.shape) != tuple(tensor.shape):
            raise CheckpointError(
                f"{reading.source}: {shown(name)} has the shape {list(numbers.shape)} instead of {list(tensor.shape)}; "
                "export it again"
            )
        tensor.copy_(torch.from_numpy(numbers.astype("float64")))

    for name, tensors in reading.state.items():
        module = network.get_submodule(name)
        for key, numbers in tensors.items():
            fill(getattr(module, key), numbers, f"{name}.{key}")
    for name, scale in reading.scales.items():
        module = network.get_submodule(name)
        if isinstance(module, QuantReLU):
            fill(module.threshold, scale, name)
        elif isinstance(module, WeightQuantizer):
            assert module.weight_scale is not None
            fill(module.weight_scale, scale, name)
