"""Refuse a row if the chat template leaves out something that the row contains.

From a conversation and its rendered text, the module raises `RefusedRow` if a message, the tools,
or a part of the completion is not in the text.

Content that is not found literally may still be there in another form. So the template renders the
conversation once more without it. If the text is the same, the template left it out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from raydpo.prompts.chat import (
    REASONING_KEYS,
    SYSTEM_ROLES,
    Message,
    assistant_turn,
    render_messages,
)
from raydpo.prompts.rows import RefusedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_THOUGHT_MARKS: Final = re.compile(r"</?think(?:ing)?>")


def check_prompt_is_whole(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    arguments: dict[str, Any],
    text: str,
) -> None:
    """Refuse a prompt if the template leaves part of it out.

    The assistant's own earlier words do not count: many templates leave old thoughts out.

    Raises:
        RefusedRow: a message of another speaker, tool calls, or the tools are not in the text.
    """

    def rendered(of: list[Message], given: dict[str, Any]) -> str:
        return render_messages(tokenizer, of, given, add_generation_prompt=True)

    others = {key: value for key, value in arguments.items() if key != "tools"}
    if others != arguments and rendered(messages, others) == text:
        raise RefusedRow("the chat template does not render the row's `tools`")
    for index, message in enumerate(messages):
        without = _without_what_is_not_seen(message, text)
        if without is not None:
            around = [*messages[:index], *without, *messages[index + 1 :]]
            if around and _is_same(rendered, around, arguments, text):
                raise RefusedRow(f"the chat template leaves out {_name_of(message)}")


def check_completion_is_whole(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    arguments: dict[str, Any],
    completion: str | Message,
    text: str,
) -> None:
    """Refuse a completion if the template leaves part of it out.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: the conversation before the completion.
        arguments: what the template receives in addition to them.
        completion: the assistant's words, or its message.
        text: the template's text for it, without the prompt.

    Raises:
        RefusedRow: its tool calls, reasoning or words, including thoughts, are not in the text.
    """
    turn = assistant_turn(completion)
    for piece in _THOUGHT_MARKS.split(turn["content"] or ""):
        if _squeezed(piece) not in _squeezed(text):
            shown = piece.strip()[:30]
            raise RefusedRow(f"the chat template leaves out {shown!r} of the completion")
    for key in ("tool_calls", *REASONING_KEYS):
        if key in turn:
            without = {k: v for k, v in turn.items() if k != key}
            other = render_messages(tokenizer, [*messages, _with_content(without)], arguments)
            if other.endswith(text):
                raise RefusedRow(f"the chat template does not render the completion's `{key}`")


def _without_what_is_not_seen(message: Message, text: str) -> list[Message] | None:
    """Return the message without what the text may lack; None if the text lacks nothing."""
    if "tool_calls" in message:
        return [_with_content({k: v for k, v in message.items() if k != "tool_calls"})]
    if message["role"] == "assistant" or _squeezed(message["content"]) in _squeezed(text):
        return None
    return []


def _is_same(rendered: Any, messages: list[Message], arguments: dict[str, Any], text: str) -> bool:
    try:
        return rendered(messages, arguments) == text
    except RefusedRow:
        return False  # the template needs the message


def _with_content(message: Message) -> Message:
    return {**message, "content": message["content"] or ""}


def _name_of(message: Message) -> str:
    if "tool_calls" in message:
        return "the `tool_calls` of a message"
    kind = "system" if message["role"] in SYSTEM_ROLES else message["role"]
    return f"the {kind} message" if kind == "system" else f"a message of role {kind!r}"


def _squeezed(text: str) -> str:
    """Return the text without white space, which templates add and remove."""
    return "".join(text.split())
