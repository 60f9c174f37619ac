"""Checkpoints of any form: tensors in safetensors, everything else in a JSON header, written atomically.

The published commands keep their `.pth.tar` names; such a file holds the same header and a `state_dict`, and is read
with `weights_only=True`. Nothing that could execute code is ever unpickled.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.errors import CheckpointError, QuantizationError
from nbsnn.finite import check_network
from nbsnn.integer.network import IntegerNetwork
from nbsnn.models import build_model
from nbsnn.quant.packing import unpack_state
from nbsnn.quant.quantize import LayerFormat, Plan, apply_plan_, read_plan
from nbsnn.recipe import ModelSpec, Recipe, recipe_from_dict
from nbsnn.spiking.convert import to_spiking
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.spiking.neuron import IFNeuron
from nbsnn.tensorfile import FORMAT_VERSION, Header, read_tensors, write_tensors


def _plan_of(model: nn.Module) -> Plan:
    neurons = {name: LayerFormat(m.bits) for name, m in model.named_modules() if isinstance(m, IFNeuron)}
    return read_plan(model) | neurons


def form_of(model: nn.Module | IntegerNetwork) -> str:
    """ "float", "quantized", "spiking" or "integer"."""
    if isinstance(model, IntegerNetwork):
        return "integer"
    return "spiking" if isinstance(model, SpikingNetwork) else "quantized" if read_plan(model) else "float"


def describe(
    model: nn.Module, *, recipe: Recipe | None = None, seed: int | None = None, metrics: Mapping[str, Any] | None = None
) -> Header:
    """The header that lets `load_checkpoint` rebuild a network, and says where it came from."""
    spiking = model if isinstance(model, SpikingNetwork) else None
    inner = spiking.network if spiking else model
    spec = getattr(inner, "model_spec", None)
    return {
        "format": FORMAT_VERSION,
        "form": form_of(model),
        "model": asdict(spec) if spec else None,
        "plan": {name: asdict(fmt) for name, fmt in _plan_of(inner).items()},
        "spiking": spiking and {
            "neuron": spiking.neuron, "schedule": spiking.schedule, "image_shape": list(spiking.image_shape),
            "timesteps": spiking.timesteps,
        },
        "recipe": recipe.to_dict() if recipe else None,
        "recipe_hash": recipe.hash if recipe else None,
        "seed": seed if seed is not None else recipe.seed if recipe else None,
        "metrics": dict(metrics or {}),
        "versions": {"nbsnn": metadata.version("nbsnn"), "torch": torch.__version__},
    }  # fmt: skip


def recipe_of(header: Header) -> Recipe | None:
    """The recipe that a header holds, if it names one."""
    return recipe_from_dict(header["recipe"]) if header["recipe"] else None


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    *,
    recipe: Recipe | None = None,
    seed: int | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Save a network of any form, atomically.

    Args:
        path: `.safetensors`; `.pth.tar` writes a torch file with a `state_dict` instead.
        model: float, quantized or spiking.
        recipe: how it was trained; kept in the header with its hash.
        seed: of the run, if not the recipe's.
        metrics: numbers to keep beside it, such as {"top1": 91.2}.
    """
    write_tensors(Path(path), model.state_dict(), describe(model, recipe=recipe, seed=seed, metrics=metrics))


def load_checkpoint(path: str | Path, *, model: nn.Module | None = None) -> nn.Module:
    """The network that `save_checkpoint` saved, in the same form, in evaluation mode.

    Args:
        path: the file.
        model: the float network, if it is not one of `nbsnn.list_models()`; it is not changed.
    Raises:
        CheckpointError: missing or damaged file, tensors that do not fit the network or are not finite; names the keys.
    """
    header, state = read_tensors(Path(path))
    return rebuild(header, state, source=str(path), model=model)


def rebuild(header: Header, state: Mapping[str, Tensor], *, source: str, model: nn.Module | None = None) -> nn.Module:
    """The network that a header describes, with these tensors."""
    if header["form"] == "integer":
        raise CheckpointError(f"{source}: holds an integer network; read it with nbsnn.IntegerNetwork.load")
    if model is not None:
        net = copy.deepcopy(model)
    elif header["model"] is not None:
        spec = ModelSpec(**header["model"])
        net = build_model(spec.name, num_classes=spec.num_classes, in_channels=spec.in_channels, image_size=spec.image_size)
    else:
        raise CheckpointError(
            f"{source}: the network is not a registered one; pass its float form, load_checkpoint(path, model=...)"
        )
    plan: Plan = {name: LayerFormat(**fmt) for name, fmt in header["plan"].items()}
    try:
        net = apply_plan_(net, plan) if plan else net
    except QuantizationError as error:
        raise CheckpointError(f"{source} does not fit the network: {error}") from None
    if header.get("packed"):
        try:
            state = unpack_state(state, net)
        except ValueError as error:
            raise CheckpointError(f"{source} does not fit the network: {error}") from None
    dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    load_state_(net.to(dtype), state, source=source)
    check_network(net, CheckpointError, source=source)
    net.eval()
    if header["form"] != "spiking":
        return net
    spiking = header["spiking"]
    example = torch.zeros(1, *spiking["image_shape"], dtype=dtype)
    return to_spiking(net, example, neuron=spiking["neuron"], schedule=spiking["schedule"])


def load_state_(net: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """`load_state_dict`, with one line that names every key that does not fit."""
    own = net.state_dict()
    problems = [
        *(f"missing {key}" for key in own if key not in state),
        *(f"not expected {key}" for key in state if key not in own),
        *(
            f"{key} has shape {list(state[key].shape)} instead of {list(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ),
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit the network: {'; '.join(problems)}")
    net.load_state_dict(dict(state))
