"""Apply the length limits to prompts and completions.

Given token ids and a policy for those that are too long, the module returns ids that fit. Plain
text is cut anywhere. A conversation loses words, but never a header of the chat template. So a cut
prompt still asks the assistant to continue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, assert_never

from raydpo.core.errors import ConfigError, DataError
from raydpo.prompts.encode import Conversation, Encoder, Text
from raydpo.prompts.rows import RefusedRow

#: How transcripts ask the assistant to continue.
_ASSISTANT_TURN: Final = "\n\nAssistant:"
_CUTS: Final = ("keep_start", "keep_end")

#: What happens to a text that is too long.
TooLong = Literal["quarantine", "keep_start", "keep_end", "error"]


@dataclass(frozen=True)
class Fitted:
    """A prompt that fits: its token ids, its text, and whether it was cut."""

    ids: list[int]
    text: str
    is_cut: bool = False


def fit_prompt(
    text: Text, ids: list[int], encoder: Encoder, max_tokens: int, policy: TooLong
) -> Fitted:
    """Fit a prompt to its limit; BOS and the question for an answer survive every cut.

    Args:
        text: the prompt.
        ids: the token ids of the text, from the encoder.
        encoder: the tokenizer.
        max_tokens: the maximum length of the prompt.
        policy: `quarantine`, `keep_start`, `keep_end` or `error`.

    Raises:
        RefusedRow: it is too long, and the policy is `quarantine`, or no cut keeps words of its
            last message; or it ends with EOS.
        DataError: it is too long, and the policy is `error`.
        ConfigError: the limit leaves nothing of the prompt.
    """
    check_prompt(ids, encoder, max_tokens, policy)
    if len(ids) <= max_tokens:
        return Fitted(ids, text.text)
    if text.conversation is not None:
        return _cut_conversation(text.conversation, encoder, max_tokens, policy)
    cut = _cut_plain(text, ids, encoder, max_tokens, policy)
    return Fitted(cut, encoder.decode_plain(cut), is_cut=True)


def check_prompt(
    ids: list[int], encoder: Encoder, max_tokens: int, policy: TooLong = "quarantine"
) -> None:
    """Refuse a prompt that cannot be used, or is too long under a policy that does not cut.

    Raises:
        RefusedRow: it is too long, and the policy is `quarantine`; or it ends with EOS.
        DataError: it is too long, and the policy is `error`.
    """
    if ids[-1:] == [encoder.eos_id]:
        raise RefusedRow("the prompt ends with the end-of-sequence token")
    if len(ids) > max_tokens:
        _refuse_too_long("prompt", len(ids), max_tokens, policy)


def fit_completion(ids: list[int], max_tokens: int, policy: TooLong) -> list[int]:
    """Fit a completion to its limit; a completion that is cut has no end token.

    Raises:
        RefusedRow: it is too long, and the policy is `quarantine`.
        DataError: it is too long, and the policy is `error`.
    """
    if len(ids) <= max_tokens:
        return ids
    _refuse_too_long("completion", len(ids), max_tokens, policy)
    return ids[:max_tokens]


def cut_counts(policies: tuple[TooLong, ...], **counts: int) -> dict[str, int]:
    """Return the counts if a policy cuts; a table without cuts has no such counts."""
    return counts if any(policy in _CUTS for policy in policies) else {}


def later_cuts(policy: TooLong) -> dict[str, str]:
    """Return what a table's content depends on if conversations were once cut anywhere."""
    return {"cuts_of_conversations": "words"} if policy in _CUTS else {}


def _cut_plain(
    text: Text, ids: list[int], encoder: Encoder, max_tokens: int, policy: TooLong
) -> list[int]:
    start = len(encoder.prefix) if tuple(ids[: len(encoder.prefix)]) == encoder.prefix else 0
    end = _asking_tokens(text, ids, encoder) if policy == "keep_start" else 0
    if max_tokens <= start + end:
        raise ConfigError(
            f"max_prompt_tokens: {max_tokens}",
            f"a cut prompt keeps {start} special token(s) at its start, {end} token(s) that ask for "
            "an answer at its end, and something more",
            "raise the limit",
        )
    if policy == "keep_start":
        return [*ids[: max_tokens - end], *ids[len(ids) - end :]]
    return [*ids[:start], *ids[len(ids) - (max_tokens - start) :]]


def _asking_tokens(text: Text, ids: list[int], encoder: Encoder) -> int:
    """Return how many tokens at a transcript's end ask the assistant to continue."""
    if not text.text.endswith(_ASSISTANT_TURN):
        return 0
    (asking,) = encoder.continuations([_ASSISTANT_TURN])
    return len(asking) if ids[-len(asking) :] == asking else 0


def _cut_conversation(
    conversation: Conversation, encoder: Encoder, max_tokens: int, policy: TooLong
) -> Fitted:
    """Shorten a conversation at the end of its last message, or from its start on."""
    shorter = _without_end if policy == "keep_start" else _without_start
    content: Any = conversation.messages[-1]["content"]
    if not isinstance(content, str):
        raise RefusedRow(f"longer than {max_tokens} tokens, and its last message has no words")

    def fitted(messages: list[dict[str, Any]]) -> Fitted | None:
        text = conversation.render(messages)
        (ids,) = encoder.prompts([Text(text, is_rendered=True)])
        return Fitted(ids, text, is_cut=True) if len(ids) <= max_tokens else None

    if policy == "keep_end":
        for messages in _without_oldest_turns(conversation.messages):
            found = fitted(messages)
            if found is not None:
                return found
            conversation = Conversation(messages, conversation.render)
    found = _longest(lambda kept: fitted(shorter(conversation.messages, kept)), len(content))
    if found is None:
        raise RefusedRow(
            f"the prompt is longer than {max_tokens} tokens even without the words of its last message"
        )
    return found


def _without_end(messages: list[dict[str, Any]], kept: int) -> list[dict[str, Any]]:
    return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"][:kept]}]


def _without_start(messages: list[dict[str, Any]], kept: int) -> list[dict[str, Any]]:
    return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"][-kept:]}]


def _without_oldest_turns(messages: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the conversation from each later user's turn on, with its leading instructions."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return [[*messages[: turns[0]], *messages[turn:]] for turn in turns[1:]]


def _longest(fitted: Callable[[int], Fitted | None], most: int) -> Fitted | None:
    """Fit the largest possible number of characters, by bisection; return None if nothing fits."""
    best: Fitted | None = None
    least = 1
    while least <= most:
        middle = (least + most) // 2
        found = fitted(middle)
        if found is None:
            most = middle - 1
        else:
            best, least = found, middle + 1
    return best


def _refuse_too_long(kind: str, length: int, max_tokens: int, policy: TooLong) -> None:
    match policy:
        case "keep_start" | "keep_end":
            return
        case "quarantine":
            raise RefusedRow(f"the {kind} is longer than {max_tokens} tokens")
        case "error":
            raise DataError(
                f"a {kind} of {length} tokens",
                f"the limit is {max_tokens} tokens, and the policy for longer ones is `error`",
                "raise the limit, or choose `quarantine` or `keep_start`",
            )
        case _:
            assert_never(policy)
