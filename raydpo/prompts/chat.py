"""Conversations: what a message is, and how a chat template turns messages into text.

What comes in: message lists as they stand in data files. What goes out: lists of
`{role, content}`, and their rendered text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from raydpo.errors import ModelError
from raydpo.prompts.rows import RefusedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

#: ShareGPT's names of the speakers.
_ROLE_OF_SPEAKER: Final = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def is_conversation(value: Any) -> bool:
    """Whether a value looks like a list of messages, of either naming."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in value)
    )


def messages_of(value: Any) -> list[Message]:
    """The messages of a `{role, content}` or `{from, value}` list.

    Raises:
        RefusedRow: it is no such list, or a message is more than text.
    """
    if not is_conversation(value):
        raise RefusedRow("not a list of messages")
    return [message_of(message) for message in value]


def message_of(value: Any) -> Message:
    """One message as `{role, content}`.

    Raises:
        RefusedRow: the speaker is unknown, or the content is not text.
    """
    if not isinstance(value, dict):
        raise RefusedRow("a message is not an object")
    role: Any = value.get("role")
    content: Any = value.get("content")
    if role is None:
        role = _ROLE_OF_SPEAKER.get(str(value.get("from")))
        content = value.get("value")
    if not isinstance(role, str) or not role:
        raise RefusedRow("a message of an unknown speaker")
    if not isinstance(content, str):
        raise RefusedRow("a message's content is not text")
    if value.get("tool_calls"):
        raise RefusedRow("a message with tool calls")
    return {"role": role, "content": content}


def with_system(messages: list[Message], system_prompt: str | None) -> list[Message]:
    """The messages, with the system message put before them where they have none."""
    if system_prompt is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    """The text up to where the assistant's completion begins.

    Raises:
        ModelError: there is no chat template.
        RefusedRow: the last turn is the assistant's, or the template refuses the messages.
    """
    if messages[-1]["role"] == "assistant":
        raise RefusedRow("the prompt ends with an assistant turn")
    return _render(tokenizer, messages, add_generation_prompt=True)


def render_completion(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], prompt: str, completion: str
) -> str:
    """The text that follows the rendered prompt when the assistant says `completion`.

    Args:
        tokenizer: with a chat template.
        messages: the conversation before the completion.
        prompt: what `render_prompt` made of `messages`.
        completion: the assistant's words.

    Raises:
        ModelError: the template is not prefix-stable.
        RefusedRow: the template refuses the messages.
    """
    turn = {"role": "assistant", "content": completion}
    whole = _render(tokenizer, [*messages, turn], add_generation_prompt=False)
    if not whole.startswith(prompt):
        raise ModelError(
            "the chat template is not prefix-stable: with the assistant's turn, the text differs "
            f"from the generation prompt {_generation_prompt(tokenizer, messages)!r} or before it",
            "template(messages + completion) begins with template(messages, generation prompt)",
            "set model.chat_template to a template that renders both alike",
        )
    return whole[len(prompt) :]


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Try the chat template on a made-up conversation.

    Raises:
        ModelError: there is none, it fails, or it is not prefix-stable.
    """
    messages = [{"role": "user", "content": "Which of the two?"}]
    try:
        prompt = render_prompt(tokenizer, messages)
        render_completion(tokenizer, messages, prompt, "The first.")
    except RefusedRow as error:
        raise ModelError(
            f"the chat template fails on a single user message: {error}",
            "a chat template renders a conversation of one user message",
            "set model.chat_template to a template that does",
        ) from error


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], add_generation_prompt: bool
) -> str:
    import jinja2

    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template",
            "conversations are rendered with the model's chat template",
            "set model.chat_template to a file with a Jinja template, or give plain text",
        )
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"the chat template is not Jinja: line {error.lineno}: {error.message}",
            "a chat template is a Jinja template",
            "mend it, or set model.chat_template to another",
        ) from error
    except jinja2.TemplateError as error:
        raise RefusedRow(f"the chat template refuses it: {error}") from error


def _generation_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    without = _render(tokenizer, messages, add_generation_prompt=False)
    return _render(tokenizer, messages, add_generation_prompt=True)[len(without) :]
