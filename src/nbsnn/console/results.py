"""Print results as tables and lines."""

from collections.abc import Iterable, Sequence
from typing import Any

from nbsnn.console.layout import show_table
from nbsnn.console.screen import err, say
from nbsnn.evaluation.comparison import Comparison, Finetuned
from nbsnn.evaluation.fidelity import Fidelity
from nbsnn.figures import COLUMNS as FIGURE_COLUMNS
from nbsnn.figures import engines, table_rows
from nbsnn.importers.torchvision import MappedTensor
from nbsnn.integer.network import IntegerNetwork
from nbsnn.pipeline import PhaseResult
from nbsnn.training.finetune import FinetuneResult
from nbsnn.training.finetune_spec import Change


def show_phases(results: Iterable[PhaseResult]) -> None:
    """Accuracy on the test images after each phase."""
    rows = [
        ("float" if r.bits == 32 else str(r.bits), str(r.epochs), f"{r.last.top1:.2f}", f"{r.best.top1:.2f}", str(r.fit.best))
        for r in results
    ]
    show_table("Test accuracy, top-1 in %", ("bits", "epochs", "last epoch", "best on validation", "checkpoint"), rows)


def comparison_rows(comparisons: Iterable[Comparison], float_top1: float | None) -> list[tuple[str, ...]]:
    """One line for each comparison, under `COMPARISON_COLUMNS`."""
    return [
        (
            str(c.bits), str(c.timesteps), f"{c.neuron} {c.schedule}", "-" if float_top1 is None else f"{float_top1:.2f}",
            f"{c.quantized_top1:.2f}", f"{c.spiking_top1:.2f}", f"{c.off:.3f}",
            f"{c.steps:.1f} / {c.max_steps}", f"{c.seconds:.1f}",
        )
        for c in comparisons
    ]  # fmt: skip


COMPARISON_COLUMNS = (
    "bits", "T", "neuron, schedule", "float", "quantized", "spiking", "off %", "steps, max", "seconds",
)  # fmt: skip


def show_comparisons(title: str, comparisons: Sequence[Comparison], float_top1: float | None = None) -> None:
    """A table of comparisons, and which engine computed the accuracies."""
    show_table(title, COMPARISON_COLUMNS, comparison_rows(comparisons, float_top1))
    for engine in dict.fromkeys(c.engine for c in comparisons):
        pairs = [f"{c.neuron} {c.schedule}" for c in comparisons if c.engine == engine]
        say(
            f"quantized and spiking accuracy by {engine}" + ("" if len(pairs) == len(comparisons) else f" ({', '.join(pairs)})")
        )
    if comparisons:
        say(f"neurons off: simulated in floating point on {comparisons[0].fidelity.images} images")


def show_figures(figures: dict[str, Any]) -> None:
    """The result of `nbsnn.figures.measure_run`."""
    title = f"{figures['model']} on {figures['data']}, {figures['test_images']} test images, top-1 in %"
    show_table(title, FIGURE_COLUMNS, table_rows(figures))
    for remark in [*figures["notes"], *engines(figures)]:
        say(remark)


def show_mapping(mapped: Iterable[MappedTensor]) -> None:
    """What happened to every tensor of an imported network; printed to standard error, not with results."""
    rows = [(m.ours or "-", m.source or "-", "×".join(map(str, m.shape)), m.what) for m in mapped]
    show_table("Tensors", ("ours", "theirs", "shape", "what became of it"), rows, to=err)


def show_layers(fidelity: Fidelity) -> None:
    """Fidelity layer by layer."""
    rows = [(f.name, str(f.neurons), str(f.differing), f"{f.off:.3f}", str(f.largest)) for f in fidelity.layers]
    show_table(
        f"Counts against quantized activations, {fidelity.images} images",
        ("layer", "neurons", "differing", "off %", "largest difference"),
        rows,
    )


def show_units(title: str, network: IntegerNetwork) -> None:
    """The units of an integer network, and the notes of lowering."""
    rows = []
    for row in network.report():
        bound = "-" if row.bound_bits is None else f"2^{row.bound_bits:.1f} of {52 if row.wide else 31}"
        shape = "×".join(map(str, row.shape))
        rows.append((row.name, shape, row.weights, or_dash(row.fraction_bits), or_dash(row.smallest_multiplier), bound))
    show_table(title, ("unit", "shape", "weights", "F", "min |M|", "largest sum"), rows)
    for remark in network.program.notes:
        say(remark)


def or_dash(value: float | None, form: str = "") -> str:
    """A number in a format, or a dash for none."""
    return "-" if value is None else format(value, form)


def change_line(change: Change) -> str:
    """The result of one change in fine-tuning."""
    loss = "" if change.loss is None else f"  loss {change.loss:.4g}"
    kept = "kept" if change.kept else "undone"
    return f"{change.name}: held-out spiking {change.top1:.2f} %, {kept}{loss}  {change.seconds:.1f} s"


def show_finetuning(title: str, result: FinetuneResult, held_out: int, tested: Finetuned) -> None:
    """Accuracy before and after fine-tuning, on held-out images and on test images."""
    kept = f"{sum(change.kept for change in result.changes)} of {len(result.changes)}"
    judged = (result.quantized_top1, result.before_top1, result.after_top1)
    measured = (tested.quantized_top1, tested.before_top1, tested.after_top1)
    rows = [
        (f"held-out, {held_out} images", str(tested.timesteps), *map("{:.2f}".format, judged), kept, f"{result.seconds:.1f}"),
        (f"test, {tested.images} images", str(tested.timesteps), *map("{:.2f}".format, measured), "", ""),
    ]
    columns = ("top-1 %", "T", "quantized", "spiking before", "spiking after", "changes kept", "seconds")
    show_table(f"{title}, {tested.neuron} fixed", columns, rows)
