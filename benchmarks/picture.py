"""The picture at the top of README: spikes of a bundled network for one photograph, step by step, drawn by matplotlib.

    python benchmarks/picture.py          # writes docs/spikes.svg; needs pip install -e '.[docs]'

Columns are time steps, rows are layers; each dot is a spike of one of the neurons that were chosen for the picture. The bars
show the share of all neurons whose count is not yet that of the quantized activation.
"""

import io
from pathlib import Path

import torch
from torch import Tensor

import nbsnn
from nbsnn.files import write_text

NETWORK, IMAGE = "zoo:cifar10/resnet20-w2a2", 8  # index in the bundled sample
ROWS, COLUMNS = 5, 16  # chosen neurons of a layer, as they lie in a cell
GREY, SPIKE, NEGATIVE = "#808080", "#2f7ed8", "#e0502f"  # readable on white and on black
FILE = Path(__file__).parent.parent / "docs" / "spikes.svg"


def record() -> tuple[Tensor, dict[str, Tensor], int]:
    """The photograph [3, H, W], layer → spikes [steps, neurons], and T."""
    quantized = nbsnn.load_checkpoint(NETWORK)
    sample = nbsnn.load_data("sample").test
    image = sample.images[IMAGE : IMAGE + 1]
    network = nbsnn.lower(quantized, sample.normalized(image), mean=sample.mean, std=sample.std)
    seen = network.record(image, neuron="signed", schedule="settle")
    return image[0], {name: x[:, 0].flatten(1) for name, x in seen.spikes.items()}, seen.timesteps


def off_after_each_step(spikes: dict[str, Tensor]) -> list[float]:
    """Percent of all neurons whose count is not the final one, which is the quantized one's."""
    counts = torch.cat([x.cumsum(0, dtype=torch.int64) for x in spikes.values()], 1)
    return (counts != counts[-1]).double().mean(1).mul(100).tolist()


def draw(image: Tensor, spikes: dict[str, Tensor], timesteps: int) -> str:
    """The picture as SVG text, the same each time."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names, steps = list(spikes)[::2], len(next(iter(spikes.values())))
    style = {"svg.hashsalt": "nbsnn", "svg.fonttype": "none", "text.color": GREY, "axes.labelcolor": GREY, "font.size": 9,
             "xtick.color": GREY, "ytick.color": GREY}  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(8.6, 5.2), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 4), height_ratios=(4, 1))
        photo, film, off = (figure.add_subplot(grid[at]) for at in ((0, 0), (0, 1), (1, 1)))
        photo.imshow(image.permute(1, 2, 0))
        photo.set(xticks=[], yticks=[], xlabel="one photograph")
        for row, name in enumerate(names):
            for sign, color in ((1, SPIKE), (-1, NEGATIVE)):
                step, neuron = (chosen(spikes[name]) == sign).nonzero(as_tuple=True)
                x = step + 1 + (neuron % COLUMNS + 0.5) / COLUMNS * 0.9 - 0.45
                y = row + (neuron // COLUMNS + 0.5) / ROWS * 0.8 - 0.4
                film.scatter(x, y, s=3, color=color, linewidths=0)
        film.axvspan(0.5, timesteps + 0.5, color=GREY, alpha=0.12, linewidth=0)
        film.set(xlim=(0.5, steps + 0.5), ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), xticks=range(1, steps + 1))
        film.set_yticklabels(name.removesuffix(".act") for name in names)
        title = f"the image is on for T = {timesteps} steps (grey); then neurons fire until none can"
        film.set_title(f"{title}\nblue: spikes, red: negative spikes", fontsize=9)
        share = off_after_each_step(spikes)
        off.bar(range(1, steps + 1), share, color=GREY, width=0.5)
        for step, value in enumerate(share, 1):
            off.text(step, value, f"{value:.2g} %" if value else "0: exact", ha="center", va="bottom")
        off.set(xlim=(0.5, steps + 0.5), ylim=(0, max(share) * 1.35), yticks=[], xticks=range(1, steps + 1), xlabel="time step")
        off.set_ylabel("neurons off")
        for axes in (photo, film, off):
            axes.patch.set_alpha(0)
            axes.spines[:].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def chosen(spikes: Tensor) -> Tensor:
    """[steps, ROWS · COLUMNS]: neurons at equal distances among those that fire at all."""
    firing = spikes[:, spikes.any(0)]
    return firing[:, torch.linspace(0, firing.shape[1] - 1, ROWS * COLUMNS).long()]


if __name__ == "__main__":
    write_text(FILE, draw(*record()))
