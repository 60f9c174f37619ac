"""Integer networks in files: what is read is what was written, and nothing else is accepted."""

from dataclasses import replace

import pytest
import torch
from forging import forge
from integer_nets import assembled, images_for
from nets import small_quantized
from safetensors import safe_open
from safetensors.torch import save_file

import nbsnn
from nbsnn.integer.nodes import Branch, Flatten, SumPool
from nbsnn.integer.storage import described


@pytest.fixture
def network():
    return nbsnn.lower(
        assembled(7, ["identity", "concatenation", "padded pool"], [2, 3]), images_for(7), mean=(0.4, 0.5), std=(0.08, 0.1)
    )


@pytest.fixture
def file(network, tmp_path):
    network.save(tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_a_network_comes_back_from_its_file_bit_for_bit(network, file):
    read = nbsnn.IntegerNetwork.load(file)
    images = torch.randint(0, 256, (4, 2, 6, 6), dtype=torch.uint8)
    for schedule in ("settle", "barrier"):
        options = {"engine": "spikes", "schedule": schedule, "backend": "torch"}
        assert torch.equal(read.run(images, **options), network.run(images, **options))
    assert read.report() == network.report()
    assert repr(read) == repr(network) == "IntegerNetwork(T=7, 6 units, depth 6, on cpu)"
    again = file.with_name("again.safetensors")
    read.save(again)
    assert again.read_bytes() == file.read_bytes()


def test_a_moved_network_gives_the_same_logits(network):
    images = images_for(1)
    assert torch.equal(network.to("cpu").run(images), network.run(images))
    assert not len(network.to("cpu").program.cache)  # what a backend prepared stays with the program that it is of
    assert network.to("meta").device.type == "meta"
    assert network.device.type == "cpu"
    with pytest.raises(nbsnn.ConfigError, match="device=mps has no float64"):
        network.to("mps")


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9, 0.999])
def test_an_altered_or_truncated_file_is_refused(file, place):
    content = bytearray(file.read_bytes())
    index = int(len(content) * place)
    file.write_bytes(content[:index])
    with pytest.raises(nbsnn.CheckpointError, match="damaged"):
        nbsnn.IntegerNetwork.load(file)
    content[index] ^= 1
    file.write_bytes(content)
    with pytest.raises(nbsnn.CheckpointError):
        nbsnn.IntegerNetwork.load(file)


def test_a_changed_number_is_refused_even_in_a_sound_file(file):
    with safe_open(file, "pt") as opened:
        metadata, tensors = opened.metadata(), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    tensors["program.head.bias"] += 1
    save_file(tensors, file, metadata)
    with pytest.raises(nbsnn.CheckpointError, match="hash"):
        nbsnn.IntegerNetwork.load(file)


FORGERIES = {
    "a unit reads what comes after it": lambda p: replace(p, nodes=p.nodes[::-1]),
    "a multiplier for too many channels": lambda p: with_branch(p, multiplier=torch.zeros(5, dtype=torch.int32)),
    "a weight of other channels": lambda p: with_branch(p, weight=torch.zeros(4, 9, 3, 3, dtype=torch.int8)),
    "a weight in float": lambda p: with_branch(p, weight=torch.zeros(4, 4, 3, 3)),
    "a window outside the image": lambda p: with_branch(p, weight=torch.zeros(4, 4, 30, 3, dtype=torch.int8)),
    "a stride of nothing": lambda p: with_branch(p, stride=(0, 1)),
    "sums that overflow": lambda p: with_branch(p, multiplier=torch.full((4,), 2**30, dtype=torch.int32)),
    "sums of the head that overflow": lambda p: with_heavy_head(p),
    "a retraction beyond 32 bits": lambda p: with_unit(p, retract=-(2**31) - 1),
    "no time": lambda p: replace(p, timesteps=0),
    "pixels beyond 30 bits": lambda p: replace(p, pixels=replace(p.pixels, high=2**40)),
    "a head that reads nothing known": lambda p: replace(
        p, head=replace(p.head, branches=(replace(p.head.branches[0], source="elsewhere"),))
    ),
}  # fmt: skip
REASONS = {  # of those that another check could refuse in place of the one that is meant
    "sums of the head that overflow": "the head overflows",
    "a retraction beyond 32 bits": r"blocks\.0\.act has retract=-2147483649, but its height makes",
}


def with_unit(program, **change):
    """The program with another second unit."""
    unit = program.units[1]
    return replace(program, nodes=tuple(replace(node, **change) if node is unit else node for node in program.nodes))


def with_branch(program, **change):
    """The program with another first branch of its second unit."""
    first, *others = program.units[1].branches
    return with_unit(program, branches=(replace(first, **change), *others))


def with_heavy_head(program):
    """The head reads 196 sums of 9·36 spikes; in seven steps weights of 2^15 - 1 make up to 1.5 * 10^10 of them."""
    sums, outputs = next(node for node in program.nodes if isinstance(node, SumPool)), program.head.shape[0]
    pool = SumPool("pool", sums.name, (6, 6), (1, 1), (3, 3), (4, 7, 7))
    flat = Flatten("flat", "pool", (196,))
    weight = torch.full((outputs, 196), 2**15 - 1, dtype=torch.int16)
    branch = Branch("flat", torch.ones(outputs, dtype=torch.float64), weight)
    return replace(program, nodes=(*program.nodes, pool, flat), head=replace(program.head, branches=(branch,)))


@pytest.mark.parametrize("name", FORGERIES)
def test_a_file_with_a_right_hash_and_wrong_content_is_refused(network, tmp_path, name):
    header, tensors = described(FORGERIES[name](network.program))
    path = forge(tmp_path / "forged.safetensors", header | {"content_hash": ""}, tensors)
    with pytest.raises(
        nbsnn.CheckpointError, match=rf"(in its header, |not a valid integer network \(){REASONS.get(name, '')}"
    ):
        nbsnn.IntegerNetwork.load(path)


def test_the_forms_are_not_mixed_up(file, tmp_path):
    nbsnn.save_checkpoint(tmp_path / "quantized.safetensors", small_quantized())
    with pytest.raises(nbsnn.CheckpointError, match=r"holds a quantized network; make an integer one of it with nbsnn\.lower"):
        nbsnn.IntegerNetwork.load(tmp_path / "quantized.safetensors")
    with pytest.raises(nbsnn.CheckpointError, match=r"holds an integer network; read it with nbsnn.IntegerNetwork.load"):
        nbsnn.load_checkpoint(file)


def test_evaluate_takes_an_integer_network_and_tells_its_steps(network):
    images, labels = images_for(2, 12), torch.arange(12) % 3
    plain = nbsnn.evaluate(network, [(images, labels)])
    settled = nbsnn.evaluate(
        network.using(engine="spikes", schedule="settle"), [(images[:5], labels[:5]), (images[5:], labels[5:])]
    )
    assert plain.top1 == settled.top1
    assert plain.images == settled.images == 12
    assert plain.steps == 7
    assert settled.max_steps >= settled.steps >= 7
