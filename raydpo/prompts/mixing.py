"""Read one source or several into one table: filters, weights, and counts by source.

The rows of a mixture stay in the order of its sources, and a part has rows of one source only. With
weights, the rows that stay are drawn by the seed; nothing depends on how often a source is read.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final, TypeVar

from raydpo.config.job import PreferencesConfig, PromptsConfig
from raydpo.core.errors import DataError
from raydpo.core.expressions import Expression, ExpressionError, parsed
from raydpo.core.run import PartResult
from raydpo.core.storage import canonical_json
from raydpo.prompts.columns import ColumnUses
from raydpo.prompts.rows import Ids
from raydpo.prompts.sources import SourceRow, location, row_text, source_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Rows among which the columns of a filter are looked for.
_HEAD_ROWS: Final = 1000
_FILTERED, _LEFT_OUT = "filtered", "left_out"


@dataclass
class Shared:
    """What the sources of a mixture share: ids, and hashes of prompts, that occurred before."""

    ids: Ids = field(default_factory=Ids)
    prompts: set[bytes] = field(default_factory=set[bytes])


S = TypeVar("S", PromptsConfig, PreferencesConfig)
#: Makes parts of a section of one source: from its rows, the tokenizer, and rows per part.
Make = Callable[
    [
        S,
        Iterable[SourceRow],
        "PreTrainedTokenizerBase",
        int,
        "ColumnUses | None",
        "Shared | None",
    ],
    Iterator[PartResult],
]


def mixed_parts(
    section: S, seed: int, make: Make[S], tokenizer: PreTrainedTokenizerBase, size: int
) -> Iterator[PartResult]:
    """Yield the parts of all sources of a section, one source after the other.

    Args:
        section: one source, or several.
        seed: draws the rows that stay if there are weights.
        make: makes the parts of one source.
        tokenizer: the model's tokenizer.
        size: number of source rows in one part.

    Raises:
        DataError: a source cannot be read, or nothing of it stays.
    """
    shared = Shared()
    counts = _rows_of_each(section) if section.weights else None
    kept = quotas(counts, section.weights) if counts is not None else None
    for number, (one, label) in enumerate(zip(section.each, section.labels, strict=True)):
        dropped: Counter[str] = Counter()
        rows = passing_rows(one, label, dropped)
        if counts is not None and kept is not None:
            stay = drawn(seed, label, counts[number], kept[number])
            rows = _staying(rows, stay, dropped)
        yield from source_parts(one, label, rows, dropped, make, tokenizer, size, None, shared)


def source_parts(
    section: S,
    label: str,
    rows: Iterable[SourceRow],
    dropped: Counter[str],
    make: Make[S],
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    uses: ColumnUses | None,
    shared: Shared,
) -> Iterator[PartResult]:
    """Yield the parts of one source, with counts of its rows.

    Args:
        section: the section for this source alone.
        label: the source's name in a mixture; empty where it is the only one.
        rows: its rows that stay.
        dropped: what reading these rows counts; part by part it goes into the parts' counts.
        make: makes the parts.
        tokenizer: the model's tokenizer.
        size: number of source rows in one part.
        uses: records what becomes of each column.
        shared: what the sources share.

    Raises:
        DataError: the filter leaves no row.
    """
    parts = iter(make(section, rows, tokenizer, size, uses, shared))
    last = next(parts, None)
    if last is None and dropped[_FILTERED]:
        raise DataError(
            f"{section.path}: the filter {section.filter!r} leaves none of "
            f"{dropped[_FILTERED]} rows",
            "a source has rows that its filter lets pass",
            "correct the filter, or take the source out",
        )
    for part in parts:
        assert last is not None
        yield _counted(last, section, label, dropped)
        dropped.clear()
        last = part
    if last is not None:  # rows dropped after the last part are counted with it
        yield _counted(last, section, label, dropped)


def _counted(part: PartResult, section: S, label: str, dropped: Counter[str]) -> PartResult:
    """Return a part with what was dropped before it, and in a mixture with its source's counts."""
    names = [_FILTERED] if section.filter is not None else []
    names += [_LEFT_OUT] if _LEFT_OUT in dropped else []
    counts = {**part.counts, **{name: dropped[name] for name in names}}
    if label:
        of_source = {"input": part.counts.get("input", 0), "output": len(part.rows)}
        of_source |= {"quarantined": len(part.quarantined)}
        of_source |= {name: dropped[name] for name in names}
        counts |= {f"{name}_{label}": count for name, count in of_source.items()}
    return replace(part, counts=counts)


def passing_rows(
    section: PromptsConfig | PreferencesConfig,
    label: str,
    dropped: Counter[str],
    limit: int | None = None,
) -> Iterator[SourceRow]:
    """Yield the rows of one source that its filter lets pass.

    A row on which the filter cannot be decided passes with a problem, and so does one that cannot be
    read: both go to the quarantine.

    Args:
        section: the section of one source.
        label: the source's name in a mixture, for the names of its rows.
        dropped: counts `filtered` rows.
        limit: read at most so many rows, in addition to the section's own limit.

    Raises:
        DataError: the source cannot be read, or its first rows lack a column of the filter.
    """
    limits = [one for one in (section.limit, limit) if one is not None]
    rows = source_rows(*location(section), min(limits, default=None))
    if label:
        rows = (replace(row, source=label) for row in rows)
    if section.filter is None:
        yield from rows
        return
    expression = parsed(section.filter)
    head = list(itertools.islice(rows, _HEAD_ROWS))
    _refuse_missing_columns(section.path, expression, head)
    for row in itertools.chain(head, rows):
        passing = _decided(row, expression)
        if passing is None:
            dropped[_FILTERED] += 1
        else:
            yield passing


def _decided(row: SourceRow, expression: Expression) -> SourceRow | None:
    """Return a row that stays, with its problem if there is one; None for one that is dropped."""
    if row.row is None:
        return row
    try:
        return row if expression.holds(row.row) else None
    except ExpressionError as error:
        problem = f"the filter {expression.text!r}: {error}"
        return replace(row, row=None, problem=problem, raw=row_text(row.row))


def _refuse_missing_columns(path: str, expression: Expression, head: list[SourceRow]) -> None:
    found = {name for row in head if row.row is not None for name in row.row}
    missing = [name for name in expression.columns if name not in found]
    if found and missing:
        raise DataError(
            f"the filter {expression.text!r} reads {', '.join(map(repr, missing))}",
            f"the first {len(head)} rows of {path} have the columns {', '.join(sorted(found))}",
            "correct the name in the filter, or take it out",
        )


def _rows_of_each(section: PromptsConfig | PreferencesConfig) -> list[int]:
    """Return how many rows of each source pass its filter."""
    return [
        sum(1 for _ in passing_rows(one, label, Counter()))
        for one, label in zip(section.each, section.labels, strict=True)
    ]


def quotas(available: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how many rows of each source stay: in proportion to the weights, as many as there are.

    The scarcest source stays whole; other numbers are rounded down.

    Args:
        available: rows of each source.
        weights: their weights, taken as the decimal numbers that were written.

    Raises:
        DataError: no row of a source would stay.
    """
    shares = [Fraction(repr(weight)) for weight in weights]
    scale = min(Fraction(count) / share for count, share in zip(available, shares, strict=True))
    found = [math.floor(share * scale) for share in shares]
    if not all(found):
        raise DataError(
            f"sources of {', '.join(map(str, available))} rows with the weights "
            f"{', '.join(f'{weight:g}' for weight in weights)}: {', '.join(map(str, found))} would stay",
            "at least one row of each source stays",
            "change the weights or the filters, or take a source out",
        )
    return found


def drawn(seed: int, label: str, available: int, count: int) -> frozenset[int] | None:
    """Return the positions of `count` rows drawn by the seed; None if all stay."""
    if count >= available:
        return None

    def draw(position: int) -> bytes:
        return hashlib.sha256(canonical_json(["mixture", seed, label, position])).digest()

    return frozenset(sorted(range(available), key=draw)[:count])


def _staying(
    rows: Iterable[SourceRow], stay: frozenset[int] | None, dropped: Counter[str]
) -> Iterator[SourceRow]:
    dropped[_LEFT_OUT] += 0
    for position, row in enumerate(rows):
        if stay is None or position in stay:
            yield row
        else:
            dropped[_LEFT_OUT] += 1
