"""The quantized weight follows the parameters, however they are written; it is kept only inside `quantized_once`."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from nets import small_quantized
from torch import nn

from nbsnn.quant import functional
from nbsnn.quant.formats import Apot, EdgeUniform, apot
from nbsnn.quant.layers import QuantLinear, quantized_once
from nbsnn.quant.quantize import quantize, set_bits_
from nbsnn.recipe import QuantSpec
from nbsnn.spiking.convert import to_spiking


def layer():
    return QuantLinear.from_float(nn.Linear(5, 4), Apot(3))


def fresh(net):
    """What the weight is quantized to where nothing can have been kept."""
    return functional.apot_weight(net.weight.detach().clone(), net.weight_scale.detach().clone(), bits=net.weight_bits).values


# ------------------------------------------------------------------------------------------------------------ optimizers


def losses_of(optimizer, *, fused):
    """Twenty steps on one batch: the losses, and the network."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    x, y = torch.randn(16, 3, 8, 8), torch.randint(0, 5, (16,))
    net = quantize(net, QuantSpec(2, 2, norms="recalibrate"), images=x).train()
    steps = optimizer(net.parameters(), lr=0.05, fused=fused)
    losses = []
    for _ in range(20):
        steps.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        steps.step()
        losses.append(loss.item())
    return losses, net


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_a_fused_optimizer_trains_as_the_plain_one_does(name):
    """Case 1: fused optimizers do not raise autograd's version counter."""
    plain, _ = losses_of(getattr(torch.optim, name), fused=False)
    fused, net = losses_of(getattr(torch.optim, name), fused=True)
    assert fused == pytest.approx(plain, abs=0.02)
    assert fused[-1] < fused[0]
    assert net[3].quantized_weight().equal(fresh(net[3]))


# ------------------------------------------------------------------------------------------------------- ways of writing


def swapped(net):
    twin = nn.Parameter(-net.weight.detach().clone())
    torch.utils.swap_tensors(net.weight, twin)


def assigned(net):
    state = {key: -value if key == "weight" else value for key, value in net.state_dict().items()}
    net.load_state_dict(state, assign=True)


def copied(net):
    with torch.no_grad():
        net.weight.copy_(-net.weight)


def through_a_view(net):
    net.weight.detach().view(-1).neg_()


def foreach(net):
    torch._foreach_neg_([net.weight.data])


def through_numpy(net):
    net.weight.detach().numpy()[...] *= -1


WRITES = {
    "data": lambda net: net.weight.data.mul_(-1),
    "data assigned": lambda net: setattr(net.weight, "data", -net.weight.data),
    "swap_tensors": swapped, "load_state_dict(assign=True)": assigned, "copy_": copied, "a view": through_a_view,
    "foreach": foreach, "numpy": through_numpy, "storage": lambda net: net.weight.untyped_storage().copy_(
        (-net.weight.detach()).untyped_storage()
    ),
}  # fmt: skip


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("grad", [True, False])
def test_every_way_of_writing_a_weight_is_seen(write, grad):
    """Case 2: the output after the write is that of a copy that has never been run."""
    net, x = layer(), torch.randn(2, 5)
    with torch.set_grad_enabled(grad):
        before = net(x).detach()
        write(net)
        after = net(x).detach()
        assert not after.equal(before)
        assert after.equal(copy.deepcopy(net)(x))
        net.requires_grad_(False)
        assert net(x).equal(after)
        net.weight_scale.data.mul_(0.3)
        assert not net(x).equal(after)


def test_an_average_written_through_data_is_evaluated_as_it_is():
    """Case 3: an EMA copy, evaluated between steps, equals a fresh copy of itself."""
    net, x = small_quantized().train(), torch.randn(8, 2, 6, 6)
    average = copy.deepcopy(net).eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(net(x), torch.arange(8) % 4).backward()
        optimizer.step()
        for p, q in zip(average.parameters(), net.parameters(), strict=True):
            p.data.mul_(0.5).add_(q.data, alpha=0.5)
        with torch.inference_mode():
            assert average(x).equal(copy.deepcopy(average)(x))


def test_a_spiking_network_follows_its_parameters_too():
    spiking, x = to_spiking(small_quantized(), torch.randn(1, 2, 6, 6), schedule="settle"), torch.randn(4, 2, 6, 6)
    with torch.no_grad():
        before = spiking(x)
        spiking.network.conv2.weight.data.mul_(-1)
        after = spiking(x)
        assert not after.equal(before)
        assert after.equal(copy.deepcopy(spiking)(x))


def test_another_format_or_type_is_seen():
    net = layer()
    three = net.quantized_weight()
    set_bits_(net, weight_bits=2)
    assert len(net.quantized_weight().unique()) < len(three.unique())
    assert net.double().quantized_weight().dtype == torch.float64


@pytest.mark.parametrize("make", [layer, lambda: QuantLinear.from_float(nn.Linear(5, 4), EdgeUniform(8, "max"))])
def test_training_continues_after_inference_mode(make):
    net, x = make(), torch.randn(2, 5)
    with torch.inference_mode(), quantized_once(net):
        before = net(x)
    out = net(x)
    out.sum().backward()
    assert torch.equal(out, before)
    assert net.weight.grad.abs().sum() > 0


# ------------------------------------------------------------------------------------------------------------- the scope


@pytest.fixture
def calls(monkeypatch):
    seen = []
    original = apot.quantize_weight

    def counting(*args, **kwargs):
        seen.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(apot, "quantize_weight", counting)
    return seen


def test_a_weight_is_quantized_once_in_the_scope_and_nothing_is_kept_after_it(calls):
    net, other, x = layer(), layer(), torch.randn(2, 5)
    with torch.no_grad():
        with quantized_once(net):
            first = net(x)
            with quantized_once(net, other):  # the outer scope's weight serves
                assert net(x).equal(first)
                other(x)
            assert len(calls) == 2
            copy.deepcopy(net)(x)
            assert len(calls) == 3  # another network
        assert net(x).equal(first)
    assert len(calls) == 4


def test_with_gradients_nothing_is_kept(calls):
    net, x = layer(), torch.randn(2, 5)
    with quantized_once(net):
        net(x).sum().backward()
        net(x).sum().backward()
    assert len(calls) == 2


def test_other_parameters_in_the_scope_are_seen():
    net, x = layer(), torch.randn(2, 5)
    with torch.no_grad(), quantized_once(net):
        first = net(x)
        other = torch.func.functional_call(net, {"weight": -net.weight, "weight_scale": net.weight_scale}, (x,))
        assert not other.equal(first)
        assert net(x).equal(first)
        assert net.double()(x.double()).dtype == torch.float64
        assert net.float()(x).equal(first)
        net.format = Apot(2)
        assert not net(x).equal(first)


def test_the_scope_is_of_its_thread(calls):
    net, x = layer(), torch.randn(2, 5)

    def without_gradient():
        with torch.no_grad():
            return net(x)

    with torch.no_grad(), quantized_once(net), ThreadPoolExecutor(1) as threads:
        mine = net(x)
        assert threads.submit(without_gradient).result().equal(mine)
    assert len(calls) == 2
