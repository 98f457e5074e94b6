"""Fingerprint the content of a source: its rows in order, however its files store them.

The fingerprint changes with a row or the order of rows. Spaces, the order of keys, blank lines,
compression, and the distribution of rows over files do not change it. The module reads the rows
only if the bytes differ from those that the finished stage has seen.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, Final

from raydpo.config.job import SourceFormat
from raydpo.core.fingerprints import Fingerprint, joined_hash, joined_rows, rows_hash
from raydpo.core.storage import fingerprint
from raydpo.core.tables import Row
from raydpo.prompts.sources import SourceRow, SourceSection, bytes_hash, location, source_rows

#: Maximum number of runs of rows with their own hash, which lets a message name the changed run.
_MOST_RUNS: Final = 32
_BYTES: Final = "bytes"


def source_fingerprint(
    section: SourceSection, known: Mapping[str, Any] | None = None
) -> Fingerprint:
    """Fingerprint the rows that a section reads.

    Args:
        section: the section, which says where the rows are and how many of them are read.
        known: a manifest or plan of a stage whose input `data` may be exactly these bytes.

    Raises:
        DataError: the source does not exist, or a file cannot be read.
    """
    place = location(section)
    read = f"sha256:{fingerprint([bytes_hash(*place), section.limit])}"
    told: dict[str, Any] = (known or {}).get("made_of", {}).get("data", {})
    if known is not None and told.get(_BYTES) == read:
        return Fingerprint(known["inputs"]["data"], told)
    found = _of_rows(*place, section.limit, read)
    return Fingerprint(found, {**found.made_of, _BYTES: read})


@functools.lru_cache(maxsize=64)
def _of_rows(
    path: str, format: SourceFormat, split: str, limit: int | None, _read: str
) -> Fingerprint:
    """Read the rows once per process while the bytes stay the same."""
    runs = _runs(source_rows(path, format, split, limit))
    size = max((rows for _, rows in runs), default=1)
    names = [_name(at * size, rows) for at, (_, rows) in enumerate(runs)]
    told = {name: f"sha256:{part[:16]}" for name, (part, _) in zip(names, runs, strict=True)}
    whole = joined_hash(runs)
    return Fingerprint(whole, {**whole.made_of, **told})


def _name(first: int, rows: int) -> str:
    """Return the name of a run of rows; rows count from 0, as in the quarantine."""
    return f"row {first}" if rows == 1 else f"rows {first} to {first + rows - 1}"


def _runs(rows: Iterable[SourceRow]) -> list[tuple[str, int]]:
    """Return hashes and row numbers of consecutive runs; all but the last have the same length."""
    runs: list[tuple[str, int]] = []
    size = 1
    for row in rows:
        if runs and runs[-1][1] < size:
            runs[-1] = joined_rows([runs[-1], _of_row(row)])
            continue
        if len(runs) == _MOST_RUNS:
            runs = [joined_rows(runs[at : at + 2]) for at in range(0, _MOST_RUNS, 2)]
            size *= 2
        runs.append(_of_row(row))
    return runs


def _of_row(row: SourceRow) -> tuple[str, int]:
    value: Row = row.row if row.row is not None else {"problem": row.problem, "raw": row.raw}
    try:
        return rows_hash([value]), 1
    except (TypeError, ValueError, RecursionError):  # keys that cannot be sorted, or endless depth
        return rows_hash([{"row": repr(value)}]), 1
