"""Define what a message is in a conversation, and how a chat template turns messages into text.

Message lists from data files become lists of `{role, content}`, and then rendered text.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import TYPE_CHECKING, Any, Final

from raydpo.core.errors import ModelError
from raydpo.prompts.rows import RefusedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: `role` and `content`, and the keys of `TEMPLATE_KEYS` that the row has. The content is None in a
#: message that contains only tool calls.
Message = dict[str, Any]

#: ShareGPT's names of the speakers.
_ROLE_OF_SPEAKER: Final = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
#: Python's text of a dictionary with text keys, or of a list that begins with one.
_PYTHON_OBJECTS: Final = re.compile(r"\s*\[?\s*\{\s*'")
#: Keys of the assistant's thoughts under all names that templates know.
REASONING_KEYS: Final = ("reasoning_content", "reasoning", "thinking")
_KEYS_OF_ROLE: Final = {
    "assistant": ("tool_calls", *REASONING_KEYS),
    "tool": ("tool_call_id", "name"),
}
#: Set on an assistant message that the data excludes from training.
UNTRAINED: Final = "untrained"
#: Keys of a message beside role and content; the chat template decides what becomes of them.
TEMPLATE_KEYS: Final = tuple(key for keys in _KEYS_OF_ROLE.values() for key in keys)
#: Roles of messages that instruct the model.
SYSTEM_ROLES: Final = ("system", "developer")


def is_conversation(value: Any) -> bool:
    """Return whether a value looks like a list of messages, in either naming."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in value)
    )


def decoded(value: Any) -> Any:
    """Decode a message or list of messages from JSON text; return any other value unchanged.

    pandas writes them to CSV as Python's own text, which this function also reads.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    found = parsed(value)
    messages: Any = found if isinstance(found, list) else [found]
    return found if is_conversation(messages) and all(map(_has_words, messages)) else value


def parsed(text: str) -> Any:
    """Return the value of a JSON text, or of a Python literal with objects; None for other text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if not _PYTHON_OBJECTS.match(text):
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # odd escapes in other text
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def messages_of(value: Any) -> list[Message]:
    """Return the messages of a `{role, content}` or `{from, value}` list, or of its JSON text.

    Raises:
        RefusedRow: it is not such a list, or a message cannot be read.
    """
    value = decoded(value)
    if not is_conversation(value):
        raise RefusedRow("not a list of messages")
    return [message_of(message) for message in value]


def message_of(value: Any) -> Message:
    """Convert one message to `{role, content}` and other keys that the template may render.

    Raises:
        RefusedRow: the speaker is unknown, or the content is not text.
    """
    value = decoded(value)
    if not isinstance(value, dict):
        raise RefusedRow("a message is not an object")
    role: Any = value.get("role")
    content: Any = value.get("content")
    calls: Any = value.get("tool_calls")
    if role is None:
        role = _ROLE_OF_SPEAKER.get(str(value.get("from")))
        content = value.get("value")
        if value.get("from") == "function_call":
            content, calls = None, content
    if not isinstance(role, str) or not role:
        raise RefusedRow("a message of an unknown speaker")
    message: Message = {"role": role, "content": _text_of(content)}
    for key in _KEYS_OF_ROLE.get(role, ()):
        found = _tool_calls(calls) if key == "tool_calls" else value.get(key)
        if found:
            message[key] = found
    if message["content"] is None and "tool_calls" not in message:
        raise RefusedRow("a message's content is not text")
    if role == "assistant" and _is_marked_untrained(value):
        message[UNTRAINED] = True
    return message


def is_plain(message: Message) -> bool:
    """Return whether a message is only its role and its content."""
    return message.keys() == {"role", "content"} and message["content"] is not None


def without_nulls(value: Any) -> Any:
    """Remove the null fields that Parquet adds if other rows have values in them."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def _is_marked_untrained(value: dict[str, Any]) -> bool:
    weight: Any = value.get("weight")
    return value.get("train") is False or (isinstance(weight, int | float) and weight == 0)


def _has_words(message: dict[str, Any]) -> bool:
    return not {"content", "value", "tool_calls"}.isdisjoint(message)


def _text_of(content: Any) -> str | None:
    """Return the text of a content, which may be a list of text parts; None if there is none."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        return "".join(part["text"] for part in content)
    raise RefusedRow("a message's content is not text")


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _tool_calls(value: Any) -> list[dict[str, Any]] | None:
    """Return tool calls as templates take them: objects whose arguments are objects too."""
    if not value:
        return None
    found = parsed(value) if isinstance(value, str) else value
    calls: Any = [found] if isinstance(found, dict) else found
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RefusedRow("the tool calls are no list of objects")
    return [_tool_call(without_nulls(call)) for call in calls]


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    function: Any = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RefusedRow("a tool call has no name")
    arguments = function.get("arguments")
    if isinstance(arguments, str) and isinstance(parsed(arguments), dict):
        function = {**function, "arguments": parsed(arguments)}
    rest = {key: value for key, value in call.items() if key not in ("function", *function)}
    return {"type": "function", **rest, "function": function}


def with_system(messages: list[Message], system_prompt: str | None) -> list[Message]:
    """Return the messages, with the system message before them if they have none."""
    if system_prompt is None or messages[0]["role"] in SYSTEM_ROLES:
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    arguments: dict[str, Any] | None = None,
) -> str:
    """Render the text up to the point where the assistant's completion begins.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: the conversation before the completion.
        arguments: what the template receives in addition: `tools` and others.

    Raises:
        ModelError: there is no chat template.
        RefusedRow: the last turn is the assistant's, or the template refuses the messages.
    """
    if messages[-1]["role"] == "assistant":
        raise RefusedRow("the prompt ends with an assistant turn")
    return render_messages(tokenizer, messages, arguments, add_generation_prompt=True)


def render_completion(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    prompt: str,
    completion: str | Message,
    arguments: dict[str, Any] | None = None,
) -> str:
    """Render the text that follows the rendered prompt if the assistant says `completion`.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: the conversation before the completion.
        prompt: the text that `render_prompt` made from `messages`.
        completion: the assistant's words, or its message.
        arguments: the same arguments as for `render_prompt`.

    Raises:
        ModelError: the template is not prefix-stable.
        RefusedRow: the template refuses the messages, or it is not prefix-stable for them alone.
    """
    turn = assistant_turn(completion)
    whole = render_messages(tokenizer, [*messages, turn], arguments)
    if not whole.startswith(prompt):
        check_template(tokenizer)
        raise RefusedRow("with its completion, the chat template renders the prompt otherwise")
    return whole[len(prompt) :]


def assistant_turn(completion: str | Message) -> Message:
    """Convert a completion to a message."""
    if isinstance(completion, str):
        return {"role": "assistant", "content": completion}
    return completion


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Try the chat template on an invented conversation.

    Raises:
        ModelError: there is no template, it fails, or it is not prefix-stable.
    """
    messages = [{"role": "user", "content": "Which of the two?"}]
    try:
        prompt = render_prompt(tokenizer, messages)
        whole = render_messages(tokenizer, [*messages, assistant_turn("The first.")])
        without = render_messages(tokenizer, messages)
    except RefusedRow as error:
        raise ModelError(
            f"the chat template fails on a single user message: {error}",
            "a chat template renders a conversation of one user message",
            "set model.chat_template to a template that does",
        ) from error
    if not whole.startswith(prompt):
        raise ModelError(
            "the chat template is not prefix-stable: with the assistant's turn, the text differs "
            f"from the generation prompt {prompt[len(without) :]!r} or before it",
            "template(messages + completion) begins with template(messages, generation prompt)",
            "set model.chat_template to a template that renders both alike",
        )


def render_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    arguments: dict[str, Any] | None = None,
    *,
    add_generation_prompt: bool = False,
) -> str:
    """Render messages with the chat template.

    A message that contains only tool calls has no content. Most templates expect empty content, and
    some expect null. If empty content loses the calls, null is tried.

    Raises:
        ModelError: there is no chat template, or it is not Jinja.
        RefusedRow: the template refuses the messages.
    """
    options = {**(arguments or {}), "add_generation_prompt": add_generation_prompt}
    filled = [m if m["content"] is not None else {**m, "content": ""} for m in messages]
    text = _render(tokenizer, filled, options)
    without_content = [m for m in messages if m["content"] is None]
    if _shows_calls(text, without_content):
        return text
    other = _render(tokenizer, messages, options)
    return other if _shows_calls(other, without_content) else text


def _shows_calls(text: str, messages: list[Message]) -> bool:
    names = (call["function"]["name"] for message in messages for call in message["tool_calls"])
    return all(name in text for name in names)


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], options: dict[str, Any]
) -> str:
    import jinja2

    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template",
            "conversations are rendered with the model's chat template",
            "set model.chat_template to a file with a Jinja template, or give plain text",
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"the chat template is not Jinja: line {error.lineno}: {error.message}",
            "a chat template is a Jinja template",
            "fix it, or set model.chat_template to another",
        ) from error
    except jinja2.TemplateError as error:
        raise RefusedRow(f"the chat template refuses it: {error}") from error
    except Exception as error:  # a template can raise any Python error
        raise RefusedRow(
            f"the chat template fails on it: {type(error).__name__}: {error}"
        ) from error
