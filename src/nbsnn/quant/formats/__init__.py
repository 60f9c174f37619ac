"""Weight formats by name, one file each. Importing a subclass of `WeightFormat`, from here or elsewhere, registers it."""

from nbsnn.quant.formats.apot import Apot
from nbsnn.quant.formats.base import WEIGHT_FORMATS, WeightFormat, check_width, read_weight_format, weight_format
from nbsnn.quant.formats.edge import EdgeUniform
from nbsnn.quant.formats.uniform import Uniform

__all__ = [
    "WEIGHT_FORMATS", "Apot", "EdgeUniform", "Uniform", "WeightFormat", "check_width", "read_weight_format", "weight_format",
]  # fmt: skip
