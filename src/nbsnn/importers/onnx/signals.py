"""What an ONNX graph is read into: steps of a network, the numbers of its modules, and which of them are quantized."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nbsnn.errors import CheckpointError, ConfigError, shown
from nbsnn.models.steps import INPUT, MODULE_KINDS, GraphStep, StepNetwork, make_module, run_step
from nbsnn.quant.formats import WeightFormat
from nbsnn.quant.quantize import ActFormat

Constant = NDArray[Any]
_ARRANGING = {"reshape", "flatten", "concatenate", "pad", "max pool 1d", "max pool 2d", "global max pool"}
_READ: dict[str, Any] = {"limit": None, "pools": (), "floored": 0.0}
SAME = 1e-3  # relative difference of scales that are meant to be equal
_MOST_VALUES = 2**26  # of a result
_MOST_IMAGE = 2**22  # values of one image


@dataclass(frozen=True)
class Current:
    """gain · step + shift, of a value that depends on the image; what is not applied yet is applied when it is read.

    Attributes:
        step: the name of the step, or `INPUT`.
        limit: None, or it is rectified and not yet quantized: clipped to [0, limit].
        pools: max pools of the rectified value, which its activation comes before.
        floored: the gain before a Floor that rounds to a grid, 0 without.
    """

    step: str
    gain: float = 1.0
    shift: float = 0.0
    limit: float | None = None
    pools: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    floored: float = 0.0


@dataclass(frozen=True)
class Whole:
    """Integers, at a scale: a weight or a bias behind DequantizeLinear.

    Attributes:
        integers: without the zero point.
        scale: [1], or [n] along `axis`.
        name: of the tensor in the file.
    """

    integers: Constant
    scale: Constant
    axis: int
    name: str

    @property
    def numbers(self) -> Constant:
        """The real numbers, float64."""
        shape = [1] * self.integers.ndim
        if self.scale.size > 1:
            shape[self.axis] = self.scale.size
        return self.integers.astype(np.float64) * self.scale.astype(np.float64).reshape(shape)


@dataclass(frozen=True)
class Levels:
    """A signal behind QuantizeLinear: integers from low to high, of which `zero` is 0."""

    signal: Current
    scale: float
    zero: int
    low: int
    high: int


@dataclass(frozen=True)
class Grid:
    """The values that a step can have: multiples of `scale` from −down to up."""

    scale: float
    down: int
    up: int


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

    def shape(self, signal: Current) -> tuple[int, ...]:
        """Of a signal, without the batch."""
        return tuple(self._results[signal.step].shape[1:])

    def is_image(self, signal: Current) -> bool:
        """Whether the signal is the image, or only moves and scales its values."""
        return signal.step in self._images

    def named(self, label: str) -> str:
        """A new name for a step, near the file's name for it."""
        name = re.sub(r"\W+", "_", label, flags=re.ASCII).strip("_") or "step"
        name = f"step_{name}" if not name[0].isalpha() else name
        taken = self._results.keys()
        chosen, number = name, 2
        while chosen in taken or hasattr(StepNetwork, chosen) or chosen in ("steps", "outputs", "training", "model_spec"):
            chosen, number = f"{name}_{number}", number + 1
        return chosen

    def add(self, kind: str, label: str, *inputs: Current, options: Mapping[str, Any] | None = None) -> Current:
        """Append a step on signals whose gains are applied."""
        step = GraphStep(kind, self.named(label), tuple(signal.step for signal in inputs), dict(options or {}))
        try:
            with torch.device("meta"), torch.no_grad():
                if kind in MODULE_KINDS:
                    self._modules.add_module(step.name, make_module(step).eval())
                result = run_step(self._modules, step, self._results)
        except (ConfigError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            what = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{self.source}: {shown(label)} does not fit its inputs ({shown(what)}); export it again"
            ) from None
        if result.numel() > _MOST_VALUES:
            raise CheckpointError(
                f"{self.source}: {shown(label)} makes {result.numel()} values of one image, and {_MOST_VALUES} are the most"
            )
        self.steps.append(step)
        self._results[step.name] = result
        if all(signal.step in self._images for signal in inputs) and kind in _ARRANGING | {"per channel"}:
            self._images.add(step.name)
        grids = [self.grids.get(signal.step) for signal in inputs]
        if kind in _ARRANGING and all(grid is not None and grid.scale == grids[0].scale for grid in grids if grids[0]):
            known = [grid for grid in grids if grid is not None]
            if len(known) == len(grids):
                down, up = max(grid.down for grid in known), max(grid.up for grid in known)
                self.grids[step.name] = Grid(known[0].scale, down, up)
        return Current(step.name)

    def applied(self, signal: Current, label: str) -> Current:
        """The signal with its gain and shift applied by a step.

        Raises:
            CheckpointError: it is rectified or rounded, and not quantized.
        """
        if signal.limit is not None or signal.floored:
            what = "a Floor" if signal.floored else "a Relu or Clip"
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

        A ReLU where they begin at 0, a pair of ReLUs for as many of both signs, and for others relu(x + z) − z, whose current
        and value are shifted by the zero point.
        """
        signal, scale = levels.signal, levels.scale
        up, down = levels.high - levels.zero, 0 if signal.limit is not None else levels.zero - levels.low
        if signal.limit is not None and signal.limit < (up - 0.5) * scale:
            raise CheckpointError(
                f"{self.source}: {shown(label)} has levels up to {up * scale:.4g}, and its input ends at {signal.limit:.4g}; "
                "choose the scale so that the largest level is the clip"
            )
        if down == up + 1:  # [−128, 127]
            down = up
            self.notes.append(f"{label}: the level below −{up} is left out, so that both signs have {up}")
        pair = down == up
        count = up if pair else up + down
        if down < 0 or not 1 <= count <= 255 or count & (count + 1):
            raise CheckpointError(
                f"{self.source}: {shown(label)} has {count} levels beside 0, where 2^b − 1 of up to 8 bits can be spikes; "
                "quantize with all levels of 1 to 8 bits, and zero points among them"
            )
        shift = 0.0 if pair else down * scale
        made = self.add(
            "pair" if pair else "relu", label, self.applied(replace(signal, shift=signal.shift + shift, **_READ), label)
        )
        for part in (f"{made.step}.positive", f"{made.step}.negative") if pair else (made.step,):
            self.plan[part], self.scales[part] = ActFormat(count.bit_length()), np.array(count * scale)
        self.grids[made.step] = Grid(scale, down if pair else 0, count)
        for kind, options in signal.pools:
            made = self.add(kind, f"{label}_pool", made, options=options)
        return replace(made, shift=-shift)

    def is_on_grid(self, levels: Levels) -> bool:
        """Whether a signal has only values that are among some levels."""
        signal = levels.signal
        grid = self.grids.get(signal.step)
        if grid is None or signal.limit is not None or signal.gain != 1 or abs(grid.scale / levels.scale - 1) > SAME:
            return False
        by = round(signal.shift / grid.scale)
        near = abs(signal.shift / grid.scale - by) < SAME * (grid.up + grid.down)
        return near and levels.low - levels.zero <= by - grid.down and by + grid.up <= levels.high - levels.zero
