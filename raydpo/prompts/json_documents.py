"""Read JSON files that are neither a list nor one object per line.

From the text of a file that begins with `{`, the module returns the objects that are its rows.
`{"data": [...]}` is a wrapper: an object with one key whose value is a list of objects that are
not messages of a conversation.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from raydpo.core.progress import logger

_MESSAGE_KEYS: Final = {"role", "from"}
_NO_SPACE: Final = re.compile(r"\S")


def wrapped_rows(value: Any, where: str) -> list[Any]:
    """Return the rows of a file's only object: the object, or the list that it wraps."""
    inner: Any = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(inner, list) or not inner or not all(map(_is_row, inner)):
        return [value]
    logger.info("%s: its rows are the list under the key %r", where, next(iter(value)))
    return inner


def objects_over_lines(text: str) -> list[Any] | None:
    """Return the consecutive objects of a text, or None if it contains anything else."""
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
