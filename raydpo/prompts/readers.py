"""File formats: one open stream in, rows and poison rows out, in constant memory.

What comes in: a binary stream. What goes out: `(row, None, "")` for each object that was
read, or `(None, problem, text)` for each row that cannot be one. A file that is damaged as
a whole (a broken archive, a JSON list that stops) is a `DataError` that names it.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from raydpo.errors import DataError
from raydpo.tables import Row

#: A row and no problem, or no row, the problem, and the row's text as far as it is readable.
Read = tuple[Row | None, str | None, str]

_BATCH_ROWS: Final = 1024
_CHUNK_BYTES: Final = 1 << 18


def read_jsonl(stream: pa.NativeFile) -> Iterator[Read]:
    """One JSON object a line; blank lines are no rows."""
    for line in _lines(stream):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            yield None, "not UTF-8", _escaped(line)
            continue
        yield _object_of(text)


def read_text(stream: pa.NativeFile) -> Iterator[Read]:
    """One text a line, as column `text`; blank lines are no rows."""
    for line in _lines(stream):
        try:
            yield {"text": line.decode("utf-8").rstrip("\r\n")}, None, ""
        except UnicodeDecodeError:
            yield None, "not UTF-8", _escaped(line)


def read_json(stream: pa.NativeFile, where: str) -> Iterator[Read]:
    """A JSON list of objects, read piece by piece; a file of JSON lines is taken as such.

    Raises:
        DataError: it is neither, or it breaks off.
    """
    buffered = io.BufferedReader(stream)  # pyright: ignore[reportArgumentType]
    start = buffered.peek(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if start == b"{":
        yield from read_jsonl(buffered)  # pyright: ignore[reportArgumentType]
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
    """Comma-separated values with a header line; all values are text.

    Raises:
        DataError: there is no header.
    """
    csv.field_size_limit(1 << 30)  # the module's own limit of 128 KiB refuses long texts
    buffered = io.BufferedReader(stream)  # pyright: ignore[reportArgumentType]
    text = io.TextIOWrapper(buffered, "utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text)
    header = next(rows, None)
    if not header:
        raise DataError(
            f"{where} is empty", "a CSV file begins with its column names", "add the header line"
        )
    for values in rows:
        if values:
            yield _csv_row(header, values)


def read_parquet(file: pa.NativeFile, where: str) -> Iterator[Read]:
    """The rows of a Parquet file, a batch in memory at a time.

    Raises:
        DataError: the file is damaged.
    """
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS):
            yield from _batch_rows(batch)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{where} is not a whole Parquet file: {error}",
            "the input is read to its end",
            "write or download the file again",
        ) from error


def _lines(stream: Any) -> Iterator[bytes]:
    """The lines that are not blank, without a byte-order mark."""
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)
    for number, line in enumerate(buffered):
        content = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
        if content.strip():
            yield content


def _escaped(line: bytes) -> str:
    return line.rstrip(b"\r\n").decode("utf-8", "backslashreplace")


def _object_of(text: str) -> Read:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None, "not JSON", text.rstrip("\r\n")
    # Only an escape can have made a lone surrogate: the text itself was valid UTF-8.
    return _checked(value) if "\\ud" in text.lower() else _as_object(value)


def _as_object(value: Any) -> Read:
    if isinstance(value, dict):
        return value, None, ""
    return None, "not an object", json.dumps(value)


def _checked(value: Any) -> Read:
    """The value as a row, refused where it cannot be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return None, "not Unicode: a lone surrogate", json.dumps(value)
    return _as_object(value)


def _csv_row(header: list[str], values: list[str]) -> Read:
    raw = json.dumps(values)
    if len(values) != len(header):
        more = "more" if len(values) > len(header) else "fewer"
        return None, f"{more} fields than the CSV header names", raw
    if any("\udc80" <= character <= "\udcff" for value in values for character in value):
        return None, "not UTF-8", raw
    return dict(zip(header, values, strict=True)), None, ""


def _batch_rows(batch: pa.RecordBatch) -> Iterator[Read]:
    try:
        rows: list[Row] = batch.to_pylist()
    except UnicodeDecodeError:
        yield from (_slice_row(batch.slice(index, 1)) for index in range(batch.num_rows))
        return
    yield from ((row, None, "") for row in rows)


def _slice_row(batch: pa.RecordBatch) -> Read:
    try:
        return batch.to_pylist()[0], None, ""
    except UnicodeDecodeError:
        binary = [_as_binary(column) for column in batch.columns]
        return None, "not UTF-8", json.dumps(dict(zip(batch.schema.names, binary, strict=True)))


def _as_binary(column: pa.Array) -> str:
    try:
        return str(column.to_pylist()[0])
    except UnicodeDecodeError:
        if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
            return "(not readable)"
        kind = pa.binary() if pa.types.is_string(column.type) else pa.large_binary()
        content: Any = column.cast(kind).to_pylist()[0]
        return bytes(content).decode("utf-8", "backslashreplace")


def _list_items(text: io.TextIOWrapper, where: str) -> Iterator[Any]:
    """The items of a JSON list; memory holds one item and one chunk of the file."""
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
                "mend or download the file again, or use JSONL, where each line stands alone",
            )
        chunk = _chunk(text, where)
        buffer, ended = buffer + chunk, not chunk


def _decoded(decoder: json.JSONDecoder, buffer: str, ended: bool) -> tuple[Any, int]:
    """The first value in the buffer and its length; length 0 where more is needed."""
    try:
        item, end = decoder.raw_decode(buffer)
    except (ValueError, RecursionError):
        return None, 0
    # A number at the buffer's end may go on in the next chunk.
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
