"""A bundled network as C, compiled and run on bundled photographs: python examples/c_files.py [FOLDER]

It needs a C compiler, `cc`, and shows what a microcontroller would hold.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import nbsnn
from nbsnn.data.sets.sample import load_sample


def main(folder: Path) -> None:
    data = load_sample().test
    pixels = data.pixels(slice(0, 5))
    quantized = nbsnn.load_checkpoint("zoo:cifar10/resnet20-w2a2")
    network = nbsnn.lower(quantized, data.normalized(pixels[:1]), mean=data.mean, std=data.std)

    size = nbsnn.export_c(folder / "resnet20.h", network)
    sys.stdout.write(f"resnet20.h: {size.flash} bytes of tables, {size.ram} bytes of buffers" + "\n")

    program = folder / "resnet20"
    subprocess.run(["cc", "-std=c99", "-O2", "-o", program, folder / "resnet20_main.c"], check=True)
    done = subprocess.run([program], input=pixels.numpy().tobytes(), capture_output=True, check=True)
    logits = torch.from_numpy(np.array([line.split() for line in done.stdout.decode().splitlines()]).astype(np.float32))
    differing = logits != network.run(pixels)
    sys.stdout.write(f"{int(differing.sum())} of {differing.numel()} logits differ in any bit" + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
