"""Results are measured in full float32, training runs in what is fast, and the settings of the process come back."""

import threading
import warnings

import pytest
import torch
from nets import SmallNet, digits_net, small_quantized

import nbsnn
from nbsnn import precision
from nbsnn.data.sets.digits import load_digits
from nbsnn.norms import match_norms_, recalibrate_norms_
from nbsnn.precision import convolutions_in_tf32, full_float32
from nbsnn.recipe import Phase
from nbsnn.training.execution import Execution
from nbsnn.training.finetune_spec import FinetuneSpec
from nbsnn.training.loop import fit

BACKENDS = torch.backends
NEWER = hasattr(BACKENDS.cudnn, "conv")  # torch 2.9


def settings():
    older = (BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision())
    return older, tuple(setting.fp32_precision for setting in precision._newer_settings())


FULL = (False, False, "highest"), ("ieee",) * 5 if NEWER else ()


@pytest.fixture(autouse=True)
def fast():
    """TF32 wherever it may be had, as a user would ask for it; the settings are left as they were."""
    before = settings()
    torch.set_float32_matmul_precision("medium")
    BACKENDS.cudnn.allow_tf32 = True
    yield settings()
    torch.set_float32_matmul_precision(before[0][2])
    BACKENDS.cudnn.allow_tf32 = before[0][0]
    for setting, value in zip(precision._newer_settings(), before[1], strict=True):
        setting.fp32_precision = value


def watch(network, seen):
    """Let the network's first convolution note the settings that it runs under, in this form and in those made of it."""
    network.conv1.register_forward_pre_hook(lambda module, args: seen.append((module.training, settings())))
    return network


@pytest.fixture
def images():
    return torch.randn(4, 2, 6, 6)


def test_the_settings_inside_and_after(fast):
    assert fast != FULL
    with full_float32():
        assert settings() == FULL
        with full_float32():
            assert settings() == FULL
        assert settings() == FULL
        assert not convolutions_in_tf32()
    assert settings() == fast
    assert convolutions_in_tf32()
    with pytest.raises(ZeroDivisionError), full_float32():
        _ = 1 / 0
    assert settings() == fast


def test_what_is_measured_or_converted_runs_in_full_float32(images, fast):
    seen = []
    quantized = watch(small_quantized(), seen)
    spiking, network = nbsnn.to_spiking(quantized, images[:1]), nbsnn.lower(quantized, images[:1])
    float_net = watch(SmallNet(), seen)
    uses = {
        "to_spiking": lambda: nbsnn.to_spiking(quantized, images[:1], schedule="settle"),
        "lower": lambda: nbsnn.lower(quantized, images[:1]),
        "spiking": lambda: spiking(images),
        "fidelity": lambda: nbsnn.measure_fidelity(quantized, spiking, images),
        "integer fidelity": lambda: nbsnn.measure_integer_fidelity(quantized, network, images),
        "evaluate": lambda: nbsnn.evaluate(quantized, [(images, torch.zeros(4, dtype=torch.int64))]),
        "quantize": lambda: nbsnn.quantize(float_net, nbsnn.QuantSpec(2, 2), images=images),
        "recalibrate_norms_": lambda: recalibrate_norms_(quantized, [images]),
        "match_norms_": lambda: match_norms_(float_net, [images]),
    }
    for name, use in uses.items():
        seen.clear()
        use()
        assert {flags for _, flags in seen} == {FULL}, name
        assert settings() == fast, name


def test_an_epoch_trains_in_what_is_fast_and_is_judged_in_full_float32(tmp_path, fast):
    pytest.importorskip("sklearn")
    splits = load_digits()
    few = nbsnn.Splits(splits.train.some(64), splits.validation.some(20), splits.test)
    seen = []
    recipe = nbsnn.load_recipe("digits/resnet20", ["data.batch_size=32"])
    fit(watch(digits_net(), seen), few, recipe, Phase(1, lr=0.1), out=tmp_path)
    assert {flags for training, flags in seen if training} == {fast}
    assert {flags for training, flags in seen if not training} == {FULL}
    seen.clear()
    nbsnn.finetune(watch(digits_net().eval(), seen), few.train, few.validation, FinetuneSpec(method="calibrate"))
    assert {flags for _, flags in seen} - {FULL} <= {fast}  # its teacher
    assert FULL in {flags for _, flags in seen}


def test_contexts_that_overlap_in_threads_restore_the_settings_once(fast):
    inside, leave = threading.Barrier(3), [threading.Event(), threading.Event()]

    def hold(index):
        with full_float32():
            inside.wait()
            leave[index].wait()

    threads = [threading.Thread(target=hold, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    inside.wait()
    for thread, event in zip(threads, leave, strict=True):
        assert settings() == FULL, "the first one to end must not take it from the other"
        event.set()
        thread.join()
    assert settings() == fast


@pytest.mark.skipif(not NEWER, reason="one set of names only")
@pytest.mark.parametrize("name", ["cudnn.conv", "cuda.matmul", "mkldnn.matmul"])
def test_settings_by_their_newer_names_come_back_where_the_older_cannot_be_read(name):
    """Torch refuses to read the older names once the newer ones say something that those cannot."""
    setting = BACKENDS
    for part in name.split("."):
        setting = getattr(setting, part)
    setting.fp32_precision = "ieee" if name == "cudnn.conv" else "tf32" if setting.fp32_precision != "tf32" else "ieee"
    before = [s.fp32_precision for s in precision._newer_settings()]
    with full_float32():
        assert {s.fp32_precision for s in precision._newer_settings()} == {"ieee"}
    assert [s.fp32_precision for s in precision._newer_settings()] == before


def test_torch_without_the_newer_names(monkeypatch, fast):
    monkeypatch.setattr(precision, "_newer_settings", list)
    with full_float32():
        assert (BACKENDS.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (False, "highest")
    assert (BACKENDS.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (True, "medium")


def test_a_torch_that_warns_of_its_older_names_is_quiet(monkeypatch):
    def warn():
        warnings.warn("Please use the new API settings to control TF32 behavior", UserWarning, stacklevel=1)
        return True

    monkeypatch.setattr(precision, "_OLDER_SETTINGS", ((warn, lambda value: warn(), False),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with full_float32():
            pass


def test_the_line_of_a_run_says_what_is_rounded():
    assert str(Execution(tf32=True)).startswith("float32 (convolutions in TF32, evaluated in full float32), channels last")
    assert str(Execution(autocast=torch.bfloat16)).startswith("bfloat16 autocast (evaluated in full float32)")
    assert str(Execution()).startswith("float32, channels last")
