"""Weight formats: a file each, found by name. A subclass of `WeightFormat`, here or elsewhere, is known once it is imported."""

from nbsnn.quant.formats.apot import Apot
from nbsnn.quant.formats.base import WEIGHT_FORMATS, WeightFormat, check_width, read_weight_format, weight_format
from nbsnn.quant.formats.edge import EdgeUniform

__all__ = ["WEIGHT_FORMATS", "Apot", "EdgeUniform", "WeightFormat", "check_width", "read_weight_format", "weight_format"]
