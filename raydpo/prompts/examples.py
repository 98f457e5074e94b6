"""SFT data: rows of a source become rows of the table of examples.

What comes in: full texts (`loss_on: all`, column `text`), or prompts with completions in
one of three layouts: `prompt` and `completion`; `messages` that end with an assistant
turn; `instruction`, `input` and `output`. What goes out: token ids, and how many of them
at the start bear no loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from raydpo.config import Config, SftConfig
from raydpo.config_content import content_of
from raydpo.config_training import SftTrainerConfig
from raydpo.context import check_context
from raydpo.errors import DataError
from raydpo.models import model_config_values
from raydpo.prompts.chat import messages_of
from raydpo.prompts.dialogue import Dialogue, Rendered, completion_of, prompt_of, render
from raydpo.prompts.encode import (
    Encoder,
    fit_completion,
    fit_prompt,
    make_encoder,
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
from raydpo.prompts.sources import SourceRow
from raydpo.run import PartResult, Stage
from raydpo.storage import Folder
from raydpo.tables import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raydpo.parts import Table

_STAGE = "examples"


@dataclass(frozen=True)
class _Draft:
    """A row on its way: its id and source, and its text or the reason why it is refused."""

    source: SourceRow
    name: str
    text: str | Rendered
    refused: str | None = None


def run_examples_stage(config: Config, folder: Folder) -> Table:
    """Tokenize the SFT data into `folder`, in parts of 16 times `rows_per_part` rows.

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
    parts = partial(example_parts, sft, rows_per_part=config.rows_per_part * 16)
    stage = examples_stage(config, sft, folder)
    return run_source_stage(stage, config, sft, parts, "sft, examples")


def examples_stage(config: Config, sft: SftConfig, folder: Folder) -> Stage:
    """What the table of these examples is made from."""
    content = content_of(sft, without=SftTrainerConfig)
    return source_stage(config, sft, folder, _STAGE, content)


def example_parts(
    sft: SftConfig,
    rows: Iterable[SourceRow],
    tokenizer: PreTrainedTokenizerBase,
    rows_per_part: int,
) -> Iterator[PartResult]:
    """The table of examples and its quarantine, part by part.

    Args:
        sft: how rows become examples.
        rows: the source.
        tokenizer: the model's.
        rows_per_part: source rows of one part.

    Raises:
        DataError: the first row that can be read has none of the layouts.
    """
    encoder, ids, seen = make_encoder(tokenizer), Ids(), False
    for chunk in chunks(rows, rows_per_part):
        if not seen:
            seen = _check_columns(sft, chunk)
        drafts = [_draft(sft, source, tokenizer, ids) for source in chunk]
        yield _encode_part(sft, drafts, encoder)


def examples(
    sft: SftConfig, tokenizer: PreTrainedTokenizerBase, rows: Iterable[SourceRow]
) -> Iterator[Row]:
    """The rows of the table of examples alone; refused rows are left out."""
    for part in example_parts(sft, rows, tokenizer, rows_per_part=1024):
        yield from part.rows


def _check_columns(sft: SftConfig, chunk: list[SourceRow]) -> bool:
    """Hold the first readable row against the layouts; whether there was one."""
    first = next((source.row for source in chunk if source.row is not None), None)
    if first is None:
        return False
    wanted = (
        "`text`"
        if sft.loss_on == "all"
        else "`prompt` and `completion`, `messages`, or `instruction` and `output`"
    )
    known = "text" in first if sft.loss_on == "all" else _layout(first) is not None
    if not known:
        raise DataError(
            f"{sft.data} has the columns {', '.join(sorted(first))}",
            f"with sft.loss_on {sft.loss_on!r} the columns are {wanted}",
            "rename the columns, or set sft.loss_on to the other value",
        )
    return True


def _layout(row: Row) -> str | None:
    if "prompt" in row and "completion" in row:
        return "prompt"
    if "messages" in row:
        return "messages"
    return "instruction" if "instruction" in row and "output" in row else None


def _draft(
    sft: SftConfig, source: SourceRow, tokenizer: PreTrainedTokenizerBase, ids: Ids
) -> _Draft:
    name = row_name(source)
    try:
        row = usable_row(source)
        content = _full_text(row) if sft.loss_on == "all" else _dialogue(row, tokenizer)
        if isinstance(content, str):
            return _Draft(source, ids.hashed(content), content)
        rendered = render(content, tokenizer)
        return _Draft(source, ids.hashed([content.prompt, content.completions]), rendered)
    except RefusedRow as error:
        return _Draft(source, name, "", str(error))


def _full_text(row: Row) -> str:
    text: Any = row.get("text")
    if not isinstance(text, str):
        raise RefusedRow("column 'text' is not text")
    if not text.strip():
        raise RefusedRow("empty text")
    return text


def _dialogue(row: Row, tokenizer: PreTrainedTokenizerBase) -> Dialogue:
    layout = _layout(row)
    if layout == "prompt":
        prompt = prompt_of(row["prompt"])
        return Dialogue(prompt, (completion_of(row["completion"], prompt),))
    if layout == "messages":
        messages = messages_of(row["messages"])
        if len(messages) < 2:
            raise RefusedRow("a conversation of one message has no completion")
        return Dialogue(messages[:-1], (completion_of(messages[-1:], messages),))
    if layout == "instruction":
        prompt = _instruction(row, has_template=bool(tokenizer.chat_template))
        return Dialogue(prompt, (completion_of(row["output"], prompt),))
    raise RefusedRow("none of the layouts' columns")


def _instruction(row: Row, has_template: bool) -> str | list[dict[str, str]]:
    """A user message where the model chats; else a plain text with headings."""
    instruction, given = prompt_of(row["instruction"]), row.get("input") or ""
    if not isinstance(instruction, str) or not isinstance(given, str):
        raise RefusedRow("the instruction or its input is not text")
    if has_template:
        content = f"{instruction}\n{given}" if given.strip() else instruction
        return [{"role": "user", "content": content}]
    middle = f"### Input:\n{given}\n\n" if given.strip() else ""
    return f"### Instruction:\n{instruction}\n\n{middle}### Response:\n"


def _encode_part(sft: SftConfig, drafts: list[_Draft], encoder: Encoder) -> PartResult:
    good = [draft for draft in drafts if draft.refused is None]
    encoded = dict(zip([d.name for d in good], _encode(good, encoder), strict=True))
    rows: list[Row] = []
    refused: list[Row] = []
    for draft in drafts:
        try:
            if draft.refused is not None:
                raise RefusedRow(draft.refused)
            rows += _rows_of(sft, draft.name, *encoded[draft.name], encoder)
        except RefusedRow as error:
            refused.append(quarantine_row(_STAGE, draft.name, str(error), draft.source))
    return PartResult(rows, refused, {"input": len(drafts), "used": len(drafts) - len(refused)})


def _encode(drafts: list[_Draft], encoder: Encoder) -> list[tuple[list[int] | None, list[int]]]:
    """For each draft the prompt's ids (None for full text) and those of what bears loss."""
    rendered = [draft.text for draft in drafts if isinstance(draft.text, Rendered)]
    prompts = iter(encoder.prompts([text.prompt for text in rendered]))
    completions = iter(encoder.continuations([text.completions[0] for text in rendered]))
    texts = iter(encoder.texts([d.text for d in drafts if isinstance(d.text, str)]))
    return [
        (next(prompts), next(completions))
        if isinstance(draft.text, Rendered)
        else (None, next(texts))
        for draft in drafts
    ]


def _rows_of(
    sft: SftConfig, name: str, prompt: list[int] | None, ids: list[int], encoder: Encoder
) -> list[Row]:
    """The examples of one source row: one, or the pieces of a long text."""
    if prompt is None:
        whole = [*encoder.prefix, *encoder.inner(ids), encoder.eos_id]
        step = sft.max_sequence_tokens
        pieces = [whole[start : start + step] for start in range(0, len(whole), step)]
        return [_row(f"{name}:{index}", piece, 0) for index, piece in enumerate(pieces)]
    prompt = fit_prompt(prompt, encoder, sft.max_sequence_tokens - 1, "quarantine")
    room = sft.max_sequence_tokens - len(prompt)
    completion = fit_completion(encoder.finished(ids), room, sft.too_long)
    return [_row(name, [*prompt, *completion], len(prompt))]


def _row(name: str, token_ids: list[int], prompt_tokens: int) -> Row:
    return {"example_id": name, "token_ids": token_ids, "prompt_tokens": prompt_tokens}
