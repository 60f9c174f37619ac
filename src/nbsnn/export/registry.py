"""Exporters by name: each writes a network to files in one format."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from nbsnn.checkpoint import form_of
from nbsnn.errors import ConfigError, MissingDependencyError, unknown
from nbsnn.integer.lower import lower
from nbsnn.integer.network import IntegerNetwork
from nbsnn.naming import add_named
from nbsnn.outputs import check_output, check_replaceable, check_suffix
from nbsnn.spiking.convert import to_quantized, to_spiking
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.wrappers import unwrap

_Form = Literal["float", "quantized", "spiking", "integer"]
Network = nn.Module | IntegerNetwork

_MADE_BY = {
    "float": "nbsnn.build_model",
    "quantized": "nbsnn.quantize",
    "spiking": "nbsnn.to_spiking",
    "integer": "nbsnn.lower",
}


@dataclass(frozen=True)
class ExportOptions:
    """What an export may need beside the network.

    Attributes:
        profile: one of `Exporter.profiles`; the first one if None.
        example: [B, C, H, W] normalized images, to trace or to lower the network with; one of zeros is enough.
        mean, std: [C] of the normalization, with which an integer network takes 8-bit pixels.
        origin: header of the network's checkpoint, for formats that store its recipe and metrics.
    """

    profile: str | None = None
    example: Tensor | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    origin: Mapping[str, Any] | None = None


def _one_file(path: Path) -> tuple[Path, ...]:
    return (path,)


def _never(path: Path) -> bool:
    return False


def _no_limits(network: Any, options: ExportOptions) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Exporter:
    """A file format for networks.

    Attributes:
        name: as in `export`.
        kind: of the file, for messages: "a packed network".
        forms: of the networks that `write` takes, or such forms by profile; another form is converted to the first of them that
            it can become.
        write: (path, network, options) → what the user should know of the result, name → value, or None; writes each of
            `files(path)` atomically.
        suffix: of the file.
        files: path → the files that `write` makes, the path first.
        is_shared: whether an existing file is what `write` writes there for every network.
        profiles: what the format can be written as, the default first; () if there is one way only. If the forms depend on it,
            the default is the first one that takes the network as it is.
        limits: (network, options) → what the target cannot express, or does differently, a line each.
        package, extra: an optional package that `write` imports, and the extra of nbsnn that installs it.
    """

    name: str
    kind: str
    forms: tuple[_Form, ...] | Mapping[str, tuple[_Form, ...]]
    write: Callable[[Path, Any, ExportOptions], Mapping[str, Any] | None]
    suffix: str = ".safetensors"
    files: Callable[[Path], tuple[Path, ...]] = _one_file
    is_shared: Callable[[Path], bool] = _never
    profiles: tuple[str, ...] = ()
    limits: Callable[[Any, ExportOptions], Sequence[str]] = _no_limits
    package: str | None = None
    extra: str = ""

    def forms_of(self, profile: str | None) -> tuple[_Form, ...]:
        """The forms that `write` takes for a profile."""
        return self.forms[profile or ""] if isinstance(self.forms, Mapping) else self.forms

    def profile_for(self, form: str) -> str | None:
        """The default profile for a network of a form."""
        fitting = (profile for profile in self.profiles if form in self.forms_of(profile))
        return next(fitting, next(iter(self.profiles), None))


@dataclass(frozen=True)
class Written:
    """A finished export: its files with their bytes, and the facts that the exporter returned."""

    files: Mapping[Path, int]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Export:
    """An export that passed all checks; nothing is written before `write`.

    Attributes:
        exporter: of the format.
        network: in a form that the exporter takes.
        path: the file.
        options: with the profile chosen.
        steps: what was done to get the form, such as "lowered to an integer network".
    """

    exporter: Exporter
    network: Network
    path: Path
    options: ExportOptions
    steps: tuple[str, ...] = field(default=())

    def limits(self) -> tuple[str, ...]:
        """What the target cannot express, or does differently, a line each."""
        return tuple(self.exporter.limits(self.network, self.options))

    def write(self) -> Written:
        """Write all files."""
        facts = self.exporter.write(self.path, self.network, self.options)
        return Written({path: path.stat().st_size for path in self.exporter.files(self.path)}, facts or {})


EXPORTERS: dict[str, Exporter] = {}


def register(exporter: Exporter) -> Exporter:
    """Register an exporter under its name, and return it.

    Raises:
        ConfigError: the name is taken.
    """
    return add_named(EXPORTERS, "exporter", exporter.name, exporter)


def exporter_named(name: str) -> Exporter:
    """The exporter of this name.

    Raises:
        ConfigError: unknown name.
        MissingDependencyError: its package is not installed.
    """
    if name not in EXPORTERS:
        raise ConfigError(unknown("format", name, EXPORTERS))
    chosen = EXPORTERS[name]
    if chosen.package and importlib.util.find_spec(chosen.package) is None:
        raise MissingDependencyError(chosen.package, extra=chosen.extra, purpose=f"writing {chosen.kind}")
    return chosen


def check_files(path: Path, exporter: Exporter, *, inputs: Sequence[Path] = (), overwrite: bool = False) -> None:
    """Raise an error if an export would replace a file that it must not replace; see `nbsnn.outputs`.

    Raises:
        ConfigError: another suffix, or such a file.
        CheckpointError: nothing can be written there.
    """
    check_suffix(path, exporter.kind, exporter.suffix)
    for file in exporter.files(path):
        if exporter.suffix == ".safetensors":
            check_output(file, exporter.kind, inputs=inputs, overwrite=overwrite)
        elif not exporter.is_shared(file):
            check_replaceable(file, inputs=inputs, overwrite=overwrite)


def check_profile(exporter: Exporter, profile: str | None) -> None:
    """Raise an error for a profile that an exporter does not have.

    Raises:
        ConfigError: it has none of this name.
    """
    if profile is None or profile in exporter.profiles:
        return
    if not exporter.profiles:
        raise ConfigError(f"profile={profile}: {exporter.kind} is written in one way only; leave the profile out")
    raise ConfigError(unknown("profile", profile, exporter.profiles))


def planned(path: str | Path, network: Network, exporter: Exporter, options: ExportOptions) -> Export:
    """An export with the network in a form that the exporter takes; nothing is written yet.

    Raises:
        ConfigError: the network cannot become such a form.
        ConversionError, LoweringError: it cannot be converted or lowered; the message names the layer and the remedy.
    """
    path = Path(path)
    check_suffix(path, exporter.kind, exporter.suffix)
    check_profile(exporter, options.profile)
    options = replace(options, profile=options.profile or exporter.profile_for(form_of(network)))
    network, options, steps = _in_form(network, exporter, options)
    return Export(exporter, network, path, options, tuple(steps))


def _in_form(network: Network, exporter: Exporter, options: ExportOptions) -> tuple[Network, ExportOptions, list[str]]:
    """A network in a form that an exporter takes, options with an example if it has one, and what was done to get it."""
    steps: list[str] = []
    form, forms, example = form_of(network), exporter.forms_of(options.profile), options.example
    spiking = None if isinstance(network, IntegerNetwork) else unwrap(network)
    if isinstance(spiking, SpikingNetwork) and form not in forms:
        network, form = to_quantized(spiking), "quantized"
        example = torch.zeros(1, *spiking.image_shape) if example is None else example
        steps.append("took the quantized form of the spiking network")
    if form == "quantized" and form not in forms:
        if example is None:
            needed = "integer" if "integer" in forms else "spiking"
            raise ConfigError(
                f"{exporter.kind} is written from the {needed} form: give example=, such as images[:1], to convert the "
                f"quantized network, or the result of {_MADE_BY[needed]}"
            )
        if "integer" in forms:
            network, form = lower(cast(nn.Module, network), example, mean=options.mean, std=options.std), "integer"
            steps.append("lowered to an integer network")
        elif "spiking" in forms:
            network, form = to_spiking(cast(nn.Module, network), example), "spiking"
            steps.append("converted to a spiking network")
    if form not in forms:
        wanted = forms[0]
        remedy = (
            "name the network that it was lowered from"
            if form == "integer"
            else f"see {_MADE_BY.get(wanted, 'nbsnn.build_model')}"
        )
        raise ConfigError(f"{exporter.kind} is written from the {wanted} form, and this network is {form}; {remedy}")
    return network, replace(options, example=example), steps


def export(
    path: str | Path,
    network: Network,
    exporter: str,
    *,
    profile: str | None = None,
    example: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> int:
    """Write a network in the format of an exporter; existing files are replaced.

    Args:
        path: the file, with the exporter's suffix.
        network: of a form that the exporter takes, or that can be converted to one.
        exporter: one of `EXPORTERS`.
        profile, example, mean, std, origin: as in `ExportOptions`.
    Returns:
        Bytes of all files.
    Raises:
        ConfigError: unknown exporter or profile, a network of another form, or a file with another suffix.
        MissingDependencyError: the exporter's package is not installed.
        ConversionError, LoweringError: the network cannot be converted to the form.
    """
    options = ExportOptions(profile, example, mean, std, origin)
    return sum(planned(path, network, exporter_named(exporter), options).write().files.values())
