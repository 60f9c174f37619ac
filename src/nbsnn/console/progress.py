"""Progress bars and spinners on standard error, if it is a terminal."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from nbsnn.console.screen import err
from nbsnn.progress import ImageProgress, LayerProgress

_ROOM_FOR_A_BAR, _ROOM_FOR_TIME = 100, 80  # columns; narrower terminals show text only


@contextmanager
def image_progress(total: int, title: str) -> Iterator[ImageProgress]:
    """A bar over images, with the remaining time; yields a function of (title, images done)."""
    with _bar(MofNCompleteColumn(), TextColumn("images")) as bar:
        task = bar.add_task(title, total=total)

        def tell(what: str, count: int) -> None:
            bar.update(task, description=what or title, advance=count)

        yield tell


@contextmanager
def layer_progress(title: str) -> Iterator[LayerProgress]:
    """A bar over layers, whose number the first call tells; yields a function of (layer, layers done, layers in all)."""
    with _bar(TextColumn("{task.fields[layers]}")) as bar:
        task = bar.add_task(title, total=None, layers="")

        def tell(name: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, layers=f"{done}/{total} layers")

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


@contextmanager
def doing(what: str) -> Iterator[None]:
    """A spinner with a title, for steps of some seconds without a count."""
    with Progress(
        _spinner(), TextColumn("{task.description}"), console=err, transient=True, disable=not err.is_terminal
    ) as bar:
        bar.add_task(what, total=None)
        yield


def figures_bar(below: Callable[[], RenderableType] | None = None) -> Progress:
    """A bar whose tasks have a field `figures`, printed after the bar; `below` makes what is shown in the lines under it."""
    return _bar(TextColumn("{task.fields[figures]}"), below=below)


class _BarAndMore(Progress):
    """A progress bar with something below it."""

    below: Callable[[], RenderableType] | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.below is not None:
            yield self.below()


def as_fit(title: str, figures: Sequence[str]) -> str:
    """The first of a bar's figures that fit the terminal, after the title."""
    room = err.width - len(title) - len("⠋   00:00 " if err.width >= _ROOM_FOR_TIME else "⠋  ")
    text = " ".join(figures)
    return text if len(text) <= room or len(figures) == 1 else as_fit(title, figures[:-1])


def _bar(*columns: ProgressColumn | Any, below: Callable[[], RenderableType] | None = None) -> Progress:
    middle = [BarColumn()] if err.width >= _ROOM_FOR_A_BAR else []
    last = [TimeRemainingColumn(compact=True)] if err.width >= _ROOM_FOR_TIME else []
    bar = _BarAndMore(
        _spinner(), TextColumn("{task.description}"), *middle, *columns, *last,
        console=err, transient=True, disable=not err.is_terminal,
    )  # fmt: skip
    bar.below = below
    return bar


def _spinner() -> SpinnerColumn:
    return SpinnerColumn("dots" if err.encoding.startswith("utf") else "line")
