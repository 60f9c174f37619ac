"""All settings of a training run, as frozen dataclasses: read from TOML, overridden by key=value, hashed.

Recipe ── model: ModelSpec · data: DataSpec · quant: WeightSpec · optim: OptimSpec · phase: {bits: Phase}
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nbsnn.aliases import current_names
from nbsnn.errors import ConfigError, shown
from nbsnn.recipe.bits import FLOAT_BITS, PHASE_BITS, QuantSpec, as_patterns, check_bits
from nbsnn.recipe.hashing import COMPUTED, NOT_DECIDING, hashed
from nbsnn.recipe.parts import MODEL_LIMITS, MOST_EPOCHS, DataSpec, ModelSpec, OptimSpec, Padding, Phase, WeightSpec
from nbsnn.settings import require, typed

__all__ = [
    "FLOAT_BITS", "MODEL_LIMITS", "MOST_EPOCHS", "MOST_SEED", "DataSpec", "ModelSpec", "OptimSpec", "Padding", "Phase",
    "QuantSpec", "Recipe", "WeightSpec", "as_patterns", "check_bits", "recipe_from_dict",
]  # fmt: skip

MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Recipe:
    """All settings of a run. `phase` maps bits to phases, in order: 32, 4, 3, 2."""

    model: ModelSpec
    phase: dict[str, Phase]
    data: DataSpec = field(default_factory=DataSpec)
    quant: WeightSpec = field(default_factory=WeightSpec)
    optim: OptimSpec = field(default_factory=OptimSpec)
    seed: int = 0
    name: str = "custom"

    def __post_init__(self) -> None:
        require(0 <= self.seed <= MOST_SEED, "seed", self.seed, "0 or more, and below 2^63")
        require(len(self.phase) >= 1, "phase", {}, "at least one [phase.BITS] table")
        known = [str(bits) for bits in (*PHASE_BITS, FLOAT_BITS)]
        for bits in self.phase:
            if bits not in known:  # also not another spelling, such as 02
                raise ConfigError(f"phase.{shown(bits)}: choose one of {', '.join(known)} bits ({FLOAT_BITS} is float)")
            self.spec(int(bits))
        stale = not self.optim.recalibrate_batches and not self.optim.freeze_norms
        for bits, phase in self.phase.items():
            wanted = "0 unless optim.recalibrate_batches is set (60, say): averaged weights need norm statistics of their own"
            require(not (phase.ema_decay and stale), f"phase.{bits}.ema_decay", phase.ema_decay, wanted)
        first = self.phase.get(str(FLOAT_BITS))
        if first:
            require(not first.distill, f"phase.{FLOAT_BITS}.distill", first.distill, "0: the float net is the teacher")
            require(not first.refit_scales, f"phase.{FLOAT_BITS}.refit_scales", True, "false: a float net has no scales")

    def spec(self, bits: int) -> QuantSpec:
        """The quantization of the phase with these bits."""
        weight_bits = bits if self.quant.weights == "phase" else FLOAT_BITS
        quant = self.quant
        return QuantSpec(
            weight_bits, bits, quant.edge_bits, quant.edge_range, layers=quant.layers, edges=quant.edges, scale=quant.scale,
            weight_format=None if quant.weight_format == WeightSpec.weight_format else quant.weight_format, norms=quant.norms,
        )  # fmt: skip

    def until(self, bits: int) -> "Recipe":
        """The settings that affect the phase with these bits: all except later phases."""
        names = list(self.phase)
        return replace(self, phase={name: self.phase[name] for name in names[: names.index(str(bits)) + 1]})

    def to_dict(self, *, places: bool = True) -> dict[str, Any]:
        """Plain values for `recipe_from_dict`; for files that may be moved, without the location of the data."""
        chosen = self if places else replace(self, data=replace(self.data, root=DataSpec.root, download=False))
        return asdict(chosen)

    @property
    def hash(self) -> str:
        """12-digit hash of every setting that affects the result, without the name and the location of the data."""
        content = self.to_dict()
        content.pop("name")
        content["data"] = {k: v for k, v in content["data"].items() if k not in NOT_DECIDING}
        if self.data.normalization == "computed":
            content["data"] |= COMPUTED
        for table in ("model", "optim", "data", "quant"):
            content[table] = hashed(table, content[table])
        if not any(phase.distill for phase in self.phase.values()):
            content["optim"].pop("temperature", None)
        content["phase"] = [(bits, hashed("phase", phase)) for bits, phase in content["phase"].items()]  # their order matters
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def recipe_from_dict(table: Mapping[str, Any]) -> Recipe:
    """Build a recipe from plain values; unknown keys are errors, and names of earlier versions are accepted."""
    recipe: Recipe = typed(_as_it_is_now(table), Recipe, "")
    return recipe


def _as_it_is_now(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """A table of an earlier version with current names; `optim.average` applied to all phases, and is unused in headers."""
    if not isinstance(table, Mapping):
        return table
    table = current_names(table)
    optim = table.get("optim")
    if not isinstance(optim, Mapping) or "average" not in optim:
        return table
    average = optim["average"]
    require(average in (0, "0"), "optim.average", average, "left out: it is a setting of a phase, phase.BITS.ema_decay")
    return {**table, "optim": {key: value for key, value in optim.items() if key != "average"}}
