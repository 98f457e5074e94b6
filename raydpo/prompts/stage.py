"""Prompts: rows of a source become rows of the table of prompts.

What comes in: the `prompts` section and its source. What goes out: one row a prompt with
its id, its text and its token ids; refused rows stand in the quarantine with a reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from raydpo.config import Config, PromptsConfig
from raydpo.config_content import content_of
from raydpo.context import check_context
from raydpo.errors import DataError
from raydpo.models import model_config_values
from raydpo.prompts.chat import Message
from raydpo.prompts.dialogue import Dialogue, prompt_of, render
from raydpo.prompts.encode import Encoder, Text, fit_prompt, make_encoder
from raydpo.prompts.rows import (
    Ids,
    RefusedRow,
    chunks,
    quarantine_row,
    row_name,
    run_source_stage,
    source_stage,
    usable_row,
)
from raydpo.prompts.sources import SourceRow
from raydpo.run import PartResult, Stage
from raydpo.storage import Folder
from raydpo.tables import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raydpo.parts import Table

_STAGE: Final = "prompts"
_COLUMNS: Final = ("prompt", "messages", "text")


@dataclass(frozen=True)
class _Draft:
    """A row on its way: its id, its content, and its text or the reason why it is refused."""

    source: SourceRow
    name: str
    messages: list[Message] | None
    text: Text
    refused: str | None = None


@dataclass
class _State:
    """What is remembered from part to part: hashes, never texts."""

    ids: Ids = field(default_factory=Ids)
    prompts: set[bytes] = field(default_factory=set[bytes])
    has_row: bool = False


def run_prompts_stage(config: Config, prompts: PromptsConfig, folder: Folder, what: str) -> Table:
    """Read and tokenize prompts into `folder`, in parts of `rows_per_part` source rows.

    Args:
        config: the job.
        prompts: where the prompts come from: the job's own, or the evaluation's.
        folder: where the table goes.
        what: the stage and round, for the log.

    Raises:
        ConfigError: the longest prompt and completion do not fit the model together.
        DataError: the source cannot be read, lacks the column, or leaves no prompt.
        QuarantineBudgetError: too many rows were refused.
    """
    check_context(
        "max_prompt_tokens + sampling.max_completion_tokens",
        prompts.max_prompt_tokens + config.sampling.max_completion_tokens,
        model_config_values(config.model),
    )
    parts = partial(prompt_parts, prompts, rows_per_part=config.rows_per_part)
    return run_source_stage(prompts_stage(config, prompts, folder), config, prompts, parts, what)


def prompts_stage(config: Config, prompts: PromptsConfig, folder: Folder) -> Stage:
    """What the table of these prompts is made from."""
    return source_stage(config, prompts, folder, _STAGE, content_of(prompts))


def prompt_parts(
    prompts: PromptsConfig,
    rows: Iterable[SourceRow],
    tokenizer: PreTrainedTokenizerBase,
    rows_per_part: int,
) -> Iterator[PartResult]:
    """The table of prompts and its quarantine, part by part.

    Args:
        prompts: how rows become prompts.
        rows: the source.
        tokenizer: the model's.
        rows_per_part: source rows of one part.

    Raises:
        DataError: the first row that can be read has no column with prompts or ids.
        ModelError: a conversation, and no chat template.
    """
    encoder, state = make_encoder(tokenizer), _State()
    for chunk in chunks(rows, rows_per_part):
        _check_columns(prompts, chunk, state)
        drafts = [_draft(prompts, source, tokenizer, state.ids) for source in chunk]
        yield _encode_part(prompts, drafts, encoder, state)


def _check_columns(prompts: PromptsConfig, chunk: list[SourceRow], state: _State) -> None:
    """Hold the first readable row against the columns that are asked for."""
    first = next((source.row for source in chunk if source.row is not None), None)
    if state.has_row or first is None:
        return
    state.has_row = True
    wanted = [prompts.column] if prompts.column else list(_COLUMNS)
    if not any(column in first for column in wanted):
        raise DataError(
            f"{prompts.path} has the columns {', '.join(sorted(first))}",
            f"prompts stand in column {' or '.join(repr(column) for column in wanted)}",
            "set `column` of this prompts section to the column that holds them",
        )
    if prompts.id_column is not None and prompts.id_column not in first:
        raise DataError(
            f"{prompts.path} has the columns {', '.join(sorted(first))}",
            f"ids stand in column {prompts.id_column!r} (id_column)",
            "set `id_column` to the column that holds them, or remove it: ids are hashes then",
        )


def _draft(
    prompts: PromptsConfig, source: SourceRow, tokenizer: PreTrainedTokenizerBase, ids: Ids
) -> _Draft:
    name = row_name(source)
    try:
        row = usable_row(source)
        if prompts.id_column is not None:
            name = ids.given(row, prompts.id_column)
        content = _content(prompts, row)
        if prompts.id_column is None:
            name = ids.hashed(content)
        prompt = _as_chat(prompts, content)
        text = render(Dialogue(prompt), tokenizer, prompts.system_prompt).prompt
        return _Draft(source, name, None if isinstance(prompt, str) else prompt, text)
    except RefusedRow as error:
        return _Draft(source, name, None, Text(""), str(error))


def _content(prompts: PromptsConfig, row: Row) -> str | list[Message]:
    columns = [prompts.column] if prompts.column else _COLUMNS
    value: Any = next((row[c] for c in columns if row.get(c) is not None), None)
    if value is None:
        raise RefusedRow(f"no value in column {' or '.join(repr(c) for c in columns)}")
    return prompt_of(value)


def _as_chat(prompts: PromptsConfig, content: str | list[Message]) -> str | list[Message]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}] if prompts.chat == "always" else content
    if prompts.chat == "never":
        raise RefusedRow("a conversation, and `chat` is 'never'")
    return content


def _encode_part(
    prompts: PromptsConfig, drafts: list[_Draft], encoder: Encoder, state: _State
) -> PartResult:
    good = [draft for draft in drafts if draft.refused is None]
    encoded = iter(encoder.prompts([draft.text for draft in good]))
    rows: list[Row] = []
    refused: list[Row] = []
    duplicates = 0
    for draft in drafts:
        try:
            if draft.refused is not None:
                raise RefusedRow(draft.refused)
            row = _row(prompts, draft, next(encoded), encoder)
        except RefusedRow as error:
            refused.append(quarantine_row(_STAGE, draft.name, str(error), draft.source))
            continue
        if prompts.deduplicate and _stood_before(row["prompt_ids"], state.prompts):
            duplicates += 1
            continue
        rows.append(row)
    return PartResult(rows, refused, {"input": len(drafts), "duplicates": duplicates})


def _row(prompts: PromptsConfig, draft: _Draft, ids: list[int], encoder: Encoder) -> Row:
    fitted = fit_prompt(ids, encoder, prompts.max_prompt_tokens, prompts.too_long)
    return {
        "prompt_id": draft.name,
        "prompt": draft.text.text if fitted == ids else encoder.decode_plain(fitted),
        "messages": draft.messages,
        "prompt_ids": fitted,
    }


def _stood_before(ids: list[int], seen: set[bytes]) -> bool:
    key = hashlib.sha256(repr(ids).encode()).digest()[:16]
    known = key in seen
    seen.add(key)
    return known
