"""A bundled network as a NIR file, run by nirtorch with the same spikes: python examples/export_nir.py"""

import argparse
import sys
from pathlib import Path

import nbsnn
from nbsnn.interop import run_nir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="zoo:cifar10/resnet20-w2a2")
    parser.add_argument("--out", type=Path, default=Path("network.nir"))
    parser.add_argument("--images", type=int, default=4)
    args = parser.parse_args()

    data = nbsnn.load_data("sample").test
    images = data.normalized(data.pixels(slice(0, args.images)))
    network = nbsnn.lower(nbsnn.load_checkpoint(args.network).eval(), images[:1], mean=data.mean, std=data.std)
    size = nbsnn.export_nir(network, args.out, "exact-settle")

    result = network.simulate(images, engine="spikes", schedule="settle", keep_counts=True)
    units = tuple(result.counts)
    run = run_nir(args.out, images, timesteps=network.timesteps, steps=int(result.steps.max()), watch=units)
    differing = sum(int((run.values[unit].sum(0) != result.counts[unit]).sum()) for unit in units)
    same = bool((run.output[-1].float() == network.run(images)).all())
    sys.stdout.write(f"{args.out}: {size:,} bytes; {differing} counts differ; logits equal: {same}\n")


if __name__ == "__main__":
    main()
