"""An overview of a quantized network: how many layers have which bits, what stays in float and why, and what was rewritten."""

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from torch import nn

from nbsnn.prepare import Finding, changes_of
from nbsnn.quant.flow import WEIGHT_LAYERS
from nbsnn.quant.layers import QuantReLU, WeightQuantizer
from nbsnn.recipe import QuantSpec


@dataclass(frozen=True)
class Overview:
    """What `nbsnn.quantize` did; an attribute `summary` of its result.

    Attributes:
        layers: (kind, bits, how many), such as ("weights (apot)", 4, 18).
        in_float: (name, why) of each layer with a weight that is not quantized.
        changes: what was rewritten; see `nbsnn.prepare`.
    """

    layers: tuple[tuple[str, int, int], ...]
    in_float: tuple[tuple[str, str], ...]
    changes: tuple[Finding, ...]

    def __str__(self) -> str:
        rows = [f"  {count:5d} × {bits} bits  {kind}" for kind, bits, count in self.layers]
        rows += [f"  in float: {name} ({why})" for name, why in self.in_float]
        added = sum(change.status == "approximated" for change in self.changes)
        if self.changes:
            quantized = f", of which {added} quantize a value that was not an activation" if added else ""
            rows.append(f"  {len(self.changes)} places rewritten without changing the function{quantized}")
        return "\n".join(["quantized:", *rows])

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "layers": [{"kind": kind, "bits": bits, "count": count} for kind, bits, count in self.layers],
            "in_float": dict(self.in_float),
            "changes": [change.to_dict() for change in self.changes],
        }


def overview_of(quantized: nn.Module, spec: QuantSpec) -> Overview:
    """The overview of a network that was quantized with `spec`."""
    counts: Counter[tuple[str, int]] = Counter()
    in_float = []
    for name, module in quantized.named_modules():
        if isinstance(module, WeightQuantizer):
            counts[f"weights ({module.format.label})", module.weight_bits] += 1
        elif isinstance(module, QuantReLU):
            counts["activations", module.bits] += 1
        elif isinstance(module, WEIGHT_LAYERS):
            in_float.append((name, _why(name, spec)))
    return Overview(tuple((*key, count) for key, count in counts.items()), tuple(in_float), changes_of(quantized))


def _why(name: str, spec: QuantSpec) -> str:
    pattern = next((pattern for pattern in spec.skip if fnmatch(name, pattern)), None)
    return "its bits are 32" if pattern is None else f"skip={pattern!r}"
