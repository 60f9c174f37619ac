"""Import ImageNet weights of TorchVision into the float AlexNet and VGG-16, tensor by tensor.

TorchVision's nets use max pooling, and only `vgg16_bn` has batch norm; ours use strides and have a batch norm after every
hidden layer. Weights have the same shapes and are copied; a bias is moved into the norm that follows; a norm that TorchVision's
net lacks starts as the identity. Pooling cannot be copied: `differences` lists what differs, and training must make up for it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nbsnn.errors import CheckpointError, ConfigError, MissingDependencyError, unknown
from nbsnn.finite import count_not_finite
from nbsnn.models import build_model, canonical_name
from nbsnn.models.plain import PLAIN_NETS
from nbsnn.norms import match_norms_
from nbsnn.wrappers import without_wrappers

COPIED = "copied"
MOVED = "bias moved into the norm"
FOLDED = "folded into running_mean"
NEW = "new: starts as the identity"

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_HEAD = "classifier.6"
_IMAGE_SIZE = 224  # pixels; determines the width of TorchVision's first linear layers
_NAMED = 5  # names in a message; another file may have hundreds
_Row = tuple[str | None, str | None, str]  # our name, TorchVision's, what happened to it


class _Source(NamedTuple):
    """A net of TorchVision: torchvision/models/alexnet.py, or vgg.py in configuration D."""

    model: str  # ours
    convolutions: tuple[tuple[int, int, int], ...]  # (index in `features`, stride, padding)
    pools: tuple[int, ...]  # indices in `features`; stride 2
    kernel: int  # of the pools
    hidden: tuple[int, int]  # indices in `classifier`
    norms: bool = False  # after every convolution


def _vgg(*indices: int) -> tuple[tuple[int, int, int], ...]:
    return tuple((index, 1, 1) for index in indices)


SOURCES = {
    "alexnet": _Source("imagenet/alexnet", ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)), (2, 5, 12), 3, (1, 4)),
    "vgg16": _Source("imagenet/vgg16", _vgg(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (4, 9, 16, 23, 30), 2, (0, 3)),
    "vgg16_bn": _Source(
        "imagenet/vgg16", _vgg(0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40), (6, 13, 23, 33, 43), 2, (0, 3), norms=True
    ),
}


@dataclass(frozen=True)
class MappedTensor:
    """The source of a tensor of the network, or what happened to a tensor of the source; None if a side has none.

    Without either, `what` describes a difference that is not a tensor.
    """

    ours: str | None
    source: str | None
    shape: tuple[int, ...]
    what: str


def torchvision_state(arch: str) -> dict[str, Tensor]:
    """The pretrained state dict of "alexnet", "vgg16" or "vgg16_bn", which TorchVision downloads and caches.

    Raises:
        ConfigError: another name.
        MissingDependencyError: torchvision is not installed.
        CheckpointError: the download failed, or the file cannot be read.
    """
    _source(arch)
    try:
        from torchvision.models import get_model  # type: ignore[import-not-found,import-untyped]

        return dict(get_model(arch, weights="DEFAULT").state_dict())
    except ImportError:
        purpose = f"fetching TorchVision's {arch} (a state dict that was downloaded elsewhere: pretrained=FILE)"
        raise MissingDependencyError("torchvision", extra="torchvision", purpose=purpose) from None
    except Exception as error:  # network, cache and unpickling can raise any exception
        reason = (str(error) or type(error).__name__).splitlines()[0]
        remedy = "download its state dict elsewhere and give that file: pretrained=FILE"
        raise CheckpointError(f"TorchVision's {arch} could not be fetched ({reason}); {remedy}") from None


def from_torchvision(
    model: str,
    state: Mapping[str, Tensor],
    images: Iterable[Tensor],
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    source: str,
) -> tuple[nn.Module, list[MappedTensor]]:
    """A float network with TorchVision's weights, in training mode like any new one, and the table of tensors.

    Args:
        model: "imagenet/alexnet" or "imagenet/vgg16", or a published short name.
        state: of TorchVision's alexnet, vgg16 or vgg16_bn.
        images: batches [B, C, H, W] float32, normalized, for `match_norms_`.
        num_classes: those of the state unless given; with another number the head has new weights.
        image_size: 224.
        source: where the state is from, for messages.
    Raises:
        ConfigError: another image size; otherwise see `load_torchvision_weights_` and `match_norms_`.
    """
    name = canonical_name(model, data="imagenet")
    if image_size not in (None, _IMAGE_SIZE):
        raise ConfigError(f"image_size={image_size}: TorchVision's linear layers fit image_size={_IMAGE_SIZE} alone; use that")
    arch, tensors = _recognize(state, source)
    net = build_model(name, num_classes=num_classes or tensors[f"{_HEAD}.bias"].numel())
    table = load_torchvision_weights_(net, state, source=source)
    match_norms_(net, images)
    return net, table + [MappedTensor(None, None, (), line) for line in differences(arch)]


@torch.no_grad()
def load_torchvision_weights_(net: nn.Module, state: Mapping[str, Tensor], *, source: str) -> list[MappedTensor]:
    """Copy TorchVision's tensors into a float network of ours, all or none; the architecture is found from their names.

    Args:
        net: `imagenet/alexnet` or `imagenet/vgg16`, changed in place; its head is not changed if it has another number of
            classes.
        state: names may have prefixes of wrappers, such as `module.`.
        source: where the state is from, for messages.
    Returns:
        A row for every tensor of both networks. New norms compute norm(x) = x + bias in evaluation mode.
    Raises:
        ConfigError: the state belongs to another network.
        CheckpointError: names, shapes or values do not fit; names them.
    """
    arch, tensors = _recognize(state, source)
    own = net.state_dict()
    if {ours for ours, _, _ in _rows(arch)} != set(own):
        model = SOURCES[arch].model
        raise ConfigError(f"{source} holds TorchVision's {arch}, which starts the float {model} and no other; build {model}")
    # Older files lack the counter of batches.
    rows = [(ours, theirs, what) if theirs in tensors else (ours, None, NEW) for ours, theirs, what in _rows(arch)]
    given, wanted = (t.numel() for t in (tensors[f"{_HEAD}.bias"], own["head.bias"]))
    if given != wanted:
        rows[-2:] = [(name, None, f"new: fresh, for {wanted} classes") for name in ("head.weight", "head.bias")]
        rows += [(None, f"{_HEAD}.{leaf}", f"left out: for {given} classes") for leaf in ("weight", "bias")]
    pairs = [(ours, theirs, what) for ours, theirs, what in rows if ours and theirs]
    shapes = [f"{theirs} {list(tensors[theirs].shape)} instead of {list(own[ours].shape)}"
              for ours, theirs, _ in pairs if tensors[theirs].shape != own[ours].shape]  # fmt: skip
    broken = [
        f"{key}, {bad} of {tensor.numel()} values" for key, tensor in tensors.items() if (bad := count_not_finite(tensor))
    ]
    remedy = f"build it with in_channels=3 and image_size={_IMAGE_SIZE}, or fetch the default weights"
    _refuse({"of another shape": shapes, "not finite": broken}, f"{source} does not fit the network", remedy)

    for ours, theirs, what in pairs:
        if what == FOLDED:  # a bias before a norm only shifts the mean that the norm subtracts
            own[ours].sub_(tensors[theirs].to(own[ours]))
        else:
            own[ours].copy_(tensors[theirs])
    for name in [ours for ours, _, what in rows if ours and what == NEW]:
        eps = getattr(net.get_submodule(name.rpartition(".")[0]), "eps", 0.0)
        own[name].fill_({"weight": 1.0, "running_var": 1.0 - eps}.get(name.rpartition(".")[2], 0.0))
    return [MappedTensor(a, b, tuple((own[a] if a else tensors[b or ""]).shape), what) for a, b, what in rows]


def differences(arch: str) -> list[str]:
    """Differences from TorchVision's net that are not tensors, one line each: pools, strides, paddings, dropout."""
    told = _source(arch)
    ours = [layer[2:] for layer in PLAIN_NETS[told.model].convolutions]  # (stride, padding)
    strided = [i for i, (_, stride, _) in enumerate(told.convolutions) if stride != ours[i][0]]
    lines = [f"features.{index}: max pool {told.kernel}×{told.kernel}, stride 2 became the stride of our features.{i}"
             for index, i in zip(told.pools, strided, strict=True)]  # fmt: skip
    lines += [f"features.{k}: stride {stride}, padding {pad}; our features.{i} has {ours[i][0]} and {ours[i][1]}"
              for i, (k, stride, pad) in enumerate(told.convolutions) if (stride, pad) != ours[i]]  # fmt: skip
    return [*lines, f"avgpool: dropped; it has no effect at {_IMAGE_SIZE} pixels", "classifier: dropout is dropped"]


def _source(arch: str) -> _Source:
    if arch not in SOURCES:
        raise ConfigError(unknown("TorchVision architecture", arch, SOURCES))
    return SOURCES[arch]


def _rows(arch: str) -> list[_Row]:
    """What happens to every tensor; a folded bias comes after the mean, the head last."""
    told = SOURCES[arch]
    units = [(f"features.{i}", "conv", "features", k, told.norms) for i, (k, _, _) in enumerate(told.convolutions)]
    units += [(f"classifier.{i}", "linear", "classifier", k, False) for i, k in enumerate(told.hidden)]
    rows: list[_Row] = []
    for ours, synapse, part, k, has_norm in units:
        rows.append((f"{ours}.{synapse}.weight", f"{part}.{k}.weight", COPIED))
        if has_norm:
            rows += [(f"{ours}.norm.{leaf}", f"{part}.{k + 1}.{leaf}", COPIED) for leaf in _NORM]
            rows.append((f"{ours}.norm.running_mean", f"{part}.{k}.bias", FOLDED))
        else:
            rows.append((f"{ours}.norm.bias", f"{part}.{k}.bias", MOVED))
            rows += [(f"{ours}.norm.{leaf}", None, NEW) for leaf in _NORM if leaf != "bias"]
    return rows + [(f"head.{leaf}", f"{_HEAD}.{leaf}", COPIED) for leaf in ("weight", "bias")]


def _recognize(state: Mapping[str, Tensor], source: str) -> tuple[str, dict[str, Tensor]]:
    """The architecture, and its tensors without the prefix of data-parallel training."""
    tensors = without_wrappers(state)
    known = {arch: [theirs for _, theirs, _ in _rows(arch) if theirs] for arch in SOURCES}
    arch = min(known, key=lambda arch: len(set(known[arch]) ^ set(tensors)))
    missing = [key for key in known[arch] if key not in tensors and not key.endswith("num_batches_tracked")]
    what = f"{source} holds none of TorchVision's {', '.join(SOURCES)}; {arch} is closest"
    extra = [key for key in tensors if key not in known[arch]]
    _refuse({"missing": missing, "not expected": extra}, what, "give the state dict of one of them")
    return arch, tensors


def _refuse(problems: Mapping[str, list[str]], what: str, remedy: str) -> None:
    """Raise CheckpointError if there are any problems; names the first few of a long list."""
    lists = [f"{kind}: {', '.join(names[:_NAMED])}{f' and {len(names) - _NAMED} more' if names[_NAMED:] else ''}"
             for kind, names in problems.items() if names]  # fmt: skip
    if lists:
        raise CheckpointError(f"{what} ({'; '.join(lists)}); {remedy}")
