"""Each layout of preference data gives the same groups; raydpo refuses unusable rows."""

from __future__ import annotations

from typing import Any

import pytest

from raydpo.prompts.columns import Columns
from raydpo.prompts.layouts import detect, judged
from raydpo.prompts.rows import RefusedRow

USER = {"role": "user", "content": "which?"}
GOOD = {"role": "assistant", "content": "the first"}
BAD = {"role": "assistant", "content": "none"}

EXPLICIT = {"prompt": "which?", "chosen": " the first", "rejected": " none"}
CHAT = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
IMPLICIT = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
TEXTS = {"chosen": "which? the first", "rejected": "which? none"}
TRANSCRIPT = {
    "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: which?\n\nAssistant: the first",
    "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: which?\n\nAssistant: none",
}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "which?"}],
    "chosen": {"from": "gpt", "value": "the first"},
    "rejected": {"from": "gpt", "value": "none"},
}
RANKED = {"prompt": "which?", "completions": [" a", " b", " c"], "ratings": [1, 3.5, 2]}


@pytest.mark.parametrize(
    ("row", "layout"),
    [
        (EXPLICIT, "explicit"),
        (CHAT, "explicit"),
        (IMPLICIT, "implicit"),
        ({**IMPLICIT, "prompt": "which?"}, "implicit"),
        (TEXTS, "implicit"),
        (TRANSCRIPT, "transcript"),
        (SHAREGPT, "sharegpt"),
        (RANKED, "ranked"),
        ({"prompt": "a", "completions": [], "scores": []}, "ranked"),
        ({"prompt": "a", "chosen": "b"}, None),
        ({"text": "a"}, None),
    ],
)
def test_layouts_are_found_by_columns_and_values(row: Any, layout: str | None) -> None:
    assert detect(row) == layout


@pytest.mark.parametrize(
    ("row", "layout", "prompt", "completions"),
    [
        (EXPLICIT, "explicit", "which?", (" the first", " none")),
        (CHAT, "explicit", [USER], ("the first", "none")),
        (
            {**CHAT, "chosen": "the first", "rejected": BAD},
            "explicit",
            [USER],
            ("the first", "none"),
        ),
        (IMPLICIT, "implicit", [USER], ("the first", "none")),
        (TEXTS, "implicit", "which?", (" the first", " none")),
        (SHAREGPT, "sharegpt", [USER], ("the first", "none")),
        (
            TRANSCRIPT,
            "transcript",
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: which?\n\nAssistant:",
            (" the first", " none"),
        ),
        (RANKED, "ranked", "which?", (" a", " b", " c")),
    ],
)
def test_a_row_becomes_a_prompt_and_its_completions(
    row: Any, layout: str, prompt: Any, completions: tuple[str, ...]
) -> None:
    group = judged(Columns(row), layout)
    assert group.dialogue.prompt == prompt
    assert group.dialogue.completions == completions
    assert group.ratings == ((1.0, 3.5, 2.0) if layout == "ranked" else None)


@pytest.mark.parametrize(
    ("layout", "row", "reason"),
    [
        ("explicit", {**EXPLICIT, "rejected": " the first"}, "chosen equals rejected"),
        ("explicit", {**EXPLICIT, "rejected": "  "}, "empty completion"),
        ("explicit", {**EXPLICIT, "rejected": None}, "no value in column 'rejected'"),
        ("explicit", {**EXPLICIT, "prompt": ""}, "empty prompt"),
        ("explicit", {**EXPLICIT, "chosen": 3}, "the completion is not text"),
        ("implicit", {**IMPLICIT, "rejected": [USER, GOOD]}, "chosen equals rejected"),
        (
            "implicit",
            {**IMPLICIT, "rejected": [GOOD, BAD]},
            "prompts of chosen and rejected differ",
        ),
        ("implicit", {"chosen": [GOOD], "rejected": [BAD]}, "share no prompt"),
        ("implicit", {"chosen": "first", "rejected": "none"}, "share no prompt"),
        ("implicit", {"chosen": "the first", "rejected": "the"}, "share no prompt"),
        ("transcript", {**TRANSCRIPT, "rejected": "\n\nHuman: a\n\nAssistant: x"}, "differ"),
        ("transcript", {**TRANSCRIPT, "rejected": "none"}, "no Assistant turn"),
        (
            "transcript",
            {key: value + "\n\nHuman: and?" for key, value in TRANSCRIPT.items()},
            "ends with a Human turn",
        ),
        (
            "transcript",
            {**TRANSCRIPT, "rejected": TRANSCRIPT["rejected"].replace(" none", "")},
            "empty completion",
        ),
        ("sharegpt", {**SHAREGPT, "rejected": {"from": "human", "value": "x"}}, "not the assist"),
        ("sharegpt", {**SHAREGPT, "conversations": []}, "not a list of messages"),
        ("ranked", {**RANKED, "ratings": [1, 2]}, "not equally many"),
        ("ranked", {**RANKED, "ratings": [1, 2, float("nan")]}, "not a finite number"),
        ("ranked", {**RANKED, "ratings": [1, 2, "3"]}, "not a finite number"),
        ("ranked", {**RANKED, "completions": [" a"], "ratings": [1]}, "fewer than two"),
        ("ranked", {**RANKED, "completions": [" a", "", " c"]}, "empty completion"),
        ("ranked", {**RANKED, "completions": "abc"}, "not a list"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(layout: str, row: Any, reason: str) -> None:
    with pytest.raises(RefusedRow, match=reason):
        judged(Columns(row), layout)
