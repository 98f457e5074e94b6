"""Several sources in one table: exact counts, filters, weights, ids and keys, as a run reads them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from raydpo.check.data import check_data
from raydpo.check.findings import Findings
from raydpo.config.file import config_from_values
from raydpo.config.job import Config, PreferencesConfig, PromptsConfig
from raydpo.core.errors import DataError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import read_quarantine, read_rows
from raydpo.core.storage import Folder
from raydpo.prompts.mixing import drawn, quotas
from raydpo.prompts.preferences import run_preferences_stage
from raydpo.prompts.stage import prompts_stage, run_prompts_stage

MODEL = str(Path(__file__).parents[3] / "assets" / "review-lm")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files of prompts: 20 good and bad ones, 12 questions, 8 with one that cannot be read."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", [{"prompt": f"film {n}", "score": n / 20} for n in range(20)])
    write(tmp_path / "b.jsonl", [{"question": f"why {n}?", "lang": "en"} for n in range(12)])
    write(tmp_path / "c.jsonl", [{"text": f"plot {n}"} for n in range(7)])
    with open(tmp_path / "c.jsonl", "a") as file:
        file.write("not JSON\n")
    return tmp_path


def job(seed: int = 0, **sections: Any) -> Config:
    """A job whose prompts or preferences are short; a list of sources may stand for the section."""
    short = {
        "prompts": {"max_prompt_tokens": 32},
        "preferences": {"max_prompt_tokens": 32, "max_completion_tokens": 32},
    }
    [(name, value)] = sections.items()
    section = {"sources": value} if isinstance(value, list) else value
    values = {
        "name": "job",
        "model": MODEL,
        "seed": seed,
        "rows_per_part": 4,
        "sampling": {"max_completion_tokens": 32},
        name: {**short[name], **section},
    }
    return config_from_values(values, "a test")


def made(config: Config, folder: Path, name: str = "prompts") -> Table:
    place = Place(Folder(str(folder / name)), "test", max_quarantined_fraction=0.1)
    if config.preferences is not None:
        return run_preferences_stage(config, place)
    assert config.prompts is not None
    return run_prompts_stage(config, config.prompts, place)


def rows_of(table: Table) -> list[dict[str, Any]]:
    return list(read_rows(table.folder, table.manifest))


SOURCES = [
    {"path": "a.jsonl", "filter": "score >= 0.25"},
    {"path": "b.jsonl", "column": "question", "limit": 10},
    "c.jsonl",
]


def test_a_mixture_of_three_sources_has_exact_counts(data: Path) -> None:
    table = made(job(prompts=SOURCES), data)
    counts = table.manifest["counts"]
    expected = {
        "input": 15 + 10 + 8,
        "output": 15 + 10 + 7,
        "quarantined": 1,
        "filtered": 5,
        **{"input_a": 15, "output_a": 15, "quarantined_a": 0, "filtered_a": 5},
        **{"input_b": 10, "output_b": 10, "quarantined_b": 0},
        **{"input_c": 8, "output_c": 7, "quarantined_c": 1},
    }
    assert {name: counts.get(name) for name in expected} == expected
    prompts = [row["prompt"] for row in rows_of(table)]
    assert prompts[:2] == ["film 5", "film 6"]
    assert Counter(prompt.split()[0] for prompt in prompts) == {"film": 15, "why": 10, "plot": 7}
    [refused] = read_quarantine(table.folder, table.manifest)
    assert refused["id"] == "c/row-7"


def test_weights_draw_rows_in_proportion_by_the_seed(data: Path) -> None:
    weighted = [
        {"path": "a.jsonl", "weight": 3, "filter": "score >= 0.25"},
        {"path": "b.jsonl", "weight": 2},
        {"path": "c.jsonl", "weight": 1, "limit": 5},
    ]
    table = made(job(prompts=weighted), data)
    counts = table.manifest["counts"]
    assert [counts[f"output_{name}"] for name in "abc"] == [15, 10, 5]
    assert [counts.get(f"left_out_{name}", 0) for name in "abc"] == [0, 2, 0]
    assert (counts["left_out"], counts["filtered"]) == (2, 5)
    again = made(job(prompts=weighted), data, "again")
    assert rows_of(again) == rows_of(table)
    other = made(job(prompts=weighted, seed=1), data, "other")
    assert [r["prompt"] for r in rows_of(other)] != [r["prompt"] for r in rows_of(table)]
    assert Counter(r["prompt"][:3] for r in rows_of(other)) == {"fil": 15, "why": 10, "plo": 5}


def test_an_interrupted_mixture_goes_on_to_the_same_table(data: Path) -> None:
    weighted = [{"path": "a.jsonl", "weight": 2}, {"path": "b.jsonl", "weight": 1}]
    config = job(prompts=weighted)
    whole = made(config, data)
    counts, rows = whole.manifest["counts"], rows_of(whole)
    (data / "prompts" / "manifest.json").unlink()
    lost = sorted((data / "prompts").glob("part-*.parquet"))[1::2]
    assert lost
    for file in lost:
        file.unlink()
    again = made(config, data)
    assert (again.manifest["counts"], rows_of(again)) == (counts, rows)
    assert again.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("available", "weights", "expected"),
    [
        ([100, 100], [1.0, 1.0], [100, 100]),
        ([100, 1000], [0.1, 0.3], [100, 300]),
        ([300, 50, 1000], [0.5, 0.25, 0.25], [100, 50, 50]),
        ([7, 100], [2.0, 3.0], [7, 10]),
    ],
)
def test_quotas_take_as_many_rows_as_the_scarcest_source_allows(
    available: list[int], weights: list[float], expected: list[int]
) -> None:
    assert quotas(available, weights) == expected


def test_a_source_that_would_be_left_without_a_row_is_refused() -> None:
    with pytest.raises(DataError, match="at least one row of each source"):
        quotas([3, 1000], [1.0, 0.1])


def test_rows_are_drawn_uniformly() -> None:
    times = Counter(row for seed in range(600) for row in drawn(seed, "a", 10, 3) or ())
    assert all(times[row] / 600 == pytest.approx(0.3, abs=0.08) for row in range(10))
    assert drawn(0, "a", 10, 10) is None


def test_ids_are_unique_and_duplicates_are_found_over_all_sources(data: Path) -> None:
    write(data / "d.jsonl", [{"prompt": "film 19"}, {"prompt": "film 20"}])
    both = ["a.jsonl", "d.jsonl"]
    ids = [row["prompt_id"] for row in rows_of(made(job(prompts=both), data))]
    assert len(ids) == len(set(ids)) == 22
    section = {"sources": both, "deduplicate": True}
    table = made(job(prompts=section), data, "once")
    assert (table.manifest["counts"]["output"], table.manifest["counts"]["duplicates"]) == (21, 1)


def test_preferences_of_several_layouts_become_one_table(data: Path) -> None:
    explicit = [{"prompt": f"film {n}", "chosen": " good", "rejected": " bad"} for n in range(3)]
    ranked = [{"prompt": "plot", "completions": [" a", " b", " c"], "ratings": [1, 2, 3]}]
    write(data / "pairs.jsonl", [{**row, "ok": n} for n, row in enumerate(explicit)])
    write(data / "rated.jsonl", ranked)
    sources = [{"path": "pairs.jsonl", "filter": "ok > 0"}, {"path": "rated.jsonl", "name": "k"}]
    table = made(job(preferences=sources), data)
    counts = table.manifest["counts"]
    assert (counts["output_pairs"], counts["filtered_pairs"], counts["output_k"]) == (2, 1, 1)
    assert (counts["pairs"], counts["soft_labels"]) == (2 + 3, 3)


def test_a_filter_works_without_a_mixture(data: Path) -> None:
    section = {"path": "a.jsonl", "filter": "score > 0.5 and prompt != 'film 19'"}
    counts = made(job(prompts=section), data).manifest["counts"]
    assert (counts["input"], counts["output"], counts["filtered"]) == (8, 8, 12)


def test_a_row_on_which_a_filter_cannot_be_decided_is_quarantined(data: Path) -> None:
    write(data / "e.jsonl", [{"prompt": f"p{n}", "score": n} for n in range(19)])
    with open(data / "e.jsonl", "a") as file:
        file.write('{"prompt": "odd", "score": "high"}\n')
    table = made(job(prompts={"path": "e.jsonl", "filter": "score > 5"}), data)
    [refused] = read_quarantine(table.folder, table.manifest)
    assert "a comparison of str and int" in refused["reason"]
    assert json.loads(refused["row"])["prompt"] == "odd"


@pytest.mark.parametrize(
    ("text", "message"),
    [("scor > 0.5", "the filter 'scor > 0.5' reads 'scor'"), ("score > 9", "leaves none of 20")],
)
def test_a_filter_that_fits_no_row_is_refused_by_check_and_run(
    data: Path, text: str, message: str
) -> None:
    config = job(prompts={"path": "a.jsonl", "filter": text})
    with pytest.raises(DataError, match=message):
        made(config, data)
    findings = Findings()
    check_data(config, None, findings)
    assert message in str(findings.problems)


def test_check_reads_each_source_of_a_mixture(data: Path) -> None:
    findings = Findings()
    check_data(job(prompts=SOURCES), None, findings)
    said = "\n".join(findings.facts)
    for words in ("prompts, a: input 15", "prompts, b: input 10", "prompts, c: input 8"):
        assert words in said


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "give the `path` of the data"),
        ({"path": "a.jsonl", "sources": ["b.jsonl"]}, "`path` belongs to one source"),
        ({"limit": 3, "sources": ["b.jsonl"]}, "`limit` belongs to one source"),
        (["a.jsonl", "x/a.jsonl"], "several sources are called 'a'"),
        ([{"path": "a.jsonl", "weight": 1}, "b.jsonl"], "give it to all, or to none"),
        ({"path": "a.jsonl", "filter": "open('x')"}, "is not known"),
        ([{"path": "a.jsonl", "wieght": 1}], "wieght"),
    ],
)
def test_sections_that_say_no_mixture_are_refused(section: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate({"name": "job", "model": "m", "prompts": section})


def test_a_list_in_place_of_a_section_is_its_sources() -> None:
    values = {"name": "job", "model": "m"}
    one = Config.model_validate({**values, "prompts": SOURCES})
    assert one == Config.model_validate({**values, "prompts": {"sources": SOURCES}})
    assert one.prompts is not None
    assert (one.prompts.where, one.prompts.labels) == ("a.jsonl, b.jsonl, c.jsonl", (*"abc",))


def test_one_source_without_a_filter_has_the_key_that_it_had(data: Path) -> None:
    config = job(prompts={"path": "a.jsonl"})
    assert config.prompts is not None
    place = Place(Folder(str(data / "key")), "test")
    stage = prompts_stage(config, config.prompts, place)
    assert list(stage.inputs) == ["data", "tokenizer"]
    assert not {"filter", "sources", "mixture_seed"} & stage.settings.keys()
    assert PromptsConfig(path="x").each == (PromptsConfig(path="x"),)
    mixed = PreferencesConfig.model_validate({"sources": ["x", {"path": "y", "layout": "ranked"}]})
    assert [(one.path, one.layout) for one in mixed.each] == [("x", "auto"), ("y", "ranked")]
