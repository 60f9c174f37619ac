"""ImageNet: `train/<class>/*.JPEG` and `val/<class>/*.JPEG`, classes named by their WordNet id."""

from nbsnn.data.registry import DataSet
from nbsnn.data.trees import load_spec, photographs

DATA_SET = DataSet(load_spec, photographs=photographs, takes_classes=True)
