"""What a report is about: a run folder, a checkpoint, a bundled network or one in memory, and what is missing of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.checkpoint import describe, form_of, rebuild
from nbsnn.errors import CheckpointError, ConfigError, NbsnnError
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.storage import program_from
from nbsnn.models import build_model
from nbsnn.recipe import FLOAT_BITS, ModelSpec
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.tensorfile import Header, read_header, read_network
from nbsnn.training.folder import BEST_FILE, LAST_FILE, has_run, has_unfinished
from nbsnn.training.history import read_log
from nbsnn.wrappers import unwrap
from nbsnn.zoo import locate


@dataclass(frozen=True, eq=False)
class RunPhase:
    """One bit-width of a run: its log so far, and the network that was best on the validation images, if there is one."""

    bits: int
    finished: bool
    log: list[dict[str, Any]]
    network: nn.Module | None
    header: Header | None


@dataclass(frozen=True, eq=False)
class Subject:
    """A network to report on, in the forms that are at hand.

    Attributes:
        title: names it.
        header: of its file; what `describe` says of a network in memory.
        float_net, quantized, integer: its forms; None for those that are not at hand.
        phases: of the run that it comes from, in order.
        missing: what the report will lack and why, one line each.
    """

    title: str
    header: Header
    float_net: nn.Module | None = None
    quantized: nn.Module | None = None
    integer: IntegerNetwork | None = None
    phases: tuple[RunPhase, ...] = ()
    missing: list[str] = field(default_factory=list)


def subject_of(source: Any, *, model: nn.Module | None = None, float_network: Any = None) -> Subject:
    """The subject of a report.

    Args:
        source: a run folder, the file of a checkpoint of any form, "zoo:NAME", or a network of any form.
        model: the float network of a file whose network is the user's own.
        float_network: the trained float network, or its file, to compare with; by default that of the run folder that the
            source is or lies in, if there is one.
    Raises:
        CheckpointError: a file or folder that cannot be read, or holds no network.
        ConfigError: something else.
    """
    found = _subject_of(source, model)
    if float_network is not None:
        if found.float_net is not None:
            raise ConfigError(f"{found.title}: has a float network of its own; leave the other one out")
        return replace(found, float_net=_float_of(float_network, model))
    if found.float_net is None and not found.phases:
        beside = None if isinstance(source, (nn.Module, IntegerNetwork)) else _beside(Path(source))
        try:
            if beside is not None:
                return replace(found, float_net=_float_of(beside, model))
            found.missing.append(_NO_FLOAT)
        except NbsnnError as error:
            found.missing.append(f"the accuracy of the float network: {error}")
    return found


def _subject_of(source: Any, model: nn.Module | None) -> Subject:
    """The same without a float network from elsewhere."""
    if isinstance(source, IntegerNetwork):
        return Subject("an integer network", _header_of_integer(source), integer=source)
    if isinstance(source, nn.Module):
        return _of_module(source)
    if not isinstance(source, str | Path):
        raise ConfigError(f"a report is about a run folder, a checkpoint, zoo:NAME or a network, not a {type(source).__name__}")
    path = Path(source)
    if path.is_dir():
        return _of_run(path, model)
    network, header = _read(path, model)
    if isinstance(network, IntegerNetwork):
        return Subject(str(source), header, integer=network)
    if form_of(network) == "float":
        return Subject(str(source), header, float_net=network, missing=[_NOT_QUANTIZED])
    return Subject(str(source), header, quantized=network)


_NO_FLOAT = (
    "the accuracy of the float network, which the file or object does not hold: give that network as well, or report on the "
    "folder of the run"
)
_NOT_QUANTIZED = "spikes, counts and energy: the network is not quantized; quantize it with nbsnn quantize or nbsnn train"


def _of_module(network: nn.Module) -> Subject:
    network = unwrap(network)
    if isinstance(network, SpikingNetwork):
        raise ConfigError("the network is a spiking one; give the quantized network that it was made from")
    header, name = describe(network), type(network).__name__
    if form_of(network) == "float":
        return Subject(name, header, float_net=network, missing=[_NOT_QUANTIZED])
    return Subject(name, header, quantized=network)


def _float_of(given: Any, model: nn.Module | None) -> nn.Module:
    """A float network in memory, or in a file."""
    network = given if isinstance(given, nn.Module) else _read(Path(given), model)[0]
    form = form_of(network)
    if form != "float" or not isinstance(network, nn.Module):
        name = "float_network" if isinstance(given, nn.Module) else given
        raise ConfigError(f"{name}: is of {form} form; name the float network that was trained")
    return network.eval()


def _beside(path: Path) -> Path | None:
    """The float network of the run that a file is a phase of."""
    found = path.parent.parent / f"{FLOAT_BITS}bit" / BEST_FILE
    return found if path.parent.name.removesuffix("bit").isdigit() and found.is_file() else None


def _read(path: Path, model: nn.Module | None) -> tuple[nn.Module | IntegerNetwork, Header]:
    """A network of a file; a spiking one as the quantized network that it was made from."""
    header, state = read_network(path)
    if header["form"] == "integer":
        return IntegerNetwork(program_from(header, state, source=str(path))), header
    quantized: Header = dict(header) | ({"form": "quantized", "spiking": None} if header["form"] == "spiking" else {})
    return rebuild(quantized, state, source=str(path), model=model), header


def _of_run(folder: Path, model: nn.Module | None) -> Subject:
    """A run: its phases by falling bits, and the last of them that has a quantized network."""
    places = {int(place.name.removesuffix("bit")): place for place in folder.glob("*bit") if _is_phase(place)}
    if not places:
        raise CheckpointError(f"{folder}: holds no run of nbsnn train; name a folder with phases such as 4bit, or a checkpoint")
    missing: list[str] = []
    phases = tuple(_phase(bits, places[bits], model, missing) for bits in sorted(places, reverse=True))
    with_network = [phase for phase in phases if phase.network is not None]
    float_net = next((phase.network for phase in with_network if phase.bits == FLOAT_BITS), None)
    last = with_network[-1] if with_network else None
    quantized = last.network if last and last.bits != FLOAT_BITS else None
    if float_net is None:
        missing.append(f"the float network: {folder} has no phase with {FLOAT_BITS} bits")
    if quantized is None:
        missing.append("spikes, counts and energy: no phase has a quantized network yet")
    header = (last and last.header) or {"form": "none", "model": None, "recipe": None}
    return Subject(str(folder), header, float_net, quantized, phases=phases, missing=missing)


def _is_phase(place: Path) -> bool:
    return place.name.removesuffix("bit").isdigit() and (has_run(place) or bool(read_log(place)))


def _phase(bits: int, place: Path, model: nn.Module | None, missing: list[str]) -> RunPhase:
    finished = not has_unfinished(place) and (place / LAST_FILE).is_file()
    log = read_log(place)
    title = "float" if bits == FLOAT_BITS else f"{bits} bits"
    if not finished:
        missing.append(f"the rest of phase {title}: the run ended after epoch {log[-1]['epoch'] if log else 0}")
    network, header = None, None
    try:
        found, header = _read(place / BEST_FILE, model)
        network = found if isinstance(found, nn.Module) else None
    except NbsnnError as error:
        missing.append(f"the network of phase {title}: {error}")
    return RunPhase(bits, finished, log, network, header)


def header_at(source: str | Path) -> Header | None:
    """The header of a checkpoint, or of the last phase of a run folder that has one; None for something else."""
    path = Path(source)
    if not path.is_dir():
        return read_header(Path(locate(path)))
    places = sorted((int(p.name.removesuffix("bit")), p) for p in path.glob("*bit") if _is_phase(p))
    return next((header for _, place in places if (header := read_header(place / BEST_FILE)) is not None), None)


def _header_of_integer(network: IntegerNetwork) -> Header:
    return {"form": "integer", "model": None, "recipe": None, "recipe_hash": None, "seed": None, "metrics": {}, "versions": {}}


def example_for(subject: Subject) -> Tensor:
    """A black image in the network's size, [1, C, H, W], to lower a network without data.

    Raises:
        ConfigError: the file does not say the size.
    """
    header: Mapping[str, Any] = subject.header
    shape = (header.get("prepared") or header.get("spiking") or {}).get("image_shape")
    spec = ModelSpec(**header["model"]) if header.get("model") else None
    if shape is None and spec is not None and not spec.is_own:
        shape = (spec.in_channels, spec.image_size, spec.image_size)
    if shape is None:
        raise ConfigError("the file does not say the size of the images; give images")
    return torch.zeros(1, *shape)


def fresh_float(subject: Subject) -> nn.Module | None:
    """A float network of the same architecture, for its speed, which does not depend on weights; None if it is an own one."""
    if subject.float_net is not None:
        return subject.float_net
    spec = ModelSpec(**subject.header["model"]) if subject.header.get("model") else None
    if spec is None or spec.is_own:
        return None
    return build_model(spec.name, num_classes=spec.num_classes, in_channels=spec.in_channels, image_size=spec.image_size).eval()


def renamed(subject: Subject, title: str | None) -> Subject:
    """The subject with another title, unless it is None."""
    return subject if title is None else replace(subject, title=title)
