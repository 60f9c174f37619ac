"""Values that programs trip over."""

import json
import random
from typing import Any

WORDS = (
    "", " ", "None", "nan", "inf", "-1", "0", "1e400", "²", "\u0663", "é", "\x00", "\x1b[2J", "a\nb", "[/red]", "../..", "zoo:",
    "x" * 300, "float", "quantized", "max", "signed", "settle", "cpu", "cuda:99", "\ud800", "%s", "{}", "image",
    "format", "fingerprint", "form", "packed", "fixed", "tensor", "class", "content_hash", "bits", "integer", "apot",
)  # fmt: skip
NUMBERS = (
    -1, 0, 1, 2, 3, 7, 8, 9, 31, 32, 60, 127, 128, 255, 256, 1000, 4096, 10**6, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**30,
    -(2**31), -(2**63), 0.0, -0.5, 0.5, 1.0, 2.5, 1e-300, 1e300, -1e300,
)  # fmt: skip


def plain(r: random.Random, depth: int = 0) -> Any:
    """A random JSON value."""
    kind = r.randrange(8)
    if kind == 0:
        return None
    if kind == 1:
        return r.random() < 0.5
    if kind < 5:
        return r.choice(NUMBERS)
    if kind == 5:
        return r.choice(WORDS)
    if depth > 2:
        return []
    if kind == 6:
        return [plain(r, depth + 1) for _ in range(r.randrange(4))]
    return {r.choice(WORDS): plain(r, depth + 1) for _ in range(r.randrange(3))}


def near(r: random.Random, value: Any) -> Any:
    """A value of the same type, or another one."""
    if r.random() < 0.3:
        return plain(r)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        change = r.choice([lambda v: v + 1, lambda v: v - 1, lambda v: -v, lambda v: v * 2, float, lambda v: r.choice(NUMBERS)])
        return change(value)
    if isinstance(value, str):
        at = r.randrange(len(value) + 1)
        return r.choice([value[:at], value[at:], value.upper(), value[:at] + r.choice(WORDS) + value[at:], r.choice(WORDS)])
    if isinstance(value, list):
        at = r.randrange(len(value) + 1)
        return r.choice([value[:at], [*value, plain(r)], [*value, *value[:1]], value[::-1], []])
    if isinstance(value, dict):
        return r.choice([{}, {**value, r.choice(WORDS): plain(r)}, list(value.items())[:2]])
    return plain(r)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in tables and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [p for key, item in items for p in places(item, (*path, key))]


def edit_(r: random.Random, value: Any) -> None:
    """Change, drop, add, double or exchange something somewhere in a table, in place."""
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        *way, last = r.choice(places(value))
        table = value
        for key in way:
            table = table[key]
        kind = r.randrange(10)
        if kind == 0:
            del table[last]
        elif kind == 1 and isinstance(table, dict):
            table[r.choice(WORDS)] = plain(r)
        elif kind == 2:
            *other_way, other = r.choice(places(value))
            source = value
            for key in other_way:
                source = source[key]
            table[last] = json.loads(json.dumps(source[other]))
        else:
            table[last] = near(r, table[last])
        if not places(value):
            return


def text_of(r: random.Random, value: Any) -> str:
    """JSON, now and then with what JSON does not have, or too much of it."""
    text = json.dumps(value)
    kind = r.randrange(40)
    at = r.randrange(len(text) + 1)
    odd = ("NaN", "Infinity", "1e999", "9" * 5000, "[" * 100_000, '{"a":' * 5000, '"format": 1,', "\\ud800", "//", "\x00", "-")
    return text[:at] + r.choice(odd) + text[at:] if kind == 0 else text[:at] if kind == 1 else text
