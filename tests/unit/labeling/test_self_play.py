"""Self-play: the data's completion against the policy's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.config.job import Config, ModelConfig, SftConfig
from raydpo.core.errors import DataError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, read_rows, write_part
from raydpo.core.storage import folder_of
from raydpo.labeling.self_play import self_play_part, self_play_preferences
from raydpo.models.loading import load_tokenizer
from raydpo.online.prompts import example_prompts

EXAMPLES = [
    {"example_id": "a", "token_ids": [1, 9, 20, 21, 2], "prompt_tokens": 2},
    {"example_id": "all text", "token_ids": [1, 9], "prompt_tokens": 0},
    {"example_id": "b", "token_ids": [1, 7, 30, 2], "prompt_tokens": 2},
    {"example_id": "nothing after", "token_ids": [1, 9], "prompt_tokens": 2},
]


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> Config:
    return Config(
        name="run",
        output=str(tmp_path),
        model=ModelConfig(path=str(tiny_model)),
        sft=SftConfig(data="data.jsonl"),
    )


def write(folder: Path, name: str, parts: list[list[dict]]) -> Table:
    stage = Stage(Place(folder_of(str(folder)), "test"), "test", name, {"rows": str(parts)}, {})
    open_stage(stage)
    for index, rows in enumerate(parts):
        write_part(stage, index, PartResult(rows))
    return Table(stage.folder, commit(stage, {}))


def rows_of(table: Table) -> list[dict]:
    return list(read_rows(table.folder, table.manifest))


def test_prompts_are_the_beginnings_of_the_examples(job, tmp_path: Path) -> None:
    examples = write(tmp_path / "examples", "examples", [EXAMPLES[:2], EXAMPLES[2:]])
    prompts = example_prompts(
        Place(folder_of(str(tmp_path / "prompts")), "test"), examples, job.model
    )
    assert [(r["prompt_id"], r["prompt_ids"]) for r in rows_of(prompts)] == [
        ("a", [1, 9]),
        ("b", [1, 7]),
    ]
    assert prompts.manifest["counts"]["without_prompt_or_completion"] == 2


def test_the_datas_completion_is_chosen_over_each_of_the_policys(
    job, tmp_path: Path, make_candidate
) -> None:
    candidates = [
        [
            make_candidate("a", 0, prompt_ids=[1, 9], completion_ids=[20, 40, 2]),
            make_candidate("a", 1, prompt_ids=[1, 9], completion_ids=[20, 21, 2]),
            make_candidate("a", 2, prompt_ids=[1, 9], completion_ids=[41]),
        ],
        [make_candidate("b", 0, prompt_ids=[1, 7], completion_ids=[31, 2])],
    ]
    table = self_play_preferences(
        Place(folder_of(str(tmp_path / "preferences")), "test"),
        write(tmp_path / "candidates", "candidates", candidates),
        write(tmp_path / "examples", "examples", [EXAMPLES]),
        job.model,
    )
    first, second = rows_of(table)
    assert first["completions"] == [[20, 21, 2], [20, 40, 2], [41]]
    assert [(p["chosen"], p["rejected"]) for p in first["pairs"]] == [(0, 1), (0, 2)]
    assert second["completions"] == [[30, 2], [31, 2]]
    assert first["rewards"] is None
    assert table.manifest["counts"]["identical"] == 1
    assert table.manifest["counts"]["pairs"] == table.manifest["counts"]["soft_labels"] == 3


def test_a_prompt_that_is_not_of_the_examples_is_an_error(tiny_model, make_candidate) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model)))
    with pytest.raises(DataError, match="'c'"):
        self_play_part([make_candidate("c", 0)], iter(EXAMPLES), tokenizer)


def test_samples_equal_to_the_data_leave_no_pair(job, tmp_path: Path, make_candidate) -> None:
    same = make_candidate("b", 0, prompt_ids=[1, 7], completion_ids=[30, 2])
    with pytest.raises(DataError, match="no pair at all"):
        self_play_preferences(
            Place(folder_of(str(tmp_path / "preferences")), "test"),
            write(tmp_path / "candidates", "candidates", [[same]]),
            write(tmp_path / "examples", "examples", [EXAMPLES]),
            job.model,
        )
