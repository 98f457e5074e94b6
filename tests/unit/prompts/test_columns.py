"""The report names every column and message key, and says how it is used."""

from __future__ import annotations

import json

from raydpo.prompts.columns import Columns, ColumnUses

USER = {"role": "user", "content": "which?", "weight": 1, "id": 4, "name": "x"}
TOOL = {"role": "tool", "content": "sunny", "tool_call_id": "7"}


def _lines(template: str | None, *rows: Columns) -> list[str]:
    uses = ColumnUses()
    for row in rows:
        uses.add(row)
    return uses.lines(template)


def test_columns_are_used_ignored_or_empty() -> None:
    row = Columns({"prompt": None, "question": "which?", "score": 3, "system": ""})
    assert row.value("the prompt", "prompt", "question") == "which?"
    assert row.text("the system message", "system") is None
    assert _lines(None, row) == [
        "column 'prompt': empty",
        "column 'question': used as the prompt",
        "column 'score': ignored",
        "column 'system': used as the system message",
    ]


def test_a_column_that_some_rows_do_not_need_says_so() -> None:
    both = Columns({"prompt": "a", "question": "b"})
    other = Columns({"prompt": None, "question": "b"})
    for row in (both, other):
        row.value("the prompt", "prompt", "question")
    assert _lines(None, both, other)[1] == (
        "column 'question': used as the prompt, ignored in 1 rows"
    )


def test_message_keys_are_named_of_whatever_form() -> None:
    rows = [Columns({"messages": value}) for value in ([USER, TOOL], json.dumps([USER, TOOL]))]
    for row in rows:
        row.value("the conversation", "messages")
    found = _lines("{{ m.role }} {{ m.content }} {{ m.tool_call_id }}", *rows)
    assert found == [
        "column 'messages': used as the conversation",
        "message key 'role': used as the speaker",
        "message key 'content': used as the words",
        "message key 'weight': used where it says that a turn is not trained, else ignored",
        "message key 'id': ignored",
        "message key 'name': ignored: the chat template does not read it",
        "message key 'tool_call_id': given to the chat template",
    ]
