"""A bundled network as ONNX files, run in onnxruntime, and read back: python examples/onnx_files.py [FOLDER]"""

import sys
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

import nbsnn
from nbsnn.data.sets.sample import load_sample


def run(path: Path, images: Tensor) -> Tensor:
    """The logits of a file in onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


def main(folder: Path) -> None:
    data = load_sample().test
    pixels = data.pixels(slice(0, 20))
    images = data.normalized(pixels)
    quantized = nbsnn.load_checkpoint("zoo:cifar10/resnet20-w2a2")
    network = nbsnn.lower(quantized, images[:1], mean=data.mean, std=data.std)

    nbsnn.export_onnx(quantized, folder / "quantized.onnx")
    with torch.no_grad():
        same = run(folder / "quantized.onnx", images).argmax(1) == quantized(images).argmax(1)
    sys.stdout.write(f"quantized.onnx: the same class for {int(same.sum())} of {len(images)} images" + "\n")

    nbsnn.export_onnx(network, folder / "integer.onnx", profile="integer-pixels")
    differing = run(folder / "integer.onnx", pixels) != network.run(pixels)
    sys.stdout.write(f"integer.onnx: {int(differing.sum())} of {differing.numel()} logits differ in any bit" + "\n")

    back = nbsnn.load_onnx(folder / "quantized.onnx")
    with torch.no_grad():
        error = (back(images) - quantized(images)).abs().max()
    sys.stdout.write(
        f"read back: logits differ by at most {float(error):.1e}; T = {nbsnn.to_spiking(back, images[:1]).timesteps}" + "\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
