"""The loss: by labels, or partly by what the run's float network says; and who may teach."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from nets import digits_net
from observers import StopAfter

from nbsnn import pipeline
from nbsnn.cli import main
from nbsnn.data.images import Splits
from nbsnn.data.sets.digits import load_digits
from nbsnn.errors import CheckpointError, ConfigError, Interrupted
from nbsnn.recipe import OptimSpec, Phase
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import read_tensors
from nbsnn.training.checks import check_teacher
from nbsnn.training.execution import Execution
from nbsnn.training.loop import fit
from nbsnn.training.loss import Loss

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
    loss = Loss(OptimSpec(temperature=2.0), Phase(1, distill=0.3), Execution(), Says(said), CPU)
    by_labels, by_teacher = 0.0, 0.0
    for row, label, answer in zip(LOGITS.tolist(), LABELS.tolist(), said, strict=True):
        by_labels -= math.log(softmax(row, 1)[label]) / 2
        by_teacher += sum(p * math.log(p / q) for p, q in zip(softmax(answer, 2), softmax(row, 2), strict=True)) / 2
    expected = 0.7 * by_labels + 0.3 * 4 * by_teacher
    assert float(loss(LOGITS, LABELS, torch.zeros(2, 1))) == pytest.approx(expected, rel=1e-5)


def test_a_student_that_agrees_learns_nothing_and_the_teacher_never_does():
    logits = LOGITS.clone().requires_grad_()
    teacher = Says(LOGITS.tolist()).train()
    loss = Loss(OptimSpec(), Phase(1, distill=1.0), Execution(), teacher, CPU)
    loss(logits, LABELS, torch.zeros(2, 1)).backward()
    assert float(logits.grad.abs().max()) < 1e-6
    assert teacher.training
    assert teacher.answers.grad is None
    assert teacher.answers.requires_grad


@pytest.mark.parametrize("teacher", [None, Says([[9.0, 0.0, 0.0]] * 2)])
def test_without_a_share_the_labels_decide(teacher):
    loss = Loss(OptimSpec(label_smoothing=0.1), Phase(1), Execution(), teacher, CPU)
    expected = torch.nn.functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    assert torch.equal(loss(LOGITS, LABELS, torch.zeros(2, 1)), expected)


def test_only_a_float_net_teaches_and_only_quantized_ones():
    recipe = load_recipe("digits/resnet20", ["phase.4.distill=0.5"])
    taught = replace(recipe, phase={bits: phase for bits, phase in recipe.phase.items() if bits != "32"})
    check_teacher(recipe, [32, 4, 3, 2], None)
    check_teacher(taught, [4, 3, 2], digits_net(quantized=False))
    check_teacher(taught, [3, 2], None)
    with pytest.raises(ConfigError, match=r"^phase.4.distill=0.5: the run has no float net to teach; begin with phase 32"):
        check_teacher(taught, [4, 3, 2], None)
    with pytest.raises(ConfigError, match=r"^phase.32.distill=0.5: must be 0: the float net is the teacher"):
        load_recipe("digits/resnet20", ["phase.32.distill=0.5"])
    with pytest.raises(ConfigError, match=r"^phase.distill=0.5: needs a float network as the teacher"):
        Loss(OptimSpec(), Phase(1, distill=0.5), Execution(), None, CPU)


@pytest.fixture(scope="module")
def splits():
    full = load_digits()
    return Splits(full.train.take(slice(0, 128)), full.validation.take(slice(0, 20)), full.test.take(slice(0, 20)))


def short(*settings):
    """A float phase and one of 4 bits, an epoch each; the last batch is not full."""
    recipe = load_recipe("digits/resnet20", ["data.batch_size=40", "phase.all.epochs=1", *settings])
    return replace(recipe, phase={bits: recipe.phase[bits] for bits in ("32", "4")})


def run(out, splits, *settings, **options):
    return [read_tensors(r.fit.last)[1] for r in pipeline.train(short(*settings), out, splits=splits, **options)]


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, splits):
    out = tmp_path_factory.mktemp("alone")
    return out, run(out, splits)


def test_a_run_distils_and_keeps_the_float_phase_that_it_has(tmp_path, splits, alone):
    shutil.copytree(alone[0] / "32bit", tmp_path / "32bit")
    before = (tmp_path / "32bit/last.safetensors").stat().st_mtime_ns
    taught = run(tmp_path, splits, "phase.4.distill=0.5", "optim.temperature=2")
    assert (tmp_path / "32bit/last.safetensors").stat().st_mtime_ns == before
    assert same(alone[1][0], taught[0])
    assert not same(alone[1][1], taught[1])


def test_the_teacher_is_compiled_for_full_batches_only_as_the_student_is(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net: lambda images: 2 * net(images))
    loss = Loss(OptimSpec(), Phase(1, distill=1.0), Execution(compiled=True), Says(LOGITS.tolist()), CPU)
    images = torch.zeros(2, 1)
    assert float(loss(LOGITS, LABELS, images)) == pytest.approx(0, abs=1e-6)
    assert float(loss(2 * LOGITS, LABELS, images, compiled=True)) == pytest.approx(0, abs=1e-6)


def test_a_distilling_phase_resumes_bit_for_bit_and_not_under_another_teacher(tmp_path, splits):
    teacher, phase = digits_net(quantized=False), Phase(2, distill=0.5)
    with torch.no_grad():
        teacher.head.weight.mul_(3)

    def part(name, observer=None):
        result = fit(digits_net(), splits, short(), phase, out=tmp_path / name, teacher=teacher, observer=observer)
        return read_tensors(result.last)[1]

    whole = part("whole")
    with pytest.raises(Interrupted):
        part("parts", StopAfter(2))
    shutil.copytree(tmp_path / "parts", tmp_path / "other")
    assert same(whole, part("parts"))
    with torch.no_grad():
        teacher.head.bias += 1
    with pytest.raises(CheckpointError, match="unfinished run of another recipe"):
        part("other")


def test_a_float_phase_that_distils_is_one_line_on_the_command_line(tmp_path, capsys):
    command = ["train", "--recipe", "digits/resnet20", "--set", "phase.32.distill=0.5", "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert "phase.32.distill=0.5" in capsys.readouterr().err
