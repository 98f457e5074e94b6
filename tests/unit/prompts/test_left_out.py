"""raydpo refuses a row if the template would drop content; it keeps tools, calls and thoughts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.prompts.test_beside import BAD, GOOD, USER, WITH_TOOLS, _tokenizer, examples
from tests.unit.prompts.test_beside import preferences as read
from tests.unit.prompts.test_beside import prompts as read_prompts

SYSTEM = {"role": "system", "content": "brief"}
CALL = {"function": {"name": "look", "arguments": '{"city": "Rome"}'}}
ASKS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "sunny", "tool_call_id": "1"}
THINKING = (
    "{% for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' %}"
    "{% if loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}{% endif %}"
    "{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
STRIPS_THOUGHTS = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content.split('</think>')[-1] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}[{{ m.role }}] "
    "{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
NULL_CALLS = WITH_TOOLS.replace("{% if m.tool_calls %}", "{% if m.content is none %}").replace(
    "{{ m.content }}", "{{ m.content or '' }}"
)


def _pair(**changes: Any) -> dict[str, Any]:
    return {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], **changes}


def _reasons(template: str, row: dict[str, Any], **section: Any) -> list[str]:
    return [r["reason"] for r in read(_tokenizer(template), row, **section).quarantined]


@pytest.mark.parametrize(
    ("template", "row", "left_out"),
    [
        (NO_SYSTEM, _pair(prompt=[SYSTEM, USER]), "leaves out the system message"),
        (NO_SYSTEM, _pair(system="brief"), "leaves out the system message"),
        (NO_SYSTEM, _pair(prompt=[USER, ASKS, RESULT]), "leaves out the `tool_calls` of a message"),
        (NO_SYSTEM, _pair(prompt=[USER, GOOD, RESULT]), "leaves out a message of role 'tool'"),
        (NO_SYSTEM, _pair(chosen=[ASKS]), "does not render the completion's `tool_calls`"),
        (
            NO_SYSTEM,
            _pair(chosen=[{**GOOD, "reasoning_content": "deep"}]),
            "does not render the completion's `reasoning_content`",
        ),
        (
            STRIPS_THOUGHTS,
            _pair(chosen="<think>deep</think>good"),
            "leaves out 'deep' of the completion",
        ),
    ],
)
def test_what_would_vanish_refuses_the_row(template: str, row: Any, left_out: str) -> None:
    assert _reasons(template, row) == [f"the chat template {left_out}"]


def test_a_system_prompt_that_the_template_leaves_out_refuses_the_row() -> None:
    assert _reasons(NO_SYSTEM, _pair(), system_prompt="brief") == [
        "the chat template leaves out the system message"
    ]
    row = {"prompt": "which?"}
    (refused,) = read_prompts(_tokenizer(NO_SYSTEM), row, system_prompt="brief").quarantined
    assert refused["reason"] == "the chat template leaves out the system message"


def test_reasoning_is_trained_as_the_template_has_it() -> None:
    tokenizer = _tokenizer(THINKING)
    thought = {**GOOD, "reasoning_content": "deep"}
    (row,) = read(tokenizer, _pair(chosen=[thought])).rows
    assert tokenizer.decode(row["completions"][0]) == "<think>deep</think>a</s>"
    (made,) = examples(tokenizer, {"messages": [USER, thought, USER, thought]}).rows
    text = tokenizer.decode(made["token_ids"])  # the first thought is of an earlier turn
    assert text.count("deep") == 1


@pytest.mark.parametrize("template", [WITH_TOOLS, NULL_CALLS])
def test_tool_calls_and_results_are_rendered_and_only_the_assistant_is_trained(
    template: str,
) -> None:
    tokenizer = _tokenizer(template)
    turns = {"messages": [USER, ASKS, RESULT, GOOD]}
    rows = examples(tokenizer, turns, loss_on="assistant").rows
    trained = [tokenizer.decode(row["token_ids"][row["prompt_tokens"] :]) for row in rows]
    assert trained[0].endswith('"arguments": {"city": "Rome"}}}]</s>')
    assert trained[1] == "a</s>"
    before = tokenizer.decode(rows[1]["token_ids"][: rows[1]["prompt_tokens"]])
    assert "look" in before
    assert "[tool] sunny" in before


@pytest.mark.parametrize("mark", [{"train": False}, {"weight": 0}])
def test_a_turn_that_is_marked_so_is_not_trained(tokenizer, mark: dict[str, Any]) -> None:
    first, last = {**GOOD, **mark}, BAD
    turns = {"messages": [USER, first, USER, last]}
    (row,) = examples(tokenizer, turns, loss_on="assistant").rows
    assert tokenizer.decode(row["token_ids"][row["prompt_tokens"] :]) == "b</s>"
    (refused,) = read(tokenizer, _pair(chosen=[first])).quarantined
    assert "marked as not to be trained" in refused["reason"]


def test_a_call_can_be_chosen_over_another() -> None:
    tokenizer = _tokenizer(WITH_TOOLS)
    other = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "wait"}}]}
    (row,) = read(tokenizer, _pair(chosen=[ASKS], rejected=[other])).rows
    assert ["look" in text for text in row["completion_texts"]] == [True, False]
    assert ["wait" in text for text in row["completion_texts"]] == [False, True]


def test_share_gpt_calls_and_observations_are_tool_turns() -> None:
    tokenizer = _tokenizer(WITH_TOOLS)
    turns = [
        {"from": "human", "value": "which?"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"city": "Rome"}}'},
        {"from": "observation", "value": "sunny"},
        {"from": "gpt", "value": "a"},
    ]
    ours = {"messages": [USER, ASKS, RESULT, GOOD]}
    given, made = (examples(tokenizer, row).rows[0] for row in ({"conversations": turns}, ours))
    assert given["token_ids"] == made["token_ids"]


def test_a_template_that_fails_with_any_error_refuses_the_row() -> None:
    template = "{{ messages[0].content + 1 }}"
    (reason,) = _reasons(template, _pair())
    assert reason.startswith("the chat template fails on it: TypeError")


def test_a_row_for_which_the_template_is_not_prefix_stable_costs_that_row_alone(tokenizer) -> None:
    template = tokenizer.chat_template.replace(
        "{{ bos_token }}", "{% if 'x' in messages[-1].content %}odd {% endif %}"
    )
    part = read(_tokenizer(template), _pair(chosen="x"), _pair())
    assert (len(part.rows), len(part.quarantined)) == (1, 1)
    assert "renders the prompt otherwise" in part.quarantined[0]["reason"]
