"""Weight formats: what each must satisfy, and that one from outside the package goes the whole way."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from nets import SmallNet, randomize_
from torch import nn

import nbsnn
from nbsnn.cli import main
from nbsnn.errors import CheckpointError, ConfigError
from nbsnn.export.packed import save_packed
from nbsnn.quant.formats import WEIGHT_FORMATS, Apot, EdgeUniform, Uniform, WeightFormat, read_weight_format
from nbsnn.quant.layers import QuantReLU
from nbsnn.quant.plans import read_plan
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import read_tensors


@dataclass(frozen=True)
class Ternary(WeightFormat):
    """−1, 0 or 1 times a unit per output channel: the mean magnitude of what is not rounded to 0 (Li & Liu, 2016)."""

    share: float = 0.7

    name: ClassVar[str] = "ternary"
    widths: ClassVar[tuple[int, ...]] = (2,)
    per_channel: ClassVar[bool] = True

    def large(self, weight):
        mean = weight.abs().mean(tuple(range(1, weight.dim())), keepdim=True)
        return (weight.abs() > self.share * mean).to(weight)

    def measure_unit(self, weight, scale):
        large, axes = self.large(weight), tuple(range(1, weight.dim()))
        return (weight.abs() * large).sum(axes, keepdim=True) / large.sum(axes, keepdim=True).clamp_min(1)

    def quantize(self, weight, scale):
        values = weight.detach().sign() * self.large(weight.detach()) * self.measure_unit(weight.detach(), scale)
        return weight + (values - weight).detach()


EXAMPLES = [*(Apot(bits, own_scale=own) for bits in (2, 3, 4, 5) for own in (False, True)),
            *(Uniform(bits, scale=scale) for bits in (2, 4, 8) for scale in ("tensor", "channel")),
            EdgeUniform(8), EdgeUniform(8, "max"), Ternary(2)]  # fmt: skip


@pytest.fixture(params=EXAMPLES, ids=str)
def fmt(request):
    return request.param


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (7, 20)])
def test_codes_and_steps_give_the_weight_back(fmt, shape):
    weight = torch.randn(shape) * 0.1
    weight.view(-1)[0] = 0.6  # edge_range="max" has no codes for a negative weight beyond the greatest one
    scale = fmt.first_scale(weight)
    values, unit = fmt.quantize(weight, scale), fmt.unit(weight, scale)
    assert unit.shape == ((shape[0], *(1 for _ in shape[1:])) if fmt.per_channel else ())
    assert scale is None or scale.shape == unit.shape
    codes = fmt.codes(values, unit)
    assert 0 <= int(codes.min()) <= int(codes.max()) < 2**fmt.bits
    if not isinstance(fmt, Ternary):  # whose straight-through sum rounds in the last place
        assert fmt.values(codes, unit).equal(values)
    whole = values.double() / fmt.step(weight, scale)
    assert (whole - whole.round()).abs().max() < 1e-4
    fixed = replace(fmt, fixed=True)
    torch.testing.assert_close(fixed.step(values, unit), fmt.step(weight, scale), rtol=1e-6, atol=0)


def test_a_header_says_which_format_it_is(fmt):
    for one in (fmt, replace(fmt, fixed=True)):
        assert read_weight_format(one.header()) == one
    assert fmt.label in repr(nn.Sequential(nbsnn.quant.layers.QuantLinear.from_float(nn.Linear(3, 2), fmt)))


def test_headers_of_the_first_version_name_the_first_formats():
    assert Apot(3).header() == {"bits": 3, "edge_range": None, "fixed": False}
    assert EdgeUniform(8, "max").header() == {"bits": 8, "edge_range": "max", "fixed": False}
    assert read_weight_format({"bits": 3}) == Apot(3)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"format": "ternery", "bits": 2}, "unknown weight format 'ternery'; did you mean ternary? (one of your own"),
        ({"format": "ternary", "bits": 3}, "weight_bits=3: choose one of 2"),
        ({"format": "apot", "bits": 3, "share": 0.7}, "unknown key 'share'"),
        ({"bits": 6}, "weight_bits=6: choose one of 2, 3, 4, 5"),
    ],
)
def test_what_is_no_format_is_refused(entry, message):
    with pytest.raises(ConfigError) as caught:
        read_weight_format(entry)
    assert message in str(caught.value)


def test_two_formats_of_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"^weight format 'apot' exists; choose another name$"):
        type("Other", (WeightFormat,), {"name": "apot"})
    assert WEIGHT_FORMATS["apot"] is Apot


# ------------------------------------------------------------------------------------------- one from outside, end to end


def test_a_format_from_outside_is_trained_saved_packed_converted_and_lowered(tmp_path, capsys):
    torch.manual_seed(0)
    images, spec = torch.randn(16, 2, 6, 6), nbsnn.QuantSpec(2, 3, weight_format="ternary")
    quantized = nbsnn.quantize(SmallNet(), spec, images=images).train()
    optimizer = torch.optim.SGD(quantized.parameters(), lr=0.1)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(quantized(images), torch.arange(16) % 4)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    quantized.eval()
    randomize_(quantized)
    assert isinstance(read_plan(quantized)["conv2"], Ternary)
    assert [len(row.unique()) for row in quantized.conv2.quantized_weight()] == [3] * 6

    with torch.no_grad():
        logits = quantized(images)
        nbsnn.save_checkpoint(tmp_path / "a.safetensors", quantized)
        assert nbsnn.load_checkpoint(tmp_path / "a.safetensors", model=SmallNet())(images).equal(logits)
        save_packed(tmp_path / "b.safetensors", quantized)
        packed = nbsnn.load_checkpoint(tmp_path / "b.safetensors", model=SmallNet())
        torch.testing.assert_close(packed(images), logits, rtol=1e-5, atol=1e-5)
        header, tensors = read_tensors(tmp_path / "b.safetensors")
        assert header["plan"]["conv2"] == {"format": "ternary", "bits": 2, "fixed": True, "share": 0.7}
        assert tensors["conv2.weight.codes"].numel() == -(-quantized.conv2.weight.numel() * 2 // 8)
        assert tensors["conv2.weight.step"].shape == (6, 1, 1, 1)
    assert main(["info", str(tmp_path / "a.safetensors")]) == 0
    assert "ternary" in capsys.readouterr().out

    spiking = nbsnn.to_spiking(quantized, images[:1], schedule="settle")
    assert nbsnn.measure_fidelity(quantized, spiking, images).differing == 0
    for net in (quantized.double(), packed.double()):
        program = nbsnn.lower(net, images[:1].double())
        assert not program.program.notes  # no weight was rounded
        counts = program.simulate(images.double(), keep_counts=True, backend="torch").counts
        assert counts.keys() == {n for n, m in net.named_modules() if isinstance(m, QuantReLU)}
        fidelity = nbsnn.evaluation.fidelity.measure_integer_fidelity(net, program, images.double())
        assert fidelity.differing <= 0.002 * sum(layer.neurons for layer in fidelity.layers)


def test_a_file_of_an_unknown_format_says_what_to_import(tmp_path, monkeypatch):
    quantized = nbsnn.quantize(SmallNet(), nbsnn.QuantSpec(2, 2, weight_format="ternary"))
    nbsnn.save_checkpoint(tmp_path / "a.safetensors", quantized)
    monkeypatch.delitem(WEIGHT_FORMATS, "ternary")
    with pytest.raises(CheckpointError, match=r"unknown weight format 'ternary'.*one of your own must be imported first"):
        nbsnn.load_checkpoint(tmp_path / "a.safetensors", model=SmallNet())


def test_a_recipe_names_its_format_and_the_hashes_of_others_stay():
    plain = load_recipe("digits/resnet20")
    assert load_recipe("digits/resnet20", ["quant.weight_format=apot"]).hash == plain.hash
    with pytest.raises(ConfigError, match=r"weight_bits=4: choose one of 2, 32"):
        load_recipe("digits/resnet20", ["quant.weight_format=ternary"])
    with pytest.raises(ConfigError, match=r"unknown weight format 'ternery'"):
        load_recipe("digits/resnet20", ["quant.weight_format=ternery"])
    with pytest.raises(ConfigError, match=r"unknown weight format 'ternery'"):
        nbsnn.QuantSpec(weight_format="ternery")
