"""The C source of an integer network: its tables, and functions that run the runtime on them."""

import re
from dataclasses import dataclass
from importlib import metadata
from math import prod

from nbsnn.export.c.memory import plan_memory
from nbsnn.export.c.network import NetworkTables
from nbsnn.export.c.tables import comment
from nbsnn.integer.program import Program
from nbsnn.shapes import plane


@dataclass(frozen=True)
class CSource:
    """The text of a header, and the memory that its network takes.

    Attributes:
        text: of the header.
        prefix: of all names in it.
        flash: bytes of all tables and of the structures that point to them, with 32-bit pointers; without the runtime's code.
        ram: bytes of the static buffers: values, one output channel's weights, and the heads' numbers.
        outputs: shapes of the outputs, which follow each other in the result.
    """

    text: str
    prefix: str
    flash: int
    ram: int
    outputs: tuple[tuple[int, ...], ...]


def c_source(program: Program, name: str) -> CSource:
    """The header of a program; `name` is that of the file."""
    p, plan = _identifier(name), plan_memory(program)
    tables = NetworkTables(p, program, plan)
    shapes = tables.network()
    numbers = sum(prod(head.shape) for head in program.heads)
    ram = plan.bytes + 2 * tables.row + 8 * numbers
    channels, rows, columns = plane(program.pixels.shape)
    text = _TEXT.format(
        name=comment(name), version=metadata.version("nbsnn"), p=p, P=p.upper(), tables="\n".join(tables.lines),
        channels=channels, rows=rows, columns=columns,
        elements=prod(program.pixels.shape), outputs=sum(map(prod, shapes)), flash=tables.flash, ram=ram,
        memory=plan.bytes, row=tables.row, numbers=numbers, timesteps=program.timesteps,
        fraction=program.pixels.fraction_bits, shapes=" ".join("x".join(map(str, shape)) or "1" for shape in shapes),
        units=len(program.units), run=_PIXELS.format(p=p) if program.pixels.table is not None else "",
    )  # fmt: skip
    return CSource(text, p, tables.flash, ram, shapes)


def _identifier(name: str) -> str:
    """A name as a C identifier."""
    found = re.sub(r"\W", "_", name, flags=re.ASCII)
    return found if re.match(r"(?!nbsnn)[A-Za-z]", found, re.IGNORECASE) else f"net_{found}"


_PIXELS = """
/* 8-bit pixels [channels, rows, columns] to the network's outputs. */
static inline void {p}_run(const uint8_t *pixels, float *result)
{{
    nbsnn_run(&{p}_network, pixels, NULL, {p}_memory, {p}_row, {p}_numbers, result);
}}
"""
_TEXT = """/* {name}: an integer network, written by nbsnn {version} in its format "c".
 *
 * {units} units, T = {timesteps}. The counts of its neurons, and its outputs bit for bit, are those of nbsnn's engine "counts".
 * Include this file in one C file. One call at a time: the buffers below are shared.
 *
 * Image: {channels}x{rows}x{columns}. Outputs, one after the other: {shapes}.
 */
#ifndef NBSNN_{P}_H
#define NBSNN_{P}_H

#include "nbsnn_runtime.h"

#define {P}_CHANNELS {channels}
#define {P}_ROWS {rows}
#define {P}_COLUMNS {columns}
#define {P}_PIXELS {elements} /* elements of an image */
#define {P}_OUTPUTS {outputs} /* elements of all outputs */
#define {P}_FRACTION_BITS {fraction} /* of an image as integers */
#define {P}_FLASH {flash} /* bytes of tables, with 32-bit pointers */
#define {P}_RAM {ram} /* bytes of buffers */

{tables}

static uint8_t {p}_memory[{memory}];
static int16_t {p}_row[{row}];
static double {p}_numbers[{numbers}];
{run}
/* The same for an image of normalized values, each as the integer nearest to value * 2^{fraction}. */
static inline void {p}_run_integers(const int32_t *image, float *result)
{{
    nbsnn_run(&{p}_network, NULL, image, {p}_memory, {p}_row, {p}_numbers, result);
}}

#endif
"""
