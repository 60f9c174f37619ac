"""The user interface of integer networks: images in, logits out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from nbsnn.errors import ConfigError, LoweringError, unknown
from nbsnn.inputs import as_images
from nbsnn.integer.backends import Backend, Engine, Request, choose
from nbsnn.integer.backends.native import NATIVE, takes_floats
from nbsnn.integer.backends.torch import TORCH, Watch
from nbsnn.integer.checking import check_structure
from nbsnn.integer.description import UnitRow, describe_units
from nbsnn.integer.frozen import thawed
from nbsnn.integer.layers import LayerTable, layers_of
from nbsnn.integer.nodes import Unit
from nbsnn.integer.pixels import to_integers
from nbsnn.integer.plain import moved
from nbsnn.integer.products import with_pools
from nbsnn.integer.program import Outcome, Program
from nbsnn.integer.recording import record_program
from nbsnn.integer.storage import load_program, save_program
from nbsnn.spiking.recording import Positions, Recording, joined_recordings
from nbsnn.spiking.schedules import Neuron, check_pair, check_timesteps, exact_schedules, schedule_named
from nbsnn.structure import map_outputs
from nbsnn.threads import PerThread

_IN_FLIGHT_BYTES = 2**28  # memory for images in flight; the rest of a batch waits
_MOST_IN_FLIGHT = 256  # images
_ENGINES = get_args(Engine)


@dataclass(frozen=True, eq=False)
class Result:
    """Result of a run on B images.

    Attributes:
        logits: what the network returns, float32: [B, classes], or any tensors in tuples, lists and dicts.
        steps: [B] int64, as in `Outcome`.
        spikes: unit → [B] int64, as in `Outcome`.
        counts: unit → [B, *shape] int32, if requested.
        fired: unit or max pool → [B, *shape] int32, spikes of each neuron, of either sign, and changes of each maximum, if
            requested.
        backend: the backend that ran: "native", "torch" or a registered one.
    """

    logits: Any
    steps: Tensor
    spikes: Mapping[str, Tensor]
    counts: dict[str, Tensor]
    fired: dict[str, Tensor]
    backend: str


class IntegerNetwork:
    """Result of `nbsnn.lower`. All results are the same bits on any device, for any batch size and thread count.

    Its numbers cannot be changed in place, since backends cache them in their own layouts. `dataclasses.replace` makes another
    program, with copies of the given tensors.

    A program built in Python must be consistent and within the limits of `integer.work`; otherwise LoweringError names the
    problem.

    Attributes:
        program: the network as data.
        options: default arguments of `run` and of a call; see `using`.
        steps: [B] int64, the steps of each image of this thread's last `run`; `simulate` returns them with the logits.
    """

    steps = PerThread(lambda: torch.zeros(0, dtype=torch.int64))

    def __init__(self, program: Program, **options: Any) -> None:
        try:
            check_structure(program)
        except ValueError as error:
            raise LoweringError(f"not a valid program: {error}") from None
        self.program = program
        self.options = options

    @property
    def timesteps(self) -> int:
        """T."""
        return self.program.timesteps

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return thawed(self.program.head.bias).device  # type: ignore[no-any-return]

    @property
    def backend(self) -> str:
        """The backend that runs this network with its options, such as "native" or "torch"."""
        engine: Engine = self.options.get("engine", "counts")
        neuron, schedule = check_pair(self.options.get("neuron"), self.options.get("schedule", "fixed"))
        return choose(self.options.get("backend", "auto"), Request(self.device, engine, neuron, schedule)).name

    def using(self, **options: Any) -> "IntegerNetwork":
        """The same network with other defaults for engine, neuron, schedule or backend, for `evaluate` and calls."""
        return IntegerNetwork(self.program, **self.options | options)

    def run(self, images: Tensor, **options: Any) -> Any:
        """What the network returns in float32, such as logits [B, classes]; arguments, errors and defaults as in `simulate`."""
        result = self.simulate(images, **self.options | options)
        self.steps = result.steps
        return result.logits

    __call__ = run

    def counts(self, images: Tensor, *, backend: str | None = None) -> dict[str, Tensor]:
        """Net counts of every unit, name → [B, *shape] int32: always those of the "counts" engine.

        Args:
            images: as in `simulate`.
            backend: as in `simulate`; that of the options unless given.
        Raises:
            LoweringError, ConfigError: as in `simulate`.
        """
        chosen = self.options.get("backend", "auto") if backend is None else backend
        return self.simulate(images, keep_counts=True, backend=chosen).counts

    def simulate(
        self,
        images: Tensor,
        *,
        engine: Engine = "counts",
        neuron: str | None = None,
        schedule: str = "fixed",
        backend: str = "auto",
        timesteps: int | None = None,
        keep_counts: bool = False,
        keep_fired: bool = False,
    ) -> Result:
        """Run, and return logits, steps, spikes and counts.

        Args:
            images: [B, C, H, W]; normalized floats, or 8-bit pixels if the network was lowered with mean and std.
            engine: "counts" computes the quantized network in integers, and equals the spiking one under "settle" and "barrier"
                bit for bit; "spikes" simulates the time steps.
            neuron, schedule: of the "spikes" engine, as in `nbsnn.to_spiking`.
            backend: "native" (the C++ kernel, on a CPU), "torch", a registered one (`nbsnn.integer.backends`), or "auto":
                native if it supports the request, otherwise torch.
            timesteps: T, for a check only; the bits of the activations determine it.
            keep_counts: return the counts of every neuron.
            keep_fired: return the spikes of every neuron; for signed ones only the torch backend does.
        Raises:
            LoweringError: images have the wrong type or shape, are not finite, or are outside the range that the network was
                lowered for.
            ConfigError, ConversionError: unknown engine, backend, schedule or neuron, or another T.
        """
        check_timesteps(timesteps, self.timesteps)
        if engine not in _ENGINES:
            raise ConfigError(unknown("engine", engine, _ENGINES))
        chosen_neuron, chosen_schedule = check_pair(neuron, schedule)
        if engine == "spikes" and not schedule_named(schedule).exact:
            self._check_levels()
        fired_is_count = engine == "counts" or chosen_neuron == "unsigned"  # no negative spikes
        request = Request(self.device, engine, chosen_neuron, chosen_schedule, keep_fired and not fired_is_count)
        chosen = choose(backend, request)
        floats = chosen is NATIVE and takes_floats(self.program, images)
        images = images if floats else self._checked(images)
        wanted: dict[str, Any] = {"keep_counts": keep_counts or (keep_fired and fired_is_count)}
        if engine == "spikes":
            wanted |= {"neuron": chosen_neuron, "schedule": chosen_schedule}
            wanted |= {"keep_fired": True} if request.keep_fired else {}
        wanted |= {"floats": True} if floats else {}
        run = chosen.run_counts if engine == "counts" else chosen.run_spikes
        with nullcontext() if floats else torch.no_grad():
            outcomes = [run(self.program, pixels, **wanted) for pixels in self._chunks(images, chosen, floats)]
            result = _joined(self.program, outcomes, chosen.name)
        if keep_fired and fired_is_count:
            result = replace(result, fired=with_pools(self.program, result.counts))
        return result if keep_counts or not result.counts else replace(result, counts={})

    def record(
        self,
        images: Tensor,
        *,
        layers: str | Sequence[str] | None = None,
        positions: Positions | None = None,
        neuron: str | None = None,
        schedule: str | None = None,
    ) -> Recording:
        """Run in time, and return the spikes and membranes of neurons in every step.

        The torch backend computes it, also on a network whose backend is "native": both give the same spikes. All of a large
        layer's steps are kept in memory: name the layers and positions to look at, or give few images.

        Args:
            images: as in `simulate`.
            layers: names of units or max pools, such as "stem.act", or patterns such as "stage1.*"; all units unless given.
            positions: neurons to record, each an index into the layer's shape, such as (channel, row, column): the same ones
                of every layer, or a dictionary from layers to theirs. All neurons unless given.
            neuron, schedule: as in `nbsnn.to_spiking`; those of the options unless given.
        Raises:
            LoweringError, ConfigError, ConversionError: as in `simulate`; or the network lacks a layer or position.
        """
        pair = self._pair(neuron, schedule)
        with torch.no_grad():
            parts = [
                record_program(self.program, pixels, neuron=pair[0], schedule=pair[1], layers=layers, positions=positions)
                for pixels in self._chunks(self._checked(images), TORCH)
            ]
        return joined_recordings(parts)

    def watch(
        self,
        images: Tensor,
        watch: Watch,
        *,
        neuron: str | None = None,
        schedule: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, tuple[Neuron, str]]:
        """Run in time by the torch backend, which calls `watch` for each layer in each step (`integer.backends.torch.Watch`).

        Arguments and errors as in `record`; `progress` is called with the number of images of each chunk.

        Returns:
            [B] int64, the steps of each image; neuron and schedule.
        """
        pair, steps = self._pair(neuron, schedule), []
        with torch.no_grad():
            for pixels in self._chunks(self._checked(images), TORCH):
                steps.append(TORCH.run_spikes(self.program, pixels, neuron=pair[0], schedule=pair[1], watch=watch).steps.cpu())
                if progress:
                    progress(len(pixels))
        return torch.cat(steps), pair

    def _pair(self, neuron: str | None, schedule: str | None) -> tuple[Neuron, str]:
        """Neuron and schedule of the arguments, or else of the options, which fit the network."""
        if schedule is None:
            neuron, schedule = neuron or self.options.get("neuron"), str(self.options.get("schedule", "fixed"))
        pair = check_pair(neuron, schedule)
        if not schedule_named(schedule).exact:
            self._check_levels()
        return pair

    def _checked(self, images: Tensor) -> Tensor:
        return as_images(images, ranks=(len(self.program.pixels.shape) + 1,), pixels=True, error=LoweringError)

    @property
    def layers(self) -> LayerTable:
        """The weight layers by name, such as `network.layers["stem.conv"].weight`: integer weights, multipliers, thresholds."""
        return layers_of(self.program)

    @property
    def neurons(self) -> dict[str, Unit]:
        """The layers of neurons by name, such as `network.neurons["stem.act"].threshold`: shape, bias, levels and height."""
        return {unit.name: unit for unit in self.program.units}

    def report(self) -> list[UnitRow]:
        """A row for each unit and the head: shapes, weights, fraction bits, smallest multiplier, bound."""
        return describe_units(self.program)

    def to(self, device: torch.device | str) -> "IntegerNetwork":
        """The network on another device, as a new object.

        Raises:
            ConfigError: on mps, which has no float64.
        """
        if torch.device(device).type == "mps":
            raise ConfigError("device=mps has no float64, which exact sums need; use cpu or cuda")
        return IntegerNetwork(moved(self.program, torch.device(device)), **self.options)

    def save(self, path: str | Path) -> None:
        """Write the network to a `.safetensors` file, atomically.

        Raises:
            CheckpointError: the file cannot be written.
        """
        save_program(Path(path), self.program)

    @classmethod
    def load(cls, path: str | Path) -> "IntegerNetwork":
        """Load a network written by `save`, on the CPU.

        Raises:
            CheckpointError: the file is missing, truncated, altered, of a newer format, or not an integer network.
        """
        return cls(load_program(Path(path)))

    def __repr__(self) -> str:
        units = len(self.program.units)
        return f"IntegerNetwork(T={self.timesteps}, {units} units, depth {self.program.depth}, on {self.device})"

    def _check_levels(self) -> None:
        for unit in self.program.units:
            if unit.levels != self.timesteps:
                raise ConfigError(
                    f"{unit.name} has {unit.levels} levels where T is {self.timesteps}: a fixed number of steps is not exact; "
                    f"use {exact_schedules()}"
                )

    def _chunks(self, images: Tensor, backend: Backend, floats: bool = False) -> Iterator[Tensor]:
        """The images in flight, as integers on the network's device, or with `floats` as they are."""
        per_image = 1 if floats else backend.bytes_per_image(self.program)
        size = max(1, min(_MOST_IN_FLIGHT, _IN_FLIGHT_BYTES // per_image))
        for chunk in torch.split(images, size) if len(images) > size else (images,):
            yield chunk if floats else to_integers(self.program.pixels, chunk.to(self.device))


def _joined(program: Program, outcomes: list[Outcome], backend: str) -> Result:
    first = outcomes[0]
    results = [program.result(each.accumulators) if each.result is None else each.result for each in outcomes]
    if len(outcomes) == 1:
        return Result(results[0], first.steps, first.spikes, first.counts, first.fired, backend)
    return Result(
        map_outputs(lambda *parts: torch.cat(parts), *results),
        torch.cat([outcome.steps for outcome in outcomes]),
        {name: torch.cat([outcome.spikes[name] for outcome in outcomes]) for name in first.spikes},
        {name: torch.cat([outcome.counts[name] for outcome in outcomes]) for name in first.counts},
        {name: torch.cat([outcome.fired[name] for outcome in outcomes]) for name in first.fired},
        backend,
    )
