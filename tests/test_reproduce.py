"""The published commands, as a user types them, on a small CIFAR-10 made of the bundled sample."""

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import published
import pytest
import torch

import nbsnn

FOLDER = Path(__file__).parents[1] / "reproduce" / "cifar10"
SAMPLE = Path(__file__).parent / "data" / "cifar10_q75_200.npz"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data/cifar-10-batches-py` in it: five training batches and a test batch of 10 images each."""
    place = tmp_path_factory.mktemp("published")
    folder = place / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sample = np.load(SAMPLE)
    order = np.random.default_rng(0).permutation(len(sample["labels"]))
    for index, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = order[index * 10 : (index + 1) * 10]
        batch = {"data": sample["images"][part].reshape(-1, 3072), "labels": sample["labels"][part].tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return place


@pytest.fixture
def command(place: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Runs a script with the place's data and results; returns all that it printed."""
    where = ["--data", str(place / "data"), "--result", str(place / "result"), "--validation", "10"]
    with published.scripts("cifar10") as modules:

        def call(script: str, *words: str, code: int = 0) -> str:
            got = published.run(modules, script.removesuffix(".py"), [*words, *where])
            said = capfd.readouterr()
            assert got == code, said.err
            return said.out + said.err

        yield call


def test_a_script_runs_by_itself(place: Path) -> None:
    words = ["main.py", "--arch", "alexx", "--bit", "32"]
    run = subprocess.run([sys.executable, *words], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 2
    assert run.stderr.startswith("error: unknown model 'cifar10/alexx'")


@pytest.mark.slow
def test_the_published_sequence_runs(place: Path, command: Callable[..., str]) -> None:
    float_best, low_best = (place / "result" / f"res20_{bit}bit" / "model_best.pth.tar" for bit in (32, 3))
    command("main.py", "--arch", "res20", "--bit", "32", "--wd", "5e-4", "--epochs", "1", "-b", "20", "-p", "1")
    state = torch.load(float_best, weights_only=True)["state_dict"]
    assert "stem.conv.weight" in state
    command(
        "main.py", "-a", "res20", "--bit", "3", "--weight-decay", "1e-4", "--learning-rate", "4e-2", "--init",
        str(float_best), "--epochs", "1", "-b", "20", "--momentum", "0.9", "-id", "cpu",
    )  # fmt: skip
    assert "stem.act.threshold" in torch.load(low_best, weights_only=True)["state_dict"]
    printed = command("snn.py", "--arch", "res20", "--bit", "3", "-e", "-u", "--init", str(low_best))
    assert "unsigned fixed" in printed
    printed = command("snn.py", "--arch", "res20", "--bit", "3", "-e", "--schedule", "settle", "--init", str(low_best))
    assert "signed settle" in printed
    assert " 0.000 " in printed
    printed = command("main.py", "--arch", "res20", "--bit", "3", "-e", "--init", str(low_best))
    assert "test accuracy" in printed
    printed = command(
        "main.py",
        "--arch",
        "res20",
        "--bit",
        "3",
        "--resume",
        str(low_best),
        "--epochs",
        "2",
        "-b",
        "20",
        "--lr",
        "1e-3",
    )
    assert "epoch 2/2" in printed
    assert "epoch 1/2" not in printed


@pytest.mark.slow
def test_fine_tuning_writes_the_same_kind_of_files(place: Path, command: Callable[..., str]) -> None:
    reference = Path(__file__).parent / "golden" / "resnet20_2bit_reference.pth.tar"
    words = ["snn_ft.py", "--arch", "resnet20", "--bit", "2"]
    printed = command(*words, "-n", "1", "--force", "--init", str(reference), "-b", "8", "--limit-train", "8")
    assert "18 of 18" in printed
    folder = place / "result" / "resnet20_2bit_ft"
    assert {p.name for p in folder.iterdir()} == {"model_best.pth.tar", "checkpoint.pth.tar", "log.csv", "log.jsonl"}
    assert len((folder / "log.jsonl").read_text().splitlines()) == 1 + 18
    assert "stem.act.threshold" in torch.load(folder / "model_best.pth.tar", weights_only=True)["state_dict"]
    printed = command(*words, "-e", "--init", str(folder / "checkpoint.pth.tar"))
    assert "spiking form: test accuracy" in printed


def test_fine_tuning_refuses_a_network_of_other_bits_and_writes_nothing(
    place: Path, tmp_path: Path, command: Callable[..., str]
) -> None:
    quantized = nbsnn.quantize(nbsnn.build_model("cifar10/resnet32"), nbsnn.QuantSpec(3, 3)).eval()
    nbsnn.save_checkpoint(tmp_path / "3bit.pth.tar", quantized)
    words = ["snn_ft.py", "--arch", "resnet32", "--bit", "2", "--init", str(tmp_path / "3bit.pth.tar")]
    printed = command(*words, code=2)
    assert len(printed.splitlines()) == 1
    assert "--bit 2:" in printed
    assert "was trained with 3 bits; give that number, or another checkpoint" in printed
    assert not (place / "result" / "resnet32_2bit_ft").exists()


def test_init_takes_the_authors_checkpoints(command: Callable[..., str]) -> None:
    reference = Path(__file__).parent / "golden" / "resnet20_2bit_reference.pth.tar"
    printed = command("snn.py", "--arch", "resnet20", "--bit", "2", "-e", "--init", str(reference))
    assert "signed fixed" in printed
    command("main.py", "--arch", "resnet20", "--bit", "2", "--init", str(reference), "--epochs", "1", "-b", "20", "-ct")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["snn.py", "--arch", "alex", "--bit", "3", "-e"], "--init: name the checkpoint"),
        (["snn_ft.py", "--arch", "alex", "--bit", "3"], "--init: name the checkpoint"),
        (
            ["snn.py", "--arch", "alex", "--bit", "3", "-e", "-u", "--schedule", "settle", "--init", "x.pth.tar"],
            "use neuron='signed'",
        ),
        (["snn.py", "--arch", "alex", "--bit", "3", "-e", "--init", "none.pth.tar"], "no such checkpoint file"),
        (["main.py", "--arch", "alexx", "--bit", "32"], "unknown model 'cifar10/alexx'; did you mean cifar10/alexnet"),
        (["main.py", "--arch", "alex", "--bit", "6"], "phase.6: choose one of"),
    ],
)
def test_bad_input_gives_one_line_and_code_2(command: Callable[..., str], words: list[str], expected: str) -> None:
    printed = command(*words, code=2)
    assert len(printed.splitlines()) == 1
    assert expected in printed
