"""The schedules in a network with random weights: the figures of docs/concepts.md.

Weights are random with 4 bits. Thresholds and norm statistics are calibrated on noise, and the images are noise too.

    python benchmarks/random_nets.py [--model cifar10/resnet20] [--images 16] [--seed 0]
"""

import argparse
import sys

import torch

import nbsnn


def measure(model: str, bits: int, images: torch.Tensor) -> tuple[str, ...]:
    """A row: T; neurons off under "fixed", signed and unsigned, mean over layers; steps and spikes of "settle"."""
    quantized = nbsnn.quantize(nbsnn.build_model(model), nbsnn.QuantSpec(4, bits), images=images).eval()
    off = []
    for neuron in ("signed", "unsigned"):
        layers = nbsnn.measure_fidelity(quantized, nbsnn.to_spiking(quantized, images[:1], neuron=neuron), images).layers
        off.append(sum(layer.off for layer in layers) / len(layers))
    network = nbsnn.lower(quantized, images[:1])
    settle = nbsnn.count_synops(network.using(engine="spikes", schedule="settle"), images)
    barrier = nbsnn.count_synops(network.using(engine="counts"), images)  # spikes are the counts
    T = network.timesteps
    bound = T + (network.program.depth - 1) * (T - 1)
    steps = f"{float(settle.steps.double().mean()):.1f}, {int(settle.steps.max())}"
    return (str(T), *(f"{share:.0f}" for share in off), steps, str(bound), f"{settle.spikes / barrier.spikes:.2f}")


def main() -> None:
    """Print a table with a row for each of 2, 3 and 4 bits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10/resnet20", choices=nbsnn.list_models())
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    size = 224 if args.model.startswith("imagenet") else 32
    images = torch.randn(args.images, 3, size, size)
    columns = ("T", "signed off %", "unsigned off %", "steps of settle, most", "bound", "spikes of settle over barrier's")
    rows = [columns, ("---",) * len(columns), *(measure(args.model, bits, images) for bits in (2, 3, 4))]
    title = f"{args.model}, random weights, {args.images} images of noise"
    sys.stdout.write("\n".join([title, "", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n")


if __name__ == "__main__":
    main()
