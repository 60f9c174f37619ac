"""Networks of IF neurons from NIR files: ours come back with the same spikes, others are refused in one line."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import printed, refusal
from integer_nets import assembled, images_for
from step_spikes import on_grid

import nbsnn
from nbsnn.cli import main
from nbsnn.errors import CheckpointError, ConversionError

nir = pytest.importorskip("nir")
h5py = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def network():
    return nbsnn.lower(assembled(5, ["projection", "concatenation", "padded pool"], [2]), images_for(5)[:1])


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("nir") / "net.nir"
    nbsnn.export_nir(network, path, "if-charged")
    return path


def test_our_file_comes_back_with_the_same_spikes(network, file):
    images = images_for(6)
    spiking = nbsnn.load_nir(file)
    assert (spiking.neuron, spiking.schedule, spiking.timesteps) == ("unsigned", "fixed", 3)
    result = spiking.simulate(on_grid(network, images), keep_counts=True)
    ours = network.simulate(images, engine="spikes", neuron="unsigned", schedule="fixed", keep_counts=True)
    found = list(result.counts.values())
    assert len(found) == len(ours.counts)
    for (name, count), other in zip(ours.counts.items(), found, strict=True):
        assert torch.equal(other.int(), count), name
    assert torch.allclose(result.logits.float(), ours.logits, atol=1e-6)


def test_the_command_line_writes_a_checkpoint_that_needs_no_model(file, tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    told = printed(capsys, "import", str(file), "--out", str(out))
    assert (told["form"], set(told["act_bits"])) == ("spiking", {2})
    spiking, images = nbsnn.load_nir(file), images_for(6).double()
    assert torch.equal(nbsnn.load_checkpoint(out)(images), spiking(images))
    assert printed(capsys, "info", str(out))["form"] == "spiking"
    assert "--image-shape: is for .onnx files" in refusal(
        capsys, "import", str(file), "--out", str(tmp_path / "b.safetensors"), "--image-shape", "3,4,4"
    )


def test_a_file_of_exact_neurons_is_named_as_such(network, tmp_path, capsys):
    path, out = tmp_path / "exact.nir", tmp_path / "net.safetensors"
    nbsnn.export_nir(network, path, "exact")
    message = r"its neurons are made of integrators and thresholds, as profile='exact' writes them, which is not read; keep"
    with pytest.raises(ConversionError, match=message):
        nbsnn.load_nir(path, timesteps=3, reset="subtract", charge=0.5)
    assert "profile='if-charged'" in refusal(capsys, "import", str(path), "--out", str(out)).replace("--profile ", "profile=")
    assert not out.exists()


def test_other_suffixes_are_refused(tmp_path, capsys):
    message = refusal(capsys, "import", str(tmp_path / "net.pt"), "--out", str(tmp_path / "net.safetensors"))
    assert "files that end with .onnx or .nir are read" in message


def test_padding_by_name_scales_and_sums(tmp_path):
    """A line of text instead of numbers, gains of each element, two sources of one node."""
    random = torch.Generator().manual_seed(1)
    weight = (torch.randint(-8, 9, (4, 2, 3, 2), generator=random) / 64).double()
    gain = torch.rand(4, 5, 6, generator=random, dtype=torch.float64)
    nodes = {
        "input": nir.Input({"input": np.array([2, 5, 6])}),
        "a.b": nir.Conv2d((5, 6), weight.numpy(), 1, "same", 1, 1, ones(4).astype(float) / 8),
        "c": nir.Scale(gain.numpy()), "2": nir.IF(ones(4, 5, 6), ones(4, 5, 6)),
        "output": nir.Output({"output": np.array([4, 5, 6])}),
    }  # fmt: skip
    edges = [("input", "a.b"), ("a.b", "c"), ("a.b", "2"), ("c", "2"), ("2", "output")]
    nir.write(str(tmp_path / "net.nir"), nir.NIRGraph(nodes, edges, type_check=False))
    x = torch.rand(2, 2, 5, 6, generator=random, dtype=torch.float64)
    current = F.conv2d(F.pad(x, (0, 1, 1, 1)), weight, torch.ones(4).double() / 8) * (1 + gain)
    spiking = nbsnn.load_nir(tmp_path / "net.nir", timesteps=3, reset="subtract", charge=0.5)
    assert torch.allclose(spiking(x), (3 * current + 0.5).floor().clamp(0, 3) / 3)  # a constant current is exact


def test_what_the_file_means_must_be_said(network, file, tmp_path):
    plain = tmp_path / "plain.nir"
    nbsnn.export_nir(network, plain, "if")
    with pytest.raises(ConversionError, match=r"bias holds the initial half threshold; write it with profile='if-charged'$"):
        nbsnn.load_nir(plain)
    with pytest.raises(ConversionError, match=r"timesteps=4: give the number of steps T = 2\^b - 1, one of 1, 3, 7"):
        nbsnn.load_nir(file, timesteps=4)
    for options in ({"reset": "value"}, {"charge": 0.0}):
        with pytest.raises(ConversionError, match=r"give reset='subtract' and charge=0.5$"):
            nbsnn.load_nir(file, **options)


def written(path, *nodes, edges=None):
    """A file of one chain of nodes, or with edges by number."""
    named = {"input": nir.Input({"input": torch.tensor([4]).numpy()})}
    named |= {f"n{i}": node for i, node in enumerate(nodes)} | {"output": nir.Output({"output": torch.tensor([4]).numpy()})}
    names = list(named)
    nir.write(str(path), nir.NIRGraph(named, edges or list(pairwise(names)), type_check=False))
    return path


def ones(*shape):
    return torch.ones(*shape).numpy()


def test_a_foreign_network_of_neurons_like_ours(tmp_path):
    """Thresholds and r of each neuron go into the currents."""
    threshold = torch.tensor([1.0, 2.0, 0.5, 4.0]).numpy()
    path = written(tmp_path / "net.nir", nir.Linear(ones(4, 4)), nir.IF(2 * ones(4), threshold), nir.Scale(3 * ones(4)))
    spiking = nbsnn.load_nir(path, timesteps=3, reset="subtract", charge=0.5)
    x = torch.full((1, 4), 0.1, dtype=torch.float64)
    expected = (3 * 2 * 0.4 / torch.from_numpy(threshold) + 0.5).floor().clamp(0, 3)  # a constant current is exact
    assert torch.allclose(spiking(x)[0], expected.double())


def test_an_imported_network_is_exported_without_data(tmp_path):
    """It says the size of its images."""
    path = written(tmp_path / "net.nir", nir.Linear(ones(4, 4) / 8), nir.IF(ones(4), ones(4)), nir.Linear(ones(4, 4)))
    out, again = tmp_path / "net.safetensors", tmp_path / "again.nir"
    meant = ["--timesteps", "3", "--reset", "subtract", "--charge", "0.5"]
    assert main(["import", str(path), "--out", str(out), *meant]) == 0
    assert main(["export", str(out), "--format", "nir", "--profile", "if-charged", "--out", str(again)]) == 0
    x = torch.full((1, 4), 0.7, dtype=torch.float64)
    assert torch.allclose(nbsnn.load_nir(again)(x), nbsnn.load_checkpoint(out)(x), atol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            lambda: [nir.LIF(ones(4), ones(4), ones(4), ones(4))],
            r"n0 is of type LIF, which leaks; give a network of IF neurons$",
        ),
        (lambda: [nir.IF(ones(4), -ones(4))], r"n0 has thresholds or r that are not positive; give a network of IF neurons$"),
        (lambda: [nir.Delay(ones(4))], r"n0 is of type Delay, which delays spikes"),
    ],
)
def test_other_neurons_are_refused(nodes, message, tmp_path):
    with pytest.raises(ConversionError, match=message):
        nbsnn.load_nir(written(tmp_path / "net.nir", *nodes()), timesteps=3, reset="subtract", charge=0.5)


def test_feedback_and_missing_ends_are_refused(tmp_path):
    edges = [("input", "n0"), ("n0", "n1"), ("n1", "n0"), ("n1", "output")]
    path = written(tmp_path / "net.nir", nir.Linear(ones(4, 4)), nir.IF(ones(4), ones(4)), edges=edges)
    with pytest.raises(ConversionError, match=r"n0 is in a cycle or has no source; give a network without feedback$"):
        nbsnn.load_nir(path, timesteps=3, reset="subtract", charge=0.5)


def truncated(path, file):
    path.write_bytes(file.read_bytes()[:3000])


def text(path, file):
    path.write_text("no network")


def empty(path, file):
    h5py.File(path, "w").close()


def link(path, file):
    path.write_bytes(file.read_bytes())
    with h5py.File(path, "a") as opened:
        opened["node/nodes/elsewhere"] = h5py.ExternalLink("other.h5", "/node")


def external(path, file):
    with h5py.File(path, "w") as opened:
        opened.create_dataset("node/type", (4,), "u1", external=[("secrets.bin", 0, 4)])


def bomb(path, file):
    with h5py.File(path, "w") as opened:
        opened.create_dataset("node/weight", (2**20, 2**14), "f4", chunks=(2**10, 2**10), compression="gzip")


def unknown_type(path, file):
    path.write_bytes(file.read_bytes())
    with h5py.File(path, "a") as opened:
        del opened["node/nodes/input/type"]
        opened["node/nodes/input/type"] = "Sigmoid"


@pytest.mark.parametrize(
    ("make", "message"),
    {
        truncated: r"not a NIR file, or damaged", text: r"not a NIR file, or damaged", empty: r"not a NIR file, or damaged",
        unknown_type: r"not a NIR file, or damaged", link: r"/node/nodes/elsewhere' is a link|elsewhere is a link",
        external: r"is stored in another file", bomb: r"its arrays have more than 4,294,967,296 bytes",
    }.items(),
)  # fmt: skip
def test_damaged_and_foreign_files_are_refused_in_one_line(make, message, file, tmp_path):
    path = tmp_path / "net.nir"
    make(path, file)
    with pytest.raises(CheckpointError, match=message) as caught:
        nbsnn.load_nir(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"net.nir: no such NIR file$"):
        nbsnn.load_nir(tmp_path / "net.nir")
