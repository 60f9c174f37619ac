"""Networks in C: every kind of node gives the bits of the engine, compiled strictly and under sanitizers."""

import importlib.util
import re
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import test_any_output
import test_places
import torch
from compiled import STRICT, build, flat, needs_gcc, outputs_of
from integer_nets import assembled, images_for
from nets import randomize_
from pooled_nets import pooled_images, pooled_net
from programs import KINDS, random_pixels, random_program

import nbsnn
from nbsnn.data.sets.sample import load_sample
from nbsnn.errors import ConfigError, LoweringError
from nbsnn.export.c import RUNTIME, export_c
from nbsnn.export.c.axes import as_axis
from nbsnn.export.c.memory import KINDS as STORED
from nbsnn.export.c.memory import plan_memory
from nbsnn.export.c.packing import pack_rows
from nbsnn.integer.maps import AxisMap
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.nodes import IMAGE, Unit
from nbsnn.pipeline import integer_form


def of_program(kinds, **options):
    network = IntegerNetwork(random_program(kinds, **options))
    pixels = network.program.pixels
    return network, random_pixels(network.program, 4).double() / 2**pixels.fraction_bits


def lowered(net, images, **options):
    return nbsnn.lower(net, images[:1], **options), images


def with_maps(name):
    torch.manual_seed(1)
    images = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    net = nbsnn.quantize(test_places.Middle(test_places.CHAINS[name]).double(), nbsnn.QuantSpec(4, 2), example=images).eval()
    randomize_(net)
    return lowered(net, images)


def with_outputs(make, *shape):
    images = test_any_output.images_of(*shape)
    return lowered(test_any_output.quantized_net(make, images), images, float_weight_bits=16)


def lines():
    return torch.nn.Sequential(
        torch.nn.Conv1d(2, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.AvgPool1d(2), torch.nn.Conv1d(4, 4, 3, groups=2),
        torch.nn.ReLU(), torch.nn.Upsample(scale_factor=2), torch.nn.Conv1d(4, 2, 1),
    )  # fmt: skip


def table():
    return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


NETWORKS = {
    "every branch": lambda: of_program(list(KINDS), timesteps=7, channels=9, weight=4),
    "mixed levels, ternary": lambda: of_program(list(KINDS), timesteps=3, channels=24, mixed=True, weight=1),
    "8-bit weights": lambda: of_program(["conv", "projection"], timesteps=3, channels=12, weight=127),
    "wide, 16-bit weights": lambda: of_program(["strided", "identity", "wide"], timesteps=7, channels=10, weight=32767),
    "skips, concatenation": lambda: lowered(
        assembled(3, ("identity", "projection", "concatenation", "grouped concatenation", "shuffle"), (2, 3)), images_for(3)
    ),
    "a max pool after a concatenation": lambda: lowered(pooled_net(4, "overlapping", "concatenation", 2), pooled_images(4)),
    "a min pool before flattening": lambda: lowered(pooled_net(8, "min", "flattened", 3), pooled_images(8)),
    "bilinear": lambda: with_maps("bilinear"),
    "transposed": lambda: with_maps("transposed convolutions"),
    "a bias for each place": lambda: with_maps("constants per place"),
    "several outputs": lambda: with_outputs(test_any_output.NETS["detector"], 2, 6, 6),
    "lines": lambda: with_outputs(lines, 2, 12),
    "vectors": lambda: with_outputs(table, 5),
}


@cache
def made(name):
    """An integer network and images for it."""
    return NETWORKS[name]()


@needs_gcc
def test_every_kind_of_network_gives_the_bits_of_the_engine(tmp_path):
    """Without a warning, and without undefined behaviour or a read outside of a table or buffer."""
    executable = build([made(name)[0] for name in NETWORKS], tmp_path, "-fsanitize=undefined,address", "-O0")
    for index, name in enumerate(NETWORKS):
        network, images = made(name)
        wanted = flat(network.run(images))
        assert torch.equal(outputs_of(executable, index, network, images), wanted), name
        assert len(wanted.unique()) > 1, name


@pytest.fixture(scope="module")
def resnet20(tmp_path_factory):
    """The bundled 2-bit ResNet-20: its folder in C, its size, and the integer network."""
    folder = tmp_path_factory.mktemp("c")
    network = integer_form(nbsnn.load_checkpoint("zoo:cifar10/resnet20-w2a2"), load_sample().test)
    return folder, nbsnn.export_c(folder / "resnet20.h", network), network


@needs_gcc
def test_the_example_runs_resnet20_on_photographs(resnet20, tmp_path):
    folder, size, network = resnet20
    images = load_sample().test.images[:3]
    subprocess.run(["gcc", *STRICT, "-o", tmp_path / "r20", folder / "resnet20_main.c"], check=True)
    done = subprocess.run([tmp_path / "r20"], input=images.numpy().tobytes(), capture_output=True, check=True)
    logits = np.array([line.split() for line in done.stdout.decode().splitlines()]).astype(np.float32)
    assert torch.equal(torch.from_numpy(logits), network.run(images))
    assert size.flash < 200_000
    if shutil.which("size"):
        text = subprocess.run(["size", tmp_path / "r20"], capture_output=True, check=True, text=True).stdout.splitlines()[1]
        code_and_tables, pointing, zeros = map(int, text.split()[:3])
        assert 0 <= code_and_tables + pointing - size.flash < 20_000  # code, the C library's start, and 64-bit pointers
        assert 0 <= zeros - size.ram < 4_000  # the example's image


def test_the_same_network_is_the_same_text(resnet20, tmp_path):
    folder, size, network = resnet20
    again = export_c(tmp_path / "resnet20.h", network)
    assert (again.flash, again.ram) == (size.flash, size.ram)
    for file in size.files:
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()
    header = (folder / "resnet20.h").read_text()
    assert f"#define RESNET20_FLASH {size.flash} " in header
    assert f"#define RESNET20_RAM {size.ram} " in header
    assert max(map(len, header.splitlines())) < 600


def test_the_runtime_is_small_and_allocates_nothing(resnet20):
    text = (resnet20[0] / RUNTIME).read_text()
    assert len(text.splitlines()) <= 300
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(malloc|calloc|alloca|free|printf)\b", code)
    assert re.findall(r"#include <(.*)>", code) == ["float.h", "stdint.h", "string.h"]


@pytest.mark.parametrize("name", ["every branch", "skips, concatenation", "several outputs", "lines"])
def test_no_value_overwrites_one_that_is_read_later(name):
    program = made(name)[0].program
    plan = plan_memory(program)
    order = {node_name: index for index, node_name in enumerate((IMAGE, *(node.name for node in plan.nodes)))}
    last = {source: index for index, node in enumerate((*plan.nodes, *program.heads), start=1) for source in node.sources}

    def block(value):
        return range(value.offset, value.offset + np.prod(value.shape) * STORED[value.kind])

    for node in plan.nodes:
        for other, value in plan.values.items():
            alive = other in order and order[other] < order[node.name] <= last.get(other, -1)
            mine, theirs = block(plan.values[node.name]), block(value)
            if alive and mine.start < theirs.stop and theirs.start < mine.stop:
                assert mine == theirs
                assert last[other] == order[node.name]
                assert isinstance(node, Unit)
                assert {branch.weight for branch in node.branches if branch.source == other} == {None}
    assert plan.bytes <= sum(len(block(value)) + 8 for value in plan.values.values())


@pytest.mark.parametrize(("most", "bits"), [(1, 1), (2, 3), (7, 4), (8, 5), (31, 6), (63, 7), (127, 8), (300, 16)])
def test_weights_take_the_fewest_bytes_and_come_back(most, bits):
    weight = torch.randint(-most, most + 1, (30, 21, 3, 2), generator=torch.Generator().manual_seed(most))
    weight.view(-1)[: 2 * most + 1] = torch.arange(-most, most + 1)
    packed = pack_rows(weight.to(torch.int8 if most < 128 else torch.int16))
    assert packed.bits == bits
    assert packed.data.shape[1] == {1: 26, 8: 126, 16: 252}.get(bits, -(-126 * bits // 8))
    row = packed.data[1]
    if bits == 1:
        codes = (row[:, None] // 3 ** np.arange(5) % 3).reshape(-1)[:126]
    elif bits < 8:
        codes = np.unpackbits(row, bitorder="little")[: 126 * bits].reshape(-1, bits) @ 2 ** np.arange(bits)
    values = packed.values[codes] if bits < 8 else row.view(np.int8 if bits == 8 else "<i2")
    assert np.array_equal(values, weight[1].permute(1, 2, 0).reshape(-1).numpy())


def test_regular_windows_need_no_table():
    places = torch.tensor([[-1, 1, 3], [0, 2, 4], [1, 3, -1]], dtype=torch.int32)  # three places, stride 2, padding 1
    regular = as_axis(AxisMap(places, (places >= 0).int(), 5))
    assert (regular.places, regular.reads, regular.stride, regular.start, regular.step) == (3, 3, 2, -1, 1)
    twice = torch.tensor([[0, 1], [0, 2]], dtype=torch.int32)
    assert as_axis(AxisMap(twice, torch.ones_like(twice), 3)).index is not None
    assert as_axis(AxisMap(places, 2 * (places >= 0).int(), 5)).weight is not None


def test_what_cannot_be_written_is_refused_in_one_line(resnet20, tmp_path):
    network = resnet20[2]
    for name in (RUNTIME, 'a"b.h', "a\\b.h"):
        with pytest.raises(
            ConfigError, match=r"is not a name for a header of a network; use letters and digits, such as net.h$"
        ):
            export_c(tmp_path / name, network)
    with pytest.raises(ConfigError, match=r"net.c: a network in C is a .h file; choose a name such as net.h$"):
        export_c(tmp_path / "net.c", network)
    unit = replace(network.program.units[0], bound=3)
    broken = replace(network.program, nodes=(unit, *network.program.nodes[1:]))
    with pytest.raises(LoweringError, match=r"^not a valid program: stem.act has bound=3, but its numbers make \d+$"):
        export_c(tmp_path / "net.h", IntegerNetwork(broken))
    assert list(tmp_path.iterdir()) == []


@needs_gcc
def test_any_name_makes_a_program_that_compiles(tmp_path):
    network, _ = made("vectors")
    network = IntegerNetwork(replace(network.program, nodes=tuple(
        replace(node, name="*/ é \\") for node in network.program.nodes), head=replace(network.program.head, branches=tuple(
            replace(branch, source="*/ é \\") for branch in network.program.head.branches))))  # fmt: skip
    for stem in ("2bit net", "nbsnn", "int"):
        export_c(tmp_path / f"{stem}.h", network)
        subprocess.run(["gcc", *STRICT, "-fsyntax-only", tmp_path / f"{stem}_main.c"], check=True)


@needs_gcc
def test_the_example_compiles_and_agrees(tmp_path, capfd):
    spec = importlib.util.spec_from_file_location("c_files", Path(__file__).parent.parent / "examples" / "c_files.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(tmp_path)
    assert "0 of 50 logits differ in any bit" in capfd.readouterr().out
