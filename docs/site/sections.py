"""Sections of docstrings follow each other without a blank line in this package; mkdocstrings expects one."""

import re
from typing import Any

from griffe import Extension

_SECTION = re.compile(r"\n(?=(?:Args|Returns|Yields|Raises):\n)")


class Sections(Extension):  # type: ignore[misc]
    """Puts a blank line before each section."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _SECTION.sub("\n\n", obj.docstring.value)
