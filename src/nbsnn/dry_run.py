"""Check a network before any training: is there an obstacle between it and its integer form?"""

from collections import Counter

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import ConversionError, LoweringError, NbsnnError, QuantizationError
from nbsnn.inputs import as_images, to_network
from nbsnn.integer.lower import lower
from nbsnn.pooling import MAX_POOLS
from nbsnn.precision import full_float32
from nbsnn.prepare import Finding, check_not_quantized, inspect_network
from nbsnn.quant.flow import WEIGHT_LAYERS
from nbsnn.quant.planning import check_float
from nbsnn.quant.quantize import quantize
from nbsnn.recipe import QuantSpec
from nbsnn.surgery import fold_computed_weights_
from nbsnn.wrappers import as_network, copied

_KINDS: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("weight layers: quantized", WEIGHT_LAYERS),
    ("batch norms: folded into the weights before them", (nn.modules.batchnorm._BatchNorm,)),
    ("activations: neurons", (nn.ReLU,)),
    ("max pools: exact on counts", MAX_POOLS),
)


@checked_arguments
@full_float32()
@torch.inference_mode(mode=False)
def check(net: nn.Module, example: Tensor, *, spec: QuantSpec | None = None) -> list[Finding]:
    """Every place of a network that has to be changed, or that cannot be, found without any training.

    The network is prepared, and all that spikes cannot represent is listed. Without any such place it is quantized, converted
    and lowered once, on the example, so what these would refuse is found too.

    Args:
        net: a float network; it is not changed.
        example: [B, ...], an image or more, on which the network runs.
        spec: bits, and layers to skip; 4 bits by default.
    Returns:
        Refused places first, then changes, in the order of the data flow, and what is handled without a change.
    """
    findings: list[Finding] = []
    try:
        net = as_network(net, QuantizationError)
        example = as_images(example, "example", network=net, finite=True, error=QuantizationError)
        check_not_quantized(net)
        check_float(net)
        copy = copied(net)
        for name in fold_computed_weights_(copy):
            what = "computed in each call; it becomes a plain parameter, which training moves freely"
            findings.append(Finding(name, None, what, "changed"))
        spec = spec or QuantSpec(4, 4)
        found, prepared = inspect_network(copy, to_network(example, copy)[:1], keep=spec.skip)
        findings += found
        handled = _handled(prepared)
        del copy, prepared  # of a large network, whose lowering takes gigabytes too
        if not any(finding.status == "refused" for finding in findings):
            findings += _converted(net, example[:1], spec)
    except NbsnnError as error:
        return [*findings, _refused(error, net)]
    findings += handled
    order = ("refused", "approximated", "changed", "handled")
    return sorted(findings, key=lambda finding: order.index(finding.status))


def _converted(net: nn.Module, example: Tensor, spec: QuantSpec) -> list[Finding]:
    """What quantization, conversion and lowering raise an error for."""
    try:
        lower(quantize(net, spec, example=example).eval(), example)
    except (QuantizationError, ConversionError, LoweringError) as error:
        return [_refused(error, net)]
    return []


def _refused(error: NbsnnError, net: object) -> Finding:
    """An error as a finding; its message names the layer after "at", or first."""
    what, _, remedy = str(error).partition("; ")
    place = what.rpartition(" at ")[2]
    names = dict(net.named_modules()) if isinstance(net, nn.Module) else {}
    layer = next((word for word in (place, what.split(" ", 1)[0]) if word in names), "")
    return Finding(layer, None, what, "refused", remedy)


def _handled(net: nn.Module) -> list[Finding]:
    counts = Counter(words for module in net.modules() for words, classes in _KINDS if isinstance(module, classes))
    return [Finding("", None, f"{count} {words}", "handled") for words, count in counts.items()]
