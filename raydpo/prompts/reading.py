"""Decide how to read a source from many of its rows, so that one bad row never decides a run.

The first rows determine the layout, whether plain prompts become user messages, and whether
completions repeat their prompts. The module also returns what the cache key must contain.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, assert_never

from raydpo.config.data import Chat
from raydpo.config.job import SftConfig
from raydpo.core.progress import logger
from raydpo.core.tables import Row
from raydpo.prompts.beside import CONVERSATION_COLUMNS, PROMPT_COLUMNS
from raydpo.prompts.chat import TEMPLATE_KEYS, decoded, is_conversation
from raydpo.prompts.dialogue import Dialogue
from raydpo.prompts.rows import RefusedRow
from raydpo.prompts.sources import SourceRow, SourceSection, location, source_rows

#: Number of rows that are inspected before the first one is read.
HEAD_ROWS: Final = 1000
_PLAIN: Final = "the source's first rows have none, so its plain text stays plain"


@dataclass(frozen=True)
class Reading:
    """How the rows of a source are read.

    Args:
        layout: the most frequent layout; None if no row has any.
        plain_because: why plain prompts stay plain; None if they become user messages.
        strips_prompt: whether completions begin with their prompt, which is then removed.
    """

    layout: str | None
    plain_because: str | None = _PLAIN
    strips_prompt: bool = False


def with_head(rows: Iterable[SourceRow]) -> tuple[list[Row], Iterator[SourceRow]]:
    """Return the first readable rows, and all rows from the first on."""
    iterator = iter(rows)
    head = list(itertools.islice(iterator, HEAD_ROWS))
    return [row.row for row in head if row.row is not None], itertools.chain(head, iterator)


def columns_of(head: Iterable[Row]) -> list[str]:
    """Return all columns of some rows, sorted."""
    return sorted({name for row in head for name in row})


def most_frequent_layout(
    what: str, head: list[Row], detect: Callable[[Row], str | None]
) -> str | None:
    """Return the layout of most rows; in a tie, the one that comes first."""
    counts = Counter(layout for row in head if (layout := detect(row)) is not None)
    if not counts:
        return None
    (found, _), *others = counts.most_common()
    if others:
        said = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        logger.warning("[%s] rows of several layouts: %s; all are read as %s", what, said, found)
    return found


def plain_because(
    head: list[Row], chat: Chat, has_template: bool, system_prompt: str | None
) -> str | None:
    """Return why plain prompts stay plain, or None if they become user messages.

    Args:
        head: the source's first rows.
        chat: `always`, `never` or `auto`, which makes messages if a prompt is more than text.
        has_template: whether the model has a chat template.
        system_prompt: the system prompt of the section.
    """
    match chat:
        case "never":
            return "`chat` is 'never'"
        case "always":
            return None
        case "auto" if not has_template:
            return "the model has no chat template"
        case "auto" if system_prompt is not None:
            return None
        case "auto":
            beside = any(row.get(column) for row in head for column in CONVERSATION_COLUMNS)
            return None if beside else _PLAIN
        case _:
            assert_never(chat)


def repeats_prompt(dialogues: Iterable[Dialogue]) -> bool:
    """Return whether most completions begin with their plain prompt."""
    repeated = [_repeats(d) for d in dialogues if isinstance(d.prompt, str)]
    return bool(repeated) and 2 * sum(repeated) > len(repeated)


def without_repeated_prompt(dialogue: Dialogue) -> Dialogue:
    """Return the dialogue, with its plain prompt removed from the start of its completions.

    Raises:
        RefusedRow: nothing is left of a completion, or only some completions repeat the prompt.
    """
    prompt = dialogue.prompt
    if not isinstance(prompt, str) or not any(_begins(c, prompt) for c in dialogue.completions):
        return dialogue
    if not _repeats(dialogue):
        raise RefusedRow("some completions repeat the prompt, and others do not")
    rest = tuple(str(completion)[len(prompt) :] for completion in dialogue.completions)
    if not all(text.strip() for text in rest):
        raise RefusedRow("empty completion, after the prompt that it repeats")
    return Dialogue(prompt, rest, dialogue.arguments)


def _repeats(dialogue: Dialogue) -> bool:
    prompt = str(dialogue.prompt)
    return bool(dialogue.completions) and all(_begins(c, prompt) for c in dialogue.completions)


def _begins(completion: Any, prompt: str) -> bool:
    """Return whether a completion begins with the whole prompt, and not with a longer word."""
    if not isinstance(completion, str) or not completion.startswith(prompt):
        return False
    around = completion[len(prompt) - 1 : len(prompt) + 1]
    return not (len(around) == 2 and around.isalnum())


def later_readings(section: SourceSection, system_prompt: str | None) -> dict[str, list[str]]:
    """Return what the first rows contain that versions before 0.2 ignored, for a stage's key.

    If such a version made a table from such rows, it is made again; all other tables are kept.
    """
    each = (section,) if isinstance(section, SftConfig) else section.each
    head = [row for one in each for row in with_head(source_rows(*location(one), one.limit))[0]]
    found = {name for row in head for name in _not_read_before(row)}
    if system_prompt is not None and any(_plain_prompt(row) for row in head):
        found.add("system_prompt beside plain text")
    return {"later_readings": sorted(found)} if found else {}


def _not_read_before(row: Row) -> Iterator[str]:
    is_sharegpt = {"conversations", "chosen", "rejected"} <= row.keys()
    for name in (*CONVERSATION_COLUMNS, "chat_template_kwargs"):
        if row.get(name) and not (is_sharegpt and name == "system"):
            yield name
    if "prompt" not in row and isinstance(row.get("chosen"), str):
        yield from (name for name in (*PROMPT_COLUMNS, "instruction") if row.get(name))
    answers = (row.get("chosen"), row.get("completion"), *_list(row.get("completions")))
    if isinstance(row.get("prompt"), str) and any(_begins(a, row["prompt"]) for a in answers):
        yield "repeated prompt"
    for value in row.values():
        messages = decoded(value)
        if messages is not value:
            yield "messages as JSON text"
        for message in messages if isinstance(messages, list) else [messages]:
            if isinstance(message, dict) and is_conversation([message]):
                yield from (key for key in TEMPLATE_KEYS if message.get(key))
                if message.get("train") is False or message.get("weight") == 0:
                    yield "turns that are not trained"
                if isinstance(message.get("content"), list):
                    yield "content of several parts"


def _plain_prompt(row: Row) -> bool:
    return any(isinstance(row.get(name), str) for name in (*PROMPT_COLUMNS, "text", "chosen"))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
