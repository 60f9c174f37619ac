"""Integer networks in C99 for microcontrollers: a header of tables, the runtime that reads it, and an example of a program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import ConfigError, LoweringError
from nbsnn.export.c.source import CSource, c_source
from nbsnn.export.registry import Exporter, ExportOptions, planned, register
from nbsnn.files import write_text
from nbsnn.integer.checking import check_numbers
from nbsnn.integer.network import IntegerNetwork

RUNTIME = "nbsnn_runtime.h"
CODE_BYTES = 3000  # of the runtime, compiled for size on x86-64


@dataclass(frozen=True)
class CodeSize:
    """Memory of a network in C: `flash`, bytes of constant tables without the code of the runtime; `ram`, bytes of buffers."""

    files: Mapping[Path, int]
    flash: int
    ram: int


@checked_arguments
def export_c(
    path: str | Path,
    network: nn.Module | IntegerNetwork,
    *,
    example: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> CodeSize:
    """Write an integer network as C99; its outputs are those of `IntegerNetwork.run` bit for bit. See docs/c.md.

    Args:
        path: the header, `NAME.h`; the runtime, `nbsnn_runtime.h`, and an example, `NAME_main.c`, are written beside it.
        network: an integer network, or a quantized or spiking one, which is lowered.
        example, mean, std: as in `nbsnn.lower`, for a quantized network.
    Raises:
        ConfigError: another form, or a name that does not end with `.h`.
        ConversionError, LoweringError: the network cannot be lowered.
    """
    plan = planned(path, network, EXPORTER, ExportOptions(example=example, mean=mean, std=std))
    written = plan.write()
    return CodeSize(written.files, written.facts["flash_bytes"], written.facts["ram_bytes"])


def _is_runtime(path: Path) -> bool:
    """Whether a file is the runtime of this version, which all networks share."""
    try:
        return path.name == RUNTIME and path.read_text(encoding="utf-8") == _resource("runtime.h")
    except (OSError, ValueError):
        return False


def _files(path: Path) -> tuple[Path, ...]:
    return (path, path.with_name(f"{path.stem}_main.c"), path.with_name(RUNTIME))


def _write(path: Path, network: IntegerNetwork, options: ExportOptions) -> Mapping[str, Any]:
    try:
        check_numbers(network.program)
    except ValueError as error:
        raise LoweringError(f"not a valid program: {error}") from None
    if path.name == RUNTIME or not path.stem.isprintable() or {*path.stem} & {*'\\"'}:
        raise ConfigError(f"{path.name}: is not a name for a header of a network; use letters and digits, such as net.h")
    source = c_source(network.program, path.stem)
    _, main, runtime = _files(path)
    write_text(runtime, _resource("runtime.h"))
    write_text(main, _main(network, source, path.stem))
    write_text(path, source.text)
    return {"flash_bytes": source.flash, "ram_bytes": source.ram, "code_bytes_about": CODE_BYTES}


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _main(network: IntegerNetwork, source: CSource, stem: str) -> str:
    pixels = network.program.pixels
    table = pixels.table is not None
    shape = (1,) * (3 - len(pixels.shape)) + pixels.shape if len(pixels.shape) > 1 else (*pixels.shape, 1, 1)
    kind = "8-bit pixels" if table else f"32-bit integers, each the nearest to value * 2^{pixels.fraction_bits}"
    words = {
        "NAME": stem, "STEM": stem, "KIND": kind, "PREFIX": source.prefix.upper(), "TYPE": "uint8_t" if table else "int32_t",
        "RUN": f"{source.prefix}_run" if table else f"{source.prefix}_run_integers",
        **dict(zip(("CHANNELS", "ROWS", "COLUMNS"), map(str, shape), strict=True)),
    }  # fmt: skip
    text = _resource("main.c")
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def _limits(network: IntegerNetwork, options: ExportOptions) -> list[str]:
    program = network.program
    lines = ["C computes the counts of the quantized network, in integers; spikes step by step are not written"]
    if program.pixels.table is None:
        lines.append(
            f"the network was lowered without mean and std: in C an image is integers, value * 2^{program.pixels.fraction_bits}"
        )
    if program.readout is not None:
        lines.append("outputs follow each other in one array; names and groups of outputs are lost")
    return lines


EXPORTER = register(Exporter("c", "a network in C", ("integer",), _write, ".h", _files, _is_runtime, limits=_limits))
