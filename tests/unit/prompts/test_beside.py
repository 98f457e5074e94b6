"""Every reader reads the columns beside a prompt: system, history, tools, other names."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from raydpo.config.job import PreferencesConfig, PromptsConfig, SftConfig
from raydpo.core.run import PartResult
from raydpo.core.tables import EXAMPLES, PREFERENCES, PROMPTS, table_from_rows
from raydpo.prompts.examples import example_parts
from raydpo.prompts.preferences import preference_parts
from raydpo.prompts.sources import SourceRow
from raydpo.prompts.stage import prompt_parts
from tests.conftest import make_tokenizer

USER = {"role": "user", "content": "which?"}
GOOD = {"role": "assistant", "content": "a"}
BAD = {"role": "assistant", "content": "b"}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"city": None}}}]
WITH_TOOLS = (
    "{% if tools %}[tools] {{ tools | tojson }}\n{% endif %}{% for m in messages %}"
    "[{{ m.role }}] {{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)

Make = Callable[..., PartResult]


def _tokenizer(template: str | None) -> Any:
    made = make_tokenizer()
    made.chat_template = template
    return made


def _sources(rows: tuple[dict[str, Any], ...]) -> list[SourceRow]:
    return [SourceRow(index, row, None) for index, row in enumerate(rows)]


def preferences(tokenizer: Any, *rows: dict[str, Any], **section: Any) -> PartResult:
    given = PreferencesConfig(path="unread", **section)
    (part,) = preference_parts(given, _sources(rows), tokenizer, 100)
    table_from_rows(part.rows, PREFERENCES)
    return part


def prompts(tokenizer: Any, *rows: dict[str, Any], **section: Any) -> PartResult:
    given = PromptsConfig(path="unread", **section)
    (part,) = prompt_parts(given, _sources(rows), tokenizer, 100)
    table_from_rows(part.rows, PROMPTS)
    return part


def examples(tokenizer: Any, *rows: dict[str, Any], **section: Any) -> PartResult:
    given = SftConfig(data="unread", **section)
    (part,) = example_parts(given, _sources(rows), tokenizer, 100)
    table_from_rows(part.rows, EXAMPLES)
    return part


def _prompt(part: PartResult, tokenizer: Any) -> str:
    """The rendered prompt of the first row, whatever the table."""
    assert [row["reason"] for row in part.quarantined] == []
    row = part.rows[0]
    ids = row["prompt_ids"] if "prompt_ids" in row else row["token_ids"][: row["prompt_tokens"]]
    return str(tokenizer.decode(ids)).removeprefix("<s>")


READERS = [
    pytest.param(preferences, {"chosen": "a", "rejected": "b"}, id="explicit"),
    pytest.param(preferences, {"completions": ["a", "b"], "ratings": [1, 2]}, id="ranked"),
    pytest.param(
        preferences,
        {"response_0": "b", "response_1": "a", "better_response_id": 1},
        id="better_response_id",
    ),
    pytest.param(prompts, {}, id="prompts"),
    pytest.param(examples, {"completion": "a"}, id="sft"),
    pytest.param(examples, {"output": "a"}, id="sft-output"),
]


@pytest.mark.parametrize(("read", "answers"), READERS)
@pytest.mark.parametrize("name", ["prompt", "question", "query", "instruction"])
def test_a_system_column_is_rendered_by_every_reader(
    tokenizer, read: Make, answers: Any, name: str
) -> None:
    row = {name: "which?", "system": "brief", **answers}
    rendered = "[system] brief\n[user] which?\n[assistant] "
    assert _prompt(read(tokenizer, row), tokenizer) == rendered


@pytest.mark.parametrize(("read", "answers"), READERS)
def test_a_history_comes_before_the_prompt(tokenizer, read: Make, answers: Any) -> None:
    turns = [["one", "two"], ["three", "four"]]
    before = "[user] one\n[assistant] two</s>\n[user] three\n[assistant] four</s>\n"
    for history in (turns, json.dumps(turns)):
        row = {"prompt": "which?", "history": history, **answers}
        rendered = before + "[user] which?\n[assistant] "
        assert _prompt(read(tokenizer, row), tokenizer) == rendered


@pytest.mark.parametrize(("read", "answers"), READERS)
@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS), [json.dumps(TOOLS[0])]])
def test_tools_are_rendered_by_the_template(read: Make, answers: Any, tools: Any) -> None:
    tokenizer = _tokenizer(WITH_TOOLS)
    row = {"prompt": [USER], "tools": tools, **answers}
    text = _prompt(read(tokenizer, row), tokenizer)
    assert text.startswith('[tools] [{"type": "function", "function": {"name": "look"')
    assert "null" not in text  # Parquet's filler of fields that other rows have


@pytest.mark.parametrize(("read", "answers"), READERS)
def test_tools_that_the_template_does_not_render_refuse_the_row(
    tokenizer, read: Make, answers: Any
) -> None:
    part = read(tokenizer, {"prompt": [USER], "tools": TOOLS, **answers})
    assert [row["reason"] for row in part.quarantined] == [
        "the chat template does not render the row's `tools`"
    ]


@pytest.mark.parametrize(("read", "answers"), READERS)
@pytest.mark.parametrize("beside", [{"system": "x"}, {"history": [["a", "b"]]}, {"tools": TOOLS}])
def test_without_a_template_what_stands_beside_plain_text_refuses_the_row(
    read: Make, answers: Any, beside: dict[str, Any]
) -> None:
    (refused,) = read(_tokenizer(None), {"prompt": "which?", **beside, **answers}).quarantined
    assert refused["reason"].endswith("beside plain text: the model has no chat template")


@pytest.mark.parametrize(("read", "answers"), READERS)
def test_empty_columns_leave_plain_text_plain(tokenizer, read: Make, answers: Any) -> None:
    row = {
        "question": "which?",
        "system": "",
        "history": [],
        "tools": None,
        "images": [],
        **answers,
    }
    assert _prompt(read(tokenizer, row), tokenizer) == "which?"


@pytest.mark.parametrize(("read", "answers"), READERS)
def test_an_instruction_and_its_input_are_one_user_message(
    tokenizer, read: Make, answers: Any
) -> None:
    row = {"instruction": "Sum up.", "input": "a film", **answers}
    assert _prompt(read(tokenizer, row), tokenizer) == "[user] Sum up.\na film\n[assistant] "
    plain = _tokenizer(None)
    text = "### Instruction:\nSum up.\n\n### Input:\na film\n\n### Response:\n"
    assert _prompt(read(plain, row), plain) == text


@pytest.mark.parametrize(("read", "answers"), READERS)
def test_pictures_refuse_the_row(tokenizer, read: Make, answers: Any) -> None:
    (refused,) = read(tokenizer, {"prompt": [USER], "images": ["a.png"], **answers}).quarantined
    assert refused["reason"] == "column 'images' has a value, and raydpo trains on text alone"


@pytest.mark.parametrize(("read", "answers"), READERS)
def test_messages_as_json_text_are_messages(tokenizer, read: Make, answers: Any) -> None:
    for text in (json.dumps([USER]), str([USER])):  # JSON, and what pandas writes into CSV
        part = read(tokenizer, {"prompt": text, **answers})
        assert _prompt(part, tokenizer) == "[user] which?\n[assistant] "


def test_text_that_begins_like_json_stays_text(tokenizer) -> None:
    for text in ("[1] which?", "[]", '{"role": 3', '["a"]', "[{'role': '\\d'", "{'a': 1}"):
        assert _prompt(prompts(tokenizer, {"prompt": text}), tokenizer) == text


@pytest.mark.parametrize("read", [preferences, prompts])
def test_a_system_prompt_makes_plain_text_a_user_message(tokenizer, read: Make) -> None:
    row = {"prompt": "which?", "chosen": "a", "rejected": "b"}
    part = read(tokenizer, row, system_prompt="brief")
    assert _prompt(part, tokenizer) == "[system] brief\n[user] which?\n[assistant] "


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "which?", "chosen": "a", "rejected": "b"},
        {"chosen": "which? a", "rejected": "which? b"},
        {"chosen": "\n\nHuman: x\n\nAssistant: a", "rejected": "\n\nHuman: x\n\nAssistant: b"},
    ],
)
def test_a_system_prompt_that_cannot_be_used_refuses_the_row(tokenizer, row: Any) -> None:
    given = _tokenizer(None) if "prompt" in row else tokenizer
    (refused,) = preferences(given, row, system_prompt="brief").quarantined
    assert refused["reason"].startswith("`system_prompt` is set, and the prompt is plain text")


def test_a_conversations_own_system_message_is_not_replaced(tokenizer) -> None:
    system = {"role": "system", "content": "brief"}
    row = {"prompt": [system, USER], "chosen": "a", "rejected": "b", "history": [["x", "y"]]}
    text = _prompt(preferences(tokenizer, row), tokenizer)
    assert text.startswith("[system] brief\n[user] x\n[assistant] y</s>\n[user] which?")
    (refused,) = preferences(tokenizer, {**row, "system": "other"}).quarantined
    assert "another one in the conversation" in refused["reason"]


def test_prompts_that_differ_beside_their_words_are_other_prompts(tokenizer) -> None:
    row = {"prompt": "which?", "chosen": "a", "rejected": "b"}
    given = preferences(tokenizer, {**row, "system": "x"}, {**row, "system": "y"})
    assert len({r["prompt_id"] for r in given.rows}) == 2
    asked = prompts(tokenizer, {**row, "system": "x"}, {**row, "system": "y"}).rows
    assert asked[0]["prompt_id"] != asked[1]["prompt_id"].removesuffix("-2")


def test_arguments_of_the_template_are_given_to_it() -> None:
    tokenizer = _tokenizer("{% if short %}[short]{% endif %}" + WITH_TOOLS)
    row = {"prompt": [USER], "chat_template_kwargs": {"short": True}}
    assert _prompt(prompts(tokenizer, row), tokenizer).startswith("[short][user]")
    (refused,) = prompts(tokenizer, {**row, "chat_template_kwargs": {"tokenize": True}}).quarantined
    assert "chat_template_kwargs" in refused["reason"]


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"system": 3}, "column 'system' or 'system_prompt' is not text"),
        ({"history": "no"}, "column 'history' is not JSON"),
        ({"history": [["a"]]}, "the history is no list of questions and answers"),
        ({"tools": "{"}, "column 'tools' is not JSON"),
        ({"tools": [3]}, "column 'tools' is no list of objects"),
    ],
)
def test_what_cannot_be_read_refuses_the_row(tokenizer, beside: Any, reason: str) -> None:
    (refused,) = prompts(tokenizer, {"prompt": [USER], **beside}).quarantined
    assert refused["reason"] == reason


@pytest.mark.parametrize("better", [2, True, "x", -1])
def test_the_better_response_has_a_number(tokenizer, better: Any) -> None:
    row = {"prompt": "which?", "response_0": " a", "response_1": " b"}
    (refused,) = preferences(tokenizer, {**row, "better_response_id": better}).quarantined
    assert refused["reason"] == "column 'better_response_id' is neither 0 nor 1"
    (made,) = preferences(tokenizer, {**row, "better_response_id": "0"}).rows
    assert made["completion_texts"] == [" a", " b"]


@pytest.mark.parametrize(
    ("read", "row"),
    [
        (prompts, {"conversations": [{"from": "human", "value": "which?"}]}),
        (prompts, {"messages": [USER]}),
        (preferences, {"question": "which?", "label": True, "output": "a"}),
        (preferences, {"messages": [USER], "chosen": GOOD, "rejected": BAD}),
        (preferences, {"conversation": [USER], "chosen": GOOD, "rejected": BAD}),
        (preferences, {"conversation": [USER, GOOD], "label": "no"}),
        (examples, {"query": "which?", "answer": "a", "system": " "}),
        (examples, {"question": "which?", "response": "a"}),
        (examples, {"conversation": [USER, GOOD]}),
        (examples, {"instruction": "which?", "context": "these", "response": "a"}),
    ],
)
def test_other_names_of_the_columns_are_read(tokenizer, read: Make, row: dict[str, Any]) -> None:
    other = {**row, "system": "brief"}  # KTO wants a completion of another prompt
    part = read(tokenizer, row, other)
    assert [refused["reason"] for refused in part.quarantined] == []
    assert len(part.rows) == 2
