"""The tables of a recipe: network, data, quantization, optimizer, and the phases of training."""

import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from nbsnn.recipe.bits import FLOAT_BITS, layer_table
from nbsnn.recipe.hashing import hashed
from nbsnn.settings import require

Padding = Literal["black", "mirror"]
MODEL_LIMITS = {"num_classes": 2**20, "in_channels": 2**12, "image_size": 2**13}  # largest values for registered networks
MOST_EPOCHS = 10**6
_MANY = 2**31 - 1  # of images, batches and the like


@dataclass(frozen=True)
class ModelSpec:
    """A registered float network (`nbsnn.list_models()`), or an own one: "package.module:function", called with `args`.

    An own network has the sizes that its function gives it; `image_size` is then that of the images, unless the data tell it.
    """

    name: str
    num_classes: int = 10
    in_channels: int = 3
    image_size: int = 32
    args: dict[str, Any] = field(default_factory=dict)

    STEPS: ClassVar[str] = "nbsnn.models.steps:step_network"  # `args` describe an imported network completely

    def __post_init__(self) -> None:
        for kind, most in MODEL_LIMITS.items():
            value = getattr(self, kind)
            require(1 <= value <= most, kind, value, f"an integer from 1 to {most}")
        wanted = "left out: num_classes, in_channels and image_size describe a registered network"
        require(self.is_own or not self.args, "args", self.args, wanted)

    @property
    def is_own(self) -> bool:
        """Whether a function of the user makes the network."""
        return ":" in self.name

    @property
    def needs_code(self) -> bool:
        """Whether code that is not of this package makes the network, which a file must not run."""
        return self.is_own and not self.is_imported

    @property
    def is_imported(self) -> bool:
        """Whether its arguments are the steps of an imported network, which describe it completely."""
        return self.name == self.STEPS

    def header(self) -> dict[str, Any]:
        """Plain values for a file: sizes of a registered network, arguments of an own one."""
        return {"name": self.name, "args": self.args} if self.is_own else {k: v for k, v in asdict(self).items() if k != "args"}

    def __str__(self) -> str:
        if self.is_imported:
            return f"an imported network of {len(self.args.get('steps', ()))} steps"
        if self.is_own:
            return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.args.items())})"
        return f"{self.name} ({self.num_classes} classes, {self.in_channels}×{self.image_size}×{self.image_size})"


@dataclass(frozen=True)
class DataSpec:
    """A data set and how batches are made of it. `validation` training images are held out to choose the best epoch.

    `batch_size` counts the images of all processes. `padding` is the padding of random crops of images in memory: black, as
    published, or the mirrored image. `loader`, `workers` (at most the number of cores, except for DALI) and `on_corrupt` are
    for image files; `classes` are the names of their folders in the order of labels: unless given, those of the training
    images, which a run stores here.

    For image files too: `image_size` is the side of the square that they become (0: the network's), `channels` 1 reads them in
    gray. `center` is the share of the shorter side that evaluation shows; training shows crops of `crop_area` to all of the
    area. `normalization` says where `mean` and `std` come from: ImageNet, the training images (a run computes them once and
    writes them here), or this recipe. `split` is the share of each class that tests, for a tree without train and val folders.
    `flip` mirrors half of the training images of any data set.
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
    image_size: int = 0
    channels: int = 3
    center: float = 0.875
    crop_area: float = 0.1
    flip: bool = True
    normalization: Literal["imagenet", "computed", "given"] = "imagenet"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    split: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", os.fspath(self.root))  # a Path, from Python
        object.__setattr__(self, "classes", tuple(self.classes))
        require(len(set(self.classes)) == len(self.classes), "classes", self.classes, "names of classes, each once")
        require(0 <= self.workers <= _MANY, "workers", self.workers, "0 or more processes")
        require(2 <= self.batch_size <= _MANY, "batch_size", self.batch_size, "an integer from 2 (batch norm)")
        require(0 <= self.validation <= _MANY, "validation", self.validation, "0 or more images")
        self._check_files_()

    def _check_files_(self) -> None:
        """Check the settings of image files, and complete `normalization`."""
        most = MODEL_LIMITS["image_size"]
        require(0 <= self.image_size <= most, "image_size", self.image_size, f"0 (the network's) or a side of up to {most}")
        require(self.channels in (1, 3), "channels", self.channels, "3 (color) or 1 (gray)")
        require(0 < self.center <= 1, "center", self.center, "a share in (0, 1], such as 0.875")
        require(0 < self.crop_area <= 1, "crop_area", self.crop_area, "a share in (0, 1], such as 0.1")
        require(0 <= self.split < 1, "split", self.split, "0 (train and val folders) or a share, such as 0.2")
        for kind in ("mean", "std"):
            values = tuple(getattr(self, kind))
            object.__setattr__(self, kind, values)
            require(len(values) in (0, self.channels), kind, values, f"{self.channels} numbers, one for each channel")
            require(kind == "mean" or min(values, default=1) > 0, kind, values, "positive numbers, of pixels scaled to 0..1")
        require(bool(self.mean) == bool(self.std), "std", self.std, "given if mean is, and left out if not")
        if self.mean and self.normalization == "imagenet":
            object.__setattr__(self, "normalization", "given")
        wanted = "imagenet or computed, unless data.mean and data.std are given"
        require(bool(self.mean) or self.normalization != "given", "normalization", self.normalization, wanted)


@dataclass(frozen=True)
class WeightSpec:
    """What a phase's bits apply to: weights and activations, or only activations (`weights = "float"`).

    The rest is as in `QuantSpec`, but for the defaults: `weight_format` is "apot" (and "uniform" for layers of 6 to 8 bits),
    and `norms` is "recalibrate". Bits in `layers` are the same in all phases.
    """

    weights: Literal["phase", "float"] = "phase"
    edge_bits: int = 8
    edge_range: Literal["max_abs", "max"] = "max_abs"
    weight_format: str = "apot"
    layers: dict[str, Any] = field(default_factory=dict)
    edges: tuple[str, ...] | None = None
    scale: Literal["tensor", "channel"] | None = None
    norms: Literal["keep", "recalibrate"] = "recalibrate"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", layer_table(self.layers, "quant.layers"))
        require(self.edge_bits in (8, FLOAT_BITS), "edge_bits", self.edge_bits, f"8, or {FLOAT_BITS} (float)")


@dataclass(frozen=True)
class OptimSpec:
    """SGD. Milestones and warm-up are fractions of a phase; `threshold_lr` and `scale_lr` multiply the phase's learning rate.

    `lr_gamma` is the factor on the learning rate at each milestone. Gradients are accumulated over `accumulate` parts of a
    batch. The phase's learning rate is for batches of `lr_batch_size` images and is scaled linearly (0: not scaled).
    `freeze_norms` freezes the statistics of batch norm. `recalibrate_batches`: number of batches on which batch norm is
    recalibrated after each epoch (0: it uses its running averages). `temperature` is that of the softmax in phases that distil.
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
        require(1 <= self.accumulate <= _MANY, "accumulate", self.accumulate, "an integer from 1")
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

    `distill` is the share of distillation from the run's float net in the loss; the labels have the rest.
    `refit_scales` initializes the weight scales to minimize the error instead of using those of the phase before. `ema_decay`
    is the decay of an exponential moving average (EMA) of the weights, such as 0.999: the average is evaluated and saved, and
    training continues from the weights (0: no average). It needs its own batch norm statistics, from
    `optim.recalibrate_batches`.
    """

    epochs: int
    lr: float = 0.1
    weight_decay: float = 5e-4
    distill: float = 0.0
    refit_scales: bool = False
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        require(1 <= self.epochs <= MOST_EPOCHS, "epochs", self.epochs, f"an integer from 1 to {MOST_EPOCHS}")
        require(0 < self.lr < math.inf, "lr", self.lr, "a positive learning rate")
        require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.distill <= 1, "distill", self.distill, "a share in [0, 1]")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "0 (off) or a decay in (0, 1), such as 0.999")

    def __str__(self) -> str:
        """The settings that its hash is of: training states hold this text, those of earlier versions too."""
        return f"Phase({', '.join(f'{k}={v!r}' for k, v in hashed('phase', asdict(self)).items())})"
