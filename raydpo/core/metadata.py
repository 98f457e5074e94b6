"""Write and read the `metadata` column: what a source says of a prompt beside the prompt itself.

The column holds one JSON object for each row, by column name, so that columns of any type travel
through every table. The module imports no Arrow.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping
from datetime import date, time
from typing import Any, Final, cast

#: The count of rows that bring metadata, in manifests.
WITH_METADATA: Final = "with_metadata"

Json = dict[str, Any]


def metadata_text(values: Mapping[str, Any]) -> str | None:
    """Return the values as a JSON object with sorted keys; None without values.

    Dates and times become ISO 8601, bytes base64, and other values that JSON lacks (NaN, infinities,
    decimals) their text. Values that are null are left out.
    """
    known = {name: _plain(value) for name, value in values.items() if value is not None}
    if not known:
        return None
    return json.dumps(known, ensure_ascii=False, sort_keys=True, allow_nan=False)


def metadata_columns(texts: Iterable[str | None]) -> dict[str, list[Any]]:
    """Return one list for each column that any row has, in the order of the rows.

    A row without a column has None there.
    """
    rows: list[Json] = [json.loads(text) if text else {} for text in texts]
    names = sorted({name for row in rows for name in row})
    return {name: [row.get(name) for row in rows] for name in names}


def metadata_count(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many rows of a part bring metadata, as the count `with_metadata`; none without."""
    count = sum(row.get("metadata") is not None for row in rows)
    return {WITH_METADATA: count} if count else {}


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | str() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case date() | time():  # a datetime is a date
            return value.isoformat()
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode("ascii")
        case Mapping():
            items = cast("Mapping[Any, Any]", value).items()
            return {str(key): _plain(inner) for key, inner in items}
        case list() | tuple() | set():
            return [_plain(inner) for inner in cast("Iterable[Any]", value)]
        case _:
            return str(value)
