"""The loss: by labels, or partly by what the run's float network says; and who may teach."""

import math

import pytest
import torch
from nets import digits_net

from nbsnn import pipeline
from nbsnn.cli import main
from nbsnn.data.digits import load_digits
from nbsnn.data.images import Splits
from nbsnn.errors import ConfigError
from nbsnn.recipe import OptimSpec, Phase, load_recipe
from nbsnn.tensorfile import read_tensors
from nbsnn.train.execution import Execution
from nbsnn.train.loss import Loss, teacher_of

CPU = torch.device("cpu")
LOGITS, LABELS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]]), torch.tensor([0, 1])


class Says(torch.nn.Module):
    """A teacher with fixed answers, whatever it is shown."""

    def __init__(self, answers):
        super().__init__()
        self.answers = torch.nn.Parameter(torch.tensor(answers))

    def forward(self, x):
        return self.answers[: len(x)]


def softmax(row, temperature):
    powers = [math.exp(x / temperature) for x in row]
    return [p / sum(powers) for p in powers]


def test_the_mixture_equals_the_formula_written_out():
    said = [[1.0, 1.0, -2.0], [0.0, 4.0, 1.0]]
    loss = Loss.of(OptimSpec(temperature=2.0), Phase(1, distill=0.3), Execution(), Says(said), CPU)
    by_labels, by_teacher = 0.0, 0.0
    for row, label, answer in zip(LOGITS.tolist(), LABELS.tolist(), said, strict=True):
        by_labels -= math.log(softmax(row, 1)[label]) / 2
        by_teacher += sum(p * math.log(p / q) for p, q in zip(softmax(answer, 2), softmax(row, 2), strict=True)) / 2
    expected = 0.7 * by_labels + 0.3 * 4 * by_teacher
    assert float(loss(LOGITS, LABELS, torch.zeros(2, 1))) == pytest.approx(expected, rel=1e-5)


def test_a_student_that_agrees_learns_nothing_and_the_teacher_never_does():
    logits = LOGITS.clone().requires_grad_()
    teacher = Says(LOGITS.tolist()).train()
    loss = Loss.of(OptimSpec(), Phase(1, distill=1.0), Execution(), teacher, CPU)
    loss(logits, LABELS, torch.zeros(2, 1)).backward()
    assert float(logits.grad.abs().max()) < 1e-6
    assert teacher.training
    assert teacher.answers.grad is None
    assert teacher.answers.requires_grad


@pytest.mark.parametrize("teacher", [None, Says([[9.0, 0.0, 0.0]] * 2)])
def test_without_a_share_the_labels_decide(teacher):
    loss = Loss.of(OptimSpec(label_smoothing=0.1), Phase(1), Execution(), teacher, CPU)
    expected = torch.nn.functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    assert torch.equal(loss(LOGITS, LABELS, torch.zeros(2, 1)), expected)


def test_only_a_float_net_teaches_and_only_quantized_ones():
    net, distils = digits_net(quantized=False), Phase(1, distill=0.5)
    assert teacher_of(4, distils, net) is net
    assert teacher_of(4, Phase(1), net) is None
    with pytest.raises(ConfigError, match=r"^phase.32.distill=0.5: the float net is the teacher"):
        teacher_of(32, distils, net)
    with pytest.raises(ConfigError, match=r"^phase.4.distill=0.5: the run has no float net to teach; begin with phase 32"):
        teacher_of(4, distils, None)


@pytest.fixture(scope="module")
def splits():
    full = load_digits()
    return Splits(full.train.take(slice(0, 128)), full.validation.take(slice(0, 20)), full.test.take(slice(0, 20)))


def run(out, splits, *settings):
    short = ["data.batch_size=32", "phase.32.epochs=1", "phase.4.epochs=1", *settings]
    recipe = load_recipe("digits/resnet20", short)
    phases = {bits: recipe.phase[bits] for bits in ("32", "4")}
    recipe = type(recipe)(recipe.model, phases, recipe.data, recipe.quant, recipe.optim, name=recipe.name)
    return [read_tensors(result.fit.last)[1] for result in pipeline.train(recipe, out, splits=splits)]


def test_a_run_distils_and_keeps_the_float_phase_that_it_has(tmp_path, splits):
    alone = run(tmp_path / "alone", splits)
    (tmp_path / "taught").mkdir()
    (tmp_path / "alone/32bit").rename(tmp_path / "taught/32bit")
    before = (tmp_path / "taught/32bit/last.safetensors").stat().st_mtime_ns
    taught = run(tmp_path / "taught", splits, "phase.4.distill=0.5")
    assert (tmp_path / "taught/32bit/last.safetensors").stat().st_mtime_ns == before
    assert all(torch.equal(alone[0][key], taught[0][key]) for key in alone[0])
    assert not all(torch.equal(alone[1][key], taught[1][key]) for key in alone[1])


def test_a_float_phase_that_distils_is_one_line_on_the_command_line(tmp_path, capsys):
    command = ["train", "--recipe", "digits/resnet20", "--set", "phase.32.distill=0.5", "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert "phase.32.distill=0.5" in capsys.readouterr().err
