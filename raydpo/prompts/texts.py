"""Read preference data and prompts as texts, without a tokenizer and without a model.

The rows are read as the stages read them (`layouts.py`, `beside.py`), and stay texts. A conversation
becomes its messages with their roles; a single message of the user stays as it is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from raydpo.config.job import PreferencesConfig, SourceFormat
from raydpo.core.tables import Row
from raydpo.prompts import layouts
from raydpo.prompts.beside import PROMPT_COLUMNS, prompt_in
from raydpo.prompts.chat import Message
from raydpo.prompts.columns import Columns
from raydpo.prompts.dialogue import prompt_of
from raydpo.prompts.preferences import judged_in, reading_of
from raydpo.prompts.reading import with_head
from raydpo.prompts.rows import RefusedRow, usable_row
from raydpo.prompts.sources import SourceRow, location, source_rows

_FURTHER_COLUMNS = ("messages", "text", "turns")


@dataclass(frozen=True)
class JudgedTexts:
    """A row of preference data as texts.

    Attributes:
        prompt: the prompt.
        completions: the completions; without ratings or a judgement the first is chosen.
        ratings: one for each completion, where the data has them.
        desirable: in unpaired data, whether the only completion is a good one.
        row: the row itself.
    """

    prompt: str
    completions: tuple[str, ...]
    ratings: tuple[float, ...] | None
    desirable: bool | None
    row: Row


def judged_texts(preferences: PreferencesConfig, refused: Counter[str]) -> Iterator[JudgedTexts]:
    """Yield the usable rows of preference data, in their order.

    Args:
        preferences: where the rows are, and their layout.
        refused: counts the reasons of rows that cannot be used.

    Raises:
        DataError: the source cannot be read, or none of its first rows has a known layout.
    """
    head, rows = with_head(source_rows(*location(preferences), preferences.limit))
    reading = reading_of(preferences, head, True)
    for source in rows:
        try:
            columns = Columns(usable_row(source))
            group = judged_in(columns, reading, True)
        except RefusedRow as error:
            refused[str(error)] += 1
            continue
        yield JudgedTexts(
            prompt_text(group.dialogue.prompt),
            tuple(map(_completion_text, group.dialogue.completions)),
            group.ratings,
            group.desirable,
            columns.row,
        )


def prompt_texts(path: str, format: SourceFormat = "auto", split: str = "train") -> Iterator[str]:
    """Yield the prompts of a source of prompts or of preference data; rows without one are skipped.

    Raises:
        DataError: the source cannot be read.
    """
    for source in source_rows(path, format, split):
        try:
            yield prompt_text(_prompt_of_row(source))
        except RefusedRow:
            continue


def prompt_text(prompt: str | list[Message]) -> str:
    """Return a prompt as text."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return str(prompt[0]["content"] or "")
    return "\n\n".join(f"{message['role']}: {message['content'] or ''}" for message in prompt)


def _prompt_of_row(source: SourceRow) -> str | list[Message]:
    columns = Columns(usable_row(source))
    if (layout := layouts.detect(columns.row)) is not None:
        return layouts.judged(columns, layout, True).dialogue.prompt
    if any(columns.row.get(name) is not None for name in (*PROMPT_COLUMNS, "instruction")):
        return prompt_in(columns, True)
    value = columns.value("the prompt", *_FURTHER_COLUMNS)
    if isinstance(value, list) and value and isinstance(value[0], str):
        value = value[0]  # MT-bench lists the user's turns
    return prompt_of(value)


def _completion_text(completion: str | Message) -> str:
    """Return a completion as text; tool calls and reasoning as JSON behind its words."""
    if isinstance(completion, str):
        return completion
    others = {k: v for k, v in completion.items() if k not in ("role", "content")}
    words = completion["content"] or ""
    return f"{words}\n{json.dumps(others, ensure_ascii=False, default=str)}" if others else words
