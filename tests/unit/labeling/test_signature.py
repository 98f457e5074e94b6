"""The names in a reward function's signature decide its arguments; raydpo refuses others."""

from __future__ import annotations

import asyncio
import functools
import os
from typing import Any

import pytest

from raydpo.core.errors import ConfigError
from raydpo.labeling.rewards import judge_with_function, resolve_function
from raydpo.labeling.signature import reward_call

PROMPTS, COMPLETIONS = ["p", "pp"], ["c", "ccc"]
#: Called rightly, each returns the lengths of prompts and of completions, in this order.
BOTH = [(1, 1), (2, 3)]


def lengths(prompts: list[str], completions: list[str]) -> list[tuple[int, int]]:
    return [(len(p), len(c)) for p, c in zip(prompts, completions, strict=True)]


def other_order(completions, prompts):
    return lengths(prompts, completions)


def other_order_with_more(completions, prompts, **rest):
    assert not rest
    return lengths(prompts, completions)


def from_trl(prompts, completions, ground_truth, **kwargs):
    """As TRL documents it: a column by its name, and whatever else there is."""
    assert ground_truth == ["gt", "gt2"]
    assert kwargs.keys() == {"completion_ids", "source"}
    return lengths(prompts, completions)


def anything(**data):
    return lengths(**data)


def by_position(p, c):
    return lengths(p, c)


def by_words(user_queries, responses, temperature=1.0):
    assert temperature == 1.0
    return lengths(user_queries, responses)


def only_positional(completions, prompts, /):
    return lengths(prompts, completions)


def only_named(*, completions, prompts, strict=False):
    assert not strict
    return lengths(prompts, completions)


def wrapped(*arguments, **named):
    return other_order(*arguments, **named)


class Scorer:
    def __call__(self, completions, prompts):
        return lengths(prompts, completions)

    def method(self, completions, prompts):
        return lengths(prompts, completions)


CALLED = [
    lengths,
    other_order,
    other_order_with_more,
    anything,
    by_position,
    by_words,
    only_positional,
    only_named,
    wrapped,
    Scorer(),
    Scorer().method,
    functools.partial(lambda scale, completions, prompts: lengths(prompts, completions), 2),
]


@pytest.mark.parametrize("function", CALLED)
def test_prompts_and_completions_arrive_under_their_names(function: Any) -> None:
    assert reward_call(function, "m:f")(PROMPTS, COMPLETIONS) == BOTH


def test_completions_alone_are_enough() -> None:
    call = reward_call(lambda completions, **rest: [len(c) for c in completions], "m:f")
    assert call(PROMPTS, COMPLETIONS) == [1, 3]
    assert reward_call(lambda completions: list(completions), "m:f")(PROMPTS, COMPLETIONS) == [
        *COMPLETIONS
    ]


MORE = {"ground_truth": ["gt", "gt2"], "source": ["a", "b"], "completion_ids": [[1], [1, 2]]}


def by_answer_alone(completions, /, ground_truth):
    return list(zip(completions, ground_truth, strict=True))


def before(ground_truth, completions, **_):
    return list(zip(completions, ground_truth, strict=True))


def all_in_one(ground_truth, **rest):
    return list(zip(rest["completions"], ground_truth, strict=True))


def with_default(completions, ground_truth=(), scale=1.0):
    assert scale == 1.0
    return list(zip(completions, ground_truth, strict=True))


@pytest.mark.parametrize("function", [by_answer_alone, before, all_in_one, with_default])
def test_a_column_arrives_under_its_name(function: Any) -> None:
    call = reward_call(function, "m:f")
    assert call(PROMPTS, COMPLETIONS, MORE) == [("c", "gt"), ("ccc", "gt2")]
    assert call.columns == (() if function is with_default else ("ground_truth",))


def test_a_function_in_trls_style_runs_unchanged() -> None:
    assert reward_call(from_trl, "m:f")(PROMPTS, COMPLETIONS, MORE) == BOTH


def test_what_raydpo_knows_of_a_completion_is_no_column_of_the_data() -> None:
    def tokens(completions, completion_ids, finish_reasons, messages):
        return [completion_ids, finish_reasons, messages]

    call = reward_call(tokens, "m:f")
    assert call.columns == ()
    more = {
        "completion_ids": [[1], [2]],
        "finish_reasons": ["stop", "length"],
        "messages": [[], []],
    }
    assert call(PROMPTS, COMPLETIONS, more) == list(more.values())


def test_a_column_that_a_part_of_the_data_lacks_is_none_for_each_row() -> None:
    call = reward_call(before, "m:f")
    assert call(PROMPTS, COMPLETIONS) == [("c", None), ("ccc", None)]


def test_the_call_is_told_in_words() -> None:
    def answer(completions, truth, ground_truth=None, *, scale=1.0):
        return []

    assert str(reward_call(answer, "m:f")) == (
        "(completions=..., truth=...), and ground_truth, scale from columns of these names, if "
        "there are any"
    )
    assert str(reward_call(from_trl, "m:f")) == (
        "(prompts=..., completions=..., ground_truth=..., **columns)"
    )


def test_a_coroutine_is_awaited() -> None:
    judged = judge_with_function(coroutine, "m:f", PROMPTS, COMPLETIONS)
    assert judged.values == [1.0, 3.0]
    judged = judge_with_function(AsynchronousScorer(), "m:f", PROMPTS, COMPLETIONS)
    assert judged.values == [0.0, 0.0]


async def coroutine(prompts, completions):
    async def length(text):
        await asyncio.sleep(0)
        return len(text)

    return await asyncio.gather(*map(length, completions))


async def stream(prompts, completions):
    yield 0.0


class AsynchronousScorer:
    async def __call__(self, prompts, completions):
        return [0.0 for _ in completions]


REFUSED = {
    "no completions": (lambda prompts: [], "no parameter takes the completions"),
    "one of two names": (lambda prompts, texts: [], "no parameter takes the completions"),
    "exchanged": (lambda completion, prompt: [], "`completion` would be given the prompts"),
    "exchanged letters": (lambda c, p: [], "`c` would be given the prompts"),
    "an answer": (lambda response, ground_truth: [], "`response` would be given the prompts"),
    "references": (lambda predictions, references: [], "`predictions` would be given"),
    "texts and answers": (lambda texts, answers: [], "`texts` would be given the prompts"),
    "a shell": (os.system, "it has `command`"),
    "a length": (len, "it has `obj`"),
    "a rename": (os.rename, "`src` would be given the prompts"),
    "three of them": (lambda a, b, c: [], "it has `a`, `b`, `c`"),
    "nothing": (lambda: [], "no parameter that is required"),
    "only stars": (lambda *texts: [], "no parameter that is required"),
    "no signature": (max, "without a readable signature"),
    "a class": (Scorer, "is a class"),
    "a stream": (stream, "asynchronous generator"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_by_name_with_the_owed_signature(name: str) -> None:
    function, said = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        judge_with_function(function, "m:f", PROMPTS, COMPLETIONS)
    assert said in caught.value.value
    assert "def reward(prompts, completions, **kwargs)" in caught.value.rule


@pytest.mark.parametrize("path", ["os:system", "builtins:len", "builtins:max"])
def test_functions_of_python_itself_are_refused_before_they_are_called(path: str) -> None:
    with pytest.raises(ConfigError, match="of Python's own library"):
        resolve_function(path)


def test_options_are_passed_by_name_and_are_no_columns() -> None:
    def rule(completions, answer, tolerance=0.0, *, strict):
        return [(answer, tolerance, strict)] * len(completions)

    call = reward_call(rule, "m:f", {"tolerance": 0.5, "strict": True})
    assert call.columns == ("answer",)
    assert call.defaults == ()
    columns = {"answer": ["1", "2"], "tolerance": [7, 7], "strict": [7, 7]}
    assert call(PROMPTS, COMPLETIONS, columns) == [(["1", "2"], 0.5, True)] * 2
    assert str(call) == "(completions=..., answer=..., tolerance=..., strict=...)"


def test_options_that_a_function_does_not_take_or_that_raydpo_passes_are_refused() -> None:
    def rule(completions, tolerance=0.0):
        return [tolerance] * len(completions)

    with pytest.raises(ConfigError, match="it takes no option `tolerence`") as caught:
        reward_call(rule, "m:f", {"tolerence": 0.5})
    assert "its further parameters are: tolerance" in caught.value.way_out
    with pytest.raises(ConfigError, match="raydpo itself passes `completions`"):
        reward_call(rule, "m:f", {"completions": []})
    taking_all = reward_call(lambda completions, **rest: [rest["x"]], "m:f", {"x": 3})
    assert taking_all(["p"], ["c"], {"x": [1]}) == [3]
