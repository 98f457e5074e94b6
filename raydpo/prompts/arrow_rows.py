"""Read Arrow tables as Python rows, even where Python cannot represent an Arrow value.

Each row of a record batch becomes a row. A value such as a date after the year 9999 becomes
`Unreadable`, so it costs no row if nobody reads its column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from raydpo.core.tables import Row

#: Errors of pyarrow for values that Python's types cannot hold: years, time zones, duplicates.
_NO_PYTHON_VALUE: Final = (ValueError, ArithmeticError, LookupError, TypeError, pa.ArrowException)


@dataclass(frozen=True)
class Unreadable:
    """A value that is known only by Arrow's own text, if it has one."""

    text: str

    def __str__(self) -> str:
        return self.text


def batch_rows(batch: pa.RecordBatch) -> Iterator[tuple[Row | None, str | None, str]]:
    """Yield for each row of a batch: the row, or the problem with it and its text.

    A text that is not UTF-8 is a problem of its row.
    """
    try:
        rows: list[Row] = batch.to_pylist()
    except _NO_PYTHON_VALUE:
        yield from (_single_row(batch.slice(index, 1)) for index in range(batch.num_rows))
        return
    yield from ((row, None, "") for row in rows)


def _single_row(batch: pa.RecordBatch) -> tuple[Row | None, str | None, str]:
    try:
        values = [_value(column) for column in batch.columns]
    except UnicodeDecodeError:
        texts = [_as_text(column) for column in batch.columns]
        return None, "not UTF-8", json.dumps(dict(zip(batch.schema.names, texts, strict=True)))
    return dict(zip(batch.schema.names, values, strict=True)), None, ""


def _value(column: pa.Array) -> Any:
    try:
        return column.to_pylist()[0]
    except UnicodeDecodeError:
        raise
    except _NO_PYTHON_VALUE:
        return Unreadable(_as_text(column))


def _as_text(column: pa.Array) -> str:
    """Return the only value of a column as text, if readable; other bytes are escaped."""
    try:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            kind = pa.binary() if pa.types.is_string(column.type) else pa.large_binary()
            content: Any = column.cast(kind).to_pylist()[0]
            return (
                str(None) if content is None else bytes(content).decode(errors="backslashreplace")
            )
        return str(column.cast(pa.string()).to_pylist()[0])
    except _NO_PYTHON_VALUE:
        return f"(no value of Python: {column.type})"
