"""A prompt with its completions, on the way from a data row to token ids.

What comes in: a prompt (text or messages) and the completions to it, as a row holds them.
What goes out: their rendered texts, ready for the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raydpo.prompts.chat import (
    Message,
    is_conversation,
    message_of,
    messages_of,
    render_completion,
    render_prompt,
    with_system,
)
from raydpo.prompts.encode import Text
from raydpo.prompts.rows import RefusedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Dialogue:
    """A prompt, as plain text or as messages, and the words of its completions."""

    prompt: str | list[Message]
    completions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rendered:
    """The texts that are encoded: the prompt, and what follows it for each completion."""

    prompt: Text
    completions: tuple[str, ...]


def prompt_of(value: Any) -> str | list[Message]:
    """A prompt as a row holds it: text or messages.

    Raises:
        RefusedRow: it is neither, or empty.
    """
    if isinstance(value, str):
        if not value.strip():
            raise RefusedRow("empty prompt")
        return value
    if is_conversation(value):
        return messages_of(value)
    raise RefusedRow("the prompt is neither text nor a list of messages")


def completion_of(value: Any, prompt: str | list[Message]) -> str:
    """The words of a completion: text, one assistant message, or a list of that one.

    Raises:
        RefusedRow: it is something else, or empty, or messages after a plain prompt.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        if isinstance(prompt, str):
            raise RefusedRow("a plain prompt, but a completion made of messages")
        message = message_of(value)
        if message["role"] != "assistant":
            raise RefusedRow("the completion is not the assistant's")
        value = message["content"]
    if not isinstance(value, str):
        raise RefusedRow("the completion is not text")
    if not value.strip():
        raise RefusedRow("empty completion")
    return value


def render(
    dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None
) -> Rendered:
    """Plain text stays as it is; conversations go through the chat template.

    Raises:
        ModelError: there is no chat template, or it is not prefix-stable.
        RefusedRow: the template refuses the messages.
    """
    if isinstance(dialogue.prompt, str):
        return Rendered(Text(dialogue.prompt), dialogue.completions)
    messages = with_system(dialogue.prompt, system_prompt)
    prompt = render_prompt(tokenizer, messages)
    completions = tuple(
        render_completion(tokenizer, messages, prompt, completion)
        for completion in dialogue.completions
    )
    return Rendered(Text(prompt, is_rendered=True), completions)
