"""Messages of both namings, and templates that can or cannot be trained on."""

from __future__ import annotations

from typing import Any

import pytest

from raydpo.core.errors import ModelError
from raydpo.prompts.chat import (
    check_template,
    messages_of,
    render_completion,
    render_prompt,
    with_system,
)
from raydpo.prompts.dialogue import Dialogue, completion_of, prompt_of, render
from raydpo.prompts.encode import make_encoder
from raydpo.prompts.rows import RefusedRow
from tests.conftest import make_tokenizer

USER = {"role": "user", "content": "which film?"}
ASSISTANT = {"role": "assistant", "content": "the first"}


def _with_template(template: str | None):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_share_gpt_turns_become_messages() -> None:
    turns = [
        {"from": "system", "value": "be brief"},
        {"from": "human", "value": "which film?"},
        {"from": "gpt", "value": "the first"},
    ]
    system = {"role": "system", "content": "be brief"}
    assert messages_of(turns) == [system, USER, ASSISTANT]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "not a list of messages"),
        ("text", "not a list of messages"),
        ([{"text": "a"}], "not a list of messages"),
        ([{"from": "martian", "value": "a"}], "unknown speaker"),
        ([{"role": "user", "content": None}], "not text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "not text"),
        ([{"role": "assistant", "content": "a", "tool_calls": [{"id": 1}]}], "no name"),
    ],
)
def test_what_is_no_list_of_text_messages_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(RefusedRow, match=reason):
        messages_of(value)


def test_the_system_prompt_stands_before_conversations_that_have_none() -> None:
    system = {"role": "system", "content": "be brief"}
    assert with_system([USER], "be brief") == [system, USER]
    assert with_system([{"role": "system", "content": "own"}, USER], "be brief")[0]["content"] == (
        "own"
    )
    assert with_system([USER], None) == [USER]


def test_prompt_and_completion_of_a_conversation(tokenizer) -> None:
    prompt = render_prompt(tokenizer, [USER])
    assert prompt == "<s>[user] which film?\n[assistant] "
    assert render_completion(tokenizer, [USER], prompt, "the first") == "the first</s>\n"


def test_the_templates_end_becomes_one_eos(tokenizer) -> None:
    """The newline after EOS is dropped; where the template writes no EOS, one is appended."""
    without_eos = _with_template(
        tokenizer.chat_template.replace("{{ eos_token }}", "").replace("{{ '\\n' }}", "")
    )
    encoded = []
    for one in (tokenizer, without_eos):
        encoder = make_encoder(one)
        rendered = render(Dialogue([USER], ("the first",)), one)
        encoded.append(encoder.finished(encoder.continuations(list(rendered.completions))[0]))
    assert encoded[0] == encoded[1]
    assert encoded[0].count(2) == 1


def test_a_missing_template_says_what_to_set() -> None:
    with pytest.raises(ModelError, match="no chat template") as caught:
        render_prompt(_with_template(None), [USER])
    assert "model.chat_template" in caught.value.way_out


@pytest.mark.parametrize(
    "template",
    [
        # the generation prompt opens a thought that the finished turn does not have
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] <think>{% endif %}",
        # the number of messages stands at the start
        "{{ messages | length }} {% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}",
    ],
)
def test_a_template_that_is_not_prefix_stable_is_an_error_that_says_so(template: str) -> None:
    tokenizer = _with_template(template)
    prompt = render_prompt(tokenizer, [USER])
    with pytest.raises(ModelError, match="not prefix-stable") as caught:
        render_completion(tokenizer, [USER], prompt, "the first")
    assert "which film" not in str(caught.value)  # no data in messages
    with pytest.raises(ModelError, match="not prefix-stable"):
        check_template(tokenizer)


def test_a_template_that_refuses_a_conversation_refuses_the_row() -> None:
    tokenizer = _with_template(
        "{% if messages[0].role != 'user' %}{{ raise_exception('must start with user') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(RefusedRow, match="must start with user"):
        render_prompt(tokenizer, [{"role": "system", "content": "x"}, USER])


def test_a_template_that_is_not_jinja_is_an_error() -> None:
    with pytest.raises(ModelError, match="not Jinja"):
        render_prompt(_with_template("{% for m in %}"), [USER])


def test_a_good_template_passes_the_check(tokenizer) -> None:
    check_template(tokenizer)


def test_a_conversation_that_ends_with_the_assistant_is_no_prompt(tokenizer) -> None:
    with pytest.raises(RefusedRow, match="ends with an assistant turn"):
        render_prompt(tokenizer, [USER, ASSISTANT])


@pytest.mark.parametrize("value", ["", " \n", None, 3, ["a"], {"role": "user"}])
def test_what_is_neither_text_nor_messages_is_no_prompt(value: Any) -> None:
    with pytest.raises(RefusedRow, match="prompt"):
        prompt_of(value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("  \n", "empty completion"),
        (None, "not text"),
        ([USER], "not the assistant's"),
        ([ASSISTANT, ASSISTANT], "not text"),
    ],
)
def test_what_is_no_completion_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(RefusedRow, match=reason):
        completion_of(value, [USER])


def test_messages_after_a_plain_prompt_are_refused() -> None:
    with pytest.raises(RefusedRow, match="a plain prompt"):
        completion_of([ASSISTANT], "plain")
