"""Your own photographs: `train/<class>/*.jpg` and `val/<class>/*.jpg` loaded like ImageNet, or as the recipe says."""

from nbsnn.data.registry import DataSet
from nbsnn.data.trees import load_spec, photographs

DATA_SET = DataSet(load_spec, photographs=photographs, takes_classes=True)
