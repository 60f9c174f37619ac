"""What a person sees: progress bars, tables, one-line errors. Results go to standard output, all else to standard error."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from nbsnn.distributed import World, rank_in_environment
from nbsnn.errors import Interrupted, NbsnnError
from nbsnn.evaluation.comparison import Comparison, Finetuned
from nbsnn.evaluation.fidelity import Fidelity
from nbsnn.export.torchvision import MappedTensor
from nbsnn.integer.network import IntegerNetwork
from nbsnn.pipeline import PhaseResult
from nbsnn.report import COLUMNS as REPORT_COLUMNS
from nbsnn.report import table as report_table
from nbsnn.training.finetune import FinetuneResult
from nbsnn.training.finetune_spec import Change

out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True)


def speak_on_main_only(world: World) -> None:
    """Let one of several processes speak; errors are told by each that has one."""
    out.quiet = err.quiet = not world.is_main


def note(text: str) -> None:
    """A line about what is going on."""
    err.print(escape(text), highlight=False, soft_wrap=True)


def fail(text: str) -> None:
    """The one line of an error; of another process than the main one, with its rank."""
    rank = rank_in_environment()
    who = f"rank {rank}: " if rank else ""
    err.quiet = False
    err.print(f"[bold red]error:[/] {who}{escape(' '.join(text.split()))}", highlight=False, soft_wrap=True)


def exit_code(run: Callable[[], Any]) -> int:
    """Run a command: 0, 2 for bad input (one line on standard error), 130 if interrupted with its state saved."""
    try:
        code = run()
    except Interrupted as stop:
        note(str(stop))
        return 130
    except NbsnnError as error:
        fail(str(error))
        return 2
    except KeyboardInterrupt:
        note("interrupted")
        return 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a usage error of the option parser
            raise
        fail(f"{error.format_message()}; see --help")
        return 2
    return code if isinstance(code, int) else 0


def show_json(value: Any) -> None:
    """Machine-readable result."""
    out.print_json(json.dumps(value), indent=2)


def show_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], *, to: Console = out) -> None:
    """A table, numbers to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    to.print(table)


# ------------------------------------------------------------------------------------------------------------ progress


@contextmanager
def image_progress(total: int, title: str) -> Iterator[Callable[[str, int], None]]:
    """A bar over images, with the time left; yields a function of (what is being done, images done)."""
    with _bar(MofNCompleteColumn(), TextColumn("images")) as bar:
        task = bar.add_task(title, total=total)

        def tell(what: str, count: int) -> None:
            bar.update(task, description=what or title, advance=count)

        yield tell


@contextmanager
def download_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar over bytes, shown from the first byte on."""
    with _bar(DownloadColumn(), TransferSpeedColumn()) as bar:
        task: list[TaskID] = []

        def tell(done: int, total: int) -> None:
            if not task:
                task.append(bar.add_task("download", total=total or None))
            bar.update(task[0], completed=done)

        yield tell


def figures_bar() -> Progress:
    """A bar whose tasks have a field `figures`, which stands beside it."""
    return _bar(TextColumn("{task.fields[figures]}"))


def _bar(*columns: Any) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn(),
        console=err, transient=True, disable=not err.is_terminal,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- tables


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


def show_report(figures: dict[str, Any]) -> None:
    """What `nbsnn.report.report` measured."""
    title = f"{figures['model']} on {figures['data']}, {figures['test_images']} test images, top-1 in %"
    show_table(title, REPORT_COLUMNS, report_table(figures))
    for remark in figures["notes"]:
        out.print(remark, highlight=False, markup=False)


def show_mapping(mapped: Iterable[MappedTensor]) -> None:
    """What became of every tensor of a foreign network and of ours; a remark, so that results stay alone."""
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
    """The units of an integer network, and what was noted when it was lowered."""
    rows = []
    for row in network.report():
        bound = "-" if row.bound_bits is None else f"2^{row.bound_bits:.1f} of {52 if row.wide else 31}"
        shape = "×".join(map(str, row.shape))
        rows.append((row.name, shape, row.weights, or_dash(row.fraction_bits), or_dash(row.smallest_multiplier), bound))
    show_table(title, ("unit", "shape", "weights", "F", "min |M|", "largest sum"), rows)
    for remark in network.program.notes:
        out.print(remark, highlight=False)


def or_dash(value: float | None, form: str = "") -> str:
    """A number in a format, or a dash for none."""
    return "-" if value is None else format(value, form)


def change_line(change: Change) -> str:
    """What became of one change that fine-tuning tried."""
    loss = "" if change.loss is None else f"  loss {change.loss:.4g}"
    kept = "kept" if change.kept else "undone"
    return f"{change.name}: held-out spiking {change.top1:.2f} %, {kept}{loss}  {change.seconds:.1f} s"


def show_finetuning(title: str, result: FinetuneResult, held_out: int, tested: Finetuned) -> None:
    """Accuracy before and after fine-tuning, on the images that judged it and on test images."""
    kept = f"{sum(change.kept for change in result.changes)} of {len(result.changes)}"
    judged = (result.quantized_top1, result.before_top1, result.after_top1)
    measured = (tested.quantized_top1, tested.before_top1, tested.after_top1)
    rows = [
        (f"held-out, {held_out} images", str(tested.timesteps), *map("{:.2f}".format, judged), kept, f"{result.seconds:.1f}"),
        (f"test, {tested.images} images", str(tested.timesteps), *map("{:.2f}".format, measured), "", ""),
    ]
    columns = ("top-1 %", "T", "quantized", "spiking before", "spiking after", "changes kept", "seconds")
    show_table(f"{title}, {tested.neuron} fixed", columns, rows)
