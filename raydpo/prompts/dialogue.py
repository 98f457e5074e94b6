"""Represent a prompt with its completions, between a data row and token ids.

A row's prompt (text or messages) and its completions become rendered texts, ready for the
tokenizer. The module refuses a row if the chat template leaves out a message, the tools, or a part
of the completion. Content that is not found literally may still be there in another form. So the
template renders the conversation once more without it. If the text is the same, the template left
it out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from raydpo.prompts.chat import (
    REASONING_KEYS,
    SYSTEM_ROLES,
    UNTRAINED,
    Message,
    assistant_turn,
    decoded,
    is_conversation,
    is_plain,
    message_of,
    messages_of,
    render_completion,
    render_messages,
    render_prompt,
    with_system,
)
from raydpo.prompts.encode import Conversation, Text
from raydpo.prompts.rows import RefusedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Dialogue:
    """A prompt and its completions.

    Args:
        prompt: plain text, or messages.
        completions: their text; the whole message if it contains tool calls or reasoning.
        arguments: what the chat template receives beside the messages, such as `tools`.
    """

    prompt: str | list[Message]
    completions: tuple[str | Message, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def asked(self) -> Any:
        """All that the prompt says, for its hash."""
        return [self.prompt, self.arguments] if self.arguments else self.prompt


@dataclass(frozen=True)
class Rendered:
    """The texts to encode: the prompt, and the text that follows it for each completion."""

    prompt: Text
    completions: tuple[str, ...]


def prompt_of(value: Any) -> str | list[Message]:
    """Read a prompt from a row's value: text, messages, or messages as JSON text.

    Raises:
        RefusedRow: the value is none of these, or is empty.
    """
    value = decoded(value)
    if isinstance(value, str):
        if not value.strip():
            raise RefusedRow("empty prompt")
        return value
    if is_conversation(value):
        return messages_of(value)
    raise RefusedRow("the prompt is neither text nor a list of messages")


def completion_of(value: Any, prompt: str | list[Message]) -> str | Message:
    """Read a completion: text, one assistant message, a list of one, or JSON text of these.

    Returns:
        Its text, or the message if it contains more than text.

    Raises:
        RefusedRow: it is anything else, or empty, or consists of messages after a plain prompt.
    """
    value = decoded(value)
    if is_conversation(value) and len(value) > 1:
        raise RefusedRow("the completion is not text, nor one message")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        if isinstance(prompt, str):
            raise RefusedRow("a plain prompt, but a completion made of messages")
        message = message_of(value)
        if message["role"] != "assistant":
            raise RefusedRow("the completion is not the assistant's")
        if UNTRAINED in message:
            raise RefusedRow("the completion is marked as not to be trained (`train`, `weight`)")
        if not is_plain(message):
            return message
        value = message["content"]
    if not isinstance(value, str):
        raise RefusedRow("the completion is not text")
    if not value.strip():
        raise RefusedRow("empty completion")
    return value


def render(
    dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None
) -> Rendered:
    """Render a dialogue: plain text stays unchanged; conversations go through the chat template.

    Raises:
        ModelError: there is no chat template, or it is not prefix-stable.
        RefusedRow: the template refuses the messages, or leaves some of them out; or the prompt is
            plain text and there is a system prompt.
    """
    if isinstance(dialogue.prompt, str):
        return _rendered_plain(dialogue, dialogue.prompt, system_prompt)
    messages, arguments = with_system(dialogue.prompt, system_prompt), dialogue.arguments
    prompt = render_prompt(tokenizer, messages, arguments)
    check_prompt_is_whole(tokenizer, messages, arguments, prompt)
    completions: list[str] = []
    for completion in dialogue.completions:
        text = render_completion(tokenizer, messages, prompt, completion, arguments)
        check_completion_is_whole(tokenizer, messages, arguments, completion, text)
        completions.append(text)
    conversation = Conversation(messages, partial(render_prompt, tokenizer, arguments=arguments))
    return Rendered(Text(prompt, True, conversation), tuple(completions))


def _rendered_plain(dialogue: Dialogue, prompt: str, system_prompt: str | None) -> Rendered:
    if system_prompt is not None:
        raise RefusedRow("`system_prompt` is set, and the prompt is plain text, no conversation")
    completions = tuple(c for c in dialogue.completions if isinstance(c, str))
    assert len(completions) == len(dialogue.completions), "plain prompts have plain completions"
    return Rendered(Text(prompt), completions)


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
