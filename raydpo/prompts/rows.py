"""Rows on their way in: their ids, the reasons why some are refused, and their parts.

What comes in: `SourceRow`s, and functions that make table rows of them. What goes out:
`PartResult`s in which every input row stands once, as output, as refused, or as a count.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raydpo.config import Config, PromptsConfig
from raydpo.config_base import ForwardConfig
from raydpo.config_content import content_of
from raydpo.errors import DataError
from raydpo.models import load_tokenizer, tokenizer_fingerprint
from raydpo.progress import logger
from raydpo.prompts.end_tokens import EndTokens, describe_end, end_tokens
from raydpo.prompts.sources import (
    SourceRow,
    SourceSection,
    location,
    source_fingerprint,
    source_rows,
)
from raydpo.run import PartResult, Stage, commit, finished_parts, open_stage, write_part
from raydpo.storage import Folder, canonical_json
from raydpo.tables import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raydpo.parts import Table

#: A source's rows, and the model's tokenizer -> the parts of a table.
MakeParts = Callable[[Iterator[SourceRow], "PreTrainedTokenizerBase"], Iterator[PartResult]]


class RefusedRow(Exception):
    """A row that cannot be used; its text is the reason. The row goes to the quarantine."""


@dataclass
class Ids:
    """Gives each row its id, and notices ids that stood before.

    Memory: 16 bytes of hash and a small integer for each row.
    """

    _seen: dict[bytes, int] = field(default_factory=dict[bytes, int])

    def given(self, row: Row, column: str) -> str:
        """The id in a column, which no earlier row had.

        Raises:
            RefusedRow: it is missing, neither text nor an integer, or it repeats.
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
        """A hash of the content; the second equal content gets `-2`, the third `-3`."""
        name = content_hash(content)
        count = self._count(name)
        return name if count == 1 else f"{name}-{count}"

    def _count(self, name: str) -> int:
        key = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:16]
        self._seen[key] = self._seen.get(key, 0) + 1
        return self._seen[key]


def content_hash(content: Any) -> str:
    """64 bits of a prompt's hash, in hexadecimal."""
    return hashlib.sha256(canonical_json(content)).hexdigest()[:16]


def row_name(source: SourceRow) -> str:
    """The name of a row that has no id of its own: its place in the source."""
    return f"row-{source.index}"


def quarantine_row(stage: str, name: str, reason: str, source: SourceRow) -> Row:
    """A row of the quarantine table."""
    return {"stage": stage, "id": name, "reason": reason, "row": source.text}


def usable_row(source: SourceRow) -> Row:
    """The row itself.

    Raises:
        RefusedRow: it is a poison row.
    """
    if source.row is None:
        raise RefusedRow(source.problem or "not readable")
    return source.row


def chunks(rows: Iterable[SourceRow], size: int) -> Iterator[list[SourceRow]]:
    """Lists of `size` rows; the last may be shorter."""
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def source_stage(
    config: Config, section: SourceSection, folder: Folder, table: str, content: dict[str, Any]
) -> Stage:
    """A stage that reads and tokenizes a source.

    Args:
        config: the job.
        section: where the rows come from.
        folder: where the table goes.
        table: its name, which is the stage's too.
        content: of the section: what the rows that come out depend on (`content_of`).

    Raises:
        DataError: the source cannot be read.
    """
    inputs = {
        "data": source_fingerprint(*location(section)),
        "tokenizer": tokenizer_fingerprint(config.model),
    }
    settings = {
        **content_of(config.model, without=ForwardConfig),
        **content,
        **(tokens.settings if (tokens := _end_tokens(config, section)) else {}),
        "rows_per_part": config.rows_per_part,
    }
    return Stage(folder=folder, name=table, table=table, inputs=inputs, settings=settings)


def _end_tokens(config: Config, section: SourceSection) -> EndTokens | None:
    """How completions of this source end; None where it has none, or the tokenizer no EOS."""
    if isinstance(section, PromptsConfig):
        return None
    tokenizer = load_tokenizer(config.model)
    eos: Any = tokenizer.eos_token_id
    return end_tokens(tokenizer, int(eos)) if eos is not None else None


def run_source_stage(
    stage: Stage, config: Config, section: SourceSection, make_parts: MakeParts, what: str
) -> Table:
    """Read and tokenize a source; a finished table is kept.

    Args:
        stage: what is made, and from what (`source_stage`).
        config: the job.
        section: where the rows come from.
        make_parts: makes the table's parts of the rows; a finished stage does not call it.
        what: the stage and round, for the log.

    Raises:
        DataError: the source cannot be read, or not one row is left.
        ModelError: the tokenizer cannot be used.
        QuarantineBudgetError: too many rows were refused.
    """

    def results() -> Iterator[PartResult]:
        rows, tokenizer = (
            source_rows(*location(section), section.limit),
            load_tokenizer(config.model),
        )
        tokens = _end_tokens(config, section)
        if tokens is not None and (said := describe_end(tokenizer, tokens)):
            logger.info("[%s] %s", what, said)
        yield from make_parts(rows, tokenizer)

    return write_parts(stage, results(), what, config.max_quarantined_fraction)


def write_parts(
    stage: Stage,
    results: Iterable[PartResult],
    what: str,
    max_quarantined_fraction: float,
) -> Table:
    """Bring a stage that reads a source to its end, on the driver, a part in memory at a time.

    Args:
        stage: what is made, and from what.
        results: the parts in order; taken only when the stage is not done already.
        what: the stage and round, for the log.
        max_quarantined_fraction: see `parts.check_quarantine_budget`.

    Raises:
        DataError: not one row is left.
        QuarantineBudgetError: too many rows were refused.
    """
    from raydpo.parts import Table, check_quarantine_budget, describe_counts, warn_of_cuts

    manifest = open_stage(stage)
    if manifest is not None:
        check_quarantine_budget(stage, manifest["counts"], max_quarantined_fraction)
        logger.info("[%s] nothing to do: %s", what, describe_counts(manifest))
        return Table(stage.folder, manifest)
    finished = finished_parts(stage)
    if finished:
        logger.info("[%s] goes on: %d parts were done before", what, len(finished))
    started = said = time.monotonic()
    total: dict[str, int] = {}
    parts = 0
    for index, result in enumerate(results):
        parts = index + 1
        if index not in finished:  # equal input makes equal parts
            write_part(stage, index, result)
        add_counts(total, result)
        if time.monotonic() - said >= 5.0:
            said = time.monotonic()
            rate = total["input"] / (said - started)
            logger.info("[%s] %d rows read, %.0f/s", what, total["input"], rate)

    def check(counts: dict[str, int]) -> None:
        check_quarantine_budget(stage, {"input": 0, **counts}, max_quarantined_fraction)
        check_not_empty(stage.name, counts)

    manifest = commit(stage, {}, parts=parts, check=check)
    logger.info("[%s] done: %s", what, describe_counts(manifest))
    warn_of_cuts(what, manifest)
    return Table(stage.folder, manifest)


def check_not_empty(name: str, counts: dict[str, int]) -> None:
    """Refuse a table without rows.

    Raises:
        DataError: the counts say that nothing is left.
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
