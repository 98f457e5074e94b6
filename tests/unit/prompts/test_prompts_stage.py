"""Prompts: ids, columns, chat, duplicates, and a table in which every row is accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import Config, PromptsConfig
from raydpo.core.errors import ConfigError, DataError, ModelError, QuarantineBudgetError
from raydpo.core.run import PartResult, read_quarantine, read_rows
from raydpo.core.storage import folder_of
from raydpo.pipeline.round import place_in
from raydpo.prompts.encode import Encoder
from raydpo.prompts.sources import SourceRow
from raydpo.prompts.stage import prompt_parts, run_prompts_stage
from tests.conftest import make_tokenizer


def _part(tokenizer, rows: list[Any], **section: Any) -> PartResult:
    given = [
        SourceRow(i, row, None) if isinstance(row, dict) else SourceRow(i, None, row, "raw")
        for i, row in enumerate(rows)
    ]
    prompts = PromptsConfig(path="unread", **section)
    results = list(prompt_parts(prompts, given, tokenizer, 100))
    assert len(results) == 1
    return results[0]


def _reasons(part: PartResult) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in part.quarantined}


def test_plain_text_stays_plain(tokenizer, encoder: Encoder) -> None:
    (row,) = _part(tokenizer, [{"prompt": "the film was"}]).rows
    assert row["prompt"] == "the film was"
    assert encoder.decode(row["prompt_ids"]) == "<s>the film was"
    assert row["messages"] is None


def test_columns_that_nothing_uses_become_metadata(tokenizer) -> None:
    rows = [
        {"prompt": "a", "answer": "42", "level": None, "id": 1, "system": "brief"},
        {"prompt": "b", "answer": None},
        {"messages": [{"role": "user", "content": "hi"}], "tools": [], "answer": ["x"]},
    ]
    part = _part(tokenizer, rows)
    assert [row["metadata"] for row in part.rows] == [
        '{"answer": "42", "id": 1}',
        None,
        '{"answer": ["x"]}',
    ]
    assert part.counts["with_metadata"] == 2


def test_metadata_can_be_chosen_or_left_out(tokenizer) -> None:
    rows = [{"prompt": "a", "answer": "42", "level": 3}]
    assert _part(tokenizer, rows, metadata="none").rows[0]["metadata"] is None
    chosen = _part(tokenizer, rows, metadata=["level", "prompt"])
    assert chosen.rows[0]["metadata"] == '{"level": 3, "prompt": "a"}'
    with pytest.raises(DataError, match="'absent' is none"):
        _part(tokenizer, rows, metadata=["level", "absent"])


def test_plain_text_becomes_a_user_message_when_asked(tokenizer) -> None:
    rows = [{"prompt": "the film was"}]
    (row,) = _part(tokenizer, rows, chat="always", system_prompt="brief").rows
    assert row["prompt"] == "<s>[system] brief\n[user] the film was\n[assistant] "
    assert row["messages"] == [{"role": "user", "content": "the film was"}]
    assert row["prompt_ids"].count(1) == 1


def test_conversations_go_through_the_template(tokenizer) -> None:
    rows = [{"messages": [{"role": "user", "content": "hi"}]}]
    (row,) = _part(tokenizer, rows).rows
    assert row["prompt"] == "<s>[user] hi\n[assistant] "
    assert "`chat` is 'never'" in next(
        iter(_reasons(_part(tokenizer, rows, chat="never")).values())
    )


def test_a_conversation_without_a_template_is_an_error() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        _part(tokenizer, [{"messages": [{"role": "user", "content": "hi"}]}])


def test_equal_prompts_without_ids_are_rows_of_their_own(tokenizer) -> None:
    part = _part(tokenizer, [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}, {"prompt": "a"}])
    ids = [row["prompt_id"] for row in part.rows]
    assert ids[2:] == [f"{ids[0]}-2", f"{ids[0]}-3"]
    assert len(set(ids)) == 4
    assert "a" not in ids


def test_equal_prompts_are_dropped_and_counted_when_asked(tokenizer) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}]
    part = _part(tokenizer, rows, deduplicate=True)
    assert [row["prompt"] for row in part.rows] == ["a", "b"]
    assert part.counts == {"input": 3, "duplicates": 1}


def test_given_ids_are_kept_and_repeats_are_refused(tokenizer) -> None:
    rows = [
        {"id": 7, "prompt": "a"},
        {"id": "x", "prompt": "b"},
        {"id": "7", "prompt": "c"},
        {"id": None, "prompt": "d"},
        {"id": True, "prompt": "e"},
        {"id": "y", "prompt": " "},
    ]
    part = _part(tokenizer, rows, id_column="id")
    assert [row["prompt_id"] for row in part.rows] == ["7", "x"]
    assert _reasons(part) == {
        "row-2": "the id in column 'id' stood before",
        "row-3": "no id in column 'id'",
        "row-4": "the id in column 'id' is neither text nor an integer",
        "y": "empty prompt",
    }


def test_poison_rows_keep_their_text(tokenizer) -> None:
    part = _part(tokenizer, ["not JSON", {"prompt": 3}, {"other": "x"}, {"prompt": "fine"}])
    assert _reasons(part) == {
        "row-0": "not JSON",
        "row-1": "the prompt is neither text nor a list of messages",
        "row-2": "no value in column 'prompt' or 'messages' or 'text'",
    }
    assert [row["row"] for row in part.quarantined] == [
        "raw",
        json.dumps({"prompt": 3}),
        json.dumps({"other": "x"}),
    ]


def test_the_column_is_chosen_or_given(tokenizer) -> None:
    row = {"text": "from text", "question": "from question"}
    assert _part(tokenizer, [row]).rows[0]["prompt"] == "from text"
    assert _part(tokenizer, [row], column="question").rows[0]["prompt"] == "from question"


@pytest.mark.parametrize("section", [{"column": "nothing"}, {}, {"id_column": "nothing"}])
def test_a_wrong_column_is_an_error_that_lists_the_columns(tokenizer, section: Any) -> None:
    row = {"title": "x"} if not section else {"title": "x", "prompt": "y"}
    with pytest.raises(DataError, match="has the columns"):
        _part(tokenizer, [row], **section)


def test_long_prompts_follow_the_policy(tokenizer, encoder: Encoder) -> None:
    rows = [{"prompt": "the film was good and the plot was very slow"}]
    (reason,) = _reasons(_part(tokenizer, rows, max_prompt_tokens=5)).values()
    assert reason == "the prompt is longer than 5 tokens"
    (row,) = _part(tokenizer, rows, max_prompt_tokens=5, too_long="keep_end").rows
    assert len(row["prompt_ids"]) == 5
    assert encoder.decode(row["prompt_ids"]) == "<s>" + row["prompt"]
    assert rows[0]["prompt"].endswith(row["prompt"])


@pytest.fixture
def job(tiny_model: Path, write_jsonl, tmp_path: Path):
    """Run the stage on rows; the table."""

    def run(rows: list[Any], out: str = "out", fraction: float = 0.01, **section: Any):
        prompts = PromptsConfig(path=write_jsonl(rows), **{"max_prompt_tokens": 64, **section})
        config = Config(
            name="x",
            model=str(tiny_model),  # pyright: ignore[reportArgumentType]
            prompts=prompts,
            sampling={"max_completion_tokens": 64},  # pyright: ignore[reportArgumentType]
            rows_per_part=16,
            max_quarantined_fraction=fraction,
        )
        return run_prompts_stage(config, prompts, place_in(config, folder_of(str(tmp_path)), out))

    return run


def test_every_row_is_output_refused_or_a_duplicate(job) -> None:
    rows: list[Any] = [{"prompt": f"film {i % 30}"} for i in range(45)]
    rows[3], rows[20] = b"\xff", b"[]"
    table = job(rows, fraction=0.1, deduplicate=True)
    counts = table.manifest["counts"]
    assert counts == {"input": 45, "duplicates": 14, "output": 29, "quarantined": 2}
    ids = [row["prompt_id"] for row in read_rows(table.folder, table.manifest)]
    refused = [row["id"] for row in read_quarantine(table.folder, table.manifest)]
    assert len(set(ids)) == 29
    assert refused == ["row-3", "row-20"]
    assert table.manifest["parts"] == 3


def test_the_same_command_finds_nothing_to_do(job) -> None:
    rows = [{"prompt": f"film {i}"} for i in range(5)]
    first = job(rows)
    assert job(rows).manifest["committed_at"] == first.manifest["committed_at"]
    assert job([*rows, {"prompt": "more"}]).manifest["counts"]["output"] == 6
    assert job(rows, system_prompt="x").manifest["settings"]["system_prompt"] == "x"


def test_too_many_refused_rows_stop_the_stage(job) -> None:
    rows = [b"{", *[{"prompt": f"film {i}"} for i in range(50)]]
    with pytest.raises(QuarantineBudgetError, match="1 of 51 rows"):
        job(rows)


@pytest.mark.parametrize("rows", [[], [b"\n"], [b"{"]])
def test_zero_prompts_are_an_error(job, rows: list[Any]) -> None:
    with pytest.raises(DataError, match="none is left"):
        job(rows, fraction=1.0)


def test_lengths_that_leave_nothing_are_refused_at_once(job) -> None:
    with pytest.raises(ConfigError, match="= 257 tokens"):
        job([{"prompt": "x"}], max_prompt_tokens=193)
