"""Packed networks: bit-packed integer weights, norms and thresholds in one small file, with provenance and a hash."""

from pathlib import Path

from torch import nn

from nbsnn import outputs
from nbsnn.arguments import checked_arguments
from nbsnn.checkpoint import describe
from nbsnn.export.registry import Exporter, ExportOptions, export, register
from nbsnn.inputs import require_type
from nbsnn.quant.packing import CODES, pack_state
from nbsnn.recipe import recipe_from_dict
from nbsnn.tensorfile import Header, write_tensors
from nbsnn.wrappers import bare

_PROVENANCE = ("recipe", "recipe_hash", "seed", "metrics", "versions")


@checked_arguments
def save_packed(path: str | Path, quantized: nn.Module, *, origin: Header | None = None) -> int:
    """Write a quantized network in packed form; `load_checkpoint` reads it, and its logits are equal bit for bit.

    Args:
        path: `.safetensors`.
        quantized: a quantized network with low-bit weights; float layers stay in float.
        origin: header of the checkpoint that it was loaded from; recipe, seed, metrics and versions are stored.
    Returns:
        Bytes of the file.
    Raises:
        ConfigError: not a quantized network, or a name that is not `.safetensors`.
        QuantizationError: it cannot be packed, or holds values that are not finite.
    """
    require_type(quantized, nn.Module, "quantized", "the result of nbsnn.quantize")
    return export(path, quantized, EXPORTER.name, origin=origin)


def _write(path: Path, quantized: nn.Module, options: ExportOptions) -> None:
    origin = options.origin
    state = pack_state(bare(quantized))
    header = describe(quantized) | {key: origin[key] for key in _PROVENANCE if origin and key in origin}
    if header["recipe"]:
        header["recipe"] = recipe_from_dict(header["recipe"]).to_dict(places=False)
    for name, layer in header["plan"].items():
        layer["fixed"] = name + CODES in state
    header["packed"] = True
    write_tensors(path, state, header)


EXPORTER = register(Exporter("packed", outputs.PACKED, ("quantized",), _write))
