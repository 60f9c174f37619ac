"""Networks as ONNX files: integer networks in integer operations, quantized ones with QuantizeLinear and DequantizeLinear."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.checkpoint import describe
from nbsnn.errors import ConfigError
from nbsnn.export.onnx.graph import Graph
from nbsnn.export.onnx.integers import write_program
from nbsnn.export.onnx.qdq import write_quantized
from nbsnn.export.registry import Exporter, ExportOptions, export, register
from nbsnn.integer.lower import traced
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.plain import encode
from nbsnn.quant.layers import WeightQuantizer
from nbsnn.tensorfile import content_hash
from nbsnn.wrappers import bare_state, unwrap

_QDQ, _INTEGER, _PIXELS = "qdq", "integer", "integer-pixels"  # profiles


@checked_arguments
def export_onnx(
    network: nn.Module | IntegerNetwork,
    path: str | Path,
    *,
    profile: str | None = None,
    example: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> int:
    """Write a network as an ONNX file, which any batch size can run.

    Args:
        network: a quantized network, an integer one, or a spiking one, of which the quantized form is taken.
        path: `.onnx`.
        profile: "qdq", the quantized network with QuantizeLinear and DequantizeLinear; "integer", the integer network in
            integer operations, with the bits of the engine `counts`; "integer-pixels", the same on 8-bit pixels. Unless given,
            that of the network's form; a quantized network is lowered for "integer".
        example: [B, C, H, W] normalized images, to trace a quantized network; needed for one that is not of
            `nbsnn.list_models()`.
        mean, std: [C] of the normalization; for "integer-pixels" of a quantized network, and for the file's description.
        origin: header of the checkpoint that it was loaded from.
    Returns:
        Bytes of the file.
    Raises:
        ConfigError: another suffix, an unknown profile, or no example.
        ConversionError, LoweringError: the network has no such form; names the layer and the remedy.
        MissingDependencyError: onnx is not installed.
    """
    return export(path, network, EXPORTER.name, profile=profile, example=example, mean=mean, std=std, origin=origin)


def _write(path: Path, network: Any, options: ExportOptions) -> None:
    graph = Graph()
    facts: dict[str, Any]
    if isinstance(network, IntegerNetwork):
        program = network.to("cpu").program
        pixels = options.profile == _PIXELS
        if pixels and program.pixels.table is None:
            raise ConfigError(f"{path}: 8-bit pixels need the mean and std of their normalization; give them to nbsnn.lower")
        outputs = write_program(graph, program, pixels=pixels)
        structure, tensors = encode(program)
        act_bits = {unit.levels.bit_length() for unit in program.units}
        facts = {"form": "integer", "timesteps": program.timesteps, "source": content_hash({"program": structure}, tensors)}
    else:
        pixels = False
        seen = traced(network, _example(network, options))
        outputs = write_quantized(graph, seen)
        act_bits = {firing.levels.bit_length() for firing in seen.firings}
        weight_bits = {m.weight_bits for m in network.modules() if isinstance(m, WeightQuantizer)}
        facts = {
            "form": "quantized", "timesteps": max(firing.levels for firing in seen.firings),
            "source": content_hash({"plan": describe(network)["plan"]}, bare_state(network)),
            "weight_bits": ", ".join(map(str, sorted(weight_bits))),
        }  # fmt: skip
    facts |= {"version": metadata.version("nbsnn"), "act_bits": ", ".join(map(str, sorted(act_bits)))}
    facts |= {"input": _input(graph, options, pixels=pixels), "outputs": ", ".join(outputs)}
    graph.write(path, name=f"{facts['form']} network", doc=_DOC[facts["form"]], metadata=facts)


_DOC = {
    "integer": "An integer network of nbsnn: integer operations, and float64 for the last multiplication only.",
    "quantized": "A quantized network of nbsnn: its activations and weights are on the grids of the network.",
}


def _input(graph: Graph, options: ExportOptions, *, pixels: bool) -> str:
    """What the images must be, for the file."""
    if pixels:
        return "images: uint8 pixels from 0 to 255"
    known = options.mean is not None and options.std is not None
    numbers = f" with mean {tuple(options.mean or ())} and std {tuple(options.std or ())}" if known else ""
    return f"images: float32, pixels / 255 normalized{numbers} as for the network"


def _example(network: nn.Module, options: ExportOptions) -> Tensor:
    """The given example, or zeros of the shape that the network's registered model takes."""
    spec = getattr(unwrap(network), "model_spec", None)
    if options.example is not None:
        return options.example
    if spec is None or spec.is_own:
        raise ConfigError("the network is not one of nbsnn.list_models(): give example=, such as images[:1], to trace it with")
    return torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size)


def _limits(network: Any, options: ExportOptions) -> list[str]:
    lines = ["time steps and spikes are not in the file: it computes the counts that exact schedules arrive at"]
    if options.profile == _INTEGER:
        grid = network.program.pixels
        low, high = grid.low / 2**grid.fraction_bits, grid.high / 2**grid.fraction_bits
        lines.append(f"images beyond [{low:.3g}, {high:.3g}] are clipped, where nbsnn raises an error")
    return lines


EXPORTER = register(Exporter(
    "onnx", "an ONNX file", {_QDQ: ("quantized",), _INTEGER: ("integer",), _PIXELS: ("integer",)}, _write, suffix=".onnx",
    profiles=(_QDQ, _INTEGER, _PIXELS), limits=_limits, package="onnx", extra="onnx",
))  # fmt: skip
