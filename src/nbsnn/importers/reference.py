"""Load checkpoints of the authors' code (NB-SNN / Fast-SNN), whose parameter names are mapped to ours.

Their files are pickles of tensors in a dictionary; they are read with `weights_only=True`, which executes no code.
"""

import logging
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.checkpoint import form_of, load_checkpoint
from nbsnn.errors import CheckpointError, ConfigError
from nbsnn.finite import check_network
from nbsnn.models import build_model, canonical_name
from nbsnn.quant.layers import QuantReLU
from nbsnn.quant.quantize import quantize
from nbsnn.recipe import FLOAT_BITS, QuantSpec
from nbsnn.statedict import same_kind
from nbsnn.tensorfile import is_ours, read_state_dict
from nbsnn.wrappers import without_wrappers

logger = logging.getLogger(__name__)

# The inner weights of these nets are float; the edges of resnet18 as well.
_FLOAT_WEIGHTS = {"cifar10/resnet18", "imagenet/alexnet", "imagenet/vgg16"}
_FLOAT_EDGES = {"cifar10/resnet18"}

_LEAVES = (
    (r"\.block\.0\.weight_quant\.wgt_alpha$|\.block\.0\.weight_alpha$", ".{synapse}.weight_scale"),
    (r"\.block\.0\.(weight|bias)$", r".{synapse}.\1"),
    (r"\.block\.1\.", ".norm."),
    (r"\.block\.2\.act_alpha$", ".act.threshold"),
    (r"\.(conv|downsample\.0)\.weight_alpha$", r".\1.weight_scale"),
    (r"\.part1\.", ".first."),
    (r"\.part2\.", ".second."),
    (r"\.downsample\.0\.", ".shortcut.conv."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn\.", ".norm."),
    (r"\.relu\.act_alpha$", ".act.threshold"),
)


@checked_arguments
def load_reference_checkpoint(path: str | Path, model: str, *, weight_bits: int, act_bits: int) -> nn.Module:
    """Load a `.pth.tar` file written by the authors' code, as a network in evaluation mode.

    Args:
        path: the file; keys may have prefixes of wrappers, such as `module.` and `_orig_mod.`.
        model: registered name or published short name, such as "cifar10/resnet20" or "alex".
        weight_bits: 2 to 5, or 32; ignored for nets whose inner weights are float in the reference.
        act_bits: 2 to 8; 32 together with weight_bits=32 gives the float network.
    Raises:
        CheckpointError: the file is damaged, or keys do not match; names each of them.
    """
    name = canonical_name(model)
    state = read_state_dict(Path(path))
    net = build_model(name, num_classes=_classes(state, path))
    if (weight_bits, act_bits) != (FLOAT_BITS, FLOAT_BITS):
        if name in _FLOAT_WEIGHTS and weight_bits != FLOAT_BITS:
            logger.warning("%s has float inner weights in the reference; weight_bits=%s is not applied", name, weight_bits)
            weight_bits = FLOAT_BITS
        edges = FLOAT_BITS if name in _FLOAT_EDGES else 8
        net = quantize(net, QuantSpec(weight_bits, act_bits, edge_bits=edges, edge_range="max"))
    load_reference_state_(net, state, source=str(path))
    return net.eval()


def load_start(path: str | Path, model: str, *, bits: int) -> nn.Module:
    """The network that training or conversion at `bits` starts from: our checkpoint, or one of the authors'.

    The authors' files do not store bits: a file with thresholds is loaded with `bits` (32: as a float network), one without as
    a float network.
    """
    name = canonical_name(model)
    if is_ours(Path(path)):
        net = load_checkpoint(path)
        spec = getattr(net, "model_spec", None)
        if spec is not None and spec.name != name:
            raise ConfigError(f"{path} holds {spec.name}, not {name}; give model={spec.name}, or another checkpoint")
        return net
    quantized = bits != FLOAT_BITS and any(key.endswith("act_alpha") for key in read_state_dict(Path(path)))
    act_bits = bits if quantized else FLOAT_BITS
    weight_bits = FLOAT_BITS if name in _FLOAT_WEIGHTS else act_bits
    return load_reference_checkpoint(path, name, weight_bits=weight_bits, act_bits=act_bits)


def load_quantized_start(path: str | Path, model: str, *, bits: int, trainer: str) -> nn.Module:
    """`load_start` for conversion at `bits`.

    Args:
        trainer: the script that trains what is missing, for messages.
    Raises:
        ConfigError: the network is not a quantized one, or has other bits.
    """
    quantized = load_start(path, model, bits=bits)
    if form_of(quantized) != "quantized":
        raise ConfigError(f"{path} holds a {form_of(quantized)} network; train it with {bits} bits first ({trainer})")
    found = max(m.bits for m in quantized.modules() if isinstance(m, QuantReLU))
    if found != bits:
        raise ConfigError(f"bits={bits}: {path} was trained with {found} bits; give that number, or another checkpoint")
    return quantized


def load_reference_state_(net: nn.Module, state: dict[str, Tensor], *, source: str) -> None:
    """Copy the authors' tensors into a float or quantized network of ours; every key must match."""
    renamed = rename_reference_keys(state, net)
    own = net.state_dict()
    _fold_biases_(renamed, own)
    for key in [k for k in renamed if k not in own and k.endswith((".weight_scale", ".threshold"))]:
        del renamed[key]  # a float network does not have them
    missing = sorted(set(own) - set(renamed))
    extra = sorted(set(renamed) - set(own))
    shapes = [
        f"{k} {list(renamed[k].shape)} instead of {list(own[k].shape)}"
        for k in own
        if k in renamed and renamed[k].shape != own[k].shape and (renamed[k].numel(), own[k].numel()) != (1, 1)
    ]
    types = [f"{k} {renamed[k].dtype}" for k in own if k in renamed and not same_kind(renamed[k], own[k])]
    problems = [f"{what}: {', '.join(keys)}" for what, keys in
                (("missing", missing), ("not expected", extra), ("of another shape", shapes), ("of another type", types))
                if keys]  # fmt: skip
    if problems:
        raise CheckpointError(f"{source} does not match the network ({'; '.join(problems)}); check the model and its bits")
    net.load_state_dict({k: v.reshape(own[k].shape) for k, v in renamed.items()})
    check_network(net, CheckpointError, source=source)


def rename_reference_keys(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The same tensors under our parameter names."""
    units = _unit_names(net)
    renamed = {}
    for name, tensor in without_wrappers(state).items():
        layer, dot, rest = name.partition(".")
        unit = units.get(layer, layer)
        if unit == "head":
            name = "head." + rest.split(".")[-1]
        else:
            name = unit + dot + rest
            synapse = "linear" if unit.startswith("classifier") else "conv"
            for pattern, replacement in _LEAVES:
                name = re.sub(pattern, replacement.replace("{synapse}", synapse), name)
        renamed[name] = tensor
    return renamed


def _unit_names(net: nn.Module) -> dict[str, str]:
    """The authors' layer names → ours: chains count from 1, residual networks from 0."""
    if hasattr(net, "features"):
        units = [f"{part}.{i}" for part in ("features", "classifier") for i, _ in enumerate(net.get_submodule(part).children())]
        return {f"layer{i}": unit for i, unit in enumerate([*units, "head"], start=1)}
    stages = sum(1 for name, _ in net.named_children() if name.startswith("stage"))
    return {"layer0": "stem", **{f"layer{i}": f"stage{i}" for i in range(1, stages + 1)}, f"layer{stages + 1}": "head"}


def _fold_biases_(renamed: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Fold a bias before a batch norm into the running mean, which the norm subtracts."""
    for key in [k for k in renamed if k.endswith((".conv.bias", ".linear.bias")) and k not in own]:
        mean = re.sub(r"(conv|linear)\.bias$", "norm.running_mean", key)
        if mean in renamed:
            renamed[mean] = renamed[mean] - renamed.pop(key)


def _classes(state: dict[str, Tensor], path: str | Path) -> int:
    heads = [t for t in state.values() if isinstance(t, torch.Tensor) and t.dim() == 2]
    if not heads:
        raise CheckpointError(f"{path}: holds no linear layer, so it is no checkpoint of these networks")
    return len(heads[-1])
