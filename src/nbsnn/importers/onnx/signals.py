"""What an ONNX graph is read into: steps of a network, the numbers of its modules, and which of them are quantized."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nbsnn.errors import CheckpointError, ConfigError, shown
from nbsnn.importers.onnx.values import SAME, Bend, Constant, Current, Grid, Levels
from nbsnn.models.steps import INPUT, MODULE_KINDS, MOVING_KINDS, GraphStep, make_module, run_step, step_name
from nbsnn.quant.formats import WeightFormat
from nbsnn.quant.plans import ActFormat

_CHOOSING = MOVING_KINDS | {"concatenate", *(kind for kind in MODULE_KINDS if "max pool" in kind or "min pool" in kind)}
_READ: dict[str, Any] = {"bend": None, "moves": (), "moved": None, "floored": 0.0}
_MOST_VALUES = 2**26  # of a result
_MOST_IMAGE = 2**22  # values of one image


@dataclass
class Reading:
    """The steps so far, with the shapes of their results and the numbers of their modules.

    Attributes:
        steps: in order.
        state: module → its tensors.
        plan: module → how it is quantized.
        scales: module → its threshold or weight scale.
        grids: step → its values, where activations and their arrangements make them.
        notes: what the network here does differently from the file, a line each.
    """

    source: str
    image_shape: tuple[int, ...]
    steps: list[GraphStep] = field(default_factory=list)
    state: dict[str, dict[str, Constant]] = field(default_factory=dict)
    plan: dict[str, WeightFormat | ActFormat] = field(default_factory=dict)
    scales: dict[str, Constant] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if (
            not 1 <= len(self.image_shape) <= 3
            or any(n < 1 for n in self.image_shape)
            or np.prod(self.image_shape) > _MOST_IMAGE
        ):
            raise CheckpointError(
                f"{self.source}: its input has the shape {list(self.image_shape)} beside the batch; one image of up to three "
                "axes and 4 million values is read: export with fixed sizes"
            )
        self._results: dict[str, Tensor] = {INPUT: torch.zeros(1, *self.image_shape, device="meta")}
        self._images = {INPUT}  # the image and arrangements of it
        self._modules = nn.Module().eval()
        self._pairs: dict[str, tuple[Current, int, float, Constant]] = {}  # step → arguments of `_pair`

    def shape(self, signal: Current) -> tuple[int, ...]:
        """Of a signal, without the batch."""
        return signal.moved or tuple(self._results[signal.step].shape[1:])

    def is_image(self, signal: Current) -> bool:
        """Whether the signal is the image, or only moves and scales its values."""
        return signal.step in self._images

    def add(self, kind: str, label: str, *inputs: Current, options: Mapping[str, Any] | None = None) -> Current:
        """Append a step on signals whose gains are applied."""
        step = GraphStep(kind, step_name(label, self._results), tuple(signal.step for signal in inputs), dict(options or {}))
        result = self._result(step, self._results)
        self.steps.append(step)
        self._results[step.name] = result
        if all(signal.step in self._images for signal in inputs) and kind in _CHOOSING | {"per channel"}:
            self._images.add(step.name)
        grids = [self.grids.get(signal.step) for signal in inputs]
        if kind in _CHOOSING and all(grid is not None and grid.scale == grids[0].scale for grid in grids if grids[0]):
            known = [grid for grid in grids if grid is not None]
            if len(known) == len(grids):
                down, up = max(grid.down for grid in known), max(grid.up for grid in known)
                self.grids[step.name] = Grid(known[0].scale, down, up)
        return Current(step.name)

    def _result(self, step: GraphStep, values: Mapping[str, Tensor]) -> Tensor:
        """What a step makes of one image, a shape without numbers."""
        try:
            with torch.device("meta"), torch.no_grad():
                if step.kind in MODULE_KINDS:
                    self._modules.add_module(step.name, make_module(step).eval())
                result = run_step(self._modules, step, values)
                if result.shape[0] != 1 or result.dim() < 2:
                    raise ValueError(f"one image becomes {list(result.shape)}")
        except (ConfigError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            what = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{self.source}: {shown(step.name)} does not fit its inputs ({shown(what)}); export it again"
            ) from None
        if result.numel() > _MOST_VALUES:
            raise CheckpointError(
                f"{self.source}: {shown(step.name)} makes {result.numel()} values of one image, and {_MOST_VALUES} are the most"
            )
        return result

    def moved(self, kind: str, label: str, signal: Current, options: Mapping[str, Any]) -> Current:
        """Append a step that moves or chooses values; the maximum of a pair, p − n, is that of p less the minimum of n."""
        if "max pool" not in kind or signal.step not in self._pairs:
            return self.add(kind, label, signal, options=options)
        x, count, scale, slope = self._pairs[signal.step]
        if not (slope >= 0).all():
            raise CheckpointError(
                f"{self.source}: {shown(label)} pools an activation that falls for x < 0; use one that rises everywhere"
            )
        positive, negative = self._sides(label, x, count, scale, slope)
        highest = self.add(kind, label, positive, options=options)
        lowest = self.add(kind.replace("max", "min"), label, negative, options=options)
        made = self.add("subtract", label, highest, lowest)
        self.grids[made.step] = self.grids[signal.step]
        return made

    def later(self, signal: Current, kind: str, label: str, options: Mapping[str, Any]) -> Current:
        """The signal with a step that comes behind its activation."""
        if "max pool" in kind and not (signal.bend is None or signal.bend.is_monotone):
            raise CheckpointError(
                f"{self.source}: {shown(label)} pools an activation that falls for x < 0 before it is quantized; put "
                "QuantizeLinear and DequantizeLinear between them"
            )
        before = torch.zeros(1, *self.shape(signal), device="meta")
        result = self._result(GraphStep(kind, step_name(label, self._results), (INPUT,), dict(options)), {INPUT: before})
        return replace(signal, moves=(*signal.moves, (kind, options)), moved=tuple(result.shape[1:]))

    def applied(self, signal: Current, label: str) -> Current:
        """The signal with its gain and shift applied by a step.

        Raises:
            CheckpointError: it is rectified or rounded, and not quantized.
        """
        if signal.bend is not None or signal.floored:
            what = "a Floor" if signal.floored else "an activation"
            raise CheckpointError(
                f"{self.source}: {shown(label)} reads the output of {what} that is not quantized; put QuantizeLinear and "
                "DequantizeLinear behind every activation"
            )
        if (signal.gain, signal.shift) == (1.0, 0.0):
            return signal
        return self.per_channel(signal, label, np.array(signal.gain), np.array(signal.shift))

    def per_channel(self, signal: Current, label: str, gain: Constant, shift: Constant) -> Current:
        """gain · step + shift, each [C] or a scalar."""
        channels, trailing = self.shape(signal)[0], len(self.shape(signal)) - 1
        made = self.add(
            "per channel", f"{label}_scale", Current(signal.step), options={"channels": channels, "trailing": trailing}
        )
        shape = (channels, *(1 for _ in range(trailing)))
        numbers = {"gain": gain, "shift": shift}
        self.state[made.step] = {key: np.broadcast_to(value.reshape(-1, *shape[1:]), shape) for key, value in numbers.items()}
        return made

    def activation(self, label: str, levels: Levels) -> Current:
        """A quantized activation of these levels.

        A ReLU where they begin at 0, a pair of ReLUs for as many of both signs or for two slopes, and for others
        relu(x + z) − z, whose current and value are shifted by the zero point.
        """
        signal, scale, bend = levels.signal, levels.scale, levels.signal.bend or Bend()
        up, down = levels.high - levels.zero, 0 if bend.low >= 0 else levels.zero - levels.low
        for end, limit in ((up, bend.high), (down, -bend.low)):
            if end and limit < (end - 0.5) * scale:
                raise CheckpointError(
                    f"{self.source}: {shown(label)} has levels up to {end * scale:.4g}, and its input ends at {limit:.4g}; "
                    "choose the scale so that the largest level is the clip"
                )
        if down == up + 1:  # [−128, 127]
            down = up
            self.notes.append(f"{label}: the level below −{up} is left out, so that both signs have {up}")
        sloped = down > 0 and not (bend.slope == 1).all()
        pair = down == up or sloped
        count = up if pair else up + down
        if sloped and down != up:
            count = 2 ** max(up, down).bit_length() - 1
            self.notes.append(f"{label}: each sign has {count} levels, where the file has {up} above 0 and {down} below")
        if down < 0 or not 1 <= count <= 255 or count & (count + 1):
            raise CheckpointError(
                f"{self.source}: {shown(label)} has {count} levels beside 0, where 2^b − 1 of up to 8 bits can be spikes; "
                "quantize with all levels of 1 to 8 bits, and zero points among them"
            )
        shift = 0.0 if pair else down * scale
        x = self.applied(replace(signal, shift=signal.shift + shift, **_READ), label)
        if pair:
            made = self._pair(label, x, count, scale, bend.slope if sloped else np.ones(()))
        else:
            made = self._neurons(label, x, count, scale)
        for kind, options in signal.moves:
            made = self.moved(kind, f"{label}_moved", made, options)
        return replace(made, shift=-shift)

    def _neurons(self, label: str, x: Current, count: int, scale: float) -> Current:
        """relu(x), quantized to `count` levels."""
        made = self.add("relu", label, x)
        self.plan[made.step], self.scales[made.step] = ActFormat(count.bit_length()), np.array(count * scale)
        self.grids[made.step] = Grid(scale, 0, count)
        return made

    def _pair(self, label: str, x: Current, count: int, scale: float, slope: Constant) -> Current:
        """relu(x) − slope · relu(−x), both sides quantized to `count` levels."""
        if slope.size > 1:
            positive, negative = self._sides(label, x, count, scale, slope)
            signs = np.sign(slope)
            made = self.add(
                "subtract",
                label,
                positive,
                negative if (signs >= 0).all() else self.per_channel(negative, label, signs, np.zeros(())),
            )
        else:
            factor = float(slope.reshape(()))
            made = self.add("pair", label, x, options={} if factor == 1 else {"slope": factor})
            for part, unit in (("positive", 1.0), ("negative", abs(factor) or 1.0)):
                name = f"{made.step}.{part}"
                self.plan[name], self.scales[name] = ActFormat(count.bit_length()), np.array(count * scale / unit)
        self.grids[made.step] = Grid(scale, count, count)
        self._pairs[made.step] = x, count, scale, slope
        return made

    def _sides(self, label: str, x: Current, count: int, scale: float, slope: Constant) -> tuple[Current, Current]:
        """relu(x) and relu(−|slope| · x), quantized to `count` levels of one scale."""
        opposite = self.per_channel(x, label, -np.abs(slope), np.zeros(()))
        return self._neurons(label, x, count, scale), self._neurons(label, opposite, count, scale)

    def is_on_grid(self, levels: Levels) -> bool:
        """Whether a signal has only values that are among some levels."""
        signal = levels.signal
        grid = self.grids.get(signal.step)
        if grid is None or signal.bend is not None or signal.gain != 1 or abs(grid.scale / levels.scale - 1) > SAME:
            return False
        by = round(signal.shift / grid.scale)
        near = abs(signal.shift / grid.scale - by) < SAME * (grid.up + grid.down)
        return near and levels.low - levels.zero <= by - grid.down and by + grid.up <= levels.high - levels.zero

    def keep(self, outputs: Iterable[Current]) -> None:
        """Drop the steps that no output depends on."""
        needed = {signal.step for signal in outputs}
        for step in reversed(self.steps):
            if step.name in needed:
                needed |= set(step.inputs)
        self.steps = [step for step in self.steps if step.name in needed]
        for numbers in (self.state, self.plan, self.scales, self.grids):
            for name in [name for name in numbers if name.partition(".")[0] not in needed]:
                del numbers[name]
