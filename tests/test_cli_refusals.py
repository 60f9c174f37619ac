"""Bad input at the command line: one line on standard error that names the value and the remedy, exit code 2, nothing lost."""

from pathlib import Path

import pytest
import torch

import nbsnn
from nbsnn.cli import main
from nbsnn.tensorfile import write_tensors


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints, good and bad."""
    folder = tmp_path_factory.mktemp("files")
    net = nbsnn.build_model("cifar10/resnet20", in_channels=1, image_size=8).eval()
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(2, 2)).eval()
    nbsnn.save_checkpoint(folder / "float.safetensors", net)
    nbsnn.save_checkpoint(folder / "quantized.safetensors", quantized)
    nbsnn.save_checkpoint(folder / "spiking.safetensors", nbsnn.to_spiking(quantized, torch.zeros(1, 1, 8, 8)))
    nbsnn.lower(quantized, torch.zeros(1, 1, 8, 8)).save(folder / "integer.safetensors")
    state = {"epoch": 0, "step": 0, "loss_sum": 0.0, "correct": 0, "seen": 0, "best": -1.0, "history": []}
    write_tensors(folder / "state.safetensors", {}, {"format": 1, "fingerprint": "of a run", **state})
    whole = (folder / "quantized.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "garbage.safetensors").write_bytes(b"not a checkpoint at all")
    (folder / "garbage.pth.tar").write_bytes(b"not a checkpoint at all")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, folder / "foreign.pth.tar")
    nbsnn.save_checkpoint(folder / "own.safetensors", torch.nn.Sequential(torch.nn.Linear(4, 2)))
    (folder / "bad.toml").write_text("[model\nname = 3")
    (folder / "file").write_text("in the way")
    return folder


TRAIN = "train -r digits/resnet20 --out {out}"
CASES = {
    "missing checkpoint": ("eval {files}/none.safetensors", "no such checkpoint file"),
    "truncated checkpoint": ("eval {files}/truncated.safetensors", "truncated.safetensors: damaged"),
    "garbage checkpoint": ("info {files}/garbage.safetensors", "garbage.safetensors: damaged"),
    "garbage torch file": ("info {files}/garbage.pth.tar", "garbage.pth.tar: damaged or not a torch file"),
    "foreign torch file": ("eval {files}/foreign.pth.tar", "nbsnn.load_reference_checkpoint"),
    "a training state shown": ("info {files}/state.safetensors", "holds a training state, not a network; name best.saf"),
    "a training state run": ("eval {files}/state.safetensors", "holds a training state, not a network; name best.saf"),
    "a training state as a start": (
        "train -r digits/resnet20 --out {out} --init {files}/state.safetensors",
        "holds a training state, not a network",
    ),
    "an integer network packed": ("pack {files}/integer.safetensors --out {out}", "name what it was lowered from"),
    "an integer network as a start": (
        "train -r digits/resnet20 --out {out} --init {files}/integer.safetensors",
        "from the one that it was lowered from",
    ),
    "a float network packed": (
        "pack {files}/float.safetensors --out {out}",
        "quantize it first, nbsnn quantize",
    ),
    "seed of a setting": (TRAIN + " --set seed=x", "error: seed=x: must be "),
    "own network": ("eval {files}/own.safetensors", "add --model MODULE:FUNCTION"),
    "convert a float network": ("convert {files}/float.safetensors", "holds a float network"),
    "invalid pair": ("convert {files}/quantized.safetensors --schedule settle --neuron unsigned", "use --neuron signed"),
    "signed barrier": ("convert {files}/quantized.safetensors --schedule barrier --neuron signed", "use --neuron unsigned"),
    "unknown schedule": ("convert {files}/quantized.safetensors --schedule setle", "did you mean settle?"),
    "unknown neuron": ("convert {files}/quantized.safetensors --schedule fixed --neuron sign", "unknown neuron 'sign'"),
    "out without schedule": ("convert {files}/quantized.safetensors --out {out}/s.safetensors", "need a schedule"),
    "no data set named": ("eval {files}/quantized.safetensors", "give --data cifar10, digits, folder, imagenet or sample"),
    "unknown data set": ("eval {files}/quantized.safetensors --data cifar", "unknown data set 'cifar'; did you mean cifar10?"),
    "folder without data": (
        "eval {files}/quantized.safetensors --data cifar10 --root {files}",
        "no cifar-10-batches-py folder",
    ),
    "unknown split": ("eval {files}/quantized.safetensors --data digits --split tset", "did you mean test?"),
    "unknown device": ("eval {files}/quantized.safetensors --data digits --device gpu0", "--device gpu0: choose auto"),
    "limit of minus one": ("eval {files}/quantized.safetensors --data digits --limit -1", "--limit -1: must be 0 or more"),
    "unknown recipe": ("train -r cifar10/resnet21 --out {out}", "unknown recipe 'cifar10/resnet21'; did you mean"),
    "unknown variant": ("train -r cifar10/resnet20:fats --out {out}", "did you mean fast?"),
    "recipe of bad TOML": ("train -r {files}/bad.toml --out {out}", "not valid TOML"),
    "missing recipe file": (
        "train -r {files}/none.toml --out {out}",
        "none.toml: no such file; for the bundled recipes see",
    ),
    "unknown key": (TRAIN + " --set optim.momentm=1", "unknown key 'optim.momentm'; did you mean optim.momentum"),
    "unknown table": (TRAIN + " --set optm.momentum=1", "unknown key 'optm'"),
    "no equals sign": (TRAIN + " --set optim.momentum", "write key=value"),
    "wrong type": (TRAIN + " --set phase.2.epochs=many", "phase.2.epochs=many: must be an integer"),
    "bits of 7.5": (TRAIN + " --set phase.7.5=1", "phase"),
    "phase of 7 bits": (TRAIN + " --set phase.7.epochs=1", "phase.7: choose one of 2, 3, 4, 5, 32 bits"),
    "edge bits of 7.5": (TRAIN + " --set quant.edge_bits=7.5", "quant.edge_bits=7.5: must be an integer"),
    "batch of one": (TRAIN + " --set data.batch_size=1", "data.batch_size=1: must be"),
    "no epochs": (TRAIN + " --set phase.2.epochs=0", "phase.2.epochs=0: must be"),
    "momentum of two": (TRAIN + " --set optim.momentum=2", "optim.momentum=2.0: must be"),
    "unknown model": (TRAIN + " --set model.name=cifar10/resnet19", "unknown model 'cifar10/resnet19'; did you mean"),
    "unknown data in recipe": (TRAIN + " --set data.name=digit", "unknown data set 'digit'; did you mean digits?"),
    "too much held out": (TRAIN + " --set data.validation=5000", "hold out fewer"),
    "negative seed": (TRAIN + " --seed -1", "--seed -1: must be"),
    "seed of letters": (TRAIN + " --seed abc", "--seed abc: "),
    "init with spikes": (TRAIN + " --init {files}/spiking.safetensors", "the start is a spiking network; give the quantized"),
    "init of the wrong size": (TRAIN + " --set model.num_classes=5 --init {files}/none.safetensors", "no such checkpoint"),
    "folder that is a file": (TRAIN + " --overwrite --out {files}/file", "this is a file, not a folder; choose another place"),
    "unknown verb": ("evaluate {files}/float.safetensors", "unknown verb 'evaluate'; did you mean eval"),
    "unknown option": ("info --systm", "unknown option '--systm'; did you mean --system"),
    "verb in capitals": ("TRAIN", "unknown verb 'TRAIN'; did you mean train?"),
    "beginning of a verb": ("rep", "unknown verb 'rep'; did you mean report"),
    "beginning of an option": (TRAIN + " --overw", "unknown option '--overw'; did you mean --overwrite"),
    "option without its value": ("train --recipe", "requires an argument; see nbsnn train --help"),
    "a value too many": ("zoo x", "unexpected extra argument"),
    "seed beyond what torch takes": (TRAIN + " --seed 9223372036854775808", "--seed 9223372036854775808: must be 0 or more"),
    "save-every of nan": (TRAIN + " --save-every nan", "--save-every nan: must be 0 or more"),
    "limit of 1e3": ("eval {files}/quantized.safetensors --limit 1e3", "--limit 1e3: "),
    "no image at a time": ("eval {files}/quantized.safetensors -b 0", "--batch-size 0: must be 1 or more"),
    "no rounds": ("bench {files}/quantized.safetensors --repeats 0", "--repeats 0: must be 1 or more"),
    "meta device": ("eval {files}/quantized.safetensors --device meta", "--device meta: choose auto, cpu"),
    "numbered processor": ("eval {files}/quantized.safetensors --device cpu:7", "--device cpu:7: choose auto, cpu"),
    "device that is not there": ("eval {files}/quantized.safetensors --device cuda:99", "use --device cpu"),
    "unknown engine": ("eval {files}/quantized.safetensors --engine count", "unknown engine 'count'; did you mean counts"),
    "unknown backend": ("eval {files}/quantized.safetensors --backend x", "unknown backend 'x'; known: auto, native, torch"),
    "neuron without spikes": ("eval {files}/quantized.safetensors --neuron signed", "add --engine spikes"),
    "name of 300 characters": ("eval {files}/" + "x" * 300, "File name too long"),
    "run of 300 characters": ("train -r digits/resnet20 --out {files}/" + "x" * 300, "File name too long"),
    "NUL": ("eval a\0b", "a\\0b: an argument holds a NUL character"),
    "bytes of no encoding": ("eval {files}/\udcff", "\\udcff: no such checkpoint file"),
    "result that is a folder": ("pack {files}/quantized.safetensors --out {files}", "is a folder; name a file in it"),
    "result below a file": (
        "lower {files}/quantized.safetensors -o {files}/file/x.safetensors",
        "a file has the name of its folder",
    ),
    "checkpoint that is a folder": ("info {files}", "is a folder"),
    "system and a checkpoint": ("info {files}/quantized.safetensors --system", "give one of the two"),
    "superscript bits": (TRAIN + " --set phase.².epochs=1", "phase.²: choose one of 2, 3, 4, 5, 32 bits"),
    "bits with a zero": (TRAIN + " --set phase.02.epochs=1", "phase.02: choose one of 2, 3, 4, 5, 32 bits"),
    "a rate in the wrong table": (TRAIN + " --set optim.lr=0.1", "unknown key 'optim.lr'; did you mean phase.N.lr"),
    "empty key": (TRAIN + " --set =1", "write key=value"),
    "info of nothing": ("info", "give one of the two"),
    "unknown recipe shown": ("recipes cifar10/resnet2", "did you mean"),
}


@pytest.mark.parametrize(("command", "expected"), CASES.values(), ids=CASES.keys())
def test_bad_input_gives_one_line_and_code_2(
    command: str, expected: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(p.name for p in files.iterdir())
    assert main(command.format(files=files, out=tmp_path / "out").split()) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert captured.err.rstrip().endswith(lines[0])
    assert captured.out == ""
    assert sorted(p.name for p in files.iterdir()) == before
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_other_channels_is_refused(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = nbsnn.build_model("cifar10/resnet20")
    nbsnn.save_checkpoint(tmp_path / "rgb.safetensors", net)
    assert main(["eval", str(tmp_path / "rgb.safetensors"), "--data", "digits"]) == 2
    assert "takes 3 channels" in capsys.readouterr().err
