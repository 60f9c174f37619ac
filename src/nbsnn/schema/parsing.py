"""The JSON text of a header, read strictly."""

import json
import math
from typing import Any, NoReturn

from nbsnn.errors import shown
from nbsnn.schema.kinds import MOST_DEPTH, Misfit

Header = dict[str, Any]

MOST_CHARACTERS = 2**23  # of a header; one of a thousand layers or a thousand epochs takes a tenth
_LONGEST_WHOLE = 40  # digits


def parse(text: str) -> Header:
    """The table that a header's JSON text holds.

    Raises:
        Misfit: no JSON, not a table, too long or too deep, a key given twice, NaN, infinity, or a number of too many digits.
    """
    if len(text) > MOST_CHARACTERS:
        raise Misfit(f"{len(text)} characters, where {MOST_CHARACTERS} are the most")
    try:
        header = json.loads(
            text, object_pairs_hook=_table_of, parse_constant=_no_number, parse_int=_parse_whole, parse_float=_parse_number
        )
    except RecursionError:
        raise Misfit(f"tables or lists in more than {MOST_DEPTH} others") from None
    except json.JSONDecodeError as error:
        raise Misfit(f"not JSON ({error})") from None
    if not isinstance(header, dict):
        raise Misfit(f"a {type(header).__name__} instead of a table")
    return header


def _table_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise Misfit(f"{shown(next(name for name in table if names.count(name) > 1))} is given twice")
    return table


def _no_number(text: str) -> NoReturn:
    raise Misfit(f"{text} is not a finite number")


def _parse_whole(text: str) -> int:
    if len(text) > _LONGEST_WHOLE:
        raise Misfit(f"an integer of {len(text)} digits")
    return int(text)


def _parse_number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(shown(text))
