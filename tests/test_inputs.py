"""What may be passed in as images, labels and loaders: it works, or one line says what to give, and doing that works."""

import re

import numpy as np
import pytest
import torch
from nets import small_quantized
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nbsnn
from nbsnn.errors import ConfigError, LoweringError, NbsnnError, QuantizationError
from nbsnn.evaluation.classify import classify
from nbsnn.inputs import as_images

MEAN, STD = (0.5, 0.5), (0.1, 0.1)  # normalised pixels reach from -5 to 5


@pytest.fixture(scope="module")
def forms():
    """A small network: float, quantized, spiking, integer."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )  # fmt: skip
    images = torch.randn(8, 2, 6, 6)
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(2, 2), images=images).eval()
    return {
        "float": net.eval(),
        "quantized": quantized,
        "spiking": nbsnn.to_spiking(quantized, images),
        "integer": nbsnn.lower(quantized, images, mean=MEAN, std=STD),
    }


TAKERS = {
    "quantize": lambda f, x: nbsnn.quantize(f["float"], nbsnn.QuantSpec(2, 2), images=x),
    "to_spiking": lambda f, x: nbsnn.to_spiking(f["quantized"], x),
    "lower": lambda f, x: nbsnn.lower(f["quantized"], x),
    "a spiking network": lambda f, x: f["spiking"](x),
    "an integer network": lambda f, x: f["integer"].run(x),
    "counts": lambda f, x: f["integer"].counts(x),
    "measure_fidelity": lambda f, x: nbsnn.measure_fidelity(f["quantized"], f["spiking"], x),
    "measure_integer_fidelity": lambda f, x: nbsnn.measure_integer_fidelity(f["quantized"], f["integer"], x),
}
FLOATS = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(1))
BYTES = torch.randint(0, 256, (6, 2, 6, 6), dtype=torch.uint8)
LABELS = torch.arange(6) % 3
SET = nbsnn.ImageSet(BYTES, LABELS, MEAN, STD, ("a", "b", "c"))
WRONG = {
    "a DataLoader": DataLoader(TensorDataset(FLOATS, LABELS), 3),
    "a list of batches with labels": [(FLOATS[:3], LABELS[:3]), (FLOATS[3:], LABELS[3:])],
    "one batch with labels": (FLOATS, LABELS),
    "a list of images": list(FLOATS),
    "a list of batches": [FLOATS[:3], FLOATS[3:]],
    "Batches": nbsnn.Batches(SET, 3),
    "an image set": SET,
    "an array": FLOATS.numpy(),
    "an array of doubles": FLOATS.double().numpy(),
    "a list of arrays": list(FLOATS.numpy()),
    "nested lists": FLOATS.tolist(),
    "one image": FLOATS[0],
    "sparse": FLOATS.to_sparse(),
}


def follow(line, images):
    """What the remedy of a refusal gives: the code behind the last colon, with `images` for the argument."""
    code = line.rpartition(": ")[2].split(", grey")[0].removeprefix("one image as ")
    return eval(code, {"torch": torch, "images": images, "example": images, "mean": 0.5, "std": 0.1})


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("taker", TAKERS)
def test_what_is_not_a_batch_is_refused_and_the_remedy_works(forms, taker, wrong):
    given = WRONG[wrong]
    if taker == "quantize" and wrong in ("a DataLoader", "a list of batches with labels", "a list of batches", "Batches"):
        TAKERS[taker](forms, given)  # it reads them all
        return
    with pytest.raises(NbsnnError, match=r"^(images|example) (is an? |has shape )") as caught:
        TAKERS[taker](forms, given)
    assert "\n" not in str(caught.value)
    good = follow(str(caught.value), given)
    if taker == "quantize" and len(good) < 2:
        good = torch.cat([good, -good])
    TAKERS[taker](forms, good)


@pytest.mark.parametrize("taker", TAKERS)
def test_other_types_of_tensor_work_or_are_refused_by_name(forms, taker):
    for fine in (FLOATS.double(), FLOATS.half(), FLOATS.clone().requires_grad_(), FLOATS.to(memory_format=torch.channels_last)):
        TAKERS[taker](forms, fine)
    if "integer network" in taker or taker == "counts":
        TAKERS[taker](forms, BYTES)
    else:
        with pytest.raises(NbsnnError, match=r"has 8-bit pixels; give floats, normalized as in training: ") as caught:
            TAKERS[taker](forms, BYTES)
        TAKERS[taker](forms, follow(str(caught.value), BYTES))
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(NbsnnError, match=rf"has type {dtype}; give floats, normalized as in training"):
            TAKERS[taker](forms, FLOATS.to(dtype))
    for empty in (FLOATS[:0], FLOATS[..., :0]):
        with pytest.raises(NbsnnError, match=r"has shape \[.*\b0.*\]; give "):
            TAKERS[taker](forms, empty)
    for nothing in (None, "cat.png", {"images": FLOATS}, 3):
        if taker != "quantize" or nothing is not None:  # which calibrates with nothing then
            with pytest.raises(NbsnnError, match=r"^(images|example) is .*; give a tensor \[B, C, H, W\]$"):
                TAKERS[taker](forms, nothing)


@pytest.mark.parametrize("taker", TAKERS)
def test_values_that_are_not_finite_are_counted(forms, taker):
    images = FLOATS.clone()
    images[0, 1, 2, 3], images[0, 0, 0, 0] = torch.nan, torch.inf
    with pytest.raises(NbsnnError, match=r"^\w+: 2 of 432 values are not finite .* in 1 of 6 images, first at index 0; leave"):
        TAKERS[taker](forms, images)


def test_the_refusal_has_the_class_that_the_function_documents(forms):
    with pytest.raises(QuantizationError, match=r"^images has shape \[1, 2, 6, 6\]; give at least 2 images, \[B, C, H, W\]$"):
        TAKERS["quantize"](forms, FLOATS[:1])
    with pytest.raises(
        LoweringError, match=r"^images is a list of 6 Tensors; give a tensor \[B, C, H, W\]: torch.stack\(images\)$"
    ):
        TAKERS["an integer network"](forms, list(FLOATS))


def test_a_network_without_layers_for_planes_takes_vectors():
    net = nn.Sequential(nn.Linear(5, 3))
    assert as_images(torch.zeros(2, 5), network=net).shape == (2, 5)
    with pytest.raises(ConfigError, match=r"^images has shape \[5\]; give a batch \[B, C, H, W\] or \[B, C, L\] or \[B, F\]: "):
        as_images(torch.zeros(5), network=net)


# -------------------------------------------------------------------------------------------------------------- loaders


@pytest.mark.parametrize("form", ["float", "quantized", "spiking", "integer"])
def test_evaluate_takes_any_batches_of_images_and_labels(forms, form):
    pairs = [(FLOATS[:4], LABELS[:4]), (FLOATS[4:].double(), LABELS[4:].to(torch.uint8))]
    for loader in (pairs, tuple(pairs), iter(pairs), DataLoader(TensorDataset(FLOATS, LABELS), 4), nbsnn.Batches(SET, 4)):
        assert nbsnn.evaluate(forms[form], loader).images == 6
    if form == "integer":
        assert nbsnn.evaluate(forms[form], [(BYTES, LABELS)]).images == 6


LOADERS = {
    "images alone": (FLOATS, "loader is a Tensor; give batches (images, labels): a DataLoader, a list of pairs, or "),
    "one batch": ((FLOATS, LABELS), "loader is one batch, a tuple of tensors; give a list of batches: [loader]"),
    "an image set": (SET, "loader is an ImageSet; give batches .* or nbsnn.Batches(loader, 100) of an image set"),
    "a data set of torch": (TensorDataset(FLOATS, LABELS), "loader is a TensorDataset; give batches (images, labels)"),
    "batches without labels": ([FLOATS], "a batch of loader is a Tensor; give batches (images, labels)"),
    "batches of three": ([(FLOATS, LABELS, LABELS)], "a batch of loader is a tuple of 3 Tensors; give batches"),
    "batches as dictionaries": ([{"image": FLOATS}], "a batch of loader is a dict; give batches (images, labels)"),
    "pixels": ([(BYTES, LABELS)], "images has 8-bit pixels; give floats, normalized as in training"),
    "arrays": ([(FLOATS.numpy(), LABELS)], "images is a numpy array of float32; give a tensor [B, C, H, W]"),
    "labels in a list": ([(FLOATS, LABELS.tolist())], "labels of the loader is a list of 6 ints; give a tensor [6]"),
    "one-hot labels": ([(FLOATS, torch.eye(3)[LABELS])], "labels of the loader has type torch.float32; give class numbers"),
    "labels of another batch": ([(FLOATS, LABELS[:5])], "labels of the loader has shape [5] for 6 images; give one class"),
    "a label of 99": (
        [(FLOATS, torch.tensor([0, 1, 99, 0, 1, 2]))],
        "labels of the loader[2] is 99; give class numbers 0 to 2",
    ),
    "a label of -1": ([(FLOATS, LABELS - 1)], "labels of the loader[0] is -1; give class numbers 0 to 2"),
    "None": (None, "loader is None; give batches (images, labels)"),
}


@pytest.mark.parametrize("case", LOADERS)
def test_what_evaluate_cannot_take_is_named(forms, case):
    loader, line = LOADERS[case]
    pattern = re.escape(line).replace(r"\.\*", ".*")
    with pytest.raises(ConfigError, match=f"^{pattern}") as caught:
        nbsnn.evaluate(forms["quantized"], loader)
    assert "\n" not in str(caught.value)


def test_images_that_a_network_does_not_run_on_are_named_by_their_shape(forms):
    wrong, pattern = FLOATS[:, :1], r"^the network does not run on images of shape \[\d, 1, 6, 6\]: .* to have 2 channels"
    for form in ("float", "quantized"):
        with pytest.raises(ConfigError, match=pattern):
            nbsnn.evaluate(forms[form], [(wrong, LABELS)])
    for run in (forms["spiking"], lambda x: nbsnn.evaluate(forms["spiking"], [(x, LABELS)])):
        with pytest.raises(ConfigError, match=r"^images has shape \[6, 1, 6, 6\]; the network takes \[B, 2, H, W\]$"):
            run(wrong)
    with pytest.raises(ConfigError, match=pattern):
        nbsnn.measure_fidelity(forms["quantized"], forms["spiking"], wrong)
    with pytest.raises(ConfigError, match=pattern):
        nbsnn.measure_integer_fidelity(forms["quantized"], forms["integer"], wrong)


def test_networks_of_another_form_are_named(forms):
    quantized, integer = forms["quantized"], forms["integer"]
    with pytest.raises(ConfigError, match=r"^model is None; give a network: float, quantized, spiking or integer$"):
        nbsnn.evaluate(None, [(FLOATS, LABELS)])
    with pytest.raises(ConfigError, match=r"^spiking is a Sequential; give the result of nbsnn.to_spiking\("):
        nbsnn.measure_fidelity(quantized, quantized, FLOATS)
    with pytest.raises(ConfigError, match=r"^network is a SpikingNetwork; give the result of nbsnn.lower\("):
        nbsnn.measure_integer_fidelity(quantized, forms["spiking"], FLOATS)
    with pytest.raises(ConfigError, match=r"^quantized is an IntegerNetwork; give the result of nbsnn.quantize$"):
        nbsnn.measure_integer_fidelity(integer, integer, FLOATS)


@pytest.mark.parametrize("wrong", [None, FLOATS, [(FLOATS, LABELS)], DataLoader(TensorDataset(FLOATS, LABELS))], ids=type)
def test_finetune_classify_and_train_take_image_sets(forms, wrong, tmp_path):
    line = r"^%s is (None|an? \w+); give an image set: nbsnn.ImageSet\(images, labels, mean, std, classes\) of all images, or"
    with pytest.raises(ConfigError, match=line % "finetune: train"):
        nbsnn.finetune(forms["quantized"], wrong, SET)
    with pytest.raises(ConfigError, match=line % "finetune: held_out"):
        nbsnn.finetune(forms["quantized"], SET, wrong)
    with pytest.raises(ConfigError, match=line % "photographs"):
        classify(forms["integer"], wrong)
    if wrong is not None:
        with pytest.raises(ConfigError, match=r"^splits is a \w+[\w ]*; give nbsnn.Splits\(train, validation, test\)$"):
            next(nbsnn.train(nbsnn.load_recipe("digits/resnet20"), tmp_path / "run", splits=wrong))


def test_labels_for_fidelity_are_checked_before_any_work(forms):
    with pytest.raises(ConfigError, match=r"^labels has shape \[5\] for 6 images; give one class number for each, \[6\]$"):
        nbsnn.measure_fidelity(forms["quantized"], forms["spiking"], FLOATS, labels=LABELS[:5])
    with pytest.raises(ConfigError, match=r"^labels is a list of 6 ints; .*: torch\.as_tensor\(labels\)$"):
        nbsnn.measure_integer_fidelity(forms["quantized"], forms["integer"], FLOATS, labels=LABELS.tolist())


@pytest.mark.parametrize("mean", [(0.5,), (0.5, float("nan")), (0.5, "0.5"), 0.5, (0.5, True)])
def test_lower_refuses_a_mean_that_does_not_fit(forms, mean):
    with pytest.raises(ConfigError, match=r"^mean(=.*: give 2 numbers, one for each channel| holds .*; give finite numbers)"):
        nbsnn.lower(forms["quantized"], FLOATS, mean=mean, std=STD)
    with pytest.raises(ConfigError, match=r"^std holds 0.0; give positive finite numbers, of pixels scaled to 0..1$"):
        nbsnn.lower(forms["quantized"], FLOATS, mean=MEAN, std=(0.1, 0.0))


# ------------------------------------------------------------------------------------------------- networks and settings

NETWORKS = {
    "fidelity of a float network": (lambda f: fidelity(f["float"], f), "no quantized activation"),
    "of the spiking one itself": (lambda f: fidelity(f["spiking"], f), "no quantized activation"),
    "of another network": (lambda f: fidelity(other(f), f), "2 has 3 levels, and 7 levels"),
    "counts of a float network": (lambda f: counts(f["float"], f), "no quantized activation"),
    "counts of another one": (lambda f: counts(other(f), f), "2 has 3 levels, and 7 levels"),
    "synops of spikes": (lambda f: nbsnn.count_synops(f["spiking"], FLOATS), "is a SpikingNetwork; give .*nbsnn.lower"),
    "an integer network saved": (lambda f: nbsnn.save_checkpoint("x", f["integer"]), r"an IntegerN.*\.save\(path\)"),
    "bits of an integer network": (lambda f: nbsnn.set_bits_(f["integer"], act_bits=3), "quantized is an IntegerNetwork"),
    "bits in the place of a spec": (lambda f: nbsnn.quantize(f["float"], 2), r"spec is an int; give nbsnn.QuantSpec\("),
    "no bits": (lambda f: nbsnn.QuantSpec(2, None), "act_bits=None: choose one of"),
    "a name that is a number": (lambda f: nbsnn.QuantSpec(2, 2, skip=(3,)), "QuantSpec.skip holds 3; give names"),
    "a name that no layer has": (lambda f: nbsnn.set_bits_(other(f), act_bits=3, only=("2", "9")), "only: unknown layer '9'"),
}  # fmt: skip


def quantized(forms, bits=2, **settings):
    return nbsnn.quantize(forms["float"], nbsnn.QuantSpec(bits, bits), **settings)


def other(forms):
    return quantized(forms, 3, images=FLOATS)


def fidelity(network, forms):
    return nbsnn.measure_fidelity(network, forms["spiking"], FLOATS)


def counts(network, forms):
    return nbsnn.measure_integer_fidelity(network, forms["integer"], FLOATS)


@pytest.mark.parametrize(("call", "message"), NETWORKS.values(), ids=NETWORKS.keys())
def test_a_network_or_setting_of_another_kind_is_refused_in_one_line(forms, call, message):
    """A comparison of nothing would say that nothing differs."""
    with pytest.raises(NbsnnError, match=f"^.*{message}.*$"):
        call(forms)


def test_a_pattern_given_as_text_is_one_pattern(forms):
    """Not one for each of its characters, among which * would be every layer."""
    assert nbsnn.QuantSpec(2, 2, skip="5").skip == nbsnn.QuantSpec(2, 2, skip=["5"]).skip == ("5",)
    network = nbsnn.set_bits_(quantized(forms, example=FLOATS[:1]), act_bits=3, only="2*")
    assert network[2].bits == 3
    with pytest.raises(QuantizationError, match=r"^only: unknown layer 'stage\*'"):
        nbsnn.set_bits_(network, act_bits=4, only="stage*")


WRONG_TYPES = {
    "a network as a path": (lambda q: nbsnn.load_checkpoint(q), r"^path is a \w+; give a text or a path$"),
    "a number as a path": (lambda q: nbsnn.save_checkpoint(3, q), "^path is an int; give a text or a path$"),
    "an array as a schedule": (
        lambda q: nbsnn.to_spiking(q, torch.zeros(1, 2, 6, 6), schedule=np.zeros(2)),
        "^schedule is a numpy array of float64; give a text$",
    ),
    "a list as a name": (lambda q: nbsnn.build_model(["cifar10/resnet20"]), "^name is a list of 1 strs; give a text$"),
    "a class as a number": (
        lambda q: nbsnn.build_model("res20", num_classes=int),
        "is the class int; give an integer",
    ),
    "a bool as a number": (lambda q: nbsnn.build_model("res20", num_classes=True), "^num_classes is a bool; give an integer"),
    "no classes": (lambda q: nbsnn.build_model("res20", num_classes=0), "^num_classes=0: must be an integer"),
    "a text as a recipe": (
        lambda q: nbsnn.save_checkpoint("a.safetensors", q, recipe="r"),
        r"is a str; give nbsnn.Recipe\(model, phase\)$",
    ),
    "a list as metrics": (lambda q: nbsnn.save_checkpoint("a.safetensors", q, metrics=[1]), "; give a dictionary$"),
    "a number to call": (lambda q: nbsnn.evaluate(q, [], progress=3), "^progress is an int; give a function$"),
    "a path to pack": (
        lambda q: nbsnn.save_packed("a.safetensors", "q"),
        "is a str; give the result of nbsnn",
    ),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_an_argument_of_another_type_is_one_line(name):
    call, said = WRONG_TYPES[name]
    with pytest.raises(ConfigError, match=said):
        call(small_quantized())


def test_numbers_of_numpy_and_paths_of_any_kind_are_taken(tmp_path):
    class Entry:
        def __fspath__(self):
            return str(tmp_path / "a.safetensors")

    nbsnn.save_checkpoint(Entry(), nbsnn.build_model("res20", num_classes=np.int64(3)))
    assert nbsnn.load_checkpoint(Entry()).model_spec.num_classes == 3
    with pytest.raises(TypeError, match=r"build_model\(\) got an unexpected keyword argument 'classes'"):
        nbsnn.build_model("res20", classes=3)
