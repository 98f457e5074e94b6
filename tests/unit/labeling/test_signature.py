"""The names in a reward function's signature decide its arguments; raydpo refuses others."""

from __future__ import annotations

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


def test_parameters_that_keep_their_defaults_are_told() -> None:
    def answer(completions, ground_truth=None, *, scale=1.0):
        return []

    assert str(reward_call(answer, "m:f")) == (
        "(completions=...), which keeps its defaults of ground_truth, scale"
    )


async def coroutine(prompts, completions):
    return []


async def stream(prompts, completions):
    yield 0.0


class AsynchronousScorer:
    async def __call__(self, prompts, completions):
        return []


REFUSED = {
    "columns": (lambda completions, ground_truth: [], "to parameter `ground_truth`"),
    "a required name": (lambda prompts, completions, *, answer: [], "to parameter `answer`"),
    "a column before": (lambda solution, completions, **_: [], "to parameter `solution`"),
    "no completions": (lambda prompts: [], "no parameter takes the completions"),
    "one of two names": (lambda prompts, texts: [], "to parameter `texts`"),
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
    "a method without its object": (Scorer.method, "to parameter `self`"),
    "a coroutine": (coroutine, "coroutine function"),
    "a stream": (stream, "coroutine function"),
    "an asynchronous object": (AsynchronousScorer(), "coroutine function"),
    "a part of a coroutine": (functools.partial(coroutine, scale=1), "coroutine function"),
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
