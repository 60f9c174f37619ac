"""TorchVision's weights in our nets: every tensor of both sides accounted for, the same function where no pool intervenes."""

import json
import sys
from types import ModuleType, SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from conftest import DATA
from torch import nn

from nbsnn.errors import CheckpointError, ConfigError, DataError, MissingDependencyError
from nbsnn.importers import torchvision as module
from nbsnn.importers.torchvision import differences, from_torchvision, load_torchvision_weights_, torchvision_state
from nbsnn.models import build_model
from nbsnn.models.units import ConvNormAct, LinearNormAct, PlainNet
from nbsnn.norms import match_norms_
from nbsnn.surgery import tap

SHAPES = json.loads((DATA / "torchvision_shapes.json").read_text())  # recorded from torchvision 0.29.1
MODEL = {"alexnet": "imagenet/alexnet", "vgg16": "imagenet/vgg16", "vgg16_bn": "imagenet/vgg16"}
IMAGES = 2


def random_state(arch):
    """Random tensors of the recorded shapes, weights scaled so that activations neither die nor grow."""
    pool = torch.rand(1_000_003, generator=torch.Generator().manual_seed(5))
    state = {}
    for i, (name, shape) in enumerate(SHAPES[arch].items()):
        noise = pool.roll(7919 * i)
        if not shape:
            state[name] = torch.tensor(7)
        elif len(shape) == 1 and name.endswith(("running_var", "weight")):
            state[name] = noise[: shape[0]] + 0.5
        else:
            rows, columns = shape[0], torch.Size(shape[1:]).numel()
            noise = (noise - 0.5) * (24 / (columns if len(shape) > 1 else 100)) ** 0.5  # uniform noise has variance 1/12
            # Rows overlap in memory: the 138 million values of a VGG would take seconds to draw.
            state[name] = noise.as_strided((rows, columns), ((len(noise) - columns) // rows, 1)).reshape(shape)
    return state


def unset(model, **options):
    """A network whose tensors were never set: what is not mapped shows."""
    with torch.device("meta"):
        return build_model(model, **options).to_empty(device="cpu")


@pytest.fixture(scope="module", params=list(SHAPES))
def mapped(request):
    """One network per architecture with what its units and its head put out: as mapped, and with matched norms."""
    arch = request.param
    state = random_state(arch)
    net = unset(MODEL[arch]).eval()
    table = load_torchvision_weights_(net, state, source="random")
    own = {name: tensor.clone() if tensor.dim() < 4 else tensor for name, tensor in net.state_dict().items()
           if tensor.dim() != 2}  # fmt: skip
    images = torch.randn(IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(6))
    before = outputs(net, images)
    match_norms_(net, [images])
    return SimpleNamespace(
        arch=arch, state=state, net=net, table=table, own=own, images=images, before=before, after=outputs(net, images)
    )


@torch.no_grad()
def outputs(net, images):
    """Outputs of the first two and of the last convolution unit, of the hidden linear units and of the head."""
    units = {"first": net.features[0], "second": net.features[1], "flat": net.flatten, "head": net.head}
    units |= {f"hidden{i}": unit for i, unit in enumerate(net.classifier)}
    with tap(units) as seen:
        net(images)
    return {name: tensors[0] for name, tensors in seen.items()}


def close(found, wanted, tolerance=1e-4):
    return float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def conv(x, state, name, **geometry):
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **geometry)


# ----------------------------------------------------------------------------------------------------- names and shapes


@pytest.mark.parametrize("arch", list(SHAPES))
def test_the_recorded_names_and_shapes_are_torchvision_s(arch):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        net = models.get_model(arch, weights=None)
    assert {name: list(tensor.shape) for name, tensor in net.state_dict().items()} == SHAPES[arch]


@pytest.mark.parametrize("arch", list(SHAPES))
def test_the_differences_are_torchvision_s(arch):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        layers = {f"features.{i}": layer for i, layer in enumerate(models.get_model(arch, weights=None).features)}
    for line in differences(arch):
        layer = layers.get(line.partition(":")[0])
        if isinstance(layer, nn.MaxPool2d):
            assert f"max pool {layer.kernel_size}×{layer.kernel_size}, stride {layer.stride} " in line
        elif layer is not None:
            assert f"stride {layer.stride[0]}, padding {layer.padding[0]};" in line
    told = "\n".join(differences(arch))
    assert all(f"{name}:" in told for name, layer in layers.items() if isinstance(layer, nn.MaxPool2d))


def test_every_tensor_of_both_sides_is_accounted_for(mapped):
    state, own = mapped.state, mapped.net.state_dict()
    assert {row.ours for row in mapped.table} == set(own)
    assert {row.source for row in mapped.table} - {None} == set(state)
    # Layers of like shape keep their order; the recorded names are in the order of the layers.
    weights = [(row.ours, row.source) for row in mapped.table if len(row.shape) > 1]
    recorded = [name for name, shape in SHAPES[mapped.arch].items() if len(shape) > 1]
    assert weights == list(zip([name for name, tensor in own.items() if tensor.dim() > 1], recorded, strict=True))
    sources = [row.source for row in mapped.table if row.source]
    assert len(sources) == len(set(sources))
    for row in mapped.table:
        assert row.shape == tuple(own[row.ours].shape)
        assert row.source is None or row.shape == tuple(state[row.source].shape)
        now = mapped.own.get(row.ours, own[row.ours])  # a norm as it was before it was matched
        if row.what == "folded into running_mean":
            mean = row.source.replace(row.source.split(".")[1], str(int(row.source.split(".")[1]) + 1))
            assert torch.equal(now, state[mean.replace("bias", "running_mean")] - state[row.source])
        elif row.source and not row.ours.endswith("running_mean"):
            assert torch.equal(now, state[row.source])
    kinds = [row.what for row in mapped.table]
    norms = {"alexnet": (7, 0), "vgg16": (15, 0), "vgg16_bn": (2, 13)}[mapped.arch]
    assert (kinds.count("bias moved into the norm"), kinds.count("folded into running_mean")) == norms
    assert kinds.count("new: starts as the identity") == 4 * norms[0]
    assert kinds.count("copied") == len(kinds) - 5 * norms[0] - norms[1]


def test_differences_name_every_pool_and_every_changed_layer():
    assert differences("alexnet") == [
        "features.2: max pool 3×3, stride 2 became the stride of our features.1",
        "features.5: max pool 3×3, stride 2 became the stride of our features.2",
        "features.12: max pool 3×3, stride 2 became the stride of our features.4",
        "features.3: stride 1, padding 2; our features.1 has 2 and 1",
        "features.6: stride 1, padding 1; our features.2 has 2 and 0",
        "features.10: stride 1, padding 1; our features.4 has 2 and 0",
        "avgpool: dropped; it has no effect at 224 pixels",
        "classifier: dropout is dropped",
    ]
    for arch in ("vgg16", "vgg16_bn"):
        lines = differences(arch)
        assert [sum(word in line for line in lines) for word in ("max pool", "; our features.")] == [5, 5]


# -------------------------------------------------------------------------------------------------------- same function


def test_the_first_unit_is_torchvision_s(mapped):
    if mapped.arch == "alexnet":
        wanted = conv(mapped.images, mapped.state, "features.0", stride=4, padding=2)
    else:
        wanted = conv(mapped.images, mapped.state, "features.0", padding=1)
    if mapped.arch == "vgg16_bn":
        wanted = batch_norm(wanted, mapped.state, "features.1")
    assert close(mapped.before["first"], wanted.relu(), 1e-5)
    assert close(mapped.after["first"], wanted.relu())


def test_the_second_unit_is_torchvision_s_at_every_other_pixel(mapped):
    """Up to the padding of alexnet's, where a pool lies between as well."""
    x = mapped.before["first"][:1]
    if mapped.arch == "alexnet":
        wanted = conv(x, mapped.state, "features.3", padding=1)[..., ::2, ::2]
    elif mapped.arch == "vgg16":
        wanted = conv(x, mapped.state, "features.2", padding=1)[..., ::2, ::2]
    else:
        wanted = batch_norm(conv(x, mapped.state, "features.3", padding=1)[..., ::2, ::2], mapped.state, "features.4")
    assert close(mapped.before["second"][:1], wanted.relu(), 1e-5)
    assert close(mapped.after["second"][:1], wanted.relu())


def test_the_linear_layers_are_torchvision_s(mapped):
    x = mapped.before["flat"]
    for i, k in enumerate((1, 4) if mapped.arch == "alexnet" else (0, 3)):
        x = F.linear(x, mapped.state[f"classifier.{k}.weight"], mapped.state[f"classifier.{k}.bias"]).relu()
        assert close(mapped.before[f"hidden{i}"], x, 1e-5)
        assert close(mapped.after[f"hidden{i}"], x)
    x = F.linear(x, mapped.state["classifier.6.weight"], mapped.state["classifier.6.bias"])
    assert close(mapped.before["head"], x, 1e-5)
    assert close(mapped.after["head"], x)


def test_training_mode_begins_where_evaluation_mode_is(mapped):
    norms = [m for m in mapped.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(float(norm.running_var.mean()) > 0.01 for norm in norms)  # nothing has died
    for norm in norms:
        norm.momentum = 0.0  # leave the statistics for the tests that follow
    try:
        trained = outputs(mapped.net.train(), mapped.images)
    finally:
        mapped.net.eval()
    for name, wanted in mapped.after.items():
        assert close(trained[name], wanted, 1e-3), name


def batch_norm(x, state, name):
    leaves = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"{name}.{leaf}"] for leaf in leaves), training=False)


# -------------------------------------------------------------------------------------------------------- match_norms_


def small_net():
    net = PlainNet([ConvNormAct(3, 4, 3, 2, 1), ConvNormAct(4, 6, 3, 1, 0)], [LinearNormAct(54, 8)], nn.Linear(8, 5))
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            for tensor in (m.weight.data, m.bias.data, m.running_mean, m.running_var):
                tensor.copy_(torch.rand(len(tensor)) + 0.25)
    return net


def test_statistics_of_uneven_batches_are_those_of_all_images_together():
    net, images = small_net(), torch.randn(9, 3, 10, 10) + 3
    net.eval()
    wanted = outputs(net, images)["head"]
    with tap({name: m for name, m in net.named_modules() if name.endswith(("conv", "linear"))}) as seen:
        net(images)
    match_norms_(net.train(), iter([images[:1], images[1:6], images[6:]]))
    assert net.training
    for name, (x,) in seen.items():
        norm = net.get_submodule(name.rpartition(".")[0]).norm
        x = x.double().transpose(0, 1).flatten(1)
        assert torch.allclose(norm.running_mean.double(), x.mean(1), rtol=1e-5)
        assert torch.allclose(norm.running_var.double(), x.var(1, correction=0), rtol=1e-5)
        assert norm.num_batches_tracked == 0
    assert close(outputs(net.eval(), images)["head"], wanted)


def test_a_channel_that_never_changes_is_kept():
    net, images = small_net().eval(), torch.randn(4, 3, 10, 10)
    net.features[0].conv.weight.data[1] = 0
    wanted = outputs(net, images)
    match_norms_(net, [images])
    assert net.features[0].norm.running_var[1] == 0
    for name, tensor in outputs(net, images).items():
        assert close(tensor, wanted[name])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"got 0 image\(s\), .* give it two or more"),
        ([torch.randn(1, 3, 10, 10)], r"got 1 image\(s\), .* give it two or more"),
        (torch.randn(4, 3, 10, 10), r"takes batches of images \[B, C, H, W\]; pass \[images\]"),
        ([(torch.randn(4, 3, 10, 10), torch.zeros(4))], "without the labels"),
    ],
)
def test_what_has_no_variance_or_is_no_batch_is_refused_and_leaves_no_trace(batches, message):
    net = small_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        match_norms_(net, batches)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_images_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match=r"^images: 600 of 600 values are not finite .* in 2 of 2 images"):
        match_norms_(small_net(), [torch.full((2, 3, 10, 10), torch.nan)])
    with pytest.raises(DataError, match=r"^sums over the input of features\.0\.norm: .* are not finite"):
        match_norms_(small_net(), [torch.full((2, 3, 10, 10), 3e38)])


# ------------------------------------------------------------------------------------------------------ from_torchvision


@pytest.fixture
def alexnet_state():
    return random_state("alexnet")


def test_another_number_of_classes_leaves_the_head_fresh(alexnet_state):
    images = torch.randn(2, 3, 224, 224)
    state = {f"module.{name}": tensor for name, tensor in alexnet_state.items()}
    net, table = from_torchvision("alex", state, [images], num_classes=5, source="a file")
    assert net.training
    assert (net.model_spec.name, net.model_spec.num_classes, net.model_spec.image_size) == ("imagenet/alexnet", 5, 224)
    assert net(images).shape == (2, 5)
    assert torch.equal(net.features[1].conv.weight, alexnet_state["features.3.weight"])
    heads = [
        (row.ours, row.source, row.shape, row.what)
        for row in table
        if "head" in str(row.ours) or (row.ours is None and row.source)
    ]
    assert heads == [
        ("head.weight", None, (5, 4096), "new: fresh, for 5 classes"),
        ("head.bias", None, (5,), "new: fresh, for 5 classes"),
        (None, "classifier.6.weight", (1000, 4096), "left out: for 1000 classes"),
        (None, "classifier.6.bias", (1000,), "left out: for 1000 classes"),
    ]
    assert {row.source for row in table} - {None} == set(alexnet_state)


def test_the_classes_are_the_state_s_unless_given(alexnet_state):
    for leaf in ("weight", "bias"):
        alexnet_state[f"classifier.6.{leaf}"] = alexnet_state[f"classifier.6.{leaf}"][:7]
    net, _ = from_torchvision("imagenet/alexnet", alexnet_state, [torch.randn(2, 3, 224, 224)], source="a file")
    assert torch.equal(net.head.weight, alexnet_state["classifier.6.weight"])


def test_another_image_size_or_model_is_refused_before_anything_is_built(monkeypatch, alexnet_state):
    monkeypatch.setattr(module, "build_model", None)
    with pytest.raises(ConfigError, match="image_size=64: TorchVision's linear layers fit image_size=224 alone"):
        from_torchvision("alexnet", alexnet_state, [], image_size=64, source="a file")
    with pytest.raises(ConfigError, match="unknown model 'imagenet/resnet18'"):
        from_torchvision("resnet18", alexnet_state, [], source="a file")


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.fixture(scope="module")
def meta_alexnet():
    """Shapes without memory: enough where nothing may be copied."""
    with torch.device("meta"):
        return build_model("imagenet/alexnet")


def light(arch):
    """A state of the recorded shapes that takes no memory."""
    return {name: torch.zeros(()).expand(shape) for name, shape in SHAPES[arch].items()}


def refusal(net, state, error=CheckpointError):
    with pytest.raises(error) as caught:
        load_torchvision_weights_(net, state, source="file.pth")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("arch", list(SHAPES))
def test_a_missing_and_a_strange_name_are_named(meta_alexnet, arch):
    state = light(arch)
    del state["classifier.6.bias"]
    state["classifier.9.weight"] = torch.zeros(1)
    assert refusal(meta_alexnet, state) == (
        f"file.pth holds none of TorchVision's alexnet, vgg16, vgg16_bn; {arch} is closest (missing: classifier.6.bias; "
        "not expected: classifier.9.weight); give the state dict of one of them"
    )


def test_a_foreign_state_is_refused_with_a_few_of_its_names(meta_alexnet):
    state = {f"layer1.{i}.conv1.weight": torch.zeros(1) for i in range(300)}
    message = refusal(meta_alexnet, state)
    assert "alexnet is closest (missing: features.0.weight, " in message
    assert " and 11 more; not expected: layer1.0.conv1.weight, " in message
    assert "layer1.4.conv1.weight and 295 more)" in message
    assert "missing: features.0.weight" in refusal(meta_alexnet, {})


def test_another_shape_is_named(meta_alexnet):
    state = light("alexnet")
    state["features.3.weight"] = torch.zeros(()).expand(192, 64, 3, 3)
    state["classifier.1.bias"] = torch.zeros(4095)
    assert refusal(meta_alexnet, state) == (
        "file.pth does not fit the network (of another shape: features.3.weight [192, 64, 3, 3] instead of [192, 64, 5, 5], "
        "classifier.1.bias [4095] instead of [4096]); build it with in_channels=3 and image_size=224, or fetch the default "
        "weights"
    )


def test_a_network_for_other_images_is_refused_with_the_size_to_use():
    with torch.device("meta"):
        net = build_model("imagenet/alexnet", image_size=160)
    message = refusal(net, light("alexnet"))
    assert "classifier.1.weight [4096, 9216] instead of [4096, 4096]); build it with" in message
    assert "image_size=224" in message


def test_values_that_are_not_finite_are_refused(meta_alexnet):
    state = light("alexnet")
    state["classifier.4.bias"] = torch.full((4096,), torch.nan)
    assert "(not finite: classifier.4.bias, 4096 of 4096 values)" in refusal(meta_alexnet, state)


def test_a_network_of_another_architecture_is_refused_and_unchanged(meta_alexnet):
    message = refusal(meta_alexnet, light("vgg16_bn"), ConfigError)
    assert message == (
        "file.pth holds TorchVision's vgg16_bn, which starts the float imagenet/vgg16 and no other; build imagenet/vgg16"
    )
    net = build_model("cifar10/resnet20")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert "starts the float imagenet/alexnet" in refusal(net, light("alexnet"), ConfigError)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_file_without_counters_of_batches_is_taken():
    with torch.device("meta"):
        net = build_model("imagenet/vgg16")
    state = {name: tensor for name, tensor in light("vgg16_bn").items() if not name.endswith("num_batches_tracked")}
    table = load_torchvision_weights_(net, state, source="file.pth")
    new = [row.ours for row in table if row.what == "new: starts as the identity" and row.ours.startswith("features")]
    assert new == [f"features.{i}.norm.num_batches_tracked" for i in range(13)]


# ------------------------------------------------------------------------------------------------------ torchvision_state


def fake_torchvision(monkeypatch, get_model):
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torchvision.models"].get_model = get_model


def test_the_default_weights_are_asked_for(monkeypatch):
    layer = nn.Linear(2, 3)
    asked = []
    fake_torchvision(monkeypatch, lambda *args, **options: asked.append((args, options)) or layer)
    assert torch.equal(torchvision_state("vgg16_bn")["weight"], layer.weight)
    assert asked == [(("vgg16_bn",), {"weights": "DEFAULT"})]


@pytest.mark.parametrize("error", [URLError("no route"), OSError("no route"), RuntimeError("no route\nto the host")])
def test_a_failing_download_is_one_line_with_the_remedy(monkeypatch, error):
    def get_model(*_args, **_options):
        raise error

    fake_torchvision(monkeypatch, get_model)
    with pytest.raises(CheckpointError, match=r"^TorchVision's vgg16 could not be fetched \(.*no route.*FILE$") as caught:
        torchvision_state("vgg16")
    assert "\n" not in str(caught.value)
    assert "give that file: pretrained=FILE" in str(caught.value)


def test_without_torchvision_the_message_says_how_to_do(monkeypatch):
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError) as caught:
        torchvision_state("alexnet")
    assert str(caught.value) == (
        "fetching TorchVision's alexnet (a state dict that was downloaded elsewhere: pretrained=FILE) "
        "needs the package torchvision: pip install 'nbsnn[torchvision]'"
    )


def test_an_unknown_architecture_is_refused_with_close_matches():
    for call in (torchvision_state, differences):
        with pytest.raises(ConfigError, match=r"unknown TorchVision architecture 'vgg16-bn'; did you mean vgg16_bn"):
            call("vgg16-bn")
