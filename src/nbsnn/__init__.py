"""Low-latency spiking networks: train with few bits, run in T = 2^b − 1 steps, measure the error of the spikes.

float ──quantize──▶ quantized ──to_spiking──▶ spiking
                        └───────lower──────▶ integer network
"""

from importlib.metadata import version as _version

from nbsnn.checkpoint import load_checkpoint, save_checkpoint
from nbsnn.data import load_data
from nbsnn.data.images import Batches, ImageSet, LabelledImages, Splits
from nbsnn.dry_run import check
from nbsnn.energy.ledger import EnergyLedger, energy_ledger
from nbsnn.energy.prices import EnergyModel, list_energy_models, load_energy_model
from nbsnn.energy.pricing import Energy, price
from nbsnn.errors import (
    CheckpointError,
    ConfigError,
    ConversionError,
    DataError,
    DivergedError,
    Interrupted,
    LostPeerError,
    LoweringError,
    MissingDependencyError,
    NbsnnError,
    QuantizationError,
)
from nbsnn.evaluation.accuracy import Report, evaluate
from nbsnn.evaluation.fidelity import Fidelity, LayerFidelity, measure_fidelity, measure_integer_fidelity
from nbsnn.evaluation.synops import LayerSynops, Synops, count_synops
from nbsnn.export.c import export_c
from nbsnn.export.dump import export_json
from nbsnn.export.nir import export_nir
from nbsnn.export.onnx import export_onnx
from nbsnn.export.packed import save_packed
from nbsnn.importers.nir import load_nir
from nbsnn.importers.onnx import load_onnx
from nbsnn.importers.reference import load_reference_checkpoint
from nbsnn.integer.lower import lower
from nbsnn.integer.network import IntegerNetwork
from nbsnn.models import build_model, list_models
from nbsnn.pipeline import train
from nbsnn.precision import full_float32
from nbsnn.prepare import Finding, prepare
from nbsnn.quant.layers import quantized_once
from nbsnn.quant.quantize import quantize, set_bits_
from nbsnn.quant.unpacking import unpack
from nbsnn.recipe import QuantSpec, Recipe
from nbsnn.recipes import list_recipes, load_recipe
from nbsnn.report.comparing import ReportComparison, compare_reports
from nbsnn.report.limits import ReportLimits
from nbsnn.report.page import write_report
from nbsnn.spiking.convert import to_spiking
from nbsnn.spiking.network import SpikingNetwork, SpikingResult
from nbsnn.spiking.recording import Recording
from nbsnn.surgery import tap
from nbsnn.training.finetune import FinetuneResult, finetune
from nbsnn.training.finetune_spec import FinetuneSpec
from nbsnn.training.options import TrainOptions

__version__ = _version("nbsnn")

__all__ = [
    "Batches",
    "CheckpointError",
    "ConfigError",
    "ConversionError",
    "DataError",
    "DivergedError",
    "Energy",
    "EnergyLedger",
    "EnergyModel",
    "Fidelity",
    "Finding",
    "FinetuneResult",
    "FinetuneSpec",
    "ImageSet",
    "IntegerNetwork",
    "Interrupted",
    "LabelledImages",
    "LayerFidelity",
    "LayerSynops",
    "LostPeerError",
    "LoweringError",
    "MissingDependencyError",
    "NbsnnError",
    "QuantSpec",
    "QuantizationError",
    "Recipe",
    "Recording",
    "Report",
    "ReportComparison",
    "ReportLimits",
    "SpikingNetwork",
    "SpikingResult",
    "Splits",
    "Synops",
    "TrainOptions",
    "__version__",
    "build_model",
    "check",
    "compare_reports",
    "count_synops",
    "energy_ledger",
    "evaluate",
    "export_c",
    "export_json",
    "export_nir",
    "export_onnx",
    "finetune",
    "full_float32",
    "list_energy_models",
    "list_models",
    "list_recipes",
    "load_checkpoint",
    "load_data",
    "load_energy_model",
    "load_nir",
    "load_onnx",
    "load_recipe",
    "load_reference_checkpoint",
    "lower",
    "measure_fidelity",
    "measure_integer_fidelity",
    "prepare",
    "price",
    "quantize",
    "quantized_once",
    "save_checkpoint",
    "save_packed",
    "set_bits_",
    "tap",
    "to_spiking",
    "train",
    "unpack",
    "write_report",
]
