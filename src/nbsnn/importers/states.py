"""State dicts of any program for your own networks: read without executing code, fitted key by key."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from nbsnn.errors import CheckpointError
from nbsnn.finite import check_network
from nbsnn.statedict import check_state
from nbsnn.tensorfile import read_state_dict
from nbsnn.wrappers import without_wrappers

_COUNTER = "num_batches_tracked"  # of batch norm; files of torch before 0.4.1 lack it


def load_state_(network: nn.Module, path: str | Path) -> nn.Module:
    """Load a state dict from a `.pt`, `.pth` or `.safetensors` file into a network, in place; returns the network.

    A dictionary with other entries, such as {"model": ..., "epoch": 3}, is searched for the tensors. Prefixes of wrappers, such
    as `module.`, and one that all names share are dropped if the names fit then.

    Raises:
        CheckpointError: the file is missing or damaged, or names, shapes or types do not fit: names them, with close matches.
    """
    path = Path(path)
    own = network.state_dict()
    state = _renamed(read_state_dict(path), own)
    state = {**{key: tensor for key, tensor in own.items() if key.endswith(_COUNTER)}, **state}
    check_state(network, state, source=str(path))
    network.load_state_dict({key: state[key] for key in own})
    check_network(network, CheckpointError, source=str(path))
    return network


def _renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the network's names, if they differ by a prefix only."""
    bare = dict(without_wrappers(state, own))
    heads = {key.partition(".")[0] for key in bare}
    if len(heads) == 1:
        shorter = {key.partition(".")[2]: tensor for key, tensor in bare.items()}
        if len(shorter.keys() & own.keys()) > len(bare.keys() & own.keys()):
            return shorter
    return bare
