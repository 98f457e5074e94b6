"""Layouts of preference data: turn a row into a prompt, its completions and their judgements.

A row in one of six layouts (see `PreferencesConfig.layout`) becomes a `Judged` group. This
module, `dialogue.py` and `beside.py`, which reads the columns beside the prompt, state every
reason to refuse a row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from raydpo.core.tables import Row
from raydpo.prompts.beside import PROMPT_COLUMNS, prompt_in
from raydpo.prompts.chat import Message, decoded, is_conversation, message_of, messages_of, parsed
from raydpo.prompts.columns import Columns
from raydpo.prompts.dialogue import Dialogue, completion_of
from raydpo.prompts.rows import RefusedRow

ASSISTANT_TURN: Final = "\n\nAssistant:"
HUMAN_TURN: Final = "\n\nHuman:"
_RATINGS: Final = ("ratings", "scores")
_LABELS: Final = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "desirable"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "undesirable"), False),
}
_CONVERSATIONS: Final = ("conversations", "conversation", "messages")
_RESPONSES: Final = ("response_0", "response_1")
_BETTER: Final = "better_response_id"
_COMPLETIONS: Final = ("completion", "response", "output")


@dataclass(frozen=True)
class Judged:
    """A prompt with K completions and their judgements.

    Without ratings or a judgement, the first is chosen and the second rejected.

    Args:
        dialogue: the prompt and its completions.
        ratings: the rating of each completion.
        desirable: in unpaired data, whether the only completion is a good one.
    """

    dialogue: Dialogue
    ratings: tuple[float, ...] | None = None
    desirable: bool | None = None


def detect(row: Row) -> str | None:
    """Return the layout of a row by its columns and values; None if no layout matches."""
    has_prompt = "instruction" in row or any(name in row for name in PROMPT_COLUMNS)
    if "completions" in row and any(name in row for name in _RATINGS):
        return "ranked"
    if "label" in row and ("messages" in row or {"prompt", "completion"} <= row.keys()):
        return "unpaired"
    if "chosen" in row and "rejected" in row:
        return _of_pair(row, has_prompt)
    completed = has_prompt and any(name in row for name in _COMPLETIONS)
    if "label" in row and (completed or any(name in row for name in _CONVERSATIONS)):
        return "unpaired"
    return "explicit" if has_prompt and {*_RESPONSES, _BETTER} <= row.keys() else None


def _of_pair(row: Row, has_prompt: bool) -> str:
    """Return the layout of a row with `chosen` and `rejected`."""
    chosen: Any = decoded(row["chosen"])
    # Some data sets repeat the prompt's text in a column, although chosen and rejected contain it.
    whole = is_conversation(chosen) and _role(chosen[0]) != "assistant"
    turns = "messages" in row or "conversation" in row
    if "conversations" in row or (turns and not has_prompt and not whole):
        return "sharegpt"
    if "prompt" not in row and isinstance(chosen, str) and ASSISTANT_TURN in chosen:
        return "transcript"
    return "explicit" if has_prompt and not whole else "implicit"


def _role(message: dict[str, Any]) -> str | None:
    try:
        return message_of(message)["role"]
    except RefusedRow:
        return None


def judged(columns: Columns, layout: str, has_template: bool = False) -> Judged:
    """Read a row as a group.

    Args:
        columns: the columns of the row.
        layout: see `PreferencesConfig.layout`.
        has_template: whether the model chats, which decides how an `instruction` is formatted.

    Raises:
        RefusedRow: the row does not have this layout, or nothing can be learned from it.
    """
    return _READERS[layout](columns, has_template)


def _explicit(columns: Columns, has_template: bool) -> Judged:
    prompt = prompt_in(columns, has_template)
    chosen, rejected = _both(columns)
    return _pair(prompt, completion_of(chosen, prompt), completion_of(rejected, prompt))


def _both(columns: Columns) -> tuple[Any, Any]:
    """Return chosen and rejected, by name or by the number of the better response."""
    if columns.row.get("chosen") is not None or columns.row.get(_BETTER) is None:
        return columns.value("chosen", "chosen"), columns.value("rejected", "rejected")
    better: Any = columns.value("the number of the chosen response", _BETTER)
    responses = [columns.value("chosen or rejected", name) for name in _RESPONSES]
    if str(better) not in ("0", "1"):  # CSV values are text
        raise RefusedRow(f"column {_BETTER!r} is neither 0 nor 1")
    return responses[int(better)], responses[1 - int(better)]


def _implicit(columns: Columns, _has_template: bool) -> Judged:
    chosen, rejected = map(decoded, _both(columns))
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _implicit_text(chosen, rejected)
    one, other = messages_of(chosen), messages_of(rejected)
    if one == other:
        raise RefusedRow("chosen equals rejected")
    if one[:-1] != other[:-1]:
        raise RefusedRow("the prompts of chosen and rejected differ, up to their last messages")
    if len(one) < 2:
        raise RefusedRow("chosen and rejected share no prompt")
    prompt = one[:-1]
    return _pair(prompt, completion_of(one[-1], prompt), completion_of(other[-1], prompt))


def _implicit_text(chosen: str, rejected: str) -> Judged:
    """Split plain texts: the prompt is what they share, up to the last whole word."""
    if chosen == rejected:
        raise RefusedRow("chosen equals rejected")
    same = itertools.takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
    shared = "".join(character for character, _ in same)
    end = max((i for i, character in enumerate(shared) if character.isspace()), default=0)
    if not shared[:end].strip():
        raise RefusedRow("chosen and rejected share no prompt")
    return _pair(
        shared[:end],
        completion_of(chosen[end:], shared),
        completion_of(rejected[end:], shared),
    )


def _transcript(columns: Columns, _has_template: bool) -> Judged:
    """Split `Human:/Assistant:` texts at the last `Assistant:`; the prompt stays plain text."""
    chosen, rejected = _both(columns)
    prompt, first = _last_turn(chosen)
    other, second = _last_turn(rejected)
    if prompt != other:
        raise RefusedRow("the prompts of chosen and rejected differ")
    return _pair(prompt, completion_of(first, prompt), completion_of(second, prompt))


def _last_turn(text: Any) -> tuple[str, str]:
    if not isinstance(text, str):
        raise RefusedRow("the transcript is not text")
    before, turn, completion = text.rpartition(ASSISTANT_TURN)
    if not turn:
        raise RefusedRow("the transcript has no Assistant turn")
    if HUMAN_TURN in completion:
        raise RefusedRow("the transcript ends with a Human turn")
    return before + turn, completion


def _sharegpt(columns: Columns, _has_template: bool) -> Judged:
    prompt = messages_of(columns.value("the prompt", *_CONVERSATIONS))
    chosen, rejected = _both(columns)
    return _pair(prompt, completion_of(chosen, prompt), completion_of(rejected, prompt))


def _ranked(columns: Columns, has_template: bool) -> Judged:
    prompt = prompt_in(columns, has_template)
    completions = _list(columns.value("the completions", "completions"))
    ratings = _list(columns.value("the ratings", *_RATINGS))
    if not isinstance(completions, list) or not isinstance(ratings, list):
        raise RefusedRow("completions or ratings are not a list")
    if len(completions) != len(ratings):
        raise RefusedRow("completions and ratings are not equally many")
    if len(completions) < 2:
        raise RefusedRow("fewer than two completions")
    return Judged(
        Dialogue(prompt, tuple(completion_of(one, prompt) for one in completions)),
        tuple(_rating(rating) for rating in ratings),
    )


def _list(value: Any) -> Any:
    """Return a list, or the list in a JSON text; any other value is returned unchanged."""
    found = parsed(value) if isinstance(value, str) else value
    return found if isinstance(found, list) else value


def _unpaired(columns: Columns, has_template: bool) -> Judged:
    """Read `prompt` and `completion`, or `messages` that end with the completion, and a `label`."""
    desirable = _label(columns.value("the label", "label"))
    conversation = columns.get("the prompt and the completion", *_CONVERSATIONS)
    if conversation is None:
        prompt = prompt_in(columns, has_template)
        completion = completion_of(columns.value("the completion", *_COMPLETIONS), prompt)
    else:
        *prompt, last = messages_of(conversation)
        if not prompt:
            raise RefusedRow("a conversation of one message has no completion")
        completion = completion_of(last, prompt)
    return Judged(Dialogue(prompt, (completion,)), desirable=desirable)


def _label(value: Any) -> bool:
    """Read a judgement: a boolean, 0 or 1, or a word for it, as in CSV files."""
    meant = _LABELS.get(value.strip().lower()) if isinstance(value, str) else value
    if meant not in (0, 1):  # false and true are equal to these
        raise RefusedRow(f"the label is neither true nor false (as text: {', '.join(_LABELS)})")
    return bool(meant)


def _rating(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedRow("a rating is not a finite number")
    try:
        rating = float(value)
    except OverflowError:
        rating = math.inf
    if not math.isfinite(rating):
        raise RefusedRow("a rating is not a finite number")
    return rating


def _pair(prompt: str | list[Message], chosen: str | Message, rejected: str | Message) -> Judged:
    if chosen == rejected:
        raise RefusedRow("chosen equals rejected")
    return Judged(Dialogue(prompt, (chosen, rejected)))


_READERS: Final[dict[str, Callable[[Columns, bool], Judged]]] = {
    "explicit": _explicit,
    "implicit": _implicit,
    "transcript": _transcript,
    "sharegpt": _sharegpt,
    "ranked": _ranked,
    "unpaired": _unpaired,
}
