"""`raydpo inspect` reads files, datasets and runs, refuses what is none, and writes into no run."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from trained_runs import write_rows

import raydpo
from raydpo.cli import main
from raydpo.config.base import SourceFormat
from raydpo.config.job import PreferencesConfig
from raydpo.core.errors import ConfigError, DataError, RunError
from raydpo.show.commands import FORMATS, LAYOUTS
from raydpo.show.inspect import default_output
from tests.unit.labeling.preference_texts import clean_groups, planted

Json = dict[str, Any]
DATA = Path(__file__).parents[4] / "shared/data"


def rows(count: int = 300, certainly: float = 0.3, seed: int = 0) -> list[Json]:
    groups = planted(
        clean_groups(count, seed), certainly, lambda one, other: (f"Certainly. {one}", other)
    )
    return [
        {"prompt": g.prompt, "chosen": g.completions[0], "rejected": g.completions[1]}
        for g in groups
    ]


def write_jsonl(path: Path, values: list[Json]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def items(found: Json) -> dict[str, Json]:
    return {item["name"]: item for item in found["items"]}


def test_the_command_writes_a_page_that_loads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = rows()
    values[0]["prompt"] = "<script>alert(1)</script>"
    values[0]["chosen"] = "Certainly. <script>alert(2)</script><|im_end|>"
    path = write_jsonl(tmp_path / "pairs.jsonl", values)
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", path]) == 0
    out = capsys.readouterr().out
    output = tmp_path / "inspections/pairs.jsonl"
    assert out.splitlines()[-1] == f"page: {output}/inspection.html"
    assert f"{path} (300 rows, 300 pairs): Bad: words and pairs of words" in out
    page = (output / "inspection.html").read_text()
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png|#)", page)
    assert page.count("data:image/png;base64,") == 3
    found = json.loads((output / "inspection.json").read_text())
    assert found["verdict"] == "bad"
    for item in found["items"]:
        assert item["verdict"] == "not measured" or f'id="{item["name"]}"' in page
    assert main(["inspect", path]) == 0  # it replaces what it wrote


@pytest.mark.parametrize("kind", ["jsonl.gz", "json", "parquet", "messages", "hh", "responses"])
def test_every_source_gives_the_same_numbers(tmp_path: Path, kind: str) -> None:
    values = rows()
    expected = items(raydpo.inspect_preferences(write_jsonl(tmp_path / "plain.jsonl", values)))
    path = tmp_path / f"pairs.{kind}"
    match kind:
        case "jsonl.gz":
            path.write_bytes(gzip.compress("\n".join(map(json.dumps, values)).encode()))
        case "json":
            path.write_text(json.dumps(values))
        case "parquet":
            pq.write_table(pa.Table.from_pylist(values), path)
        case "messages":
            path = tmp_path / "m.jsonl"
            write_jsonl(path, [conversation(value) for value in values])
        case "hh":
            path = tmp_path / "hh.jsonl"
            write_jsonl(path, [transcript(value) for value in values])
        case _:
            path = tmp_path / "r.jsonl"
            write_jsonl(path, [responses(n, value) for n, value in enumerate(values)])
    found = items(raydpo.inspect_preferences(str(path)))
    assert found["words"]["measured"]["word_rule_accuracy"] > 0.55
    terms = {
        name: of["words"]["plot"]["terms"] for name, of in (("found", found), ("plain", expected))
    }
    assert terms["found"] == terms["plain"]
    assert found["position"]["verdict"] == ("clean" if kind == "responses" else "not measured")


def conversation(value: Json) -> Json:
    prompt = {"role": "user", "content": value["prompt"]}
    sides = (
        (side, {"role": "assistant", "content": value[side]}) for side in ("chosen", "rejected")
    )
    return {side: [prompt, message] for side, message in sides}


def transcript(value: Json) -> Json:
    before = f"\n\nHuman: {value['prompt']}\n\nAssistant: "
    return {side: before + value[side] for side in ("chosen", "rejected")}


def responses(index: int, value: Json) -> Json:
    sides = [value["chosen"], value["rejected"]]
    first = index % 2
    return {
        "prompt": value["prompt"],
        "response_0": sides[first],
        "response_1": sides[1 - first],
        "better_response_id": first,
    }


def test_ratings_give_pairs_margins_and_ties(tmp_path: Path) -> None:
    groups = clean_groups(300)
    values = [
        {
            "prompt": g.prompt,
            "completions": [*g.completions, f"{g.prompt} So."],
            "ratings": [4, 2, 2],
        }
        for g in groups
    ]
    found = raydpo.inspect_preferences(write_jsonl(tmp_path / "rated.jsonl", values))
    assert (found["rows"], found["pairs"], found["completions"]) == (300, 600, 900)
    assert items(found)["margins"]["measured"]["ties"] == pytest.approx(1 / 3)


def test_single_judgements_are_paired_and_the_page_says_so(tmp_path: Path) -> None:
    values = []
    for index, value in enumerate(rows(400)):
        side = "chosen" if index % 2 else "rejected"
        values.append(
            {"prompt": value["prompt"], "completion": value[side], "label": side == "chosen"}
        )
    found = raydpo.inspect_preferences(write_jsonl(tmp_path / "kto.jsonl", values))
    assert found["pairs"] == 200
    assert "single completions" in found["notes"][0]
    assert items(found)["words"]["plot"]["terms"][0]["term"] == "certainly ."


def test_refused_rows_are_counted_with_their_reasons(tmp_path: Path) -> None:
    values = [*rows(100), {"prompt": "q", "chosen": "a", "rejected": "a"}, {"prompt": "q", "chosen": " ", "rejected": "b"}]  # fmt: skip
    found = raydpo.inspect_preferences(write_jsonl(tmp_path / "pairs.jsonl", values))
    assert found["rows"] == 100
    [note] = found["notes"]
    assert note.startswith("2 rows cannot be used")
    assert "chosen equals rejected (1)" in note


def test_other_splits_and_other_prompts_are_compared(tmp_path: Path) -> None:
    train = rows(300)
    write_jsonl(tmp_path / "data/train.jsonl", train)
    write_jsonl(tmp_path / "data/test.jsonl", [*rows(48, seed=5), train[3], train[40]])
    against = write_jsonl(
        tmp_path / "eval.jsonl", [{"prompt": train[7]["prompt"]}, {"prompt": "Why?"}]
    )
    found = raydpo.inspect_preferences(str(tmp_path / "data"), against=[against])
    overlap = items(found)["overlap"]
    assert overlap["tables"][0]["rows"] == [
        ["split test", "50", "4.0 %", "4.0 %"],
        [against, "2", "50.0 %", "50.0 %"],
    ]
    assert overlap["verdict"] == "bad"


def test_the_arguments_name_what_the_configuration_knows() -> None:
    assert get_args(PreferencesConfig.model_fields["layout"].annotation) == LAYOUTS
    assert sorted(get_args(SourceFormat)) == sorted(FORMATS)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with preferences of two rounds; the evaluation's prompts are in the first one."""
    folder = tmp_path / "runs/demo"
    folder.mkdir(parents=True)
    job = {
        "name": "demo",
        "output": str(tmp_path / "runs"),
        "model": "m",
        "prompts": "p.jsonl",
        "labeling": {"reward": {"function": "rewards:own"}},
        "sampling": {"max_completion_tokens": 5},
        "evaluation": {"prompts": "e.jsonl", "judge": {"function": "rewards:own"}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(job))
    for index in range(2):
        write_rows(folder / f"round-00{index}/preferences", "preferences", table_rows(200 + index))
        scores = [
            {
                "prompt_id": f"p{n}",
                "candidate": c,
                "scorer": s,
                "value": float(c),
                "rationale": None,
            }
            for n in range(200)
            for c in range(2)
            for s in ("one", "two")
        ]
        write_rows(folder / f"round-00{index}/scores", "scores", scores)
    prompts = [
        {"prompt_id": str(n), "prompt": row["prompt"], "messages": None, "prompt_ids": [1], "metadata": None}
        for n, row in enumerate([table_rows(200)[4], {"prompt": "Why?"}])
    ]  # fmt: skip
    write_rows(folder / "round-000/evaluation-prompts", "prompts", prompts)
    return folder


def table_rows(count: int) -> list[Json]:
    found = []
    for index, value in enumerate(rows(count, certainly=0.0)):
        found.append(
            {
                "group_id": f"p{index}",
                "prompt_id": f"p{index}",
                "prompt": value["prompt"],
                "prompt_ids": [1],
                "completion_texts": [value["chosen"], value["rejected"]],
                "completions": [[1, 2, 3, 4, 5] if index % 2 else [1], [1, 2]],
                "rewards": [1.0, 0.5],
                "pairs": [{"chosen": 0, "rejected": 1, "weight": 1.0, "probability": None}],
                "ranking": None,
                "desirable": None,
                "metadata": None,
            }
        )
    return found


def test_a_run_is_inspected_by_its_tables_and_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    found = raydpo.inspect_preferences(str(run), str(tmp_path / "out"), round_index=0)
    assert {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()} == before
    assert (found["name"], found["rows"]) == ("demo, round 000", 200)
    of = items(found)
    assert of["truncation"]["measured"]["truncated"] == 0.25
    assert of["length"]["plot"]["unit"] == "tokens"
    assert of["agreement"]["numbers"][0]["value"] == 1.0
    assert ["evaluation.prompts", "2", "50.0 %", "50.0 %"] in of["overlap"]["tables"][0]["rows"]
    assert (tmp_path / "out/inspection.html").exists()


def test_without_a_number_the_last_round_is_inspected(run: Path) -> None:
    found = raydpo.inspect_preferences(str(run))
    assert (found["name"], found["rows"]) == ("demo, round 001", 201)
    assert any("has not read the evaluation's prompts" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (lambda run: raydpo.inspect_preferences(str(run), str(run / "round-000/x")), ConfigError),
        (lambda run: raydpo.inspect_preferences(str(run), str(run.parent)), ConfigError),
        (lambda run: raydpo.inspect_preferences(str(run), layout="explicit"), ConfigError),
        (lambda run: raydpo.inspect_preferences(str(run), round_index=7), RunError),
        (lambda run: raydpo.inspect_preferences(str(run / "nothing.jsonl")), DataError),
    ],
)
def test_what_cannot_be_inspected_is_refused(
    run: Path, what: Callable[[Path], object], error: type[Exception]
) -> None:
    (run.parent / "notes.txt").write_text("mine")
    with pytest.raises(error):
        what(run)


def test_rounds_are_for_runs(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", rows(20))
    with pytest.raises(ConfigError, match="--round"):
        raydpo.inspect_preferences(path, round_index=0)


def test_data_without_preferences_is_refused(tmp_path: Path) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "q"}])
    with pytest.raises(DataError, match="chosen"):
        raydpo.inspect_preferences(prompts)
    equal = [{"prompt": "q", "completions": ["a", "b"], "ratings": [1, 1]}]
    with pytest.raises(ConfigError, match="no pair"):
        raydpo.inspect_preferences(write_jsonl(tmp_path / "equal.jsonl", equal))


def test_the_output_is_named_after_the_data() -> None:
    assert default_output("s3://bucket/data/pairs 1.jsonl") == "inspections/pairs_1.jsonl"
    assert default_output("runs/demo/") == "inspections/demo"


def real(name: str) -> str:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {path}")
    return str(path)


def test_helpful_base_has_the_faults_that_people_know(tmp_path: Path) -> None:
    """Longer is preferred; questions, links and other roles' turns are rejected."""
    found = raydpo.inspect_preferences(real("hh_rlhf/helpful-base.test.jsonl.gz"))
    of = items(found)
    assert (found["rows"], found["verdict"]) == (2339, "look")
    assert of["length"]["measured"]["longer_chosen"] == pytest.approx(0.598, abs=0.001)
    shown = {one["term"]: one["side"] for one in of["words"]["plot"]["terms"]}
    assert shown["?"] == shown["https :"] == shown["can you"] == "rejected"
    assert shown["and"] == "chosen"
    assert "link" in of["formatting"]["says"]
    assert "role marker 23" in of["template"]["says"]
    assert of["duplicates"]["verdict"] == of["language"]["verdict"] == "clean"
    assert "15 rows cannot be used" in found["notes"][0]


def test_dpo_en_rejects_exclamation_marks_and_repeats_rows() -> None:
    of = items(raydpo.inspect_preferences(real("llamafactory/dpo_en_demo.json")))
    assert "exclamation mark" in of["formatting"]["says"]
    assert of["duplicates"]["verdict"] == "look"
    assert of["length"]["verdict"] == "clean"


def test_a_saved_dataset_is_compared_with_its_other_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    train, test = rows(60), rows(19, seed=5)
    splits = {"train": train, "test": [*test, train[3]]}
    made = {name: datasets.Dataset.from_list(values) for name, values in splits.items()}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    found = raydpo.inspect_preferences(str(tmp_path / "saved"))
    assert found["rows"] == 60
    assert items(found)["overlap"]["tables"][0]["rows"] == [["split test", "20", "5.0 %", "5.0 %"]]
