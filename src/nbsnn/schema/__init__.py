"""Valid headers of files: every field of every kind of file, with its type and range; one module per kind.

A header is untrusted JSON. `parse` reads it strictly, and `check_header` compares it field by field with
the table of its kind, before anything is built or allocated. Headers pass the same check when they are written, so everything
written can be read.

To add a field: put it into its table as `later(...)`, since files of earlier versions lack it, with a comment on what its
absence means. A range may become wider, never narrower than what earlier versions wrote. For an unknown field, the reader
raises an error that asks for a newer nbsnn; to change what a known field *means*, raise `tensorfile.FORMAT_VERSION` instead.
"""

from collections.abc import Mapping
from typing import Any

from nbsnn.schema.integer import INTEGER_NETWORK, PROGRAM
from nbsnn.schema.kinds import Misfit, check_name
from nbsnn.schema.networks import CHECKPOINT, check_form
from nbsnn.schema.parsing import MOST_CHARACTERS, Header, parse
from nbsnn.schema.training import TRAINING_STATE

__all__ = ["MOST_CHARACTERS", "PROGRAM", "Header", "Misfit", "check_header", "check_name", "parse"]


def check_header(header: Mapping[str, Any]) -> None:
    """Compare a header with the table of its kind: a network in any form, or a training state.

    Raises:
        Misfit: a field is missing, unknown, of another type or out of range; names it.
    """
    kind = TRAINING_STATE if "fingerprint" in header else INTEGER_NETWORK if header.get("form") == "integer" else CHECKPOINT
    kind(header, "")
    if kind is CHECKPOINT:
        check_form(header)
