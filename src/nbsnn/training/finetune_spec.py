"""Settings of fine-tuning, a check of its network, and the record of one change."""

from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Literal, get_args

from torch import nn

from nbsnn.errors import ConfigError, unknown
from nbsnn.finite import check_network
from nbsnn.quant.layers import WeightQuantizer
from nbsnn.quant.plans import read_plan
from nbsnn.settings import require
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.spiking.schedules import check_pair

Method = Literal["layerwise", "end-to-end", "calibrate"]

START = "start"  # name of the first record: the network before any change

_RATES = {"layerwise": 1e-3, "end-to-end": 3e-3, "calibrate": 0.0}
_TEACHERS_SHARE = 0.5  # of the loss end to end


@dataclass(frozen=True)
class FinetuneSpec:
    """How to fine-tune. The optimizer is SGD; the published settings are the defaults of "layerwise".

    `epochs` are per unit, or of the whole network end to end. `lr=0` uses the method's default learning rate. `weights=False`
    trains norms and biases only: quantized weights change in jumps, for which norms with frozen statistics do not compensate.
        `None` is the method's default: weights are trained layer by layer, as published, and not end to end. End to end, the
        loss is (1 − `distillation`)·cross entropy + `distillation`·τ²·KL(teacher ‖ network) at temperature τ, 0.5 unless given,
        the learning rate follows a cosine, and `calibrate_first` starts from the calibrated network. `force` keeps every
        change.
    A setting that the method does not use is an error.
    """

    method: Method = "layerwise"
    neuron: Literal["signed", "unsigned"] = "signed"
    epochs: int = 1
    lr: float = 0.0
    weights: bool | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 50
    augment: bool = True
    distillation: float | None = None
    temperature: float = 2.0
    calibrate_first: bool = False
    calibration_images: int = 256
    force: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(unknown("method", self.method, get_args(Method)))
        check_pair(self.neuron, "fixed")
        checks = {
            "epochs": (self.epochs >= 1, "1 or more"), "lr": (0 <= self.lr < inf, "0 (the method's own) or a positive rate"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"), "weight_decay": (0 <= self.weight_decay < inf, "0 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more images"), "seed": (self.seed >= 0, "0 or more"),
            "distillation": (0 <= self.share <= 1, "in [0, 1]"), "temperature": (0 < self.temperature < inf, "positive"),
            "calibration_images": (self.calibration_images >= 1, "1 or more"),
        }  # fmt: skip
        for key, (good, wanted) in (checks | self._unused()).items():
            require(good, key, getattr(self, key), wanted)

    def _unused(self) -> dict[str, tuple[bool, str]]:
        """Checks, in the same form, of settings that the method does not use."""
        wanted = f"left out with method={self.method}, which has no use for it"
        none = {}
        if self.method != "end-to-end":
            none = {"calibrate_first": not self.calibrate_first, "distillation": self.distillation is None}
        if self.method == "calibrate":
            none |= {"lr": self.lr <= 0, "weights": self.weights is None, "epochs": self.epochs <= 1}
        return {key: (False, wanted) for key, left_out in none.items() if not left_out}

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.lr or _RATES[self.method]

    @property
    def trains_weights(self) -> bool:
        """Whether weights are trained, not only norms and biases."""
        return self.weights if self.weights is not None else self.method == "layerwise"

    @property
    def share(self) -> float:
        """The teacher's share of the loss in end-to-end fine-tuning."""
        return _TEACHERS_SHARE if self.distillation is None else self.distillation

    def to_dict(self) -> dict[str, Any]:
        """Plain values for records, including the method's defaults."""
        own: dict[str, Any] = {"lr": self.rate, "weights": self.trains_weights}
        return asdict(self) | own | ({"distillation": self.share} if self.method == "end-to-end" else {})


def check_source(network: nn.Module, spec: FinetuneSpec) -> None:
    """Raise an error if a network cannot be fine-tuned with `spec`.

    Raises:
        ConfigError: it is not quantized; it holds values that are not finite; or it is packed, with fixed weights, and `spec`
            trains weights.
    """
    if isinstance(network, SpikingNetwork) or not read_plan(network):
        raise ConfigError("finetune takes a quantized network, which is the teacher; call nbsnn.quantize and train it first")
    check_network(network, ConfigError)
    # Otherwise norms and biases would be trained, and the weights silently not.
    if spec.trains_weights and any(m.fixed for m in network.modules() if isinstance(m, WeightQuantizer)):
        raise ConfigError(
            f"method={spec.method} trains weights, and those of a packed network are fixed; leave them as they are "
            "(weights=False), use end-to-end or calibrate, or give nbsnn.unpack(network)"
        )


@dataclass(frozen=True)
class Change:
    """A change in fine-tuning: of a unit, of all units in an epoch, or of the biases.

    `loss` is the mean over the training images, None without training; `top1` the spiking accuracy on the held-out
    images after the change, in percent.
    """

    name: str
    loss: float | None
    top1: float
    kept: bool
    seconds: float
