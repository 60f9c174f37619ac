"""Low-latency spiking networks: train with few bits, run in T = 2^b − 1 steps, know exactly how far the spikes are off.

float ──quantize──▶ quantized ──to_spiking──▶ spiking
                        └───────lower──────▶ integer network
"""

from nbsnn.checkpoint import load_checkpoint, save_checkpoint
from nbsnn.errors import (
    CheckpointError,
    ConfigError,
    ConversionError,
    DataError,
    LoweringError,
    MissingDependencyError,
    NbsnnError,
    QuantizationError,
)
from nbsnn.evaluate.accuracy import Report, evaluate
from nbsnn.evaluate.fidelity import Fidelity, LayerFidelity, measure_fidelity, measure_integer_fidelity
from nbsnn.export.reference import load_reference_checkpoint
from nbsnn.integer.lower import lower
from nbsnn.integer.network import IntegerNetwork
from nbsnn.models import build_model, list_models
from nbsnn.quant.quantize import quantize, set_bits_
from nbsnn.recipe import QuantSpec, Recipe
from nbsnn.recipes import list_recipes, load_recipe
from nbsnn.spiking.convert import to_spiking
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.surgery import tap
from nbsnn.train.finetune import FinetuneResult, finetune
from nbsnn.train.finetune_spec import FinetuneSpec

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ConversionError",
    "DataError",
    "Fidelity",
    "FinetuneResult",
    "FinetuneSpec",
    "IntegerNetwork",
    "LayerFidelity",
    "LoweringError",
    "MissingDependencyError",
    "NbsnnError",
    "QuantSpec",
    "QuantizationError",
    "Recipe",
    "Report",
    "SpikingNetwork",
    "build_model",
    "evaluate",
    "finetune",
    "list_models",
    "list_recipes",
    "load_checkpoint",
    "load_recipe",
    "load_reference_checkpoint",
    "lower",
    "measure_fidelity",
    "measure_integer_fidelity",
    "quantize",
    "save_checkpoint",
    "set_bits_",
    "tap",
    "to_spiking",
]
