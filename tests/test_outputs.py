"""What a command writes never replaces what it reads, a file of another kind, or one of somebody else's."""

import os
from pathlib import Path

import pytest
import torch

import nbsnn
from nbsnn.cli import main
from nbsnn.errors import CheckpointError, ConfigError
from nbsnn.export.packed import save_packed
from nbsnn.outputs import FIGURES, INTEGER, PACKED, STATE, check_output, kind_of, network_kind
from nbsnn.tensorfile import write_tensors
from nbsnn.training.folder import check_start
from nbsnn.training.state import TrainingState
from nbsnn.zoo import locate

QUANTIZED = network_kind("quantized")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """One file of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    net = nbsnn.build_model("cifar10/resnet20", in_channels=1, image_size=8).eval()
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(2, 2)).eval()
    example = torch.rand(1, 1, 8, 8)
    nbsnn.save_checkpoint(folder / "float.safetensors", net)
    nbsnn.save_checkpoint(folder / "quantized.safetensors", quantized)
    nbsnn.save_checkpoint(folder / "quantized.pth.tar", quantized)
    nbsnn.save_checkpoint(folder / "spiking.safetensors", nbsnn.to_spiking(quantized, example))
    nbsnn.lower(quantized, example).save(folder / "integer.safetensors")
    save_packed(folder / "packed.safetensors", quantized)
    write_tensors(folder / "state.safetensors", {}, {"format": 1, "momenta": 0, **vars(TrainingState("x"))})
    (folder / "figures.json").write_text('{"recipe_hash": "1", "phases": []}')
    (folder / "recipe.toml").write_text('extends = "digits/resnet20"\n')
    (folder / "notes.json").write_text("[1, 2]")
    torch.save({"state_dict": {"a": torch.ones(1)}}, folder / "foreign.pth.tar")
    (folder / "damaged.safetensors").write_bytes((folder / "float.safetensors").read_bytes()[:-3])
    return folder


@pytest.fixture
def files(originals, tmp_path):
    """Copies of them."""
    for file in originals.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


KINDS = {
    "float.safetensors": network_kind("float"), "quantized.safetensors": QUANTIZED, "quantized.pth.tar": QUANTIZED,
    "spiking.safetensors": network_kind("spiking"), "integer.safetensors": INTEGER, "packed.safetensors": PACKED,
    "state.safetensors": STATE, "figures.json": FIGURES, "recipe.toml": None, "notes.json": None, "foreign.pth.tar": None,
    "damaged.safetensors": None, "nothing": None,
}  # fmt: skip


def test_own_files_are_recognized_by_their_content(originals):
    assert {name: kind_of(originals / name) for name in KINDS} == KINDS


@pytest.mark.parametrize("name", [name for name in KINDS if name != "nothing"])
def test_a_file_is_replaced_by_its_own_kind_alone(originals, name):
    path, found = originals / name, KINDS[name]
    for kind in (QUANTIZED, network_kind("spiking"), INTEGER, PACKED, FIGURES):
        if found == kind:
            check_output(path, kind)
            continue
        wanted = "is not a file that nbsnn wrote" if found is None else rf"holds {found}, and would be replaced by {kind}; name"
        with pytest.raises(ConfigError, match=wanted):
            check_output(path, kind)
        if found is None:
            with pytest.raises(ConfigError, match="is not a file that nbsnn wrote, or is damaged; name another"):
                check_output(path, kind, overwrite=True)
        else:
            check_output(path, kind, overwrite=True)


def test_what_a_command_reads_is_not_replaced_under_any_of_its_names(files, monkeypatch):
    monkeypatch.chdir(files)
    source = files / "quantized.safetensors"
    os.link(source, files / "hard.safetensors")
    (files / "soft.safetensors").symlink_to(source)
    (files / "folder").symlink_to(files)
    for name in ("quantized.safetensors", "./quantized.safetensors", "hard.safetensors", "soft.safetensors",
                 "folder/quantized.safetensors", f"../{files.name}/quantized.safetensors"):  # fmt: skip
        with pytest.raises(ConfigError, match="is read by this command, and would be replaced; name another file, or set"):
            check_output(Path(name), QUANTIZED, inputs=[source])
        check_output(Path(name), QUANTIZED, inputs=[source], overwrite=True)
    check_output(files / "new.safetensors", QUANTIZED, inputs=[source, None, "zoo:cifar10/resnet20-w2a2", files / "missing"])


def test_a_bundled_network_is_never_replaced():
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="is a bundled network; name another file"):
            check_output(locate("zoo:cifar10/resnet20-w2a2"), PACKED, overwrite=overwrite)


def test_the_names_of_bundled_networks_are_for_reading(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (lambda path: check_output(path, PACKED), lambda path: nbsnn.save_checkpoint(path, torch.nn.Linear(2, 2))):
        with pytest.raises(ConfigError, match=r"^zoo:cifar10/new: zoo: is for reading bundled networks; name a file$"):
            write(Path("zoo:cifar10/new"))
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path, "a folder"), (tmp_path / "fifo", "a FIFO"), (Path("/dev/full"), "a device")):
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match=f"is {kind}; name a file"):
                check_output(path, FIGURES, overwrite=overwrite)


def test_a_place_that_cannot_be_written_is_found_out_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / ("a" * 300), "File name too long; choose a shorter name"),
        (tmp_path / "file" / "a", "Not a directory; a file has the name of its folder"),
    ):
        with pytest.raises(CheckpointError, match=rf"cannot write .*: {reason}"):
            check_output(path, FIGURES)
    check_output(tmp_path / "new" / "folder" / "a", FIGURES)
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------------------ the verbs

DIGITS = "{files}/quantized.safetensors --out {out} --data digits"
RUNS = {
    "pack": "pack {files}/quantized.safetensors --out {out}",
    "lower": f"lower {DIGITS} --fidelity-images 0",
    "convert": f"convert {DIGITS} --limit 2 --fidelity-images 1 --schedule settle",
    "finetune": f"finetune {DIGITS} --method calibrate --limit-train 4 --held-out 2 --limit 2 --force",
}


def run(command, files, out, capsys, *more):
    code = main([*command.format(files=files, out=out).split(), *more])
    return code, " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("verb", RUNS)
def test_a_verb_refuses_to_replace_its_input_before_any_work(files, capsys, verb):
    """Case 22."""
    source = files / "quantized.safetensors"
    before = source.read_bytes()
    code, said = run(RUNS[verb], files, source, capsys)
    assert (code, said) == (2, f"error: {source}: is read by this command, and would be replaced; name another file, or set "
                               "--overwrite")  # fmt: skip
    code, said = run(RUNS[verb], files, files / "recipe.toml", capsys, "--overwrite")
    assert code == 2
    assert "recipe.toml: is not a file that nbsnn wrote" in said
    assert source.read_bytes() == before
    assert (files / "recipe.toml").read_text().startswith("extends")
    code, said = run(RUNS[verb], files, files / "float.safetensors", capsys)
    assert code == 2
    assert "float.safetensors: holds a float network, and would be replaced by" in said
    code, said = run(RUNS[verb], files, source, capsys, "--overwrite")
    assert code == 0
    assert source.read_bytes() != before
    assert kind_of(source) != QUANTIZED
    code, _ = run(RUNS[verb], files.parent / "nothing", files / "new.safetensors", capsys)
    assert code == 2  # and a file of its own kind is no reason to refuse
    assert not (files / "new.safetensors").exists()


def test_report_refuses_what_is_no_report(files, capsys):
    for name in ("recipe.toml", "notes.json"):
        assert main(["report", "-r", "digits/resnet20", "--run", str(files), "--out", str(files / name), "--overwrite"]) == 2
        assert f"{name}: is not a file that nbsnn wrote" in capsys.readouterr().err
    assert main(["report", "-r", "digits/resnet20", "--run", str(files), "--out", str(files / "figures.json")]) == 2
    assert "holds no finished phase" in capsys.readouterr().err


def test_a_run_does_not_replace_its_start(tmp_path, originals, capsys):
    folder = tmp_path / "run" / "2bit"
    folder.mkdir(parents=True)
    for name in ("best.safetensors", "last.safetensors"):
        (folder / name).write_bytes((originals / "quantized.safetensors").read_bytes())
        words = ["train", "-r", "digits/resnet20", "--init", str(folder / name), "--out", str(tmp_path / "run"), "--overwrite"]
        assert main(words) == 2
        assert f"{folder / name}: the run starts from it and would replace it; copy it first" in capsys.readouterr().err
    check_start(tmp_path / "run" / "4bit", folder / "best.safetensors")


def test_a_run_does_not_begin_where_files_of_others_have_its_names(tmp_path, capsys):
    for name in ("log.csv", "log.jsonl", "best.safetensors"):
        folder = tmp_path / name.replace(".", "-") / "32bit"
        folder.mkdir(parents=True)
        (folder / name).write_text("epoch,money\n1,2\n")
        assert main(["train", "-r", "digits/resnet20", "--set", "phase.all.epochs=1", "--out", str(folder.parent)]) == 2
        assert f"{folder / name}: not a file that nbsnn wrote, or damaged; choose" in capsys.readouterr().err
        assert [path.name for path in folder.iterdir()] == [name]


def test_the_demo_replaces_its_own_runs_alone(tmp_path, originals, capsys):
    (tmp_path / "2bit").mkdir()
    (tmp_path / "2bit" / "last.safetensors").write_bytes((originals / "quantized.safetensors").read_bytes())
    assert main(["demo", "--out", str(tmp_path), "--set", "phase.all.epochs=1"]) == 2
    said = "2bit holds a finished phase, of another recipe or start, and 32bit before it is to be trained; choose another"
    assert said in capsys.readouterr().err
