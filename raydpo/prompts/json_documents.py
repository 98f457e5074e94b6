"""JSON files that are neither a list nor an object a line: objects spread over lines, or wrapped.

What comes in: the text of a file that begins with `{`. What goes out: the objects that are its
rows. `{"data": [...]}` is a wrapper: an object with one key, and under it a list of objects
that are no messages of a conversation.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from raydpo.progress import logger

_MESSAGE_KEYS: Final = {"role", "from"}
_NO_SPACE: Final = re.compile(r"\S")


def wrapped_rows(value: Any, where: str) -> list[Any]:
    """The rows of a file's only object: itself, or the list that it wraps."""
    inner: Any = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(inner, list) or not inner or not all(map(_is_row, inner)):
        return [value]
    logger.info("%s: its rows are the list under the key %r", where, next(iter(value)))
    return inner


def objects_over_lines(text: str) -> list[Any] | None:
    """The objects that stand in a text one after another, or None where it is not that."""
    decoder = json.JSONDecoder()
    found: list[Any] = []
    try:
        place = _NO_SPACE.search(text)
        while place is not None:
            value, end = decoder.raw_decode(text, place.start())
            found.append(value)
            place = _NO_SPACE.search(text, end)
    except (ValueError, RecursionError):
        return None
    return found


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and not _MESSAGE_KEYS & value.keys()
