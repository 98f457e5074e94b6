"""The prompts stage: turn rows of a source into rows of the table of prompts.

Each row has the prompt's id, text and token ids. Refused rows go to the quarantine with a reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from raydpo.config.content import content_of
from raydpo.config.job import Config, PromptsConfig
from raydpo.core.errors import DataError
from raydpo.core.metadata import metadata_count, metadata_text
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage
from raydpo.core.tables import Row
from raydpo.models.context import check_context
from raydpo.models.loading import model_config_values
from raydpo.prompts.beside import Context, context_in, instruction_in, with_context
from raydpo.prompts.chat import Message
from raydpo.prompts.columns import Columns, ColumnUses
from raydpo.prompts.cuts import cut_counts, fit_prompt, later_cuts
from raydpo.prompts.dialogue import Dialogue, prompt_of, render
from raydpo.prompts.encode import Encoder, Text, make_encoder
from raydpo.prompts.mixing import Shared, mixed_parts
from raydpo.prompts.reading import columns_of, later_readings, plain_because, with_head
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raydpo.core.parts import Table

_STAGE: Final = "prompts"
_COLUMNS: Final = ("prompt", "messages", "text", "question", "query", "conversations")
_INSTRUCTION: Final = "instruction"


@dataclass(frozen=True)
class _Draft:
    """A row being processed: its id and content, and its text or the reason to refuse it."""

    source: SourceRow
    name: str
    messages: list[Message] | None
    text: Text
    metadata: str | None = None
    refused: str | None = None


@dataclass
class _State:
    """State between parts: how rows are read, and hashes, never texts."""

    plain_because: str | None
    uses: ColumnUses
    ids: Ids
    prompts: set[bytes]


def run_prompts_stage(config: Config, prompts: PromptsConfig, place: Place) -> Table:
    """Read and tokenize prompts into a table, in parts of `rows_per_part` source rows.

    Args:
        config: the job.
        prompts: where the prompts come from: the job's own section, or the evaluation's.
        place: where the table goes.

    Raises:
        ConfigError: the longest prompt and completion together do not fit the model.
        DataError: the source cannot be read, lacks the column, or leaves no prompt.
        QuarantineBudgetError: too many rows were refused.
    """
    check_context(
        "max_prompt_tokens + sampling.max_completion_tokens",
        prompts.max_prompt_tokens + config.sampling.max_completion_tokens,
        model_config_values(config.model),
    )
    parts = partial(mixed_parts, prompts, config.seed, prompt_parts)
    return run_source_stage(prompts_stage(config, prompts, place), config, prompts, parts)


def prompts_stage(config: Config, prompts: PromptsConfig, place: Place) -> Stage:
    """Describe what the table of these prompts is made from."""
    readings = later_readings(prompts, prompts.system_prompt)
    chosen = {"metadata": prompts.metadata} if prompts.metadata != "all" else {}
    content = {**content_of(prompts), **readings, **later_cuts(prompts.too_long), **chosen}
    return source_stage(config, prompts, place, _STAGE, content, config.rows_per_part)


def prompt_parts(
    prompts: PromptsConfig,
    rows: Iterable[SourceRow],
    tokenizer: PreTrainedTokenizerBase,
    rows_per_part: int,
    uses: ColumnUses | None = None,
    shared: Shared | None = None,
) -> Iterator[PartResult]:
    """Yield the table of prompts and its quarantine, part by part.

    Args:
        prompts: how rows become prompts.
        rows: the source.
        tokenizer: the model's tokenizer.
        rows_per_part: number of source rows in one part.
        uses: records what becomes of each column.
        shared: what the other sources of a mixture have; its own without one.

    Raises:
        DataError: none of the first rows has a column with prompts or ids.
        ModelError: a row is a conversation, and there is no chat template.
    """
    head, rows = with_head(rows)
    _check_columns(prompts, head)
    chats = bool(tokenizer.chat_template)
    plain = plain_because(head, prompts.chat, chats, prompts.system_prompt)
    shared = shared or Shared()
    state = _State(plain, uses or ColumnUses(), shared.ids, shared.prompts)
    encoder = make_encoder(tokenizer)
    for chunk in chunks(rows, rows_per_part):
        drafts = [_draft(prompts, source, tokenizer, state) for source in chunk]
        yield _encode_part(prompts, drafts, encoder, state)


def _check_columns(prompts: PromptsConfig, head: list[Row]) -> None:
    """Compare the first readable rows with the requested columns."""
    found = columns_of(head)
    wanted = [prompts.column] if prompts.column else [*_COLUMNS, _INSTRUCTION]
    if head and not any(column in found for column in wanted):
        raise DataError(
            f"{prompts.path} has the columns {', '.join(found)}",
            f"prompts stand in column {' or '.join(repr(column) for column in wanted)}",
            "set `column` of this prompts section to the column that holds them",
        )
    if head and prompts.id_column is not None and prompts.id_column not in found:
        raise DataError(
            f"{prompts.path} has the columns {', '.join(found)}",
            f"ids stand in column {prompts.id_column!r} (id_column)",
            "set `id_column` to the column that holds them, or remove it: ids are hashes then",
        )
    named = prompts.metadata if isinstance(prompts.metadata, tuple) else ()
    if head and (missing := [name for name in named if name not in found]):
        raise DataError(
            f"{prompts.path} has the columns {', '.join(found)}",
            f"`metadata` names columns of the source, and {', '.join(map(repr, missing))} is none",
            "take it out of `metadata` of this prompts section, or correct its name",
        )


def _draft(
    prompts: PromptsConfig, source: SourceRow, tokenizer: PreTrainedTokenizerBase, state: _State
) -> _Draft:
    name = row_name(source)
    try:
        columns = Columns(usable_row(source))
    except RefusedRow as error:
        return _Draft(source, name, None, Text(""), refused=str(error))
    try:
        if prompts.id_column is not None:
            columns.get("the id", prompts.id_column)
            name = state.ids.given(columns.row, prompts.id_column)
        content = _content(prompts, columns, bool(tokenizer.chat_template))
        context = context_in(columns)
        dialogue = _dialogue(prompts, content, context, state)
        if prompts.id_column is None:
            name = state.ids.hashed(dialogue.asked if context.names else content)
        text = render(dialogue, tokenizer, prompts.system_prompt).prompt
        messages = None if isinstance(dialogue.prompt, str) else dialogue.prompt
        return _Draft(source, name, messages, text, _metadata(prompts, columns))
    except RefusedRow as error:
        return _Draft(source, name, None, Text(""), refused=str(error))
    finally:
        state.uses.add(columns)


def _metadata(prompts: PromptsConfig, columns: Columns) -> str | None:
    """Return what a row brings for rewards to read, as JSON."""
    match prompts.metadata:
        case "none":
            return None
        case "all":
            names = [name for name in columns.row if name not in columns.uses]
        case named:
            names = list(named)
    return metadata_text({name: columns.get("metadata for rewards", name) for name in names})


def _content(prompts: PromptsConfig, columns: Columns, has_template: bool) -> str | list[Message]:
    if prompts.column is not None:
        return prompt_of(columns.value("the prompt", prompts.column))
    value = columns.get("the prompt", *_COLUMNS)
    if value is None and columns.row.get(_INSTRUCTION) is not None:
        return instruction_in(columns, has_template and prompts.chat != "never")
    if value is None:
        raise RefusedRow(f"no value in column {' or '.join(map(repr, _COLUMNS[:3]))}")
    return prompt_of(value)


def _dialogue(
    prompts: PromptsConfig, content: str | list[Message], context: Context, state: _State
) -> Dialogue:
    if not isinstance(content, str) and prompts.chat == "never":
        raise RefusedRow("a conversation, and `chat` is 'never'")
    return with_context(Dialogue(content), context, state.plain_because)


def _encode_part(
    prompts: PromptsConfig, drafts: list[_Draft], encoder: Encoder, state: _State
) -> PartResult:
    good = [draft for draft in drafts if draft.refused is None]
    encoded = iter(encoder.prompts([draft.text for draft in good]))
    rows: list[Row] = []
    refused: list[Row] = []
    duplicates = cut = 0
    for draft in drafts:
        try:
            if draft.refused is not None:
                raise RefusedRow(draft.refused)
            ids = next(encoded)
            row = _row(prompts, draft, ids, encoder)
        except RefusedRow as error:
            refused.append(quarantine_row(_STAGE, draft.name, str(error), draft.source))
            continue
        if prompts.deduplicate and _stood_before(row["prompt_ids"], state.prompts):
            duplicates += 1
            continue
        rows.append(row)
        cut += row["prompt_ids"] != ids
    cuts = cut_counts((prompts.too_long,), cut_prompts=cut)
    counts = {"input": len(drafts), "duplicates": duplicates, **cuts, **metadata_count(rows)}
    return PartResult(rows, refused, counts)


def _row(prompts: PromptsConfig, draft: _Draft, ids: list[int], encoder: Encoder) -> Row:
    limit, policy = prompts.max_prompt_tokens, prompts.too_long
    fitted = fit_prompt(draft.text, ids, encoder, limit, policy)
    return {
        "prompt_id": draft.name,
        "prompt": fitted.text,
        "messages": draft.messages,
        "prompt_ids": fitted.ids,
        "metadata": draft.metadata,
    }


def _stood_before(ids: list[int], seen: set[bytes]) -> bool:
    key = hashlib.sha256(repr(ids).encode()).digest()[:16]
    known = key in seen
    seen.add(key)
    return known
