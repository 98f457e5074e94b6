"""Layouts of preference data: a row becomes a prompt, its completions and what is known of them.

What comes in: a row in one of six layouts (see `PreferencesConfig.layout`). What goes out:
a `Judged` group. Every reason why a row is refused is stated here or in `dialogue.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from raydpo.prompts.chat import Message, is_conversation, message_of, messages_of
from raydpo.prompts.dialogue import Dialogue, completion_of, prompt_of
from raydpo.prompts.rows import RefusedRow
from raydpo.tables import Row

ASSISTANT_TURN: Final = "\n\nAssistant:"
HUMAN_TURN: Final = "\n\nHuman:"
_RATINGS: Final = ("ratings", "scores")
_LABELS: Final = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "desirable"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "undesirable"), False),
}


@dataclass(frozen=True)
class Judged:
    """A prompt with K completions.

    With neither ratings nor a judgement, the first is chosen and the second rejected.

    Args:
        dialogue: the prompt and its completions.
        ratings: of each completion.
        desirable: whether the only completion is a good one, in unpaired data.
    """

    dialogue: Dialogue
    ratings: tuple[float, ...] | None = None
    desirable: bool | None = None


def detect(row: Row) -> str | None:
    """The layout of a row, by its columns and values; None where it is none of them."""
    if "completions" in row and any(name in row for name in _RATINGS):
        return "ranked"
    if "label" in row and ("messages" in row or {"prompt", "completion"} <= row.keys()):
        return "unpaired"
    if "chosen" not in row or "rejected" not in row:
        return None
    if "conversations" in row:
        return "sharegpt"
    chosen: Any = row["chosen"]
    if "prompt" not in row:
        is_transcript = isinstance(chosen, str) and ASSISTANT_TURN in chosen
        return "transcript" if is_transcript else "implicit"
    # Some sets repeat the prompt's text beside chosen and rejected that hold it all.
    whole = is_conversation(chosen) and messages_of(chosen)[0]["role"] != "assistant"
    return "implicit" if whole else "explicit"


def judged(row: Row, layout: str) -> Judged:
    """A row as a group.

    Raises:
        RefusedRow: it is not of this layout, or it cannot be learned from.
    """
    return _READERS[layout](row)


def _explicit(row: Row) -> Judged:
    prompt = prompt_of(_value(row, "prompt"))
    return _pair(
        prompt,
        completion_of(_value(row, "chosen"), prompt),
        completion_of(_value(row, "rejected"), prompt),
    )


def _implicit(row: Row) -> Judged:
    chosen, rejected = _value(row, "chosen"), _value(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _implicit_text(chosen, rejected)
    one, other = messages_of(chosen), messages_of(rejected)
    if one == other:
        raise RefusedRow("chosen equals rejected")
    if one[:-1] != other[:-1]:
        raise RefusedRow("the prompts of chosen and rejected differ")
    if len(one) < 2:
        raise RefusedRow("chosen and rejected share no prompt")
    prompt = one[:-1]
    return _pair(prompt, completion_of(one[-1], prompt), completion_of(other[-1], prompt))


def _implicit_text(chosen: str, rejected: str) -> Judged:
    """Plain texts: the prompt is what they share, up to the last whole word."""
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


def _transcript(row: Row) -> Judged:
    """`Human:/Assistant:` texts, split at the last `Assistant:`; the prompt stays plain text."""
    prompt, chosen = _last_turn(_value(row, "chosen"))
    other, rejected = _last_turn(_value(row, "rejected"))
    if prompt != other:
        raise RefusedRow("the prompts of chosen and rejected differ")
    return _pair(prompt, completion_of(chosen, prompt), completion_of(rejected, prompt))


def _last_turn(text: Any) -> tuple[str, str]:
    if not isinstance(text, str):
        raise RefusedRow("the transcript is not text")
    before, turn, completion = text.rpartition(ASSISTANT_TURN)
    if not turn:
        raise RefusedRow("the transcript has no Assistant turn")
    if HUMAN_TURN in completion:
        raise RefusedRow("the transcript ends with a Human turn")
    return before + turn, completion


def _sharegpt(row: Row) -> Judged:
    prompt = messages_of(_value(row, "conversations"))
    system = row.get("system")
    if isinstance(system, str) and system and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": system}, *prompt]
    chosen, rejected = message_of(_value(row, "chosen")), message_of(_value(row, "rejected"))
    return _pair(prompt, completion_of(chosen, prompt), completion_of(rejected, prompt))


def _ranked(row: Row) -> Judged:
    prompt = prompt_of(_value(row, "prompt"))
    completions, ratings = _value(row, "completions"), _value(row, *_RATINGS)
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


def _unpaired(row: Row) -> Judged:
    """`prompt` and `completion`, or `messages` whose last one is the completion; and a `label`."""
    desirable = _label(_value(row, "label"))
    if row.get("messages") is None:
        prompt = prompt_of(_value(row, "prompt"))
        completion = completion_of(_value(row, "completion"), prompt)
    else:
        *prompt, last = messages_of(row["messages"])
        if not prompt:
            raise RefusedRow("a conversation of one message has no completion")
        completion = completion_of(last, prompt)
    return Judged(Dialogue(prompt, (completion,)), desirable=desirable)


def _label(value: Any) -> bool:
    """A judgement: a boolean, 0 or 1, or a word that says it, as all values of a CSV file are."""
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


def _pair(prompt: str | list[Message], chosen: str, rejected: str) -> Judged:
    if chosen == rejected:
        raise RefusedRow("chosen equals rejected")
    return Judged(Dialogue(prompt, (chosen, rejected)))


def _value(row: Row, *names: str) -> Any:
    """The first of these columns that has a value."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise RefusedRow(f"no value in column {' or '.join(repr(name) for name in names)}")


_READERS: Final[dict[str, Callable[[Row], Judged]]] = {
    "explicit": _explicit,
    "implicit": _implicit,
    "transcript": _transcript,
    "sharegpt": _sharegpt,
    "ranked": _ranked,
    "unpaired": _unpaired,
}
