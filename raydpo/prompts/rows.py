"""Process rows of a source: their ids, the reasons to refuse some, and their parts.

Functions turn `SourceRow`s into table rows. In the resulting `PartResult`s every input row
appears once: as output, as refused, or in a count.

The fingerprint of a source changes with a row or the order of rows. Spaces, the order of keys, blank
lines, compression, and the distribution of rows over files do not change it. The module reads the
rows only if the bytes differ from those that the finished stage has seen.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from raydpo.config.base import ForwardConfig
from raydpo.config.content import content_of
from raydpo.config.job import Config, PromptsConfig, SftConfig, SourceFormat
from raydpo.core.errors import DataError
from raydpo.core.fingerprints import Fingerprint, joined_hash, joined_rows, rows_hash
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import PartResult, Stage, identity_there, layout_of
from raydpo.core.storage import canonical_json, fingerprint
from raydpo.core.tables import Row
from raydpo.models.loading import load_tokenizer, tokenizer_fingerprint
from raydpo.prompts.end_tokens import EndTokens, describe_end, end_tokens
from raydpo.prompts.sources import (
    SourceRow,
    SourceSection,
    bytes_hash,
    location,
    source_rows,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raydpo.core.parts import Table


_ROWS_PER_PART: Final = "rows_per_part"
#: A function: tokenizer and source rows per part -> parts of a table.
MakeParts = Callable[["PreTrainedTokenizerBase", int], Iterator[PartResult]]


class RefusedRow(Exception):
    """A row that cannot be used; its text is the reason, and the row goes to the quarantine."""


@dataclass
class Ids:
    """Gives each row its id, and recognises ids that occurred before.

    Memory: 16 bytes of hash and a small integer for each row.
    """

    _seen: dict[bytes, int] = field(default_factory=dict[bytes, int])

    def given(self, row: Row, column: str) -> str:
        """Return the id in a column, which no earlier row had.

        Raises:
            RefusedRow: the id is missing, is neither text nor an integer, or repeats.
        """
        value = row.get(column)
        if value is None or value == "":
            raise RefusedRow(f"no id in column {column!r}")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise RefusedRow(f"the id in column {column!r} is neither text nor an integer")
        if self._count(str(value)) > 1:
            raise RefusedRow(f"the id in column {column!r} stood before")
        return str(value)

    def hashed(self, content: Any) -> str:
        """Return a hash of the content; the second equal content gets `-2`, the third `-3`."""
        name = content_hash(content)
        count = self._count(name)
        return name if count == 1 else f"{name}-{count}"

    def _count(self, name: str) -> int:
        key = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:16]
        self._seen[key] = self._seen.get(key, 0) + 1
        return self._seen[key]


def content_hash(content: Any) -> str:
    """Return 64 bits of a prompt's hash, in hexadecimal."""
    return hashlib.sha256(canonical_json(content)).hexdigest()[:16]


def row_name(source: SourceRow) -> str:
    """Return the name of a row that has no id of its own: its place in the source."""
    return f"{source.source}/row-{source.index}" if source.source else f"row-{source.index}"


def quarantine_row(stage: str, name: str, reason: str, source: SourceRow) -> Row:
    """Build a row of the quarantine table."""
    return {"stage": stage, "id": name, "reason": reason, "row": source.text}


def usable_row(source: SourceRow) -> Row:
    """Return the row itself if it can be used.

    Raises:
        RefusedRow: it is a poison row.
    """
    if source.row is None:
        raise RefusedRow(source.problem or "not readable")
    return source.row


def chunks(rows: Iterable[SourceRow], size: int) -> Iterator[list[SourceRow]]:
    """Yield lists of `size` rows; the last may be shorter."""
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def source_stage(
    config: Config,
    section: SourceSection,
    place: Place,
    table: str,
    content: dict[str, Any],
    rows_per_part: int,
) -> Stage:
    """Define a stage that reads and tokenizes a source.

    Args:
        config: the job.
        section: where the rows come from.
        place: where the table goes.
        table: the name of the table, which is also the stage's.
        content: the part of the section that the resulting rows depend on (`content_of`).
        rows_per_part: number of source rows in one part; a table that was begun keeps its own
            number.

    Raises:
        DataError: the source cannot be read.
    """
    known = identity_there(place.folder)
    inputs: dict[str, str] = {}
    if isinstance(section, SftConfig):
        inputs["data"] = source_fingerprint(section, known)
    else:
        for one, label in zip(section.each, section.labels, strict=True):
            name = f"data of {label}" if label else "data"
            inputs[name] = source_fingerprint(one, known, name)
    inputs["tokenizer"] = tokenizer_fingerprint(config.model)
    settings = {
        **content_of(config.model, without=ForwardConfig),
        **content,
        **_mixture(config, section),
        **(tokens.settings if (tokens := _end_tokens(config, section)) else {}),
    }
    layout = {_ROWS_PER_PART: rows_per_part}
    return Stage(place, table, table, inputs, settings, layout=layout)


def _mixture(config: Config, section: SourceSection) -> dict[str, Any]:
    """Return how several sources become one table; nothing for one source without a filter."""
    if isinstance(section, SftConfig):
        return {}
    seed = {"mixture_seed": config.seed} if section.weights else {}
    return {**section.later_content, **seed}


def _end_tokens(config: Config, section: SourceSection) -> EndTokens | None:
    """Return how completions of this source end; None if it has none, or the tokenizer no EOS."""
    if isinstance(section, PromptsConfig):
        return None
    tokenizer = load_tokenizer(config.model)
    eos: Any = tokenizer.eos_token_id
    return end_tokens(tokenizer, int(eos)) if eos is not None else None


def run_source_stage(
    stage: Stage, config: Config, section: SourceSection, make_parts: MakeParts
) -> Table:
    """Read and tokenize a source; a finished table is kept.

    Args:
        stage: the stage that makes the table (`source_stage`).
        config: the job.
        section: where the rows come from.
        make_parts: makes the table's parts; not called for a finished stage.

    Raises:
        DataError: the source cannot be read, or no row is left.
        ModelError: the tokenizer cannot be used.
        QuarantineBudgetError: too many rows were refused.
    """

    def results() -> Iterator[PartResult]:
        tokenizer = load_tokenizer(config.model)
        tokens = _end_tokens(config, section)
        if tokens is not None and (said := describe_end(tokenizer, tokens)):
            logger.info("[%s] %s", stage.place.label, said)
        yield from make_parts(tokenizer, layout_of(stage)[_ROWS_PER_PART])

    from raydpo.core.on_driver import write_on_driver

    table = write_on_driver(stage, results, partial(check_not_empty, stage.name))
    if (layout := layout_of(stage)) != stage.layout:
        text = "[%s] keeps %s, as it was begun; %s is for tables that are made anew: move %s away"
        shown = _said(layout), _said(stage.layout), stage.folder.uri
        logger.info(text, stage.place.label, *shown)
    return table


def _said(layout: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in layout.items())


def check_not_empty(name: str, counts: dict[str, int]) -> None:
    """Refuse a table without rows.

    Raises:
        DataError: the counts say that no row is left.
    """
    if not counts.get("output"):
        read = counts.get("input", 0)
        raise DataError(
            f"{name}: {read} rows were read, and none is left",
            "at least one row is needed to go on",
            "read the reasons in the quarantine" if read else "the source is empty: give another",
        )


def add_counts(total: dict[str, int], result: PartResult) -> None:
    """Add a part's counts to a total."""
    more = {
        **result.counts,
        "output": len(result.rows),
        "quarantined": len(result.quarantined),
    }
    for name, count in more.items():
        total[name] = total.get(name, 0) + count


#: Maximum number of runs of rows with their own hash, which lets a message name the changed run.
_MOST_RUNS: Final = 32
_BYTES: Final = "bytes"


def source_fingerprint(
    section: SourceSection, known: Mapping[str, Any] | None = None, name: str = "data"
) -> Fingerprint:
    """Fingerprint the rows that a section reads.

    Args:
        section: the section, which says where the rows are and how many of them are read.
        known: a manifest or plan of a stage whose input `name` may be exactly these bytes.
        name: the input.

    Raises:
        DataError: the source does not exist, or a file cannot be read.
    """
    place = location(section)
    read = f"sha256:{fingerprint([bytes_hash(*place), section.limit])}"
    told: dict[str, Any] = (known or {}).get("made_of", {}).get(name, {})
    if known is not None and told.get(_BYTES) == read:
        return Fingerprint(known["inputs"][name], told)
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
