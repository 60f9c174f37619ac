"""What a try must not do."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nbsnn.errors import NbsnnError

LONGEST = 2000  # characters of a message


class Failure(Exception):
    """What went wrong, for people."""


def refusal(run: Callable[[], Any]) -> tuple[Any, str | None]:
    """The result, or the message of the package's own error, which is one line; other exceptions pass."""
    try:
        return run(), None
    except NbsnnError as error:
        text = str(error)
        if "\n" in text or len(text) > LONGEST or not text:
            raise Failure(f"a message of {len(text)} characters in {len(text.splitlines())} lines: {text[:500]!r}") from error
        return None, text


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal, tensors bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def engines_agree(network: Any, images: Tensor) -> Tensor:
    """Logits of an integer network, which both backends and the exact schedules give alike."""
    results = {}
    for backend in ("torch", "native"):
        for options in ({"engine": "counts"}, {"engine": "spikes", "schedule": "settle"}):
            results[backend, options["engine"]] = network.simulate(images, backend=backend, **options).logits
    first = next(iter(results.values()))
    for name, logits in results.items():
        if not torch.equal(first.nan_to_num(), logits.nan_to_num()):
            raise Failure(f"{name} gives other logits than torch's counts: {logits.tolist()} and {first.tolist()}")
    return first
