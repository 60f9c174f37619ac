"""Integer networks in files: numbers in safetensors, the structure in a JSON header, and a hash of both."""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from nbsnn.errors import CheckpointError
from nbsnn.integer.checking import check_numbers, check_structure
from nbsnn.integer.plain import decode, encode
from nbsnn.integer.program import Program
from nbsnn.tensorfile import FORMAT_VERSION, Header, read_network, write_tensors


def save_program(path: Path, program: Program) -> None:
    """Write a program atomically."""
    header, tensors = described(program)
    write_tensors(path, tensors, header)


def described(program: Program) -> tuple[Header, dict[str, Tensor]]:
    """Header (without the hash) and tensors of a program's file."""
    structure, tensors = encode(program)
    header = {
        "format": FORMAT_VERSION, "form": "integer", "program": structure,
        "model": program.origin.get("model"), "recipe": program.origin.get("recipe"),
        "versions": {"nbsnn": metadata.version("nbsnn"), "torch": torch.__version__},
    }  # fmt: skip
    return header, tensors


def load_program(path: Path) -> Program:
    """Read a program and verify it."""
    header, tensors = read_network(path)
    return program_from(header, tensors, source=str(path))


def program_from(header: Header, tensors: Mapping[str, Tensor], *, source: str) -> Program:
    """The program in a file's header and tensors, as returned by `read_network`.

    Raises:
        CheckpointError: the file has another form, is not consistent, or exceeds the limits of `integer.work`.
    """
    if header["form"] != "integer":
        raise CheckpointError(f"{source}: holds a {header['form']} network; make an integer one of it with nbsnn.lower")
    try:
        program = decode(header["program"], tensors)
        check_structure(program)
        check_numbers(program)
    except ValueError as error:
        raise CheckpointError(f"{source}: not a valid integer network ({error}); lower it again") from None
    return program
