"""What a training step makes small: cross-entropy with the labels, or a mixture of it with what a float net says."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbsnn.errors import ConfigError
from nbsnn.recipe import FLOAT_BITS, OptimSpec, Phase
from nbsnn.train.execution import Execution


@dataclass(frozen=True)
class Loss:
    """(1 − share)·cross-entropy + share·t²·KL(teacher ‖ student), both softened by the temperature t (Hinton et al., 2015)."""

    spec: OptimSpec
    share: float
    execution: Execution
    teacher: Callable[[Tensor], Tensor] | None

    @classmethod
    def of(cls, spec: OptimSpec, phase: Phase, execution: Execution, teacher: nn.Module | None, device: torch.device) -> "Loss":
        """A phase's loss; without a teacher by the labels alone. The teacher is copied, and runs as the student does."""
        if teacher is None or phase.distill == 0:
            return cls(spec, 0.0, execution, None)
        frozen = copy.deepcopy(teacher).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        frozen = frozen.eval().requires_grad_(False)
        return cls(spec, phase.distill, execution, torch.compile(frozen) if execution.compiled else frozen)

    def __call__(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """Mean over a batch of logits [B, K] float32, labels [B] and normalised images [B, C, H, W]; a scalar."""
        by_labels = F.cross_entropy(logits, labels, label_smoothing=self.spec.label_smoothing)
        if self.teacher is None:
            return by_labels
        with torch.no_grad(), self.execution.precision(images.device):
            answers = self.teacher(images)
        t = self.spec.temperature
        said, heard = (F.log_softmax(x.float() / t, dim=1) for x in (answers, logits))
        by_teacher = t**2 * F.kl_div(heard, said, reduction="batchmean", log_target=True)
        return (1 - self.share) * by_labels + self.share * by_teacher


def teacher_of(bits: int, phase: Phase, float_net: nn.Module | None) -> nn.Module | None:
    """The float net if the phase distils, else nothing.

    Raises:
        ConfigError: the phase distils, and the run has no float net, or this is it.
    """
    if not phase.distill:
        return None
    if bits == FLOAT_BITS:
        raise ConfigError(f"phase.{bits}.distill={phase.distill:g}: the float net is the teacher; let quantized phases distil")
    if float_net is None:
        raise ConfigError(
            f"phase.{bits}.distill={phase.distill:g}: the run has no float net to teach; begin with phase {FLOAT_BITS}, "
            "or with a float --init"
        )
    return float_net
