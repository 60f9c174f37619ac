"""Weight formats by name, one file each. Importing a subclass of `WeightFormat`, from here or elsewhere, registers it."""

from nbsnn.quant.formats.apot import Apot
from nbsnn.quant.formats.base import WEIGHT_FORMATS, WeightFormat, check_width, read_weight_format, weight_format
from nbsnn.quant.formats.edge import EdgeUniform

__all__ = ["WEIGHT_FORMATS", "Apot", "EdgeUniform", "WeightFormat", "check_width", "read_weight_format", "weight_format"]
