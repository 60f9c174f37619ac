"""Networks inside DataParallel, DDP, FSDP, torch.compile and the like are saved, loaded and measured as the bare ones."""

import pytest
import torch
import torch.distributed as dist
from nets import SmallNet, small_quantized
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import nbsnn
from nbsnn.checkpoint import describe, form_of, load_checkpoint, save_checkpoint
from nbsnn.errors import CheckpointError
from nbsnn.export.packed import save_packed
from nbsnn.importers.reference import load_reference_checkpoint
from nbsnn.tensorfile import read_tensors, write_tensors
from nbsnn.wrappers import bare_names, bare_state, without_wrappers

IMAGES = torch.linspace(-2, 2, 4 * 2 * 36).view(4, 2, 6, 6)
LABELS = torch.tensor([0, 1, 2, 3])

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # importing torch.compile
    pytest.mark.filterwarnings("ignore:.*FSDP:"),  # of a single process
    pytest.mark.filterwarnings("ignore:.*NO_SHARD:"),
]


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A group of one process."""
    store = tmp_path_factory.mktemp("store") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def with_compiled_parts(net):
    inner = getattr(net, "network", net)  # of a spiking one
    inner.conv2, inner.linear = torch.compile(inner.conv2), checkpoint_wrapper(inner.linear)
    return net


WRAP = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "compile": torch.compile,
    "compile in DataParallel": lambda net: nn.DataParallel(torch.compile(net)),
    "DDP in compile": lambda net: torch.compile(nn.parallel.DistributedDataParallel(net)),
    "average": AveragedModel,
    "average of DataParallel": lambda net: AveragedModel(nn.DataParallel(net)),
    "parts": with_compiled_parts,
    "parts in DataParallel": lambda net: nn.DataParallel(with_compiled_parts(net)),
}
WRAPPED = pytest.mark.parametrize("wrap", WRAP.values(), ids=WRAP.keys())


def equal(first, second):
    return first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)


@WRAPPED
@pytest.mark.parametrize("form", ["float", "quantized", "spiking"])
def test_a_wrapped_network_is_saved_as_the_bare_one(tmp_path, group, wrap, form):
    """Case 16."""
    net = SmallNet().eval() if form == "float" else small_quantized()
    net = nbsnn.to_spiking(net, IMAGES[:1]) if form == "spiking" else net
    wanted = net.state_dict()
    wrapped = wrap(net)
    save_checkpoint(tmp_path / "a.safetensors", wrapped)
    header, tensors = read_tensors(tmp_path / "a.safetensors")
    assert equal(tensors, wanted)
    assert header["form"] == form == form_of(wrapped)
    twin = load_checkpoint(tmp_path / "a.safetensors", model=SmallNet())
    assert equal(twin.state_dict(), wanted)


@WRAPPED
def test_the_float_form_may_be_given_wrapped(tmp_path, group, wrap):
    quantized = small_quantized()
    save_checkpoint(tmp_path / "a.safetensors", quantized)
    fresh = wrap(SmallNet())
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    twin = load_checkpoint(tmp_path / "a.safetensors", model=fresh)
    assert type(twin) is SmallNet
    assert equal(twin.state_dict(), quantized.state_dict())
    assert equal(fresh.state_dict(), before)


@WRAPPED
def test_a_file_that_an_earlier_version_wrote_of_a_wrapped_network_is_read(tmp_path, group, wrap):
    """It kept the names of the wrappers, in the plan and in the tensors."""
    quantized = small_quantized()
    wanted, plan = dict(quantized.state_dict()), describe(quantized)["plan"]
    wrapped = wrap(quantized)
    places = {bare: path for path, bare in bare_names(wrapped).items()}
    header = describe(SmallNet()) | {"form": "quantized", "plan": {places[name]: entry for name, entry in plan.items()}}
    write_tensors(tmp_path / "a.safetensors", wrapped.state_dict(), header)
    assert equal(load_checkpoint(tmp_path / "a.safetensors", model=SmallNet()).state_dict(), wanted)


@WRAPPED
def test_a_wrapped_network_is_packed_converted_lowered_and_measured(tmp_path, group, wrap):
    quantized = small_quantized()
    spiking, program = nbsnn.to_spiking(quantized, IMAGES[:1], schedule="settle"), nbsnn.lower(quantized, IMAGES[:1])
    wanted = nbsnn.measure_fidelity(quantized, spiking, IMAGES)
    expected = nbsnn.evaluate(spiking, [(IMAGES, LABELS)])
    save_packed(tmp_path / "a.safetensors", quantized)
    wrapped = wrap(small_quantized())
    for key, value in bare_state(wrapped).items():
        value.copy_(quantized.state_dict()[key])
    save_packed(tmp_path / "b.safetensors", wrapped)
    assert equal(*(read_tensors(tmp_path / name)[1] for name in ("a.safetensors", "b.safetensors")))
    found = nbsnn.measure_fidelity(wrapped, nn.DataParallel(nbsnn.to_spiking(wrapped, IMAGES[:1], schedule="settle")), IMAGES)
    assert [(layer.name, layer.differing) for layer in found.layers] == [(la.name, la.differing) for la in wanted.layers]
    assert nbsnn.lower(wrapped, IMAGES[:1]).run(IMAGES).equal(program.run(IMAGES))
    measured = nbsnn.evaluate(nn.DataParallel(spiking), [(IMAGES, LABELS)])
    assert (measured.top1, measured.steps, measured.max_steps) == (expected.top1, expected.steps, expected.max_steps)


@pytest.mark.parametrize("generation", [1, 2])
def test_a_sharded_network_is_put_together(tmp_path, group, generation):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    net = SmallNet()
    wanted = {key: value.clone() for key, value in net.state_dict().items()}
    if generation == 1:
        net = torch.compile(FullyShardedDataParallel(net, device_id=torch.device("cpu")))
    else:
        fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
    save_checkpoint(tmp_path / "a.safetensors", net)
    assert equal(read_tensors(tmp_path / "a.safetensors")[1], wanted)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module."])
def test_a_reference_file_of_a_wrapped_network_is_read(tmp_path, prefix):
    net = nbsnn.build_model("cifar10/resnet20")
    names = {"stem.conv.": "layer0.block.0.", "stem.norm.": "layer0.block.1."}
    state = {next((new + key.removeprefix(old) for old, new in names.items() if key.startswith(old)), key): value
             for key, value in net.state_dict().items()}  # fmt: skip
    for key in list(state):
        renamed = key.replace("stage", "layer").replace(".first.", ".part1.").replace(".second.", ".part2.")
        renamed = renamed.replace(".shortcut.conv.", ".downsample.0.").replace(".shortcut.norm.", ".downsample.1.")
        state[renamed.replace(".norm.", ".bn.").replace("head.", "layer4.")] = state.pop(key)
    torch.save({"state_dict": {prefix + key: value for key, value in state.items()}}, tmp_path / "a.pth.tar")
    twin = load_reference_checkpoint(tmp_path / "a.pth.tar", "cifar10/resnet20", weight_bits=32, act_bits=32)
    assert equal(twin.state_dict(), net.state_dict())
    torch.save({"state_dict": state | {prefix + key: value for key, value in state.items()}}, tmp_path / "b.pth.tar")
    with pytest.raises(CheckpointError, match="not expected"):  # two tensors for one
        load_reference_checkpoint(tmp_path / "b.pth.tar", "cifar10/resnet20", weight_bits=32, act_bits=32)


def test_a_child_that_is_called_module_keeps_its_name():
    state = {"module.weight": 1, "head.module.bias": 2, "module._orig_mod.bias": 3}
    assert without_wrappers(state, {"module.weight", "head.module.bias"}) == state
    assert without_wrappers({"module.module.weight": 1}, {"module.weight"}) == {"module.module.weight": 1}
    assert without_wrappers(state) == {"weight": 1, "head.module.bias": 2, "bias": 3}
