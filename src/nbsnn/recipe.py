"""Everything that decides a training run, as frozen dataclasses: read from TOML, overridden by key=value, hashed.

Recipe ── model: ModelSpec · data: DataSpec · quant: WeightSpec · optim: OptimSpec · phase: {bits: Phase}
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from nbsnn.aliases import current_names, former_names
from nbsnn.errors import ConfigError, shown
from nbsnn.quant.formats import check_width, weight_format
from nbsnn.settings import require, typed

FLOAT_BITS = 32
Padding = Literal["black", "mirror"]
_NOT_DECIDING = ("root", "download", "loader", "workers", "on_corrupt", "classes")
_LATER: dict[str, dict[str, Any]] = {
    "optim": {"accumulate": 1, "lr_batch_size": 0, "freeze_norms": False, "temperature": 4.0, "recalibrate_batches": 0},
    "data": {"padding": "black"},
    "quant": {"weight_format": "apot"},
    "phase": {"distill": 0.0, "refit_scales": False, "ema_decay": 0.0},
}
MODEL_LIMITS = {"num_classes": 2**20, "in_channels": 2**12, "image_size": 2**13}  # the largest network of a name
MOST_EPOCHS = 10**6
MOST_SEED = 2**63 - 1
_MANY = 2**31 - 1  # of images, batches and the like
_BITS = {"act_bits": (2, 3, 4, 5, 6, 7, 8), "edge_bits": (8,), "phase": (2, 3, 4, 5)}


def check_bits(kind: str, bits: Any, *, allow_float: bool = True, widths: tuple[int, ...] = ()) -> None:
    """Refuse a width that has no quantizer; None (leave as it is) passes. `widths`: other than those of this kind."""
    if bits is not None:
        note = f" ({FLOAT_BITS} leaves a layer in float)" if allow_float else ""
        check_width(kind, bits, (widths or _BITS[kind]) + ((FLOAT_BITS,) if allow_float else ()), note=note)


@dataclass(frozen=True)
class QuantSpec:
    """Bits of inner weights, activations and edge (first and last) layers; 32 leaves a layer alone.

    `edge_range` is the largest magnitude ("max_abs") or, as in the reference checkpoints, the maximum ("max");
    `skip` holds name patterns of layers to leave in float; `weight_format` names the format of inner weights, which says what
    bits it comes in (APoT: 2 to 5).
    """

    weight_bits: int = 4
    act_bits: int = 4
    edge_bits: int = 8
    edge_range: Literal["max_abs", "max"] = "max_abs"
    skip: tuple[str, ...] = ()
    weight_format: str = "apot"

    def __post_init__(self) -> None:
        check_bits("weight_bits", self.weight_bits, widths=weight_format(self.weight_format).widths)
        for kind in ("act_bits", "edge_bits"):
            check_bits(kind, getattr(self, kind))
        if self.edge_range not in ("max_abs", "max"):
            raise ConfigError(f"edge_range={self.edge_range!r}: choose max_abs or max")


@dataclass(frozen=True)
class ModelSpec:
    """A registered float network; see `nbsnn.list_models()`."""

    name: str
    num_classes: int = 10
    in_channels: int = 3
    image_size: int = 32

    def __post_init__(self) -> None:
        for kind, most in MODEL_LIMITS.items():
            value = getattr(self, kind)
            require(1 <= value <= most, kind, value, f"a whole number from 1 to {most}")

    def __str__(self) -> str:
        return f"{self.name} ({self.num_classes} classes, {self.in_channels}×{self.image_size}×{self.image_size})"


@dataclass(frozen=True)
class DataSpec:
    """A data set and how batches are made of it. `validation` training images are held out to choose the best epoch.

    `batch_size` counts the images of all processes. `padding` is what random crops of images in memory show beyond the border:
    black, as published, or the image mirrored. `loader`, `workers` (at most as many as there are cores, but for DALI) and
    `on_corrupt` are for image files; `classes` are the names of the folders that they lie in, in the order of their labels:
    unless given, those of the training images, which a run then writes here.
    """

    name: str = "cifar10"
    root: str = "data"
    download: bool = False
    validation: int = 5000
    batch_size: int = 128
    augment: bool = True
    padding: Padding = "black"
    loader: Literal["auto", "torch", "dali", "dali_cpu"] = "auto"
    workers: int = 4
    on_corrupt: Literal["skip", "refuse"] = "skip"
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", os.fspath(self.root))  # a Path, from Python
        object.__setattr__(self, "classes", tuple(self.classes))
        require(len(set(self.classes)) == len(self.classes), "classes", self.classes, "names of classes, each once")
        require(0 <= self.workers <= _MANY, "workers", self.workers, "0 or more processes")
        require(2 <= self.batch_size <= _MANY, "batch_size", self.batch_size, "a whole number from 2 (batch norm)")
        require(0 <= self.validation <= _MANY, "validation", self.validation, "0 or more images")


@dataclass(frozen=True)
class WeightSpec:
    """What a phase's bits apply to: weights and activations, or activations alone (`weights = "float"`).

    `weight_format` names the format of inner weights.
    """

    weights: Literal["phase", "float"] = "phase"
    edge_bits: int = 8
    edge_range: Literal["max_abs", "max"] = "max_abs"
    weight_format: str = "apot"

    def __post_init__(self) -> None:
        require(self.edge_bits in (8, FLOAT_BITS), "edge_bits", self.edge_bits, f"8, or {FLOAT_BITS} (float)")


@dataclass(frozen=True)
class OptimSpec:
    """SGD. Milestones and warm-up are fractions of a phase; `threshold_lr` and `scale_lr` multiply the phase's learning rate.

    `lr_gamma` is the factor on the learning rate at each milestone. `accumulate` parts of a batch are run one after the other.
    The phase's learning rate is meant for batches of `lr_batch_size` images and grows in proportion (0: for any size).
    `freeze_norms` freezes the statistics of batch norm. `recalibrate_batches`: batch norm is recalibrated on so many batches
    after each epoch (0: it keeps its running averages). `temperature` is that of the softmax in phases that distil.
    """

    momentum: float = 0.9
    nesterov: bool = False
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[float, ...] = (0.5, 0.75)
    lr_gamma: float = 0.1
    warmup: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float = 0.0  # 0: no clipping
    threshold_lr: float = 1.0
    scale_lr: float = 1.0
    accumulate: int = 1
    lr_batch_size: int = 0
    freeze_norms: bool = False
    temperature: float = 4.0
    recalibrate_batches: int = 0

    def __post_init__(self) -> None:
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "a positive number")
        count = self.recalibrate_batches
        require(0 <= count <= _MANY, "recalibrate_batches", count, "0 (off) or a number of batches")
        require(not (self.freeze_norms and count), "recalibrate_batches", count, "0 where optim.freeze_norms is set")
        require(1 <= self.accumulate <= _MANY, "accumulate", self.accumulate, "a whole number from 1")
        require(0 <= self.lr_batch_size <= _MANY, "lr_batch_size", self.lr_batch_size, "0 (off) or a number of images")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "a number in [0, 1)")
        require(self.momentum > 0 or not self.nesterov, "nesterov", True, "false where optim.momentum is 0")
        require(0 < self.lr_gamma <= 1, "lr_gamma", self.lr_gamma, "a factor in (0, 1]")
        require(0 <= self.threshold_lr < math.inf, "threshold_lr", self.threshold_lr, "0 (frozen) or a positive factor")
        require(0 <= self.scale_lr < math.inf, "scale_lr", self.scale_lr, "0 (frozen) or a positive factor")
        require(0 <= self.warmup < 1, "warmup", self.warmup, "a fraction of the phase in [0, 1)")
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "a number in [0, 1)")
        require(0 <= self.clip_norm < math.inf, "clip_norm", self.clip_norm, "0 (off) or a positive norm")
        require(all(0 < m < 1 for m in self.milestones), "milestones", self.milestones, "fractions in (0, 1)")


@dataclass(frozen=True)
class Phase:
    """One bit-width of progressive training; the next one starts from its result.

    `distill` is the share of the loss by which the run's float net teaches a quantized one; the labels have the rest.
    `refit_scales` initializes the weight scales at their least error instead of taking those of the phase before. `ema_decay`
    is the decay of an exponential moving average (EMA) of the weights, such as 0.999: the average is evaluated and saved, and
    the weights train on (0: no average). It needs batch norm statistics of its own, from `optim.recalibrate_batches`.
    """

    epochs: int
    lr: float = 0.1
    weight_decay: float = 5e-4
    distill: float = 0.0
    refit_scales: bool = False
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        require(1 <= self.epochs <= MOST_EPOCHS, "epochs", self.epochs, f"a whole number from 1 to {MOST_EPOCHS}")
        require(0 < self.lr < math.inf, "lr", self.lr, "a positive learning rate")
        require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.distill <= 1, "distill", self.distill, "a share in [0, 1]")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "0 (off) or a decay in (0, 1), such as 0.999")

    def __str__(self) -> str:
        """The settings that its hash is of: training states hold this text, those of earlier versions too."""
        return f"Phase({', '.join(f'{k}={v!r}' for k, v in _hashed('phase', asdict(self)).items())})"


@dataclass(frozen=True)
class Recipe:
    """One run, whole. `phase` maps bits to phases, in order: 32, 4, 3, 2."""

    model: ModelSpec
    phase: dict[str, Phase]
    data: DataSpec = field(default_factory=DataSpec)
    quant: WeightSpec = field(default_factory=WeightSpec)
    optim: OptimSpec = field(default_factory=OptimSpec)
    seed: int = 0
    name: str = "custom"

    def __post_init__(self) -> None:
        require(0 <= self.seed <= MOST_SEED, "seed", self.seed, "0 or more, and below 2^63")
        require(len(self.phase) >= 1, "phase", {}, "at least one [phase.BITS] table")
        known = [str(bits) for bits in (*_BITS["phase"], FLOAT_BITS)]
        for bits in self.phase:
            if bits not in known:  # nor another spelling, such as 02
                raise ConfigError(f"phase.{shown(bits)}: choose one of {', '.join(known)} bits ({FLOAT_BITS} is float)")
            self.spec(int(bits))
        stale = not self.optim.recalibrate_batches and not self.optim.freeze_norms
        for bits, phase in self.phase.items():
            wanted = "0 unless optim.recalibrate_batches is set (60, say): averaged weights need norm statistics of their own"
            require(not (phase.ema_decay and stale), f"phase.{bits}.ema_decay", phase.ema_decay, wanted)
        first = self.phase.get(str(FLOAT_BITS))
        if first:
            require(not first.distill, f"phase.{FLOAT_BITS}.distill", first.distill, "0: the float net is the teacher")
            require(not first.refit_scales, f"phase.{FLOAT_BITS}.refit_scales", True, "false: a float net has no scales")

    def spec(self, bits: int) -> QuantSpec:
        """The quantization of the phase with these bits."""
        weight_bits = bits if self.quant.weights == "phase" else FLOAT_BITS
        return QuantSpec(weight_bits, bits, self.quant.edge_bits, self.quant.edge_range, weight_format=self.quant.weight_format)

    def until(self, bits: int) -> "Recipe":
        """What decides the result of the phase with these bits: all but the later phases."""
        names = list(self.phase)
        return replace(self, phase={name: self.phase[name] for name in names[: names.index(str(bits)) + 1]})

    def to_dict(self, *, places: bool = True) -> dict[str, Any]:
        """Plain values, as `recipe_from_dict` takes them; for files that travel, without where the data lies."""
        chosen = self if places else replace(self, data=replace(self.data, root=DataSpec.root, download=False))
        return asdict(chosen)

    @property
    def hash(self) -> str:
        """12-digit hash of every setting that affects the result, so not of the name nor of where the data lie."""
        content = self.to_dict()
        content.pop("name")
        content["data"] = {k: v for k, v in content["data"].items() if k not in _NOT_DECIDING}
        for table in ("optim", "data", "quant"):
            content[table] = _hashed(table, content[table])
        if not any(phase.distill for phase in self.phase.values()):
            content["optim"].pop("temperature", None)
        content["phase"] = [(bits, _hashed("phase", phase)) for bits, phase in content["phase"].items()]  # their order matters
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _hashed(table: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What a hash is taken over, so that those of earlier runs stand: later settings where used, all by their first names."""
    return former_names(table, {k: v for k, v in settings.items() if _LATER[table].get(k, ...) != v})


def recipe_from_dict(table: Mapping[str, Any]) -> Recipe:
    """Build a recipe from plain values; unknown keys are errors, and names of earlier versions are taken."""
    recipe: Recipe = typed(_as_it_is_now(table), Recipe, "")
    return recipe


def _as_it_is_now(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """A table of an earlier version under today's names; `optim.average` was of all phases, and headers hold it unused."""
    if not isinstance(table, Mapping):
        return table
    table = current_names(table)
    optim = table.get("optim")
    if not isinstance(optim, Mapping) or "average" not in optim:
        return table
    average = optim["average"]
    require(average in (0, "0"), "optim.average", average, "left out: it is a setting of a phase, phase.BITS.ema_decay")
    return {**table, "optim": {key: value for key, value in optim.items() if key != "average"}}
