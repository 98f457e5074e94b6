"""Arrow tables as rows of Python, also where Python has no value for what Arrow holds.

What comes in: record batches. What goes out: a row for each of their rows. A date after the
year 9999, in a column that nobody reads, costs nobody a row: it stands there as `Unreadable`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from raydpo.tables import Row

#: What pyarrow raises for values that Python's types do not hold: years, time zones, twins.
_NO_PYTHON_VALUE: Final = (ValueError, ArithmeticError, LookupError, TypeError, pa.ArrowException)


@dataclass(frozen=True)
class Unreadable:
    """A value of which only Arrow's own text is known, as far as it has one."""

    text: str

    def __str__(self) -> str:
        return self.text


def batch_rows(batch: pa.RecordBatch) -> Iterator[tuple[Row | None, str | None, str]]:
    """Each row of a batch with no problem, or no row, the problem, and the row's text.

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
    """The only value of a column, as far as it is readable; bytes that are no text escaped."""
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
