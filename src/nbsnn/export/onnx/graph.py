"""An ONNX graph under construction, with names that a reader of the network knows, and the file that it becomes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbsnn.errors import ConfigError
from nbsnn.files import write_atomically
from nbsnn.onnx_package import onnx_package

_OPSET, _IR_VERSION = 21, 10  # onnxruntime 1.18 and newer; int16 in DequantizeLinear needs 21
_MOST_BYTES = 2**31 - 1  # of a file: a limit of protobuf

Array = NDArray[Any]


class Graph:
    """Nodes in order, each with one output of the same name, and constants, each stored once."""

    def __init__(self) -> None:
        self.onnx = onnx_package()
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[Any] = []
        self._names: set[str] = set()

    def input(self, name: str, dtype: Any, shape: Sequence[int]) -> str:
        """An input [batch, *shape]; the batch has any size."""
        self.inputs.append(self._value(self._unique(name), dtype, shape))
        return name

    def output(self, name: str, value: str, dtype: Any, shape: Sequence[int]) -> None:
        """Make a value [batch, *shape] an output of the graph."""
        self.outputs.append(self._value(self.op("Identity", value, name=name), dtype, shape))

    def constant(self, numbers: Any, dtype: Any, name: str) -> str:
        """A constant; equal ones are stored once, under the first name."""
        array = np.ascontiguousarray(np.asarray(numbers).astype(dtype)).reshape(np.shape(numbers))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._unique(name)
            self._initializers.append(self.onnx.numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def op(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Append a node; the name of its output, which is `name` unless that is taken."""
        output = self._unique(name)
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def cast(self, value: str, dtype: Any, *, name: str) -> str:
        """A value in another type."""
        return self.op("Cast", value, name=name, to=self._type(dtype))

    def reshape(self, value: str, shape: Sequence[int], *, name: str) -> str:
        """[batch, *shape]."""
        target = self.constant([0, *shape], np.int64, f"{name}.shape")  # 0 keeps the batch
        return self.op("Reshape", value, target, name=name)

    def write(self, path: Path, *, name: str, doc: str, metadata: Mapping[str, Any]) -> None:
        """Check the graph and write it; the same graph makes the same bytes.

        Raises:
            ConfigError: the file would have more than 2 GiB.
            CheckpointError: the file cannot be written.
        """
        onnx = self.onnx
        graph = onnx.helper.make_graph(self.nodes, name, self.inputs, self.outputs, self._initializers)
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="nbsnn",
            producer_version=str(metadata["version"]), doc_string=doc,
        )  # fmt: skip
        onnx.helper.set_model_props(model, {f"nbsnn.{key}": str(value) for key, value in metadata.items()})
        if model.ByteSize() > _MOST_BYTES:
            raise ConfigError(
                f"{path}: the network has {model.ByteSize()} bytes, and an ONNX file at most 2 GiB; reduce the network"
            )
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
        write_atomically(path, lambda part: part.write_bytes(model.SerializeToString(deterministic=True)))

    def _value(self, name: str, dtype: Any, shape: Sequence[int]) -> Any:
        return self.onnx.helper.make_tensor_value_info(name, self._type(dtype), ["batch", *shape])

    def _type(self, dtype: Any) -> int:
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _unique(self, name: str) -> str:
        chosen, number = name, 2
        while chosen in self._names:
            chosen, number = f"{name}.{number}", number + 1
        self._names.add(chosen)
        return chosen
