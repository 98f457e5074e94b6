"""Read one open stream of a file format into rows and poison rows, in constant memory.

A reader yields `(row, None, "")` for each object, or `(None, problem, text)` for each row that
cannot be one. If a file is damaged as a whole (a broken archive, a truncated JSON list), the reader
raises a `DataError` that names it.

A JSON file that begins with `{` is one object, objects one after the other, or `{"data": [...]}`:
a wrapper with one key, whose value is a list of objects that are not messages of a conversation.
A value of an Arrow table that Python cannot represent, such as a date after the year 9999, becomes
`Unreadable`. It costs no row if nobody reads its column.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from raydpo.core.errors import DataError
from raydpo.core.progress import logger
from raydpo.core.tables import Row

#: Either a row and no problem, or no row, the problem, and the row's text if readable.
Read = tuple[Row | None, str | None, str]

_BATCH_ROWS: Final = 1024
_CHUNK_BYTES: Final = 1 << 18
#: Maximum nesting of lists and objects; Python's own functions fail at some hundreds.
_MOST_LEVELS: Final = 100
_TOO_DEEP: Final = f"nested more than {_MOST_LEVELS} levels deep"


def read_jsonl(stream: pa.NativeFile) -> Iterator[Read]:
    """Read one JSON object per line; blank lines are not rows."""
    yield from map(_line_object, _lines(stream))


def read_text(stream: pa.NativeFile) -> Iterator[Read]:
    """Read one text per line as column `text`; blank lines are not rows."""
    for line in _lines(stream):
        try:
            yield {"text": line.decode("utf-8").rstrip("\r\n")}, None, ""
        except UnicodeDecodeError:
            yield None, "not UTF-8", _escaped(line)


def read_json(stream: pa.NativeFile, where: str) -> Iterator[Read]:
    """Read a JSON list of objects piece by piece, or objects on one or several lines each.

    One object that wraps the list of rows (`{"data": [...]}`) is unwrapped.

    Raises:
        DataError: the file is neither, or it is truncated.
    """
    buffered = io.BufferedReader(stream)  # pyright: ignore[reportArgumentType]
    start = buffered.peek(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if start == b"{":
        yield from _objects(buffered, where)
        return
    if start != b"[":
        raise DataError(
            f"{where} begins with {start.decode('latin-1')!r}",
            "a JSON file holds a list of objects, or an object a line",
            "put the rows into a list, or name another format",
        )
    for item in _list_items(io.TextIOWrapper(buffered, "utf-8-sig"), where):
        yield _checked(item)


def read_csv(stream: pa.NativeFile, where: str) -> Iterator[Read]:
    """Read comma-separated values with a header line; all values are text.

    Raises:
        DataError: there is no header, or it names no columns.
    """
    csv.field_size_limit(1 << 30)  # the csv module's own limit of 128 KiB refuses long texts
    buffered = io.BufferedReader(stream)  # pyright: ignore[reportArgumentType]
    text = io.TextIOWrapper(buffered, "utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text)
    header = _csv_values(rows)
    if not isinstance(header, list) or not header:
        raise DataError(
            f"{where} {f'begins with a line that is {header}' if header else 'is empty'}",
            "a CSV file begins with its column names",
            "add the header line",
        )
    _check_columns(header, where)
    while (values := _csv_values(rows)) is not None:
        if isinstance(values, str):
            yield None, values, ""
        elif values:
            yield _csv_row(header, values)


def _csv_values(rows: Any) -> list[str] | str | None:
    """Return the values of the next line, the problem with it, or None at the end."""
    try:
        return next(rows, None)
    except csv.Error as error:
        return f"not CSV: {error}"


def _check_columns(names: list[str], where: str) -> None:
    """Refuse duplicate or unreadable column names.

    Raises:
        DataError: a name occurs twice, or is not UTF-8.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or any(map(_has_escaped_byte, names)):
        raise DataError(
            f"{where} has a column name that "
            + (f"stands twice: {twice[0]!r}" if twice else "is not UTF-8"),
            "each column has a name of its own, in UTF-8",
            "rename the columns, or save the file as UTF-8",
        )


def read_parquet(file: pa.NativeFile, where: str) -> Iterator[Read]:
    """Read the rows of a Parquet file, with one batch in memory at a time.

    Raises:
        DataError: the file is damaged, or two of its columns have the same name.
    """
    try:
        parquet = pq.ParquetFile(file)
        _check_columns(parquet.schema_arrow.names, where)
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS):
            yield from batch_rows(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{where} is not a whole Parquet file: {error}",
            "the input is read to its end",
            "write or download the file again",
        ) from error


def _lines(stream: Any) -> Iterator[bytes]:
    """Yield the lines that are not blank, without a byte-order mark."""
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)
    for number, line in enumerate(buffered):
        content = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
        if content.strip():
            yield content


def _escaped(line: bytes) -> str:
    return line.rstrip(b"\r\n").decode("utf-8", "backslashreplace")


def _objects(stream: io.BufferedReader, where: str) -> Iterator[Read]:
    """Read a file that begins with an object; read it whole only if that one spans lines."""
    lines = _lines(stream)
    first, second = next(lines), next(lines, None)
    row, _, _ = start = _line_object(first)
    if row is not None and second is not None:
        yield start
        yield from map(_line_object, itertools.chain([second], lines))
        return
    content = [first, second or b"", *lines]
    text = b"".join(content).decode("utf-8", "replace")
    found = objects_over_lines(text) if row is None and "\ufffd" not in text else [row]
    if found is None or found == [None]:
        yield from map(_line_object, filter(None, content))
    elif len(found) == 1:
        yield from map(_checked, wrapped_rows(found[0], where))
    else:
        yield from map(_checked, found)


def _line_object(line: bytes) -> Read:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return None, "not UTF-8", _escaped(line)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None, "not JSON", text.rstrip("\r\n")
    if _brackets(text) > _MOST_LEVELS:
        return _checked(value)
    # Only an escape can produce a lone surrogate, because the text itself was valid UTF-8.
    return _checked(value) if "\\ud" in text.lower() else _as_object(value)


def _as_object(value: Any) -> Read:
    if isinstance(value, dict):
        return value, None, ""
    return None, "not an object", json.dumps(value)


def _checked(value: Any) -> Read:
    """Return the value as a row; refuse it if it is not valid UTF-8 or is nested too deeply."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode("utf-8")
    except UnicodeEncodeError:
        return None, "not Unicode: a lone surrogate", json.dumps(value)
    except RecursionError:
        return None, _TOO_DEEP, ""
    is_object = isinstance(value, dict)
    if is_object and _brackets(text) > _MOST_LEVELS and _levels(value) > _MOST_LEVELS:
        return None, _TOO_DEEP, text
    return _as_object(value)


def _brackets(text: str) -> int:
    return text.count("[") + text.count("{")


def _levels(value: Any) -> int:
    """Return the nesting depth of lists and objects, up to one more than the limit."""
    level = 0
    holders = [value]
    while holders and level <= _MOST_LEVELS:
        level += 1
        inner = [x for h in holders for x in (h.values() if isinstance(h, dict) else h)]
        holders = [one for one in inner if isinstance(one, dict | list)]
    return level


def _has_escaped_byte(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


def _csv_row(header: list[str], values: list[str]) -> Read:
    raw = json.dumps(values)
    if len(values) != len(header):
        more = "more" if len(values) > len(header) else "fewer"
        return None, f"{more} fields than the CSV header names", raw
    if any(map(_has_escaped_byte, values)):
        return None, "not UTF-8", raw
    return dict(zip(header, values, strict=True)), None, ""


def _list_items(text: io.TextIOWrapper, where: str) -> Iterator[Any]:
    """Yield the items of a JSON list; memory holds one item and one chunk of the file."""
    decoder = json.JSONDecoder()
    buffer, ended = "", False
    separator = "["
    while True:
        buffer = buffer.lstrip()
        if separator and buffer[:1] == separator:
            buffer, separator = buffer[1:].lstrip(), ""
        if buffer[:1] == "]" and separator != "[":
            return
        item, length = (None, 0) if separator else _decoded(decoder, buffer, ended)
        if length:
            yield item
            buffer, separator = buffer[length:], ","
            continue
        if ended:
            raise DataError(
                f"{where} is not a whole JSON list: it cannot be read at {buffer[:60]!r}",
                "a JSON file holds one list of objects",
                "fix the file or download it again, or use JSONL, where each line stands alone",
            )
        chunk = _chunk(text, where)
        buffer, ended = buffer + chunk, not chunk


def _decoded(decoder: json.JSONDecoder, buffer: str, ended: bool) -> tuple[Any, int]:
    """Return the first value in the buffer and its length; length 0 if more input is needed."""
    try:
        item, end = decoder.raw_decode(buffer)
    except (ValueError, RecursionError):
        return None, 0
    # A number at the buffer's end may continue in the next chunk.
    return (item, end) if ended or end < len(buffer) else (None, 0)


def _chunk(text: io.TextIOWrapper, where: str) -> str:
    try:
        return text.read(_CHUNK_BYTES)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8: {error}",
            "a JSON list is UTF-8 throughout",
            "convert the file, or use JSONL, where one bad line costs one row",
        ) from error


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
