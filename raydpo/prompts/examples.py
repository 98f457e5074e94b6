"""Read SFT data: turn rows of a source into rows of the table of examples.

A row is a full text (`loss_on: all`, column `text`), or a prompt with a completion in one of
three layouts: `prompt` and `completion`; `messages` that end with an assistant turn;
`instruction`, `input` and `output`. An example has token ids, and the number of ids at the start
that carry no loss.

With `loss_on: assistant`, each assistant turn of a conversation becomes an example after the turns
before it. The template renders those turns as if the model speaks next. For earlier turns that can
differ from the rendering of the whole conversation, because many templates drop thoughts of earlier
turns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, assert_never

from raydpo.config.content import content_of
from raydpo.config.job import Config, SftConfig
from raydpo.config.training import SftTrainerConfig
from raydpo.core.errors import DataError
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import PartResult, Stage
from raydpo.core.tables import Row
from raydpo.models.context import check_context
from raydpo.models.loading import model_config_values
from raydpo.prompts.beside import PROMPT_COLUMNS, context_in, prompt_in, with_context
from raydpo.prompts.chat import UNTRAINED, messages_of
from raydpo.prompts.columns import Columns, ColumnUses
from raydpo.prompts.cuts import check_prompt, cut_counts, fit_completion
from raydpo.prompts.dialogue import Dialogue, Rendered, completion_of, render
from raydpo.prompts.encode import Encoder, make_encoder
from raydpo.prompts.reading import (
    Reading,
    columns_of,
    later_readings,
    plain_because,
    repeats_prompt,
    with_head,
    without_repeated_prompt,
)
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
from raydpo.prompts.sources import SourceRow, location, source_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raydpo.core.parts import Table

_STAGE: Final = "examples"
_COMPLETIONS: Final = ("completion", "output", "response", "answer")
_CONVERSATIONS: Final = ("messages", "conversations", "conversation")


@dataclass(frozen=True)
class _Draft:
    """A row being processed: its id and source, and its texts or the reason to refuse it."""

    source: SourceRow
    name: str
    texts: tuple[str | Rendered, ...] = ()
    refused: str | None = None


@dataclass
class _State:
    """State between parts: how rows are read, and hashes of ids."""

    reading: Reading
    uses: ColumnUses
    ids: Ids = field(default_factory=Ids)


def run_examples_stage(config: Config, place: Place) -> Table:
    """Tokenize the SFT data into a table, in parts of 16 times `rows_per_part` rows.

    Raises:
        ConfigError: `max_sequence_tokens` does not fit the model.
        DataError: the source cannot be read, has none of the layouts, or leaves no row.
        QuarantineBudgetError: too many rows were refused.
    """
    assert config.sft is not None
    sft = config.sft
    check_context(
        "sft.max_sequence_tokens", sft.max_sequence_tokens, model_config_values(config.model)
    )

    def parts(tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[PartResult]:
        return example_parts(sft, source_rows(*location(sft), sft.limit), tokenizer, size)

    return run_source_stage(examples_stage(config, sft, place), config, sft, parts)


def examples_stage(config: Config, sft: SftConfig, place: Place) -> Stage:
    """Describe what the table of these examples is made from."""
    content = {**content_of(sft, without=SftTrainerConfig), **later_readings(sft, None)}
    return source_stage(config, sft, place, _STAGE, content, config.rows_per_part * 16)


def example_parts(
    sft: SftConfig,
    rows: Iterable[SourceRow],
    tokenizer: PreTrainedTokenizerBase,
    rows_per_part: int,
    uses: ColumnUses | None = None,
) -> Iterator[PartResult]:
    """Yield the table of examples and its quarantine, part by part.

    Args:
        sft: how rows become examples.
        rows: the source.
        tokenizer: the model's tokenizer.
        rows_per_part: number of source rows in one part.
        uses: records what becomes of each column.

    Raises:
        DataError: none of the first rows has one of the layouts.
    """
    head, rows = with_head(rows)
    reading = _reading(sft, head, bool(tokenizer.chat_template))
    encoder, state = make_encoder(tokenizer), _State(reading, uses or ColumnUses())
    for chunk in chunks(rows, rows_per_part):
        drafts = [_draft(sft, source, tokenizer, state) for source in chunk]
        yield _encode_part(sft, drafts, encoder)


def _reading(sft: SftConfig, head: list[Row], has_template: bool) -> Reading:
    """Compare the first readable rows with the layouts, and decide how to read the source."""
    wanted = (
        "`text`"
        if sft.loss_on == "all"
        else "`prompt` and `completion`, `messages`, or `instruction` and `output`"
    )
    known = any("text" in row if sft.loss_on == "all" else _layout(row) for row in head)
    if head and not known:
        raise DataError(
            f"{sft.data} has the columns {', '.join(columns_of(head))}",
            f"with sft.loss_on {sft.loss_on!r} the columns are {wanted}; docs/data.md lists others",
            "rename the columns, or set sft.loss_on to another value",
        )
    if sft.loss_on == "all":
        return Reading(None)
    strips = repeats_prompt(_dialogues(head))
    if strips:
        logger.info("[sft] completions begin with their prompts: raydpo removes these")
    return Reading(None, plain_because(head, "auto", has_template, None), strips)


def _dialogues(head: list[Row]) -> Iterator[Dialogue]:
    """Yield the dialogues of those first rows that can be read."""
    for row in head:
        try:
            yield _dialogue(Columns(row), has_template=False)
        except RefusedRow:
            continue


def _layout(row: Row) -> str | None:
    if "prompt" in row and "completion" in row:
        return "prompt"
    if "messages" in row:
        return "messages"
    asks = "instruction" in row or any(name in row for name in PROMPT_COLUMNS)
    if asks and any(name in row for name in _COMPLETIONS):
        return "prompt"
    return "messages" if any(name in row for name in _CONVERSATIONS) else None


def _draft(
    sft: SftConfig, source: SourceRow, tokenizer: PreTrainedTokenizerBase, state: _State
) -> _Draft:
    name = row_name(source)
    try:
        columns = Columns(usable_row(source))
    except RefusedRow as error:
        return _Draft(source, name, refused=str(error))
    try:
        if sft.loss_on == "all":
            text = _full_text(columns)
            return _Draft(source, state.ids.hashed(text), (text,))
        dialogue = _whole_dialogue(columns, state.reading, bool(tokenizer.chat_template))
        match sft.loss_on:
            case "completion":
                turns = [dialogue]
            case "assistant":
                turns = _turns(dialogue)
            case _:
                assert_never(sft.loss_on)
        rendered = tuple(render(turn, tokenizer) for turn in turns)
        return _Draft(source, state.ids.hashed([dialogue.asked, dialogue.completions]), rendered)
    except RefusedRow as error:
        return _Draft(source, name, refused=str(error))
    finally:
        state.uses.add(columns)


def _full_text(columns: Columns) -> str:
    text: Any = columns.get("the text", "text")
    if not isinstance(text, str):
        raise RefusedRow("column 'text' is not text")
    if not text.strip():
        raise RefusedRow("empty text")
    return text


def _whole_dialogue(columns: Columns, reading: Reading, has_template: bool) -> Dialogue:
    """Return the row's dialogue, with its context."""
    dialogue = _dialogue(columns, has_template)
    if reading.strips_prompt:
        dialogue = without_repeated_prompt(dialogue)
    return with_context(dialogue, context_in(columns), reading.plain_because)


def _dialogue(columns: Columns, has_template: bool) -> Dialogue:
    layout = _layout(columns.row)
    if layout == "prompt":
        prompt = prompt_in(columns, has_template)
        completion = columns.value("the completion", *_COMPLETIONS)
        return Dialogue(prompt, (completion_of(completion, prompt),))
    if layout == "messages":
        messages = messages_of(columns.value("the conversation", *_CONVERSATIONS))
        if len(messages) < 2:
            raise RefusedRow("a conversation of one message has no completion")
        return Dialogue(messages[:-1], (completion_of(messages[-1:], messages),))
    raise RefusedRow("none of the layouts' columns")


def _turns(dialogue: Dialogue) -> list[Dialogue]:
    """Return a dialogue for each assistant turn of a conversation, including the last one.

    Turns that are marked as excluded from training are left out.
    """
    if isinstance(dialogue.prompt, str):
        return [dialogue]
    earlier = [
        replace(
            dialogue,
            prompt=dialogue.prompt[:index],
            completions=(completion_of(message, dialogue.prompt),),
        )
        for index, message in enumerate(dialogue.prompt)
        if message["role"] == "assistant" and index and UNTRAINED not in message
    ]
    return [*earlier, dialogue]


def _encode_part(sft: SftConfig, drafts: list[_Draft], encoder: Encoder) -> PartResult:
    encoded = iter(_encode([text for draft in drafts for text in draft.texts], encoder))
    rows: list[Row] = []
    refused: list[Row] = []
    for draft in drafts:
        ids = list(itertools.islice(encoded, len(draft.texts)))
        try:
            if draft.refused is not None:
                raise RefusedRow(draft.refused)
            rows += _rows_of_draft(sft, draft, ids, encoder)
        except RefusedRow as error:
            refused.append(quarantine_row(_STAGE, draft.name, str(error), draft.source))
    answers = [row["token_ids"] for row in rows if row["prompt_tokens"]]
    cut = sum(not encoder.is_finished(ids) for ids in answers)
    cuts = cut_counts((sft.too_long,), completions=len(answers), cut_completions=cut)
    counts = {"input": len(drafts), "used": len(drafts) - len(refused), **cuts}
    return PartResult(rows, refused, counts)


def _encode(
    texts: list[str | Rendered], encoder: Encoder
) -> list[tuple[list[int] | None, list[int]]]:
    """Return for each text the prompt's ids (None for full text) and the ids that carry loss."""
    rendered = [text for text in texts if isinstance(text, Rendered)]
    prompts = iter(encoder.prompts([text.prompt for text in rendered]))
    completions = iter(encoder.continuations([text.completions[0] for text in rendered]))
    whole = iter(encoder.texts([text for text in texts if isinstance(text, str)]))
    return [
        (next(prompts), next(completions)) if isinstance(text, Rendered) else (None, next(whole))
        for text in texts
    ]


def _rows_of_draft(
    sft: SftConfig,
    draft: _Draft,
    encoded: list[tuple[list[int] | None, list[int]]],
    encoder: Encoder,
) -> list[Row]:
    """Build the examples of one source row; if it has several turns, ids contain the turn."""
    rows: list[Row] = []
    for turn, ids in enumerate(encoded):
        name = draft.name if turn == len(encoded) - 1 else f"{draft.name}:turn-{turn}"
        rows += _rows_of(sft, name, *ids, encoder)
    return rows


def _rows_of(
    sft: SftConfig, name: str, prompt: list[int] | None, ids: list[int], encoder: Encoder
) -> list[Row]:
    """Build the examples of one text: one, or the pieces of a long text without a prompt."""
    if prompt is None:
        whole = [*encoder.prefix, *encoder.inner(ids), encoder.eos_id]
        step = sft.max_sequence_tokens
        pieces = [whole[start : start + step] for start in range(0, len(whole), step)]
        return [_row(f"{name}:{index}", piece, 0) for index, piece in enumerate(pieces)]
    check_prompt(prompt, encoder, sft.max_sequence_tokens - 1)
    room = sft.max_sequence_tokens - len(prompt)
    completion = fit_completion(encoder.finished(ids), room, sft.too_long)
    return [_row(name, [*prompt, *completion], len(prompt))]


def _row(name: str, token_ids: list[int], prompt_tokens: int) -> Row:
    return {"example_id": name, "token_ids": token_ids, "prompt_tokens": prompt_tokens}
