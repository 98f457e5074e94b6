"""Unpaired data: single completions with a judgement, each with a completion of another prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import ModelConfig, PreferencesConfig
from raydpo.core.run import PartResult
from raydpo.core.tables import PREFERENCES, table_from_rows
from raydpo.models.loading import load_tokenizer
from raydpo.prompts.columns import Columns
from raydpo.prompts.encode import Encoder
from raydpo.prompts.layouts import detect, judged
from raydpo.prompts.preferences import NO_OTHER_PROMPT, preference_parts
from raydpo.prompts.rows import RefusedRow
from raydpo.prompts.sources import SourceRow, source_rows
from tests.unit.prompts.test_real_prompts import TEMPLATE

USER = {"role": "user", "content": "which?"}
GOOD = {"role": "assistant", "content": "the first"}
PLAIN = {"prompt": "the film was", "completion": " good", "label": True}


def parts(tokenizer: Any, rows: list[dict[str, Any]], size: int = 100) -> list[PartResult]:
    given = [SourceRow(i, row, None) for i, row in enumerate(rows)]
    return list(preference_parts(PreferencesConfig(path="unread"), given, tokenizer, size))


def row_of(number: int, prompt: int | None = None) -> dict[str, Any]:
    prompt = number if prompt is None else prompt
    label = number % 3 == 0
    return {"prompt": f"the film {prompt} was", "completion": f" good {number}", "label": label}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (PLAIN, "the film was"),
        ({"prompt": [USER], "completion": [GOOD], "label": 1}, [USER]),
        ({"messages": [USER, GOOD], "label": True}, [USER]),
    ],
)
def test_unpaired_rows_are_found_and_read(row: Any, prompt: Any) -> None:
    assert detect(row) == "unpaired"
    group = judged(Columns(row), "unpaired")
    assert group.dialogue.prompt == prompt
    assert (len(group.dialogue.completions), group.desirable, group.ratings) == (1, True, None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"label": "good"}, "neither true nor false"),
        ({"label": None}, "no value in column 'label'"),
        ({"completion": " "}, "empty completion"),
        ({"completion": None, "messages": [GOOD]}, "one message"),
    ],
)
def test_rows_without_a_judgement_or_completion_are_refused(changes: Any, reason: str) -> None:
    with pytest.raises(RefusedRow, match=reason):
        judged(Columns({**PLAIN, **changes}), "unpaired")


@pytest.mark.parametrize(
    ("label", "desirable"),
    [
        (True, True),
        (0, False),
        (1.0, True),
        ("true", True),
        ("FALSE", False),
        (" Yes ", True),
        ("no", False),
        ("1", True),
        ("0", False),
        ("0.0", False),
        ("undesirable", False),
    ],
)
def test_a_label_may_be_a_word_that_says_it(label: Any, desirable: bool) -> None:
    assert judged(Columns({**PLAIN, "label": label}), "unpaired").desirable is desirable


@pytest.mark.parametrize("label", ["maybe", "", "2", "-1", "nan", 2, float("nan"), [1], {}])
def test_a_label_that_says_neither_is_refused(label: Any) -> None:
    with pytest.raises(RefusedRow, match="the label is neither true nor false"):
        judged(Columns({**PLAIN, "label": label}), "unpaired")


def test_labels_of_a_csv_file_are_read(tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "judged.csv"
    file.write_text(
        "prompt,completion,label\na, good,true\nb, bad,False\nc, bad,0\nd, so,perhaps\n"
    )
    (part,) = preference_parts(
        PreferencesConfig(path=str(file)), source_rows(str(file)), tokenizer, 16
    )
    assert [row["desirable"][0] for row in part.rows] == [True, False, False]
    assert [row["id"] for row in part.quarantined] == ["row-3"]


def test_each_row_gets_the_completion_of_the_next_row(tokenizer, encoder: Encoder) -> None:
    (part,) = parts(tokenizer, [row_of(n) for n in range(4)])
    table_from_rows(part.rows, PREFERENCES)
    for number, row in enumerate(part.rows):
        other = part.rows[(number + 1) % 4]
        assert row["completions"] == [row["completions"][0], other["completions"][0]]
        assert row["completion_texts"][1] == other["completion_texts"][0]
        assert row["desirable"] == [number % 3 == 0, None]
        assert (row["pairs"], row["ranking"], row["rewards"]) == ([], None, None)
    assert part.counts == {"input": 4, "desirable": 2, "undesirable": 2}


def test_a_mismatched_completion_is_of_another_prompt(tokenizer) -> None:
    rows = [row_of(0, prompt=7), row_of(1, prompt=7), row_of(2), row_of(3, prompt=7)]
    (part,) = parts(tokenizer, rows)
    mismatched = [row["completion_texts"][1] for row in part.rows]
    assert mismatched == [" good 2", " good 2", " good 3", " good 2"]


def test_a_part_of_one_prompt_takes_a_completion_of_an_earlier_part(tokenizer) -> None:
    first, second = parts(tokenizer, [row_of(0), row_of(1), row_of(2)], size=2)
    assert [row["completion_texts"][1] for row in second.rows] == [" good 1"]
    assert len(first.rows) == 2


def test_a_source_of_one_prompt_is_refused_with_the_reason(tokenizer) -> None:
    (part,) = parts(tokenizer, [row_of(n, prompt=7) for n in range(2)])
    assert part.rows == []
    assert [row["reason"] for row in part.quarantined] == [NO_OTHER_PROMPT] * 2


def test_real_unpaired_conversations_are_all_accounted_for(
    stories260k: Path, shared_data: Path
) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(stories260k), pad_token="<unk>"))
    tokenizer.chat_template = TEMPLATE
    path = str(shared_data / "llamafactory" / "kto_en_demo.json")
    section = PreferencesConfig(
        path=path,
        max_prompt_tokens=16384,
        max_completion_tokens=64,
        too_long_completion="keep_start",
    )
    found = list(preference_parts(section, source_rows(path, "auto", "train"), tokenizer, 128))
    counts = [part.counts for part in found]
    assert sum(c["input"] for c in counts) == 300
    judgements = sum(c["desirable"] + c["undesirable"] for c in counts)
    assert judgements + sum(len(part.quarantined) for part in found) == 300
    assert judgements >= 299
    for part in found:
        for row in part.rows:
            assert row["desirable"][0] in (True, False)
            assert row["desirable"][1] is None
