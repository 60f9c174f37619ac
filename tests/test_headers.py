"""Headers and tensors that no version of the package wrote: each is refused in one line, before anything is allocated."""

import json
import time
import zipfile

import pytest
import torch
from forging import forge, reforge
from nets import SmallNet, small_quantized

import nbsnn
from nbsnn.errors import CheckpointError, ConfigError
from nbsnn.export.packed import save_packed
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import read_tensors

IMAGE = torch.zeros(1, 2, 6, 6)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """One file of each form."""
    folder = tmp_path_factory.mktemp("written")
    quantized = small_quantized(3)
    recipe = load_recipe("digits/resnet20")
    nbsnn.save_checkpoint(folder / "float.safetensors", SmallNet(), recipe=recipe)
    nbsnn.save_checkpoint(folder / "quantized.safetensors", quantized, recipe=recipe, metrics={"top1": 90.5})
    nbsnn.save_checkpoint(folder / "spiking.safetensors", nbsnn.to_spiking(quantized, IMAGE))
    nbsnn.save_checkpoint(folder / "registered.safetensors", nbsnn.build_model("cifar10/resnet20"))
    save_packed(folder / "packed.safetensors", quantized)
    return folder


def refusal(written, tmp_path, name, change, suffix=".safetensors"):
    """What loading says of a file whose header and tensors `change` edited, its hash made anew."""
    header, tensors = read_tensors(written / f"{name}.safetensors")
    edited = change(header, tensors)
    path = forge(tmp_path / f"a{suffix}", header if edited is None else edited, tensors)
    with pytest.raises(CheckpointError) as caught:
        nbsnn.load_checkpoint(path, model=None if header["model"] else SmallNet())
    said = str(caught.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    assert len(said) < 600
    return said.removeprefix(str(path))


def setting(path, value):
    """An edit that sets a field of the header, "plan.conv1.bits", or leaves it out (...)."""
    *place, last = path.split(".")

    def change(header, tensors):
        table = header
        for part in place:
            table = table[part]
        if value is ...:
            del table[last]
        else:
            table[last] = value

    return change


FIELDS = {  # case 20, and others of its kind
    "quantized": [
        ("form", "zzz", "form=zzz must be float or quantized or spiking"),
        ("form", "float", "form=float does not go with a plan"),
        ("form", "spiking", "form=spiking does not go with spiking=None"),
        ("form", ["quantized"], "form=['quantized'] must be float or quantized or spiking"),
        ("format", 1.0, "format=1.0 must be an integer"),
        ("format", True, "format=True must be"),
        ("format", "1", "format=1 must be"),
        ("format", 0, "format=0 must be"),
        ("format", ..., "format is missing"),
        ("plan", ..., "plan is missing"),
        ("plan", [], "plan=[] must be a table"),
        ("plan", {}, "form=quantized does not go with a plan of 0"),
        ("plan.conv1.bits", -3, "plan.conv1.bits=-3 must be an integer from 1 to 8"),
        ("plan.conv1.bits", 60, "plan.conv1.bits=60 must be"),
        ("plan.conv1.bits", 3.0, "plan.conv1.bits=3.0 must be"),
        ("plan.conv1.bits", True, "plan.conv1.bits=True must be"),
        ("plan.conv1.bits", ..., "plan.conv1.bits is missing"),
        ("plan.conv1.bits", 3, "conv1: edge_bits=3: choose one of 8"),
        ("plan.conv2.bits", 7, "conv2: weight_bits=7: choose one of 2, 3, 4, 5"),
        ("plan.conv1.edge_range", "min", "plan.conv1.edge_range=min must be max_abs or max"),
        ("plan.conv1.fixed", 1, "plan.conv1.fixed=1 must be true or false"),
        ("plan.act1.fixed", True, "an activation has neither"),
        ("plan.conv1.colour", "red", "plan.conv1.colour is unknown"),
        ("plan.conv1", None, "plan.conv1=None must be a table"),
        ("plan.conv9", {"bits": 3}, "unknown layer 'conv9'; did you mean"),
        ("plan.act1\n", {"bits": 3}, "a name in plan=act1\\n must be text"),
        ("spiking", {}, "spiking.neuron is missing"),
        ("model", {"name": "x"}, "model.num_classes is missing"),
        ("recipe", [], "recipe: recipe=[]: must be a table"),
        ("recipe.phase.2.epochs", 10**30, "recipe: phase.2.epochs=1000000000000000000000000000000: must be"),
        ("recipe.optim.lr_gamma", "nan", "recipe: optim.lr_gamma=nan: must be a finite number"),
        ("recipe.colour", 1, "recipe: unknown key 'colour'"),
        ("recipe_hash", 7, "recipe_hash=7 must be text"),
        ("seed", -1, "seed=-1 must be an integer"),
        ("seed", 2**64, "seed=18446744073709551616 must be"),
        ("metrics", None, "metrics=None must be a table"),
        ("metrics", {"a": "\x1b[2J"}, "metrics.a=\\x1b[2J must be text"),
        ("metrics", {"a": "\ud800"}, "metrics.a=\\ud800 must be text"),
        ("versions", {"torch": 2}, "versions.torch=2 must be text"),
        ("packed", 1, "packed=1 must be true or false"),
        ("packed", True, "does not fit the network"),
        ("colour", "red", "colour is unknown; restore the file from a copy, or upgrade nbsnn if a newer version wrote it"),
    ],
    "float": [
        ("plan", {"conv1": {"bits": 3}}, "form=float does not go with a plan of 1"),
    ],
    "spiking": [
        ("spiking.timesteps", 15, "spiking.timesteps=15, but the bits of its layers make T = 7"),
        ("spiking.timesteps", 0, "spiking.timesteps=0 must be"),
        ("spiking.neuron", "negative", "spiking.neuron=negative must be signed or unsigned"),
        ("spiking.schedule", "seattle", "unknown schedule 'seattle'; did you mean settle"),
        ("spiking.schedule", "barrier", "does not go with schedule='barrier'"),
        ("spiking.schedule", None, "spiking.schedule=None must be text"),
        ("spiking.image_shape", [10**6, 10**6, 3], "spiking.image_shape.0=1000000 must be an integer"),
        ("spiking.image_shape", [10**4, 10**4, 3], "spiking.image_shape=[10000, 10000, 3] must be of 4194304 values at most"),
        ("spiking.image_shape", [2, 6], "does not fit the network"),
        ("spiking.image_shape", [3, 6, 6], "does not fit the network"),
        ("spiking.image_shape", [], "spiking.image_shape=[] must be a list"),
        ("spiking.image_shape", [2, 6.0, 6], "spiking.image_shape.1=6.0 must be an integer"),
    ],
    "packed": [
        ("plan.conv2.fixed", False, "conv2 holds codes, but its plan does not say that its weight is fixed"),
        ("plan.conv2.bits", 4, "do not hold 270 codes of 4 bits"),
        ("form", "float", "form=float does not go with a plan"),
    ],
    "registered": [
        ("model.name", "cifar10/resnet21", "unknown model 'cifar10/resnet21'; did you mean cifar10/resnet32, cifar10/resnet20"),
        ("model.name", "../../x", "unknown model '../../x'"),
        ("model.name", "cifar10/vgg11", "missing features.0.conv.weight"),
        ("model.num_classes", 10**9, "model.num_classes=1000000000 must be an integer from 1 to 1048576"),
        ("model.num_classes", 10**6, "head.weight has shape [10, 64] instead of [1000000, 64]"),
        ("model.num_classes", 0, "model.num_classes=0 must be"),
        ("model.in_channels", -3, "model.in_channels=-3 must be"),
        ("model.image_size", 10**6, "model.image_size=1000000 must be"),
        ("model.colour", 1, "model.colour is unknown"),
    ],
}  # fmt: skip
EDITS = [pytest.param(form, field, value, said, id=f"{form} {field}={str(value)[:20]!a}")
         for form, edits in FIELDS.items() for field, value, said in edits]  # fmt: skip


@pytest.mark.parametrize(("form", "field", "value", "said"), EDITS)
def test_a_field_that_cannot_be_is_refused_by_name(written, tmp_path, form, field, value, said):
    began = time.perf_counter()
    assert said in refusal(written, tmp_path, form, setting(field, value))
    assert time.perf_counter() - began < 5


TEXTS = {
    "Infinity": ('{"format": Infinity}', "Infinity is not a finite number"),
    "an infinity in disguise": ('{"format": 1e999}', "1e999 is not a finite number"),
    "NaN": ('{"format": 1, "seed": NaN}', "NaN is not a finite number"),
    "100,000 brackets": ("[" * 100_000, "tables or lists in more than 16 others"),
    "100,000 brackets, closed": ('{"format": ' + "[" * 100_000 + "]" * 100_000 + "}", "tables or lists in more than 16 others"),
    "100,000 tables": ('{"a":' * 100_000, "tables or lists in more than 16 others"),
    "a number of 5,000 digits": ('{"format": ' + "9" * 5000 + "}", "an integer of 5000 digits"),
    "a key given twice": ('{"format": 1, "form": "float", "form": "quantized"}', "form is given twice"),
    "no JSON": ("{'format': 1}", "not JSON"),
    "no table": ('"format"', "a str instead of a table"),
    "nothing": ("", "not JSON"),
    "9 million characters": (" " * 9_000_000, "9000000 characters"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth.tar"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_header_that_is_no_plain_table_is_refused(written, tmp_path, name, suffix):
    text, said = TEXTS[name]
    assert said in refusal(written, tmp_path, "float", lambda header, tensors: text, suffix)


def test_metrics_in_many_tables_are_refused(written, tmp_path):
    deep = json.loads('{"a":' * 100 + "1" + "}" * 100)
    assert "in more than 16 others" in refusal(written, tmp_path, "float", setting("metrics", deep))


TENSORS = {  # case 20, and others of its kind: form, tensor, change (None: left out), what is said
    "int8 weights": ("float", "conv1.weight", lambda t: t.to(torch.int8), "conv1.weight is int8 instead of float32"),
    "bool weights": ("float", "conv1.weight", lambda t: t > 0, "conv1.weight is bool instead of float32"),
    "float8 weights": ("float", "conv1.weight", lambda t: t.to(torch.float8_e4m3fn), "conv1.weight is float8_e4m3fn"),
    "complex weights": ("float", "conv1.weight", lambda t: t + 0j, "conv1.weight is complex64 instead of float32"),
    "one layer in half": ("float", "conv1.weight", torch.Tensor.half, "conv1.weight is float16 instead of float32 (floating "),
    "counts in float": ("float", "norm1.num_batches_tracked", torch.Tensor.float, "num_batches_tracked is float32"),
    "a weight to broadcast": ("float", "conv1.weight", lambda t: t[:1, :1, :1, :1].clone(), "conv1.weight has shape [1, 1,"),
    "a scalar bias": ("float", "head.bias", lambda t: t[0].clone(), "head.bias has shape []"),
    "an empty weight": ("float", "conv1.weight", lambda t: t[:0].clone(), "conv1.weight has shape [0,"),
    "negative variance": ("float", "norm1.running_var", lambda t: t * 0 - 1, "norm1.running_var is negative"),
    "a threshold too many": ("quantized", "act1.threshold", lambda t: t.expand(3).clone(), "act1.threshold has shape [3]"),
    "a missing tensor": ("quantized", "act1.threshold", None, "missing act1.threshold"),
    "codes of another length": ("packed", "conv2.weight.codes", lambda t: t[:-1].clone(), "conv2: "),
    "codes of another shape": ("packed", "conv2.weight.codes", lambda t: t[None].clone(), "conv2: "),
    "codes in int64": ("packed", "conv2.weight.codes", torch.Tensor.long, "conv2: "),
    "no codes": ("packed", "conv2.weight.codes", None, "missing conv2.weight.codes"),
    "a step per row": ("packed", "conv1.weight.step", lambda t: t.expand(5, 1, 1, 1).clone(), "conv1.weight.step is not one"),
    "an endless step": ("packed", "conv1.weight.step", lambda t: t / 0, "conv1: conv1.weight.step is not one"),
    "a whole step": ("packed", "conv1.weight.step", torch.Tensor.long, "conv1: conv1.weight.step is not one"),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_cannot_be_is_refused_by_name(written, tmp_path, name):
    form, key, change, said = TENSORS[name]

    def edit(header, tensors):
        tensor = tensors.pop(key)
        if change is not None:
            tensors[key] = change(tensor)

    assert said in refusal(written, tmp_path, form, edit)


@pytest.mark.parametrize("value", [3, "x", None, [torch.ones(2)], torch.ones(2).to_sparse(), torch.ones(2, device="meta")])
def test_what_is_no_plain_tensor_is_refused(written, tmp_path, value):
    def change(header, tensors):
        tensors["conv1.weight"] = value

    assert "conv1.weight" in refusal(written, tmp_path, "float", change, ".pth.tar")


def test_a_view_that_repeats_a_few_numbers_is_refused(written, tmp_path):
    def change(header, tensors):
        tensors["conv1.weight"] = torch.ones(1).expand(10**10)
        header.pop("content_hash")  # which would need all of it

    said = refusal(written, tmp_path, "float", change, ".pth.tar")
    assert "conv1.weight is no plain tensor" in said


def test_views_of_one_storage_are_refused(written, tmp_path):
    def change(header, tensors):
        storage = torch.ones(2**20)
        tensors.update({f"view {index}": storage for index in range(1000)})
        header.pop("content_hash")

    said = refusal(written, tmp_path, "float", change, ".pth.tar")
    assert "bytes of tensors in a file of" in said


def test_an_archive_that_swells_is_refused(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(2**22)}}, tmp_path / "plain.pth.tar")
    with zipfile.ZipFile(tmp_path / "plain.pth.tar") as plain, zipfile.ZipFile(tmp_path / "a.pth.tar", "w", 8) as packed:
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part))
    with pytest.raises(CheckpointError, match=r"would unpack to 16\d+ bytes; save it again with torch\.save"):
        nbsnn.load_reference_checkpoint(tmp_path / "a.pth.tar", "cifar10/resnet20", weight_bits=2, act_bits=2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: torch.ones(1).expand(10**9, 64), "head.weight is no plain tensor"),
        (lambda t: torch.ones(10, 64, device="meta"), "head.weight is no plain tensor"),
        (lambda t: t + 0j, "of another type: head.weight torch.complex64"),
        (lambda t: t.to(torch.int8), "of another type: head.weight torch.int8"),
    ],
)
def test_a_state_dict_of_others_with_what_is_no_weight_is_refused(tmp_path, change, said):
    state = dict(nbsnn.build_model("cifar10/resnet20").state_dict())
    state["head.weight"] = change(state["head.weight"])
    torch.save({"state_dict": state}, tmp_path / "a.pth.tar")
    with pytest.raises(CheckpointError) as caught:
        nbsnn.load_reference_checkpoint(tmp_path / "a.pth.tar", "cifar10/resnet20", weight_bits=32, act_bits=32)
    assert said in str(caught.value)


def test_names_with_control_characters_are_refused(written, tmp_path):
    def change(header, tensors):
        tensors["a\x1b[2Jb"] = torch.ones(1)

    assert r"a\x1b[2Jb" in refusal(written, tmp_path, "float", change)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_a_network_in_another_floating_type_comes_back_in_it(tmp_path, kind):
    net = small_quantized(3).to(kind)
    nbsnn.save_checkpoint(tmp_path / "a.safetensors", net)
    twin = nbsnn.load_checkpoint(tmp_path / "a.safetensors", model=SmallNet())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in twin.state_dict().items())
    assert twin.conv1.weight.dtype == kind


def test_an_own_network_of_several_types_comes_back_in_them(tmp_path):
    net = SmallNet().half()
    net.norm1.float()
    nbsnn.save_checkpoint(tmp_path / "a.safetensors", net)
    twin = nbsnn.load_checkpoint(tmp_path / "a.safetensors", model=net)
    assert all(value.dtype == net.state_dict()[key].dtype for key, value in twin.state_dict().items())


def test_fields_that_came_later_may_be_missing(written, tmp_path):
    header, tensors = read_tensors(written / "quantized.safetensors")
    header.pop("content_hash", None)
    for layer in header["plan"].values():
        layer.pop("fixed")
        if layer.get("edge_range", "") is None:
            layer.pop("edge_range")
    path = forge(tmp_path / "a.safetensors", header, tensors)
    with torch.no_grad():
        wanted = nbsnn.load_checkpoint(written / "quantized.safetensors", model=SmallNet())(IMAGE)
        assert torch.equal(nbsnn.load_checkpoint(path, model=SmallNet())(IMAGE), wanted)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"loss": float("nan")}, "NaN is not a finite number"),
        ({"loss": -float("inf")}, "-Infinity is not a finite number"),
        ({"loss": torch.ones(1)}, "Object of type Tensor is not JSON serializable"),
        ({"a\nb": 1}, r"a name in metrics=a\nb must be text"),
    ],
)
def test_what_no_reader_would_take_is_not_written(tmp_path, metrics, said):
    with pytest.raises(ConfigError) as caught:
        nbsnn.save_checkpoint(tmp_path / "a.safetensors", SmallNet(), metrics=metrics)
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_loading_leaves_the_random_numbers_alone(written):
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    nbsnn.load_checkpoint(written / "registered.safetensors")
    assert torch.equal(torch.rand(3), wanted)


def test_a_file_edited_in_place_with_its_hash_is_still_read(written, tmp_path):
    """The helper of these tests does not itself break files."""
    path = tmp_path / "a.safetensors"
    path.write_bytes((written / "packed.safetensors").read_bytes())
    reforge(path, lambda header, tensors: None)
    nbsnn.load_checkpoint(path, model=SmallNet())
