"""How a step is run: what is picked, and that compiling and bfloat16 change the speed, not the mathematics."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from nets import digits_net

from nbsnn.data.images import Splits
from nbsnn.data.sets.digits import load_digits
from nbsnn.distributed import World
from nbsnn.errors import ConfigError
from nbsnn.recipe import Phase
from nbsnn.recipes import load_recipe
from nbsnn.training import execution
from nbsnn.training.execution import Execution, pick_execution
from nbsnn.training.loop import fit
from nbsnn.training.options import FitOptions

CPU = torch.device("cpu")


def machine(monkeypatch, *, flags=(), compiler=True):
    monkeypatch.setattr(execution, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(execution.shutil, "which", lambda name: f"/bin/{name}" if compiler else None)


@pytest.mark.parametrize(
    ("flags", "bf16"), [((), False), (("avx2", "avx512f"), False), (("avx512_bf16",), True), (("amx_bf16",), True)]
)
def test_bfloat16_is_picked_where_the_processor_has_it(monkeypatch, flags, bf16):
    machine(monkeypatch, flags=flags)
    assert pick_execution(CPU, 100).autocast is (torch.bfloat16 if bf16 else None)
    assert pick_execution(CPU, 100, precision="float32").autocast is None
    assert pick_execution(CPU, 100, precision="bf16").autocast is torch.bfloat16


def test_compiling_is_picked_for_long_phases_on_machines_with_a_compiler(monkeypatch):
    machine(monkeypatch)
    assert str(pick_execution(CPU, 100)) == "float32, channels last, eager (too short for compiling to pay)"
    assert str(pick_execution(CPU, 10**6)) == "float32, channels last, compiled (long enough for compiling to pay)"
    assert pick_execution(CPU, 100, compile="on").compiled
    assert not pick_execution(CPU, 10**6, compile="off").compiled
    machine(monkeypatch, compiler=False)
    assert str(pick_execution(CPU, 10**6)) == "float32, channels last, eager (no C++ compiler here)"
    with pytest.raises(ConfigError, match=r"^compile=on: no C\+\+ compiler was found .*; install it, or use compile=off$"):
        pick_execution(CPU, 100, compile="on")


def test_on_a_gpu_steps_are_replayed_in_float32_and_compiled_in_long_phases_only(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(execution, "find_spec", lambda name: name)
    assert str(pick_execution(gpu, 10**6)) == (
        "float32 (convolutions in TF32, evaluated in full float32), channels last, eager (too short for compiling to pay), "
        "replayed as a CUDA graph"
    )
    assert pick_execution(gpu, 10**7).compiled
    assert pick_execution(gpu, 100, precision="bf16").autocast is torch.bfloat16
    monkeypatch.setattr(execution, "world", lambda: World(0, 2))
    assert not pick_execution(gpu, 100).cuda_graph
    monkeypatch.setattr(execution, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^compile=on: no Triton was found; install it, or use compile=off$"):
        pick_execution(gpu, 100, compile="on")


def test_a_cuda_graph_without_a_gpu_is_refused(tmp_path):
    full = load_digits()
    splits = Splits(full.train, full.validation, full.test)
    options = FitOptions(execution=Execution(cuda_graph=True))
    with pytest.raises(
        ConfigError, match=r"^cuda_graph=True: steps are captured by one process on a CUDA device, not by 1 on cpu"
    ):
        fit(digits_net(), splits, load_recipe("digits/resnet20"), Phase(1), out=tmp_path, options=options)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"compile": "yes"}, "compile=yes: choose auto, on or off"),
        ({"precision": "half"}, "precision=half: choose auto, float32"),
    ],
)
def test_unknown_choices_are_refused(choice, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        pick_execution(CPU, 100, **choice)


def test_the_processors_flags_are_read():
    flags = execution.cpu_flags()
    assert not flags or flags & {"sse2", "asimd", "fp"}


def gradients(net, forward, images, labels):
    net.zero_grad()
    F.cross_entropy(forward(images), labels).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.skipif(not execution.has_compiler(CPU), reason="no C++ compiler here")
@pytest.mark.slow
def test_the_compiled_step_has_the_gradients_of_the_eager_one():
    data = load_digits().train.take(slice(0, 8))
    net = digits_net().double().train()
    same = copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of torch's own modules, which the compiler imports
        compiled = torch.compile(same)
        ours = gradients(same, compiled, data.normalized().double(), data.labels)
    wanted = gradients(net, net, data.normalized().double(), data.labels)
    assert len(wanted) > 8
    for name, gradient in wanted.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-9, atol=1e-12), name


def test_a_phase_in_bfloat16_learns(tmp_path):
    full = load_digits()
    splits = Splits(full.train.take(slice(0, 600)), full.validation.take(slice(0, 60)), full.test)
    recipe = load_recipe("digits/resnet20", ["data.batch_size=32"])
    result = fit(
        digits_net(),
        splits,
        recipe,
        Phase(2, lr=0.1),
        out=tmp_path,
        options=FitOptions(execution=Execution(autocast=torch.bfloat16)),
    )
    assert result.history[-1].loss < result.history[0].loss
    assert result.history[-1].top1 > 40
