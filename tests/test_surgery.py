"""Wrappers of torch are seen through: the network inside is what is quantized, converted and saved."""

import pytest
import torch
from nets import SmallNet
from torch import nn
from torch.optim.swa_utils import AveragedModel

from nbsnn.wrappers import copied, unwrap

WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,
    "AveragedModel": AveragedModel,
    "two of them": lambda net: nn.DataParallel(torch.compile(net)),
    "a class of one's own": lambda net: type("Parallel", (nn.DataParallel,), {})(net),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # importing torch.compile
@pytest.mark.parametrize("name", WRAPPERS)
def test_unwrap_gives_the_network_inside(name):
    net = SmallNet()
    inner = unwrap(WRAPPERS[name](net))
    assert type(inner) is SmallNet
    assert inner is net or name == "AveragedModel"  # which holds a copy
    assert unwrap(net) is net


def test_a_module_that_only_looks_like_a_wrapper_is_none():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = SmallNet()

    holder = Holder()
    assert unwrap(holder) is holder


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # importing torch.compile
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_copy_has_no_wrappers_and_shares_nothing(name):
    """Case 16: names are those of the bare network, wherever in the tree the wrapper stands."""
    inner = SmallNet()
    net = nn.Sequential(WRAPPERS[name](inner), nn.ReLU())
    twin = copied(net)
    assert list(twin.state_dict()) == [f"0.{key}" for key in inner.state_dict()]
    assert type(copied(WRAPPERS[name](inner))) is SmallNet
    x = torch.randn(2, 2, 6, 6)
    assert torch.equal(net.eval()[0](x) if name == "AveragedModel" else inner.eval()(x), twin.eval()[0](x))
    with torch.no_grad():
        twin[0].conv1.weight.zero_()
    assert inner.conv1.weight.any()


def test_a_copy_keeps_what_is_shared_within_the_network():
    part = nn.Linear(3, 3)
    net = nn.Sequential(part, nn.DataParallel(part), nn.Linear(3, 3))
    net[2].weight = part.weight
    twin = copied(net)
    assert twin[0] is twin[1]
    assert twin[2].weight is twin[0].weight


def test_a_weight_that_hangs_on_a_graph_is_copied():
    layer = torch.nn.utils.spectral_norm(nn.Linear(3, 3))
    layer(torch.randn(2, 3)).sum().backward()
    assert layer.weight.grad_fn is not None
    assert torch.equal(copied(layer).weight, layer.weight)
