"""Checkpoints of any form: tensors in safetensors, everything else in a JSON header, written atomically.

The published commands keep their `.pth.tar` names; such a file holds the same header and a `state_dict`, and is read
with `weights_only=True`. Nothing that could execute code is ever unpickled.
"""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.distributed import world
from nbsnn.errors import CheckpointError, ConfigError, ConversionError, QuantizationError, shown
from nbsnn.finite import check_network
from nbsnn.inputs import require_type, to_network
from nbsnn.integer.network import IntegerNetwork
from nbsnn.models import build_model
from nbsnn.models.steps import step_network
from nbsnn.prepare import preparation_of, rewrite
from nbsnn.quant.packing import unpack_state
from nbsnn.quant.plans import ActFormat, Plan, apply_plan_, plan_from_header, read_plan
from nbsnn.quant.unpacking import has_fixed_weights, unpack
from nbsnn.recipe import ModelSpec, Recipe, recipe_from_dict
from nbsnn.spiking.convert import to_spiking
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.spiking.neuron import IFNeuron
from nbsnn.statedict import check_state, floating_type
from nbsnn.surgery import fold_computed_weights_
from nbsnn.tensorfile import FORMAT_VERSION, Header, read_network, write_tensors
from nbsnn.wrappers import as_network, bare_names, bare_state, copied, is_sharded, unwrap, without_wrappers


def _plan_of(model: nn.Module) -> Plan:
    neurons: Plan = {name: ActFormat(m.bits) for name, m in model.named_modules() if isinstance(m, IFNeuron)}
    names = bare_names(model)
    return {names[name]: fmt for name, fmt in (read_plan(model) | neurons).items()}


def form_of(model: nn.Module | IntegerNetwork) -> str:
    """ "float", "quantized", "spiking" or "integer"."""
    if isinstance(model, IntegerNetwork):
        return "integer"
    model = unwrap(model)
    return "spiking" if isinstance(model, SpikingNetwork) else "quantized" if read_plan(model) else "float"


def describe(
    model: nn.Module, *, recipe: Recipe | None = None, seed: int | None = None, metrics: Mapping[str, Any] | None = None
) -> Header:
    """The header from which `load_checkpoint` rebuilds a network, with its provenance."""
    spiking, inner = _inside(model)
    spec = getattr(unwrap(inner), "model_spec", None)
    return {
        "format": FORMAT_VERSION,
        "form": form_of(model),
        "model": spec.header() if spec else None,
        "plan": {name: fmt.header() for name, fmt in _plan_of(inner).items()},
        **({"prepared": preparation.header()} if (preparation := preparation_of(unwrap(inner))) else {}),
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


@checked_arguments
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
        model: float, quantized or spiking; wrappers (DataParallel, DDP, torch.compile, ...) are not saved. Sharded parameters
            are gathered from all processes, which must all call this function; rank 0 writes.
        recipe: how it was trained; stored in the header with its hash.
        seed: of the run, if not the recipe's.
        metrics: numbers to store in the header, such as {"top1": 91.2}.
    """
    require_type(model, nn.Module, "model", "a network of float, quantized or spiking form; an IntegerNetwork has .save(path)")
    inner = _inside(model)[1]
    state = bare_state(inner)
    if world().is_main or not is_sharded(inner):
        write_tensors(Path(path), state, describe(model, recipe=recipe, seed=seed, metrics=metrics))


def _inside(model: nn.Module) -> tuple[SpikingNetwork | None, nn.Module]:
    """The spiking network inside wrappers, if it is one, and the module tree that checkpoints are about."""
    bare = unwrap(model)
    return (bare, bare.network) if isinstance(bare, SpikingNetwork) else (None, model)


@checked_arguments
def load_checkpoint(path: str | Path, *, model: nn.Module | None = None, trainable: bool = False) -> nn.Module:
    """The network that `save_checkpoint` or `save_packed` saved, in the same form, in evaluation mode.

    Args:
        path: the file, or a bundled network such as "zoo:cifar10/resnet20-w2a2".
        model: the float network, if it is not one of `nbsnn.list_models()`; it is not changed.
        trainable: give a packed network trainable float weights with `nbsnn.unpack`; its logits are equal bit for bit.
            Otherwise its weights are fixed, and `train()` warns.
    Raises:
        CheckpointError: missing or damaged file, tensors that do not fit the network or are not finite; names the keys.
    """
    header, state = read_network(Path(path))
    network = rebuild(header, state, source=str(path), model=model)
    return unpack(network) if trainable and has_fixed_weights(network) else network


def rebuild(header: Header, state: Mapping[str, Tensor], *, source: str, model: nn.Module | None = None) -> nn.Module:
    """The network that a header describes, with these tensors."""
    if header["form"] == "integer":
        raise CheckpointError(f"{source}: holds an integer network; read it with nbsnn.IntegerNetwork.load")
    net = copied(as_network(model, CheckpointError)) if model is not None else _registered(header, source)
    try:
        net = _prepared(net, header)
        # Earlier versions stored the names of wrappers.
        plan = without_wrappers(header["plan"], dict(net.named_modules()))
        net = apply_plan_(net, plan_from_header(net, plan))
        if not header.get("packed"):
            state = without_wrappers(state, net.state_dict())
        else:
            state = unpack_state(state if plan.keys() == header["plan"].keys() else without_wrappers(state), net)
    except (QuantizationError, ValueError) as error:
        raise CheckpointError(f"{source} does not fit the network: {error}") from None
    dtype = floating_type(state)
    net = net if dtype is None else net.to(dtype)
    check_state(net, state, source=source)
    if model is None:  # as "meta" holds no memory, the network takes copies
        net.load_state_dict(
            {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}, assign=True
        )
    else:
        net.load_state_dict(dict(state))
    check_network(net, CheckpointError, source=source)
    net.eval()
    return net if header["form"] != "spiking" else _spiking(net, header, source)


def _prepared(net: nn.Module, header: Header) -> nn.Module:
    """The float network prepared as it was when the file was written; itself if it was not."""
    prepared = header.get("prepared")
    if prepared is None:
        return net
    fold_computed_weights_(net)
    example = to_network(torch.zeros(1, *prepared["image_shape"]), net)
    return rewrite(net, example, keep=prepared["keep"], activations=prepared["activations"])


def _registered(header: Header, source: str) -> nn.Module:
    """The float network that a header names, on "meta": nothing is allocated until the tensors are known to fit."""
    if header["model"] is None:
        raise CheckpointError(
            f"{source}: the network is not a registered one; pass its float form, load_checkpoint(path, model=...)"
        )
    spec = ModelSpec(**header["model"])
    if spec.needs_code:  # the file must not choose what code runs
        raise CheckpointError(
            f"{source}: its network is made by {shown(str(spec))}, and reading a file runs no code that it names; "
            "make the network yourself and pass it, load_checkpoint(path, model=...)"
        )
    try:
        with torch.device("meta"):
            if spec.is_imported:
                return step_network(spec.args.get("steps", ()), spec.args.get("outputs", ()))
            return build_model(
                spec.name, num_classes=spec.num_classes, in_channels=spec.in_channels, image_size=spec.image_size
            )
    except ConfigError as error:
        raise CheckpointError(f"{source}: in its header, {error}; restore the file from a copy") from None


def _spiking(quantized: nn.Module, header: Header, source: str) -> SpikingNetwork:
    """The spiking form that a header describes."""
    spiking = header["spiking"]
    example = torch.zeros(1, *spiking["image_shape"], dtype=next(quantized.parameters()).dtype)
    try:
        net = to_spiking(quantized, example, neuron=spiking["neuron"], schedule=spiking["schedule"])
    except ConversionError as error:
        raise CheckpointError(f"{source} does not fit the network: {error}") from None
    if net.timesteps != spiking["timesteps"]:
        raise CheckpointError(
            f"{source}: in its header, spiking.timesteps={spiking['timesteps']}, but the bits of its layers make T = "
            f"{net.timesteps}; restore the file from a copy"
        )
    return net
