"""The package onnx, which is optional."""

from typing import Any

from nbsnn.errors import MissingDependencyError


def onnx_package() -> Any:
    """The package onnx.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError:
        raise MissingDependencyError("onnx", extra="onnx", purpose="reading and writing ONNX files") from None
    return onnx
