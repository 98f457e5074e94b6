"""Verifiers compare completions with columns of the data, and guess nothing."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from typing import Any

import pytest

from raydpo.config.job import RewardConfig
from raydpo.labeling.rewards import Refusal
from raydpo.labeling.scorers import scorer_of
from raydpo.labeling.stage import make_judge
from raydpo.labeling.verifiers import exact, json_schema, number, regex
from raydpo.labeling.verifiers.answers import boxed, marked
from raydpo.labeling.verifiers.numbers import last_number

NUMBERS = {
    "1,234": "1234",
    "the answer is 1,234,567.89.": "1234567.89",
    "1,234, which is much": "1234",
    "1{,}234": "1234",
    "1\\,234": "1234",
    "1\u202f234\u202f567": "1234567",
    "x = -5": "-5",
    "\u22127": "-7",
    "- 5": "-5",
    "5-3": "3",
    "x - 5": "5",
    "from 3 to 8": "8",
    ".5": "1/2",
    "3.14.": "3.14",
    "007": "7",
    "1e-3": "0.001",
    "2 \\times 10^{5}": "200000",
    "1.5 \u00d7 10^3": "1500",
    "10^6": "1000000",
    "3/4": "3/4",
    "1 3/4 cups": "7/4",
    "\\frac{3}{4}": "3/4",
    "-\\dfrac{3}{4}": "-3/4",
    "\\frac{-3}{4}": "-3/4",
    "\\frac12": "1/2",
    "2\\frac{1}{3}": "7/3",
    "50%": "1/2",
    "50\\%": "1/2",
    "12.5 percent": "1/8",
    "$1,000": "1000",
    "-$3.50": "-7/2",
    "\\$4": "4",
    "5\\text{ cm}": "5",
    "**42**": "42",
}
NO_NUMBERS = (
    *("", "none", "H2O", "x2", "1,5", "1,2345", "1,000,00", "12/05/2024", "1.2.3", "1/0", "2^10"),
    *("5kg", "9" * 1000, "1e999"),
)


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_are_read_as_they_are_written(text: str) -> None:
    assert last_number(text) == Fraction(NUMBERS[text])


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number_is_not_read_as_one(text: str) -> None:
    assert last_number(text) is None


def test_the_answer_is_in_the_last_box_that_closes_or_behind_the_last_mark() -> None:
    assert boxed(r"\boxed{1} and \boxed{\frac{1}{2}} so \boxed{3") == r"\frac{1}{2}"
    assert boxed(r"\boxed{\{1, 2\}}") == r"\{1, 2\}"
    assert boxed(r"{ } } \fbox{4} }") == "4"
    assert boxed("no box {1}") is None
    assert marked("1 + 1 = 3\n#### 2\nthat is 7") == " 2"
    assert marked(r"#### 2 or \boxed{5}") == "5"
    assert marked("2") is None


def test_a_number_is_right_as_an_exact_fraction_or_within_a_tolerance() -> None:
    assert number(["0.1 + 0.2 = 0.3", "0.30000000000000004"], [0.3, "0.3"]) == [1.0, 0.0]
    assert number([r"\boxed{0.75}, not 4", "0.333"], [r"\frac{3}{4}", "1/3"]) == [1.0, 0.0]
    assert number(["0.333"], ["1/3"], absolute_tolerance=0.001) == [1.0]
    assert number(["101", "102"], [100, 100], relative_tolerance=0.01) == [1.0, 0.0]
    assert number(["-5", "5"], [5, "-5"]) == [0.0, 0.0]
    assert number(["I do not know", "7"], ["7", None]) == [0.0, None]
    assert number(["#### 1,000 (of 3)"], ["40 * 25 = 1000\n#### 3"]) == [1.0], "the last one"


def test_a_percent_sign_is_a_hundredth_or_a_unit() -> None:
    assert number(["50%", "0.5", "50"], ["0.5", "50%", "50%"]) == [1.0, 1.0, 0.0]
    assert number(["50%", "50", "0.5"], ["50", "50%", "50%"], percent="unit") == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "more"),
    [("a lot", {}), ("1", {"absolute_tolerance": -1}), ("1", {"percent": "both"})],
)
def test_an_answer_without_a_number_and_wrong_options_are_refused(answer: str, more: Any) -> None:
    with pytest.raises(ValueError, match=r"no number|tolerance|percent"):
        number(["1"], [answer], **more)


@pytest.mark.parametrize(
    "text",
    ["1," * 50_000, "9" * 50_000 + "x", "1 " * 50_000, "\\boxed{" * 10_000, "\\frac{" * 9999],
)
def test_long_texts_take_linear_time(text: str) -> None:
    begun = time.perf_counter()
    number([text], ["1"])
    assert time.perf_counter() - begun < 5


def test_exact_compares_marked_answers_or_whole_texts_without_outer_space() -> None:
    texts = ["  Paris ", "paris", r"It is \boxed{Paris}.", "It is Paris", "New  \n York"]
    truths = ["Paris", "Paris", "Paris", "Paris", "New York"]
    assert exact(texts, truths) == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert exact(texts, truths, ignore_case=True) == [1.0, 1.0, 1.0, 0.0, 1.0]
    assert exact(["42", "x"], [42, None]) == [1.0, None]


def test_a_pattern_is_searched_or_matches_the_whole_completion() -> None:
    texts = ["Yes, 7", "no", " 12\n"]
    assert regex(texts, r"\d+") == [1.0, 0.0, 1.0]
    assert regex(texts, r"\d+", whole=True) == [0.0, 0.0, 1.0]
    assert regex(texts, ["(?i)^yes", None, "a"]) == [1.0, None, 0.0]
    with pytest.raises(ValueError, match=r"the pattern '\(' is no regular expression"):
        regex(texts, "(")


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
    "additionalProperties": False,
}


def test_json_is_allowed_by_a_schema_or_not() -> None:
    texts = ['{"age": 3}', '{"age": -3}', '{"age": 3', '{"age": NaN}', "[" * 100_000]
    assert json_schema(texts, SCHEMA) == [1.0, 0.0, 0.0, 0.0, 0.0]
    fenced = 'Here:\n```json\n{"age": 3}\n```\nDone.'
    assert json_schema([fenced], SCHEMA) == [1.0]
    assert json_schema([fenced], SCHEMA, fenced=False) == [0.0]
    by_row = [json.dumps(SCHEMA), {"type": "array"}, None]
    assert json_schema(['{"age": 3}', "{}", "{}"], by_row) == [1.0, 0.0, None]


def test_schemas_that_are_not_valid_or_lie_elsewhere_are_refused() -> None:
    with pytest.raises(ValueError, match="the schema is not valid: 'nothing' is not valid"):
        json_schema(["{}"], {"type": "nothing"})
    with pytest.raises(ValueError, match="the schema refers to another document"):
        json_schema(["{}"], {"$ref": "http://127.0.0.1:1/schema.json"})


def test_a_verifier_judges_by_a_column_through_the_configuration() -> None:
    reward = RewardConfig.model_validate(
        {
            "function": "raydpo.labeling.verifiers:number",
            "options": {"absolute_tolerance": 0.01},
            "columns": {"answer": "solution"},
        }
    )
    assert scorer_of(reward).columns() == ("solution",)
    judge = make_judge(reward)
    judged = judge(["p"] * 4, ["3.145", "4", "5", "6"], {"solution": ["3.14", 3, "five", None]})
    right, wrong, refused, absent = judged.values
    assert (right, wrong) == (1.0, 0.0)
    assert isinstance(refused, Refusal)
    assert (
        refused.reason == "the reward function raised ValueError: the answer 'five' has no number"
    )
    assert isinstance(absent, Refusal)
    assert absent.does_not_apply


def test_a_verifier_is_known_by_its_own_package_and_by_no_other_module_of_raydpo() -> None:
    hashes = scorer_of(RewardConfig(function="raydpo.labeling.verifiers:number")).inputs()
    assert "module raydpo.labeling.verifiers.numbers" in hashes
    others = {name for name in hashes if not name.startswith("module raydpo.labeling.verifiers.")}
    assert others == {"source"}
