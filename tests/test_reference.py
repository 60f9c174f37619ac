"""Checkpoints of the authors' code: the golden one to the last digit, every net's names, and files that must be refused."""

import functools
import json
import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN

from nbsnn.errors import CheckpointError
from nbsnn.importers import reference as module
from nbsnn.importers.reference import load_reference_checkpoint, rename_reference_keys
from nbsnn.models import build_model
from nbsnn.spiking.convert import to_spiking

FILE = GOLDEN / "resnet20_2bit_reference.pth.tar"
shapes = json.loads((GOLDEN / "reference_parameters.json").read_text())
golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "resnet20_2bit_reference_logits.npz").items()}

SMALL = {"cifar10/alexnet": 8, "cifar10/vgg11": 8, "imagenet/alexnet": 63, "imagenet/vgg16": 8}
NAMES = {
    "cifar10/alex/float": "alex",
    "cifar10/alex/quantized": "alex",
    "cifar10/vgg11/float": "vgg11",
    "cifar10/vgg11/quantized": "vgg11",
}
FLOAT_WEIGHTS = ("cifar10/resnet18", "imagenet/alexnet", "imagenet/vgg16")


def state():
    return dict(torch.load(FILE, weights_only=True)["state_dict"])


def load(path, **bits):
    return load_reference_checkpoint(path, "cifar10/resnet20", **{"weight_bits": 2, "act_bits": 2, **bits})


def write(path, tensors, *, prefix=""):
    torch.save({"epoch": 1, "state_dict": {prefix + k: v for k, v in tensors.items()}, "best_prec": 0.0}, path)
    return path


# -------------------------------------------------------------------------------------------------------------- golden


def test_the_quantized_logits_equal_the_golden_ones():
    net = load(FILE)
    with torch.no_grad():
        assert (net(golden["images"]) - golden["quantized"]).abs().max() < 1e-4
    assert not net.training


@pytest.mark.parametrize("neuron", ["signed", "unsigned"])
def test_the_spiking_logits_equal_the_golden_sums(neuron):
    spiking = to_spiking(load(FILE), golden["images"][:1], neuron=neuron)
    with torch.no_grad():
        sums = spiking(golden["images"]) * spiking.timesteps
    assert (sums - golden[f"spiking_{neuron}_sum"]).abs().max() < 1e-3


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_prefix_of_data_parallel_makes_no_difference(tmp_path, prefix):
    net = load(write(tmp_path / "a.pth.tar", state(), prefix=prefix))
    with torch.no_grad():
        assert torch.equal(net(golden["images"][:2]), load(FILE)(golden["images"][:2]))


def test_a_bare_state_dict_is_read_too(tmp_path):
    torch.save(state(), tmp_path / "a.pth.tar")
    assert load(tmp_path / "a.pth.tar").head.out_features == 10


def test_the_float_form_leaves_thresholds_and_scales_behind():
    net = load(FILE, weight_bits=32, act_bits=32)
    assert not [key for key in net.state_dict() if key.endswith(("threshold", "weight_scale"))]
    assert torch.equal(net.stem.conv.weight, state()["layer0.block.0.weight"])


# ------------------------------------------------------------------------------------------------------------ every net


def synthetic(entry, net):
    """Random tensors under the authors' names; shapes are the reference's, or ours where the image is smaller than there."""
    generator = torch.Generator().manual_seed(3)
    ours = net.state_dict()
    made = {}
    for key, shape in shapes[entry].items():
        target = next(iter(rename_reference_keys({key: torch.empty(0)}, net)))
        shape = list(ours[target].shape) if target in ours else shape
        noise = torch.rand(shape, generator=generator)
        made[key] = noise + 0.5 if key.endswith(("running_var", "alpha")) else noise - 0.5 if noise.dim() else noise
        if key.endswith("num_batches_tracked"):
            made[key] = torch.tensor(7)
    return made


def small_builder(monkeypatch, name):
    build = functools.partial(build_model, image_size=SMALL[name]) if name in SMALL else build_model
    monkeypatch.setattr(module, "build_model", build)
    return build


@pytest.mark.parametrize("entry", [e for e in shapes if e not in ("cifar10/resnet56", "cifar10/resnet110")])
def test_a_file_of_every_net_is_read_in_its_forms(tmp_path, monkeypatch, entry):
    short = NAMES.get(entry, entry)
    name = module.canonical_name(short)
    build = small_builder(monkeypatch, name)
    tensors = synthetic(entry, build(name))
    path = write(tmp_path / "a.pth.tar", tensors, prefix="module." if "alex/" in entry else "")
    forms = [(32, 32)] if entry.endswith("/float") else [(32 if name in FLOAT_WEIGHTS else 3, 3), (32, 32)]
    for weight_bits, act_bits in forms:
        net = load_reference_checkpoint(path, short, weight_bits=weight_bits, act_bits=act_bits)
        renamed, own = rename_reference_keys(tensors, net), net.state_dict()
        for key, tensor in own.items():
            folded = key.endswith("running_mean") and key.replace("norm.running_mean", "conv.bias") in renamed
            folded |= key.endswith("running_mean") and key.replace("norm.running_mean", "linear.bias") in renamed
            assert folded or torch.equal(tensor.flatten(), renamed[key].flatten()), key
        size = SMALL.get(name, 4)
        with torch.no_grad():
            assert net(torch.randn(1, 3, size, size)).isfinite().all()


def test_a_bias_before_batch_norm_is_folded_into_the_mean(tmp_path, monkeypatch):
    build = small_builder(monkeypatch, "cifar10/alexnet")
    tensors = synthetic("cifar10/alex/float", build("cifar10/alexnet"))
    net = load_reference_checkpoint(write(tmp_path / "a.pth.tar", tensors), "alex", weight_bits=32, act_bits=32).double()
    t = {key: value.double() for key, value in tensors.items()}
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    x = images
    for layer, stride in enumerate((1, 2, 2, 1, 2), start=1):
        block = f"layer{layer}.block"
        x = F.conv2d(x, t[f"{block}.0.weight"], t[f"{block}.0.bias"], stride=stride, padding=1)
        x = batch_norm(x, t, block).relu()
    x = F.linear(x.flatten(1), t["layer6.block.0.weight"], t["layer6.block.0.bias"])
    x = F.linear(batch_norm(x, t, "layer6.block").relu(), t["layer7.block.weight"], t["layer7.block.bias"])
    with torch.no_grad():
        assert torch.allclose(net(images), x, rtol=1e-5, atol=1e-6 * float(x.abs().max()))


def batch_norm(x, t, block):
    names = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(t[f"{block}.1.{name}"] for name in names), training=False)


def test_nets_with_float_weights_stay_so_with_a_warning(tmp_path, monkeypatch, caplog):
    small_builder(monkeypatch, "imagenet/alexnet")
    tensors = synthetic("imagenet/alexnet", module.build_model("imagenet/alexnet"))
    path = write(tmp_path / "a.pth.tar", tensors)
    net = load_reference_checkpoint(path, "imagenet/alexnet", weight_bits=2, act_bits=2)
    assert type(net.features[1].conv) is torch.nn.Conv2d
    assert "imagenet/alexnet has float inner weights in the reference; weight_bits=2 is not applied" in caplog.text


# -------------------------------------------------------------------------------------------------------------- refused


def refusal(path, **options):
    with pytest.raises(CheckpointError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_key_that_does_not_fit_is_named(tmp_path):
    tensors = state()
    del tensors["layer1.0.part1.bn.weight"], tensors["layer2.1.part2.relu.act_alpha"]
    tensors["layer9.strange"] = torch.zeros(1)
    tensors["layer0.block.0.weight"] = torch.zeros(16, 1, 3, 3)
    path = write(tmp_path / "a.pth.tar", tensors)
    assert refusal(path) == (
        f"{path} does not match the network (missing: stage1.0.first.norm.weight, stage2.1.second.act.threshold; "
        "not expected: layer9.strange; of another shape: stem.conv.weight [16, 1, 3, 3] instead of [16, 3, 3, 3]); "
        "check the model and its bits"
    )


def test_a_transposed_tensor_is_of_another_shape(tmp_path):
    tensors = state()
    tensors["layer2.0.part1.conv.weight"] = tensors["layer2.0.part1.conv.weight"].transpose(0, 1)
    assert "stage2.0.first.conv.weight" in refusal(write(tmp_path / "a.pth.tar", tensors))


def test_another_net_than_the_file_s_is_refused():
    with pytest.raises(CheckpointError, match=r"does not match the network \(missing: .*stage1\.3\.first"):
        load_reference_checkpoint(FILE, "cifar10/resnet32", weight_bits=2, act_bits=2)


@pytest.mark.parametrize("keep", [0, 10, 1000, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, keep):
    content = FILE.read_bytes()
    (tmp_path / "a.pth.tar").write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    assert "damaged or not a torch file" in refusal(tmp_path / "a.pth.tar")


def test_a_missing_file_and_one_without_a_linear_layer_are_refused(tmp_path):
    assert refusal(tmp_path / "no.pth.tar") == f"{tmp_path / 'no.pth.tar'}: no such checkpoint file"
    path = write(tmp_path / "a.pth.tar", {"w": torch.ones(3)})
    assert refusal(path) == f"{path}: holds no linear layer, so it is no checkpoint of these networks"


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("dump", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj, protocol=2))])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch, dump):
    monkeypatch.chdir(tmp_path)
    dump({"state_dict": state() | {"x": Bomb()}}, tmp_path / "a.pth.tar")
    assert "which could execute code when it is read" in refusal(tmp_path / "a.pth.tar")
    assert not (tmp_path / "exploded").exists()
