"""Read what a row contains in addition to its prompt: a system message, earlier turns, tools.

The module adds the contents of these columns to the row's dialogue. They cannot accompany plain
text. If a source has them, its plain prompts become user messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

from raydpo.prompts.chat import (
    SYSTEM_ROLES,
    Message,
    is_conversation,
    messages_of,
    parsed,
    without_nulls,
)
from raydpo.prompts.columns import Columns
from raydpo.prompts.dialogue import Dialogue, prompt_of
from raydpo.prompts.rows import RefusedRow

PROMPT_COLUMNS: Final = ("prompt", "question", "query")
_INPUTS: Final = ("input", "context")
_SYSTEMS: Final = ("system", "system_prompt")
#: Columns that can only be used in a conversation.
CONVERSATION_COLUMNS: Final = (*_SYSTEMS, "history", "tools")
_MEDIA: Final = ("images", "image", "videos", "video", "audios", "audio")
_OWN_ARGUMENTS: Final = {"tools", "conversation", "chat_template", "tokenize", "return_dict"} | {
    "add_generation_prompt",
    "continue_final_message",
    "return_tensors",
}


@dataclass(frozen=True)
class Context:
    """What a row contains in addition to its prompt; empty if there is nothing."""

    system: str | None = None
    history: list[Message] = field(default_factory=list[Message])
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def names(self) -> list[str]:
        """The names of what the row contains, for messages."""
        return [
            *(["a system message"] if self.system else []),
            *(["a history"] if self.history else []),
            *(f"`{name}`" for name in self.arguments),
        ]


def prompt_in(columns: Columns, has_template: bool) -> str | list[Message]:
    """Return the prompt of a row, whichever of its names it has.

    Args:
        columns: the columns of the row.
        has_template: whether the model chats. An instruction is then a user message; otherwise it
            is plain text with headings.

    Raises:
        RefusedRow: there is no prompt, or it cannot be used.
    """
    value = columns.get("the prompt", *PROMPT_COLUMNS)
    if value is not None:
        return prompt_of(value)
    if columns.row.get("instruction") is not None:
        return instruction_in(columns, has_template)
    names = ", ".join(map(repr, PROMPT_COLUMNS))
    raise RefusedRow(f"no value in column {names} or 'instruction'")


def instruction_in(columns: Columns, has_template: bool) -> str | list[Message]:
    """Build the prompt from `instruction` and `input`.

    Raises:
        RefusedRow: they are not text, or there is no instruction.
    """
    instruction = prompt_of(columns.value("the instruction", "instruction"))
    given = columns.text("the input of the instruction", *_INPUTS)
    if not isinstance(instruction, str):
        raise RefusedRow("the instruction is not text")
    if has_template:
        return [{"role": "user", "content": f"{instruction}\n{given}" if given else instruction}]
    middle = f"### Input:\n{given}\n\n" if given else ""
    return f"### Instruction:\n{instruction}\n\n{middle}### Response:\n"


def context_in(columns: Columns) -> Context:
    """Read what a row contains in addition to its prompt.

    Raises:
        RefusedRow: a column cannot be read, or it holds images, video or sound.
    """
    for name in _MEDIA:
        if columns.row.get(name):
            raise RefusedRow(f"column {name!r} has a value, and raydpo trains on text alone")
    arguments = _template_arguments(columns)
    tools = _tools(columns.get("the tools of the chat template", "tools"))
    return Context(
        system=columns.text("the system message", *_SYSTEMS),
        history=_history(columns.get("the turns before the prompt", "history")),
        arguments={**({"tools": tools} if tools else {}), **arguments},
    )


def with_context(dialogue: Dialogue, context: Context, plain_because: str | None) -> Dialogue:
    """Return the dialogue with its context.

    Args:
        dialogue: the dialogue of the row.
        context: the context of the row.
        plain_because: why plain text stays plain; None if it becomes a user message.

    Raises:
        RefusedRow: plain text has a context, or there are two system messages.
    """
    prompt = dialogue.prompt
    if isinstance(prompt, str):
        if plain_because is not None:
            if context.names:
                beside = " and ".join(context.names)
                raise RefusedRow(f"{beside} beside plain text: {plain_because}")
            return dialogue
        prompt = [{"role": "user", "content": prompt}]
    own, rest = (prompt[:1], prompt[1:]) if prompt[0]["role"] in SYSTEM_ROLES else ([], prompt)
    if context.system is not None:
        if own and own[0]["content"] != context.system:
            raise RefusedRow("a system message in its column, and another one in the conversation")
        own = own or [{"role": "system", "content": context.system}]
    messages = [*own, *context.history, *rest]
    return replace(dialogue, prompt=messages, arguments=context.arguments)


def _history(value: Any) -> list[Message]:
    """Read earlier turns: pairs of question and answer, or messages, or JSON text of these."""
    found = _value_of("history", value)
    if not found:
        return []
    if is_conversation(found):
        return messages_of(found)
    turns: list[Message] = []
    for pair in found if isinstance(found, list | tuple) else [found]:
        if not isinstance(pair, list | tuple) or [type(text) for text in pair] != [str, str]:
            raise RefusedRow("the history is no list of questions and answers")
        turns += [
            {"role": "user", "content": pair[0]},
            {"role": "assistant", "content": pair[1]},
        ]
    return turns


def _tools(value: Any) -> list[dict[str, Any]]:
    """Read tools as the chat template takes them: a list of objects, or JSON text of it."""
    found = _value_of("tools", value)
    if not found:
        return []
    tools: Any = found if isinstance(found, list) else [found]
    tools = [_value_of("tools", tool) for tool in tools]
    if not all(isinstance(tool, dict) for tool in tools):
        raise RefusedRow("column 'tools' is no list of objects")
    return [without_nulls(tool) for tool in tools]


def _template_arguments(columns: Columns) -> dict[str, Any]:
    name = "chat_template_kwargs"
    value = columns.get("arguments of the chat template", name)
    found = without_nulls(_value_of(name, value))
    if not found:
        return {}
    if not isinstance(found, dict) or not _OWN_ARGUMENTS.isdisjoint(found):
        raise RefusedRow(f"column {name!r} is no object of arguments of the template's own")
    return found


def _value_of(name: str, value: Any) -> Any:
    """Return a value, or the value that its JSON text contains; blank text counts as missing."""
    if not isinstance(value, str) or not value.strip():
        return None if isinstance(value, str) else value
    found = parsed(value)
    if found is None and value.strip() not in ("null", "None"):
        raise RefusedRow(f"column {name!r} is not JSON")
    return found
