"""The training loss: cross-entropy with the labels, optionally mixed with distillation from a float network."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbsnn.errors import ConfigError
from nbsnn.recipe import OptimSpec, Phase
from nbsnn.tensorfile import content_hash
from nbsnn.training.execution import Execution


def distillation_loss(
    logits: Tensor, teacher: Tensor, labels: Tensor, *, share: float, temperature: float, label_smoothing: float = 0.0
) -> Tensor:
    """(1 − share)·cross-entropy + share·τ²·KL(teacher ‖ student), both softmaxes of the KL at temperature τ.

    Source: Hinton et al., 2015.

    Args:
        logits, teacher: [B, classes] float32.
        labels: [B].
        label_smoothing: for the cross-entropy with the labels.
    Returns:
        The mean over the batch, a scalar.
    """
    said, heard = (F.log_softmax(x / temperature, 1) for x in (teacher, logits))
    soft = F.kl_div(heard, said, reduction="batchmean", log_target=True)
    hard = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return (1 - share) * hard + share * temperature**2 * soft


class Loss:
    """The loss of a phase. The teacher is copied and runs like the student: compiled or eager, in the same type.

    Raises:
        ConfigError: the phase distils and there is no teacher.
    """

    def __init__(
        self, spec: OptimSpec, phase: Phase, execution: Execution, teacher: nn.Module | None, device: torch.device
    ) -> None:
        if phase.distill and teacher is None:
            raise ConfigError(f"phase.distill={phase.distill:g}: needs a float network as the teacher")
        self.spec, self.share, self.execution = spec, phase.distill, execution
        self.teacher = self.compiled = None
        if teacher is not None and phase.distill:
            frozen = copy.deepcopy(teacher).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.teacher = frozen.eval().requires_grad_(False)
            self.compiled = torch.compile(self.teacher) if execution.compiled else self.teacher

    def __call__(self, logits: Tensor, labels: Tensor, images: Tensor, *, compiled: bool = False) -> Tensor:
        """Mean over a batch of logits [B, K] float32, labels [B] and normalised images [B, C, H, W]; a scalar."""
        smoothing = self.spec.label_smoothing
        teacher = self.compiled if compiled else self.teacher
        if teacher is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        with torch.no_grad(), self.execution.precision(images.device):
            said = teacher(images).float()
        return distillation_loss(
            logits, said, labels, share=self.share, temperature=self.spec.temperature, label_smoothing=smoothing
        )

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the teacher: a run is not resumed with another one."""
        return "" if self.teacher is None else f" taught by {content_hash({}, self.teacher.state_dict())[:12]}"
