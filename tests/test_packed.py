"""Packed networks and the zoo: the same logits bit for bit, small files, and no altered file is taken."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import SmallNet, small_quantized

from nbsnn.checkpoint import load_checkpoint, save_checkpoint
from nbsnn.cli import main
from nbsnn.data import load_photographs
from nbsnn.data.sets.sample import load_sample
from nbsnn.errors import CheckpointError, ConfigError, QuantizationError
from nbsnn.export.packed import save_packed
from nbsnn.models import build_model
from nbsnn.quant.formats import Apot
from nbsnn.quant.packing import pack_bits, unpack_bits
from nbsnn.quant.plans import read_plan
from nbsnn.quant.quantize import quantize, set_bits_
from nbsnn.recipe import DataSpec, QuantSpec
from nbsnn.spiking.convert import to_spiking
from nbsnn.tensorfile import read_tensors
from nbsnn.zoo import list_zoo, locate


@given(st.integers(1, 8), st.lists(st.integers(0, 255), max_size=40))
def test_codes_come_back(bits, values):
    codes = torch.tensor([value % 2**bits for value in values], dtype=torch.int64)
    packed = pack_bits(codes, bits)
    assert len(packed) == -(-len(codes) * bits // 8)
    assert torch.equal(unpack_bits(packed, bits, len(codes)), codes)


def test_too_few_codes_are_refused():
    with pytest.raises(ValueError, match=r"^1 bytes do not hold 9 codes of 1 bits$"):
        unpack_bits(torch.zeros(1, dtype=torch.uint8), 1, 9)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_a_packed_network_has_the_same_logits_bit_for_bit(tmp_path, bits):
    torch.manual_seed(bits)
    images = torch.randn(6, 3, 32, 32)
    quantized = quantize(build_model("cifar10/resnet20"), QuantSpec(bits, 3), images=images).eval()
    size = save_packed(tmp_path / "a.safetensors", quantized)
    packed = load_checkpoint(tmp_path / "a.safetensors")
    with torch.no_grad():
        assert torch.equal(packed(images), quantized(images))
    weights = sum(m.numel() for m in quantized.parameters() if m.dim() > 1)
    assert weights * bits / 8 < size < weights * bits / 8 + 40_000  # norms, thresholds and the header


def test_layers_left_in_float_are_kept_as_they_are(tmp_path):
    quantized = quantize(SmallNet(), QuantSpec(weight_bits=32, act_bits=2)).eval()
    save_packed(tmp_path / "a.safetensors", quantized)
    packed = load_checkpoint(tmp_path / "a.safetensors", model=SmallNet())
    state = quantized.state_dict()
    assert sum(torch.equal(value, state[key]) for key, value in packed.state_dict().items()) == len(state) - 2  # the edges


def test_a_packed_network_is_converted_and_saved_like_any_other(tmp_path):
    quantized = small_quantized().eval()
    save_packed(tmp_path / "a.safetensors", quantized)
    packed = load_checkpoint(tmp_path / "a.safetensors", model=SmallNet())
    images = torch.randn(2, 2, 6, 6)
    with torch.no_grad():
        wanted = to_spiking(quantized, images, schedule="settle")(images)
        assert torch.equal(to_spiking(packed, images, schedule="settle")(images), wanted)
        save_checkpoint(tmp_path / "b.safetensors", packed)
        again = load_checkpoint(tmp_path / "b.safetensors", model=SmallNet())
        assert torch.equal(again(images), quantized(images))
    assert read_plan(again) == read_plan(packed)
    assert not any(m.weight.requires_grad for m in again.modules() if getattr(m, "fixed", False))


def test_fixed_weights_are_neither_packed_again_nor_given_other_bits(tmp_path):
    save_packed(tmp_path / "a.safetensors", small_quantized())
    packed = load_checkpoint(tmp_path / "a.safetensors", model=SmallNet())
    with pytest.raises(
        QuantizationError, match=r"^weight_bits=3: the weights of a packed network are fixed; change those of nbsnn\.unpack"
    ):
        set_bits_(packed, weight_bits=3)
    with pytest.raises(QuantizationError, match=r"^the network was packed before; copy its file instead$"):
        save_packed(tmp_path / "b.safetensors", packed)
    assert not (tmp_path / "b.safetensors").exists()


def test_only_quantized_networks_go_into_safetensors_files(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^a packed network is written from the quantized form, and this network is float; see"
    ):
        save_packed(tmp_path / "a.safetensors", SmallNet())
    with pytest.raises(ConfigError, match=r"a.pth.tar: a packed network is a .safetensors file; choose a name such"):
        save_packed(tmp_path / "a.pth.tar", small_quantized())


def test_weights_beyond_the_edge_grid_are_refused(tmp_path):
    quantized = quantize(SmallNet(), QuantSpec(2, 2, edge_range="max"))
    first = quantized.conv1
    with torch.no_grad():
        first.weight[0, 0, 0, 0] = -10 * first.weight.max()
    with pytest.raises(
        QuantizationError, match=r"edge_range='max' gives weights beyond 8 bits .*; train with edge_range='max_abs'"
    ):
        save_packed(tmp_path / "a.safetensors", quantized)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(locate("zoo:cifar10/resnet20-w2a2").read_bytes())
    return path


def test_an_altered_byte_is_refused(file):
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"its content does not match its hash; it was altered or damaged"):
        load_checkpoint(file)


def test_an_altered_header_is_refused(file):
    content = file.read_bytes()
    altered = content.replace(b'\\"seed\\": 0', b'\\"seed\\": 1', 1)
    assert altered != content
    file.write_bytes(altered)
    with pytest.raises(CheckpointError, match=r"its content does not match its hash"):
        load_checkpoint(file)


@pytest.mark.parametrize("size", [0, 100, 50_000, -1])
def test_a_truncated_file_is_refused(file, size):
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"damaged or not a safetensors file"):
        load_checkpoint(file)


# ------------------------------------------------------------------------------------------------------------------ zoo


def test_the_zoo_is_small_and_holds_a_resnet20_for_all_bits():
    assert {f"cifar10/resnet20-w{b}a{b}" for b in (2, 3, 4)} <= set(list_zoo())
    assert sum(locate(f"zoo:{name}").stat().st_size for name in list_zoo()) < 12e6


@pytest.mark.parametrize("name", list_zoo())
def test_a_bundled_network_is_what_its_name_says(name):
    header, _ = read_tensors(f"zoo:{name}")
    network = load_checkpoint(f"zoo:{name}")
    model, _, bits = name.rpartition("-")
    assert header["model"]["name"] == model
    weight_bits = {fmt.bits for fmt in read_plan(network).values() if isinstance(fmt, Apot) and fmt.fixed}
    act_bits = {m.bits for m in network.modules() if type(m).__name__ == "QuantReLU"}
    assert f"w{weight_bits.pop()}a{act_bits.pop()}" == bits
    assert not weight_bits
    assert not act_bits
    assert header["recipe_hash"]
    assert header["metrics"]["validation_top1"] > 70


@pytest.mark.parametrize("name", list_zoo())
def test_a_bundled_network_does_not_say_where_its_data_lay(name):
    header, _ = read_tensors(f"zoo:{name}")
    assert header["recipe"]["data"]["root"] == "data"


def test_the_sample_holds_thirty_images_of_each_class():
    sample = load_sample().test
    assert sample.images.shape == (300, 3, 32, 32)
    assert sample.images.dtype == torch.uint8
    assert torch.bincount(sample.labels).tolist() == [30] * 10
    assert 100 < float(sample.images.float().mean()) < 140


def test_eval_runs_a_bundled_network_on_the_sample(capsys):
    assert main(["eval", "zoo:cifar10/resnet20-w2a2", "--data", "sample", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 300
    assert report["top1"] > 70


def test_pack_and_zoo_print_what_they_did(tmp_path, capsys):
    torch.manual_seed(0)
    net = quantize(build_model("cifar10/resnet20"), QuantSpec(2, 2)).eval()
    save_checkpoint(tmp_path / "a.safetensors", net)
    assert main(["pack", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "b.safetensors")]) == 0
    assert "times smaller than the checkpoint" in " ".join(capsys.readouterr().out.split())
    assert main(["info", str(tmp_path / "b.safetensors")]) == 0
    assert "quantized form" in capsys.readouterr().out
    assert main(["zoo"]) == 0
    assert "zoo:cifar10/resnet20-w2a2" in capsys.readouterr().out
    assert main(["zoo", "--json"]) == 0
    assert {entry["name"].removeprefix("zoo:") for entry in json.loads(capsys.readouterr().out)} == set(list_zoo())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("eval zoo:cifar10/resnet20-w2a9", "unknown bundled network 'cifar10/resnet20-w2a9'; did you mean cifar10/resnet20-w"),
        ("train --recipe cifar10/resnet20 --set data.name=sample", "data.name=sample: these are test images; train on"),
        ("pack zoo:cifar10/resnet20-w2a2 --out b.safetensors", "the network was packed before; copy its file instead"),
    ],
)
def test_bad_input_is_one_line(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    assert message in " ".join(capsys.readouterr().err.split())


# ----------------------------------------------------------------------------------------------------------- photographs


@pytest.fixture
def photograph(tmp_path):
    """A test image, enlarged to 90×60 with margins left and right."""
    from PIL import Image

    sample = load_sample().test
    pixels = sample.images[8].permute(1, 2, 0).numpy()
    wide = Image.new("RGB", (90, 60))
    wide.paste(Image.fromarray(pixels).resize((60, 60), Image.Resampling.BICUBIC), (15, 0))
    wide.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_photograph_is_cut_to_its_middle_and_resized(photograph):
    image = load_photographs(DataSpec("cifar10"), [photograph], size=32, classes=10).images
    assert image.shape == (1, 3, 32, 32)
    assert (image[0].float() - load_sample().test.images[8].float()).abs().mean() < 8


def test_classify_says_what_eval_would(photograph, capsys):
    assert main(["classify", "zoo:cifar10/resnet20-w2a2", str(photograph), "--json"]) == 0
    best = json.loads(capsys.readouterr().out)[str(photograph)]
    images = load_photographs(DataSpec("cifar10"), [photograph], size=32, classes=10)
    with torch.no_grad():
        logits = load_checkpoint("zoo:cifar10/resnet20-w2a2")(images.normalized())[0]
    assert best[0]["name"] == images.classes[int(logits.argmax())]
    assert len(best) == 5
    assert best[0]["logit"] == pytest.approx(float(logits.max()), abs=0.3)
    assert 100 >= best[0]["share"] >= best[1]["share"] > 0
    assert main(["classify", "zoo:cifar10/resnet20-w2a2", str(photograph), str(photograph)]) == 0
    assert capsys.readouterr().out.count("photo.png") == 2


def test_what_is_not_an_image_is_refused(tmp_path, capsys):
    (tmp_path / "a.png").write_text("no image")
    assert main(["classify", "zoo:cifar10/resnet20-w2a2", str(tmp_path / "a.png")]) == 2
    assert "a.png: not an image that can be read" in " ".join(capsys.readouterr().err.split())
    assert main(["classify", "zoo:cifar10/resnet20-w2a2", str(tmp_path / "b.png")]) == 2
    assert "b.png: not an image that can be read (No such file or directory)" in " ".join(capsys.readouterr().err.split())
