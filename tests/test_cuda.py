"""What runs on a GPU gives what the CPU gives, and a replayed step what an eager one does. Skipped where there is none."""

import copy

import pytest
import torch
from nets import digits_net
from observers import StopAfter

from nbsnn import pipeline
from nbsnn.data.images import Splits
from nbsnn.data.pixels import crop_and_flip
from nbsnn.data.sets.digits import load_digits
from nbsnn.device import pick_device
from nbsnn.errors import Interrupted
from nbsnn.evaluation.fidelity import measure_fidelity
from nbsnn.models import build_model
from nbsnn.precision import full_float32
from nbsnn.quant.functional import quantize_edge_weight, quantize_weight
from nbsnn.recipe import OptimSpec, Phase
from nbsnn.recipes import load_recipe
from nbsnn.spiking.convert import to_spiking
from nbsnn.spiking.schedules import valid_pairs
from nbsnn.sums import moments
from nbsnn.surgery import evaluation_mode
from nbsnn.tensorfile import read_tensors
from nbsnn.training.execution import Execution, pick_execution
from nbsnn.training.loop import fit
from nbsnn.training.loss import Loss
from nbsnn.training.options import FitOptions, TrainOptions
from nbsnn.training.step import Step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
SETTINGS = ["data.batch_size=32", "data.augment=true", "phase.all.epochs=2"]
CHANGED = [*SETTINGS, "phase.all.ema_decay=0.9", "optim.recalibrate_batches=3", "optim.clip_norm=1"]
RECIPE = load_recipe("digits/resnet20", CHANGED)
PHASE = Phase(2, lr=0.05, distill=0.5)
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def splits():
    full = load_digits()
    return Splits(full.train.take(slice(0, 300)), full.validation.take(slice(0, 60)), full.test.take(slice(0, 100)))


def resnet(images):
    """A quantized ResNet-20 for digits, and a float one that teaches it."""
    torch.manual_seed(0)
    plain = build_model("cifar10/resnet20", in_channels=1, image_size=8)
    return pipeline.next_form(plain, RECIPE, 4, images), build_model("cifar10/resnet20", in_channels=1, image_size=8)


def trained(folder, splits, execution, observer=None, settings=()):
    net, teacher = resnet(pipeline.calibration_images(splits.train))
    recipe = load_recipe("digits/resnet20", [*CHANGED, *settings])
    found = fit(
        net, splits, recipe, PHASE, out=folder, options=FitOptions(CUDA, execution), teacher=teacher, observer=observer
    )  # 300 images: nine full batches and one of 12
    return read_tensors(found.last)[1], found.history


def same(first, second):
    return first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)


@pytest.mark.parametrize(
    ("autocast", "settings"), [(None, ()), (torch.bfloat16, ()), (None, ("optim.accumulate=2", "phase.all.ema_decay=0"))]
)
def test_a_replayed_run_ends_with_the_bits_of_an_eager_one(tmp_path, splits, autocast, settings):
    eager, history = trained(tmp_path / "eager", splits, Execution(autocast=autocast), settings=settings)
    replayed, other = trained(tmp_path / "replayed", splits, Execution(autocast=autocast, cuda_graph=True), settings=settings)
    assert same(eager, replayed)
    assert [row.loss for row in history] == [row.loss for row in other]
    assert [row.train_top1 for row in history] == [row.train_top1 for row in other]


def test_a_replayed_run_resumes_with_the_same_bits(tmp_path, splits):
    execution = Execution(cuda_graph=True)
    whole, _ = trained(tmp_path / "whole", splits, execution)
    for steps in (2, 7, 5):
        with pytest.raises(Interrupted):
            trained(tmp_path / "parts", splits, execution, StopAfter(steps))
    parts, _ = trained(tmp_path / "parts", splits, execution)
    assert same(whole, parts)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules, which the compiler imports
def test_a_compiled_and_replayed_run_learns(tmp_path, splits):
    _, history = trained(tmp_path, splits, Execution(compiled=True, cuda_graph=True))
    assert history[-1].loss < history[0].loss


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules, which the compiler imports
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_take_the_levels_of_the_cpu(layout, compiled):
    """Case 5: statistics are right on any device, and what follows is rounded alike."""
    torch.manual_seed(0)
    weight, scale = torch.randn(512, 256, 3, 3) * 0.02 + 0.001, torch.tensor(1.7)

    def quantized(w, s):
        every = [quantize_weight(w, s, bits=bits, own_scale=own) for bits in (2, 3, 4, 5) for own in (False, True)]
        return torch.stack([*every, quantize_edge_weight(w), quantize_edge_weight(w, edge_range="max")])

    there = torch.compile(quantized) if compiled else quantized
    moved = weight.contiguous(memory_format=layout).to(CUDA)
    assert there(moved, scale.to(CUDA)).cpu().equal(quantized(weight, scale))


def test_the_deviation_of_a_hundred_million_weights_is_right_on_a_gpu():
    weight = torch.randn(25088, 4096, device=CUDA) * 0.02
    exact = torch.stack([block.double().square().sum() for block in weight.split(512)]).sum()
    mean = torch.stack([block.double().sum() for block in weight.split(512)]).sum() / weight.numel()
    deviation = ((exact - mean.square() * weight.numel()) / (weight.numel() - 1)).sqrt()
    assert float(moments(weight).deviation) == pytest.approx(float(deviation), rel=1e-9)


def test_quantized_weights_are_those_of_a_fresh_copy_after_replays(splits):
    net, _ = resnet(pipeline.calibration_images(splits.train))
    net = net.to(CUDA).to(memory_format=torch.channels_last).train()
    spec, phase, execution = OptimSpec(), Phase(1, lr=0.05), Execution(cuda_graph=True)
    loss = Loss(spec, phase, execution, None, CUDA)
    step = Step(net, spec=spec, phase=phase, execution=execution, loss=loss, batch=32)
    data = splits.train.to(CUDA)
    images, labels = data.normalized().contiguous(memory_format=torch.channels_last), data.labels
    for index in range(8):
        part = slice(32 * index, 32 * index + 32)
        step(images[part], labels[part], 0.05)
        with torch.no_grad(), evaluation_mode(net):
            kept = net(images[:32])
            assert kept.equal(copy.deepcopy(net)(images[:32])), index


def test_a_gpu_is_picked_with_replays():
    chosen = pick_execution(CUDA, 1000)
    assert chosen.cuda_graph
    assert str(chosen).endswith("replayed as a CUDA graph")
    assert pick_device().type == "cuda"


def test_a_recipe_runs_on_a_gpu(tmp_path, splits):
    recipe = load_recipe("digits/resnet20", SETTINGS)
    phases = list(pipeline.train(recipe, tmp_path, TrainOptions("cuda"), splits=splits))
    assert [phase.bits for phase in phases] == [32, 4, 3, 2]


def test_crops_are_those_of_the_cpu():
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8)
    for padding in ("black", "mirror"):
        here, there = (crop_and_flip(x, torch.Generator().manual_seed(3), padding) for x in (images, images.cuda()))
        assert here.equal(there.cpu())


@pytest.mark.parametrize(("neuron", "schedule"), valid_pairs())
def test_spiking_networks_step_on_a_gpu_as_on_the_cpu(neuron, schedule, splits):
    net = digits_net().double().eval()
    images = splits.test.normalized().double()
    here = to_spiking(net, images[:1], neuron=neuron, schedule=schedule)
    there = to_spiking(copy.deepcopy(net).cuda(), images[:1].cuda(), neuron=neuron, schedule=schedule)
    assert torch.allclose(here(images), there(images.cuda()).cpu(), atol=1e-9)
    if schedule != "fixed":
        assert measure_fidelity(net.cuda(), there, images.cuda()).differing == 0


@pytest.mark.parametrize(("neuron", "schedule"), valid_pairs())
def test_integer_networks_have_the_same_bits_on_a_gpu(neuron, schedule, splits):
    here = pipeline.integer_form(digits_net().eval(), splits.test)
    there = here.to("cuda")
    images = splits.test.pixels(slice(0, 20))
    for options in ({}, {"engine": "spikes", "neuron": neuron, "schedule": schedule}):
        wanted, found = here.simulate(images, keep_counts=True, **options), there.simulate(images, keep_counts=True, **options)
        assert found.logits.cpu().equal(wanted.logits)
        assert found.steps.cpu().equal(wanted.steps)
        assert all(found.counts[key].cpu().equal(wanted.counts[key]) for key in wanted.counts)


def test_what_is_evaluated_keeps_all_bits_of_its_convolutions():
    """TF32 would leave a relative error of about 10⁻³; the settings of the process come back."""
    torch.manual_seed(0)
    conv, images = torch.nn.Conv2d(64, 64, 3).to(CUDA), torch.randn(8, 64, 16, 16, device=CUDA)
    before = torch.backends.cudnn.allow_tf32
    with torch.no_grad():
        exact = copy.deepcopy(conv).double()(images.double())
        with full_float32():
            error = (conv(images) - exact).abs().max() / exact.abs().max()
    assert error < 1e-5
    assert torch.backends.cudnn.allow_tf32 == before
