"""Packed networks: bit-packed integer weights, norms and thresholds in one small file, with provenance and a hash."""

from pathlib import Path

from torch import nn

from nbsnn.checkpoint import describe, form_of
from nbsnn.errors import ConfigError
from nbsnn.quant.packing import CODES, pack_state
from nbsnn.recipe import recipe_from_dict
from nbsnn.tensorfile import Header, write_tensors
from nbsnn.wrappers import bare

_PROVENANCE = ("recipe", "recipe_hash", "seed", "metrics", "versions")


def save_packed(path: str | Path, quantized: nn.Module, *, origin: Header | None = None) -> int:
    """Write a quantized network in packed form; `load_checkpoint` reads it, and its logits are equal bit for bit.

    Args:
        path: `.safetensors`.
        quantized: a quantized network whose weights are in few bits; layers left in float stay in float.
        origin: header of the checkpoint that it came from; recipe, seed, metrics and versions are kept.
    Returns:
        Bytes of the file.
    Raises:
        ConfigError: not a quantized network, or a name that is not `.safetensors`.
        QuantizationError: it cannot be packed, or holds numbers that are not finite.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: a packed network is a .safetensors file")
    if form_of(quantized) != "quantized":
        raise ConfigError(f"only a quantized network is packed, and this one is {form_of(quantized)}; see nbsnn.quantize")
    state = pack_state(bare(quantized))
    header = describe(quantized) | {key: origin[key] for key in _PROVENANCE if origin}
    if header["recipe"]:
        header["recipe"] = recipe_from_dict(header["recipe"]).to_dict(places=False)
    for name, layer in header["plan"].items():
        layer["fixed"] = name + CODES in state
    header["packed"] = True
    write_tensors(path, state, header)
    return path.stat().st_size
