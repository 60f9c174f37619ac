"""Ways that end where one would go on: a quantized start, more epochs for a finished run, and another T."""

import pytest
import torch
from digits_recipe import digits_recipe
from nets import small_quantized

import nbsnn
from nbsnn import pipeline
from nbsnn.cli import main
from nbsnn.data.images import Splits
from nbsnn.data.sets.digits import load_digits
from nbsnn.errors import CheckpointError, ConfigError, ConversionError
from nbsnn.quant.quantize import quantize, set_bits_
from nbsnn.recipe import QuantSpec
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import read_tensors
from nbsnn.training.checks import phases_from
from nbsnn.training.options import TrainOptions

RECIPE = load_recipe("digits/resnet20", ["data.batch_size=32", "phase.all.epochs=1"])
EXAMPLE = torch.zeros(1, 2, 6, 6)


@pytest.fixture(scope="module")
def splits():
    full = load_digits()
    return Splits(full.train.take(slice(0, 64)), full.validation.take(slice(0, 20)), full.test.take(slice(0, 20)))


@pytest.fixture(scope="module")
def starts():
    """The recipe's network, quantized, with any bits."""
    net = pipeline.new_model(RECIPE)
    return lambda bits: net if bits == 32 else quantize(net, QuantSpec(min(bits, 5), bits))


@pytest.mark.parametrize(
    ("bits", "phases", "left"),
    [(4, [3, 2], "32, 4"), (3, [2], "32, 4, 3"), (2, [2], "32, 4, 3"), (8, [4, 3, 2], "32"), (32, [32, 4, 3, 2], "")],
)
def test_a_quantized_start_trains_the_lower_bits_alone(starts, caplog, bits, phases, left):
    assert phases_from(RECIPE, starts(bits)) == phases
    said = f"the start has {bits} bits: training phase {', '.join(map(str, phases))} from it, skipping {left} of the recipe"
    assert caplog.messages == ([said] if left else [])


def test_without_a_start_all_phases_are_trained():
    assert phases_from(RECIPE, None) == [32, 4, 3, 2]


def test_a_run_from_a_quantized_start_is_trained_and_found_again(tmp_path, splits, starts):
    found = list(pipeline.train(RECIPE, tmp_path, splits=splits, init=starts(3)))
    assert [result.bits for result in found] == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["2bit"]
    assert read_tensors(found[0].fit.last)[0]["recipe_hash"] == RECIPE.hash
    before = found[0].fit.last.read_bytes()
    again = list(pipeline.train(RECIPE, tmp_path, splits=splits, init=starts(3)))
    assert [result.bits for result in again] == [2]
    assert again[0].fit.last.read_bytes() == before


def test_a_run_that_ended_between_phases_does_not_resume_in_another_precision(tmp_path, splits, starts):
    """Case 23, between two phases."""

    def train(precision):
        return pipeline.train(RECIPE, tmp_path, splits=splits, init=starts(4), options=TrainOptions(precision=precision))

    first = train("float32")
    assert next(first).bits == 3
    first.close()
    second = train("bf16")
    assert next(second).bits == 3  # finished
    with pytest.raises(CheckpointError, match=r"3bit holds a run with precision float32, and this one has bf16; use the same"):
        next(second)
    assert [result.bits for result in train("float32")] == [3, 2]


def test_a_pupil_without_a_teacher_is_refused_also_where_the_float_phase_is_left_out(tmp_path, splits, starts):
    recipe = load_recipe("digits/resnet20", ["data.batch_size=32", "phase.all.epochs=1", "phase.2.distill=0.5"])
    with pytest.raises(ConfigError, match=r"^phase.2.distill=0.5: the run has no float net to teach"):
        next(pipeline.train(recipe, tmp_path, splits=splits, init=starts(3)))


def test_a_finished_run_continues_when_its_last_phase_is_given_more_epochs(tmp_path, capsys):
    """Case 35, and case 23: at the command line."""
    recipe = tmp_path / "own.toml"
    phases = "[phase.4]\nepochs = 1\nlr = 0.01\n[phase.2]\nepochs = 1\nlr = 0.01\n"
    recipe.write_text(digits_recipe(phases, validation=1300))
    words = ["train", "-r", str(recipe), "--out", str(tmp_path / "run"), "--device", "cpu", "--compile", "off"]
    assert main([*words, "--precision", "float32"]) == 0
    capsys.readouterr()
    assert main([*words, "--precision", "bf16", "--set", "phase.2.epochs=2"]) == 2  # case 23
    assert "with precision float32, and this one has bf16; " in capsys.readouterr().err
    assert main([*words, "--precision", "float32", "--set", "phase.2.epochs=2"]) == 0
    said = capsys.readouterr().err
    assert "2 bits: epoch 1/2" not in said
    assert "2 bits: epoch 2/2" in said
    header, _ = read_tensors(tmp_path / "run" / "2bit" / "last.safetensors")
    assert (header["metrics"]["epoch"], header["metrics"]["extended_after"]) == (2, [1])
    assert main([*words, "--set", "phase.4.epochs=2"]) == 2  # others began with it
    assert (
        "2bit holds a finished phase, of another recipe or start, and 4bit before it is to be trained"
        in capsys.readouterr().err
    )


# -------------------------------------------------------------------------------------------------------------- another T


def test_the_bits_decide_t():
    quantized = small_quantized()
    said = (
        r"^timesteps=7: the bits b of the activations decide T = 2\^b - 1, which is 3 in this network; for T = 7 train with 3"
    )
    with pytest.raises(ConversionError, match=said):
        nbsnn.to_spiking(quantized, EXAMPLE, timesteps=7)
    program = nbsnn.lower(quantized, EXAMPLE)
    with pytest.raises(ConversionError, match=said):
        program.run(EXAMPLE, timesteps=7)
    with pytest.raises(ConversionError, match=r"is 3 in this network; T may be 3, 7, 15, 31, 63, 127, 255$"):
        program.using(engine="spikes", timesteps=5).run(EXAMPLE)
    assert nbsnn.to_spiking(quantized, EXAMPLE, timesteps=3).timesteps == 3
    assert program.run(EXAMPLE, timesteps=3).shape == (1, 4)
    assert nbsnn.to_spiking(set_bits_(quantized, act_bits=3), EXAMPLE, timesteps=7).timesteps == 7  # the remedy


@pytest.mark.parametrize("words", ["convert {} --schedule settle", "eval {}", "eval {} --engine spikes", "finetune {}"])
def test_another_t_at_the_command_line(words, capsys):
    words = words.format("zoo:cifar10/resnet20-w2a2").split()
    assert main([*words, "--data", "sample", "-T", "15"]) == 2
    assert "error: --timesteps 15: the bits b of the activations decide T = 2^b - 1, which is 3" in capsys.readouterr().err
