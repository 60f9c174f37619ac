"""A bundled network with SpikingJelly's neurons, which fire our spikes: python examples/to_spikingjelly.py"""

import argparse
import sys

import torch

import nbsnn
from nbsnn.interop import to_spikingjelly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="zoo:cifar10/resnet20-w2a2")
    parser.add_argument("--images", type=int, default=4)
    args = parser.parse_args()

    data = nbsnn.load_data("sample").test
    images = data.normalized(data.pixels(slice(0, args.images)))
    quantized = nbsnn.load_checkpoint(args.network).eval()
    spiking = nbsnn.to_spiking(quantized, images[:1], neuron="unsigned").eval()
    module = to_spikingjelly(spiking)
    with torch.no_grad():
        ours, theirs = spiking(images), module(images)
    layers = sum("IFNode" in type(m).__name__ for m in module.modules())
    sys.stdout.write(f"{layers} layers of IFNode; outputs equal: {bool((ours == theirs).all())}\n")


if __name__ == "__main__":
    main()
