"""The published ImageNet commands in sequence, with a thin AlexNet so that they take seconds."""

import shutil

import published
import pytest
import torch
from test_photos import photograph

import nbsnn
from nbsnn.data import dali
from nbsnn.models import build_model, plain

THIN = plain._Plain(((4, 11, 4, 2), (6, 5, 2, 1), (8, 3, 2, 0), (8, 3, 1, 1), (6, 3, 2, 0)), (16, 16))


@pytest.fixture
def scripts(monkeypatch):
    """The modules of reproduce/imagenet."""
    monkeypatch.setitem(plain.PLAIN_NETS, "imagenet/alexnet", THIN)
    with published.scripts("imagenet") as modules:
        yield modules


@pytest.fixture
def place(tmp_path):
    """A tree with two classes."""
    for part in ("train", "val"):
        for name in ("n01", "n02"):
            folder = tmp_path / "tree" / part / name
            folder.mkdir(parents=True)
            for index in range(4):
                (folder / f"{index}.JPEG").write_bytes(photograph(260, 240, index))
    return tmp_path


def command(scripts, script, words, place, capsys, code=0):
    """Run a published line; returns what it printed."""
    loader = [] if "--dali_cpu" in words or "--loader" in words else ["--loader", "torch"]
    line = [*words.split(), "--workers", "0", "-b", "4", "--result", str(place / "result"), *loader, str(place / "tree")]
    assert published.run(scripts, script, line) == code
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split())


def test_the_published_sequence_runs(scripts, place, capsys, monkeypatch):
    best = {bit: place / "result" / f"alexnet_{bit}bit" / "model_best.pth.tar" for bit in (4, 3, 2)}
    said = command(scripts, "dali_main", "-a alexnet --bit 4 --lr=0.1 --epochs 1 -p 1", place, capsys)
    assert "starting from random weights" in said
    assert "epoch 1 batch 2/2" in said
    assert "validation accuracy" in said
    for bit in (3, 2):
        words = f"-a alexnet --bit {bit} --init {best[bit + 1]} --lr=0.01 --epochs 1 --momentum 0.8 --wd 1e-4"
        assert f"alexnet_{bit}bit" in command(scripts, "dali_main", words, place, capsys)
    state = torch.load(best[2], weights_only=True)["state_dict"]
    assert "features.0.act.threshold" in state
    assert "features.1.conv.weight_scale" not in state  # inner weights stay in float
    for bit, flags in ((3, "-u"), (2, "-u"), (3, ""), (2, "--schedule settle")):
        said = command(scripts, "snn", f"-a alexnet -e {flags} --bit {bit} --init {best[bit]}", place, capsys)
        assert ("unsigned fixed" if flags == "-u" else "signed") in said
        assert "8 validation images" in said
    assert " 0.000 " in said  # settle is exact
    said = command(scripts, "dali_main", f"-a alexnet --bit 2 -e --init {best[2]} --limit 6", place, capsys)
    assert "on 6 images" in said
    last = place / "result" / "alexnet_2bit" / "checkpoint.pth.tar"
    said = command(scripts, "dali_main", f"-a alexnet --bit 2 --resume {last} --epochs 2", place, capsys)
    assert "epoch 2/2" in said
    assert "epoch 1/2" not in said
    said = command(scripts, "dali_main", f"-a alexnet --bit 2 --resume {last} --epochs 2", place, capsys, code=2)
    assert "--start-epoch 2: the phase has 2 epochs" in said
    said = command(scripts, "dali_main", f"-a alexnet --bit 2 --init {last} --lowbit", place, capsys, code=2)
    assert f"{last}: the run starts from it and would replace it; copy it first" in said
    copy = shutil.copy(last, place / "start.pth.tar")
    said = command(scripts, "dali_main", f"-a alexnet --bit 2 --init {copy} --lowbit", place, capsys, code=2)
    assert "the start has float weights between its edges" in said


def test_torchvision_weights_start_the_first_phase(scripts, place, capsys, monkeypatch):
    foreign = build_model("imagenet/alexnet", num_classes=3).state_dict()
    torch.save({"features.0.weight": foreign["features.0.conv.weight"]}, place / "alexnet.pth")
    words = f"-a alexnet --bit 4 --pretrained {place / 'alexnet.pth'} --epochs 1"
    said = command(scripts, "dali_main", words, place, capsys, code=2)
    assert "alexnet.pth" in said
    assert "Traceback" not in said


def test_lines_that_cannot_run_are_one_line(scripts, place, capsys, monkeypatch):
    monkeypatch.setattr(dali, "is_installed", lambda: False)
    monkeypatch.setattr(scripts["options"], "is_installed", lambda: False)
    said = command(scripts, "dali_main", "-a alexnet --bit 4 --dali_cpu", place, capsys, code=2)
    assert "--dali_cpu needs nvidia-dali: pip install nvidia-dali-cuda120" in said
    assert "use the torch loader (--loader torch)" in said
    assert "--init: name the checkpoint" in command(scripts, "snn", "-a alexnet -e --bit 2", place, capsys, code=2)
    assert "unknown model" in command(scripts, "dali_main", "-a alexnot --bit 4", place, capsys, code=2)
    path = place / "float.safetensors"
    nbsnn.save_checkpoint(path, build_model("imagenet/alexnet"))
    assert "holds a float network" in command(scripts, "snn", f"-a alexnet -e --bit 2 --init {path}", place, capsys, code=2)
