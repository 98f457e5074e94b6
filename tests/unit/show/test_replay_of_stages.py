"""`raydpo replay` refuses what cannot be made again before a cluster starts, and names what differs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from raydpo.cli import main
from raydpo.config.file import load_config
from raydpo.config.job import Config, PreferencesConfig
from raydpo.core.checked import read_checked, size_and_hash, write_checked
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, commit_files, open_stage, write_part
from raydpo.core.storage import Folder, folder_of
from raydpo.core.walk import Making, Planned
from raydpo.models.content import files_fingerprint
from raydpo.pipeline.round import Round
from raydpo.show.comparison import differences, first_difference
from raydpo.show.inputs import Again, finished_table, policy_after, reference_of
from raydpo.show.replay import made_again
from raydpo.show.steps import Step, score_steps
from tests.unit.labeling.conftest import candidate_row

ASSETS = Path(__file__).parents[3] / "assets"
PLATFORM = "the driver's libraries and processors are those that made it"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with prompts, candidates, and scores that are begun."""
    folder = tmp_path_factory.mktemp("replay")
    shutil.copy(ASSETS / "prompts.jsonl", folder / "prompts.jsonl")
    values = {
        "name": "run",
        "output": str(folder),
        "model": str(ASSETS / "review-lm"),
        "prompts": {"path": str(folder / "prompts.jsonl"), "limit": 3, "max_prompt_tokens": 32},
        "sampling": {"candidates": 2, "max_completion_tokens": 8},
        "labeling": {"reward": {"function": "tests.integration.rewards:count_e"}},
    }
    (folder / "run").mkdir()
    (folder / "run/config.yaml").write_text(yaml.safe_dump(values))
    stages = Round(job(folder / "run"), folder_of(str(folder / "run/round-000")), 0)
    prompts = Making().stage(stages.prompts())
    candidates = stages.sample(prompts).describe()
    assert candidates is not None
    finish(candidates, [candidate_row(row["prompt_id"], 0) for row in prompts.part(0)])
    open_stage(Stage(Place(stages.folder.child("scores"), "test"), "scores", "scores", {}, {}))
    return folder


def job(run: Path) -> Config:
    return load_config(str(run / "config.yaml"), [])


def finish(stage: Stage, rows: list[dict[str, Any]]) -> Folder:
    assert open_stage(stage) is None
    write_part(stage, 0, PartResult(rows, counts={"input": len(rows)}))
    commit(stage, {})
    return stage.folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run, of prompts that are copied, too."""
    shutil.copytree(finished, tmp_path / "copy")
    config = tmp_path / "copy/run/config.yaml"
    config.write_text(config.read_text().replace(str(finished), str(tmp_path / "copy")))
    return tmp_path / "copy/run"


def without(path: str) -> Callable[[Path], None]:
    return lambda run: (run / path).unlink()


def one_byte_more(path: str) -> Callable[[Path], None]:
    return lambda run: (run / path).write_bytes((run / path).read_bytes() + b"0")


def finish_votes(run: Path) -> None:
    finish(
        Stage(Place(folder_of(str(run / "round-000/votes")), "test"), "votes", "votes", {}, {}), []
    )


def finish_preferences_of_people(run: Path) -> None:
    """Preferences of votes, whose files are gone."""
    folder = folder_of(str(run / "round-000/preferences"))
    finish(Stage(Place(folder, "test"), "preferences", "preferences", {"votes": "x"}, {}), [])


def nothing(run: Path) -> None:
    """Leave the run as it is."""


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (nothing, ["policy"], "'policy' is no stage of it"),
        (nothing, ["round-001/prompts"], "'round-001/prompts' is no stage of it"),
        (nothing, ["scores"], "'scores' is begun, not finished"),
        (finish_votes, ["votes"], "'votes' is made together with another stage"),
        (finish_preferences_of_people, ["preferences"], "has no file of votes"),
        (nothing, ["--output", "{run}/again"], "in the run directory"),
        (nothing, ["--output", "{run}/.."], "is not empty"),
        (without("config.yaml"), [], "is not a run directory"),
        (without("../prompts.jsonl"), ["prompts"], "there is no such file"),
        (without("round-000/prompts/manifest.json"), ["candidates"], "not there, or not finished"),
        (
            one_byte_more("round-000/prompts/part-00000.parquet"),
            ["candidates"],
            "part-00000.parquet was changed",
        ),
        (without("round-000/prompts/part-00000.parquet"), ["candidates"], "found no file"),
        (lambda run: shutil.rmtree(run / "round-000"), [], "has no finished stage"),
    ],
)
def test_what_cannot_be_made_again_is_refused_before_a_cluster_starts(
    run: Path, change: Callable[[Path], None], arguments: list[str], said: str, capsys
) -> None:
    change(run)
    before = sorted(run.parent.rglob("*"))
    assert main(["replay", str(run), *(text.format(run=run) for text in arguments)]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert [line.split(":")[0] for line in error.splitlines()[1:3]] == ["  rule", "  way out"]
    assert "traceback" not in error
    assert sorted(run.parent.rglob("*")) == before


def test_a_stage_that_the_job_would_make_otherwise_is_named_with_the_setting(
    run: Path, capsys
) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["sampling"]["candidates"] = 5
    config["prompts"]["limit"] = 2
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["replay", str(run)]) == 1
    prompts, why, platform, candidates, other, *_ = capsys.readouterr().out.splitlines()
    assert prompts.split() == ["round-000/prompts", "not", "made", "again"]
    assert "it would be made from something else: " in why
    assert "setting 'limit' changed: 3 -> 2" in why
    assert PLATFORM in platform
    assert candidates.split()[0] == "round-000/candidates"
    assert "setting 'candidates' changed: 2 -> 5" in other


def test_a_stage_that_comes_to_nothing_is_not_passed_over(run: Path, tmp_path: Path) -> None:
    here = folder_of(str(tmp_path / "again"))
    place = Place(here.child("round-000/prompts"), "test")
    step = Step("round-000/prompts", lambda: Planned(place, lambda: None))
    [found] = made_again(step, step.plan(), folder_of(str(run)), here)
    assert str(found).splitlines()[0].split() == ["round-000/prompts", "not", "made", "again"]
    assert "the job of the run's last command makes no such stage" in str(found)


@pytest.mark.parametrize("last", ["preferences", "examples"])
def test_a_run_that_scored_pairs_and_examples_has_both(run: Path, tmp_path: Path, last) -> None:
    """The log-probs are those of the last command's data."""
    data = {"example_id": "a", "token_ids": [1, 2], "prompt_tokens": 0}
    stages = {
        name: finish(
            Stage(Place(folder_of(str(run / "score" / name)), "test"), name, name, {}, {}), rows
        )
        for name, rows in (("preferences", []), ("examples", [data]))
    }
    section = PreferencesConfig(path=str(run / "none.jsonl")) if last == "preferences" else None
    config = job(run).model_copy(update={"preferences": section})
    again = Again(config, folder_of(str(run)), folder_of(str(tmp_path / "again")))
    *both, logps = score_steps(again)
    assert [step.name for step in both] == ["score/preferences", "score/examples"]
    assert all(step.finished_in(again.run) for step in both)
    stage = logps.plan().describe()
    assert stage is not None
    assert stage.inputs["sequences"] == finished_table(stages[last]).fingerprint


ROWS = [{"example_id": name, "token_ids": [1, 2], "prompt_tokens": 0} for name in "abc"]
OTHER = [*ROWS[:1], {**ROWS[1], "token_ids": [1, 3]}, ROWS[2]]


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (ROWS, ROWS, []),
        (
            ROWS,
            OTHER,
            ["first row that differs: 1 (example_id b), 'token_ids' changed: [1, 2] -> [1, 3]"],
        ),
        (ROWS, ROWS[:2], ["row 2: fewer rows than in the run"]),
        (ROWS[:2], ROWS, ["row 2: more rows than in the run"]),
    ],
)
def test_the_first_row_that_differs_is_named(then: list, now: list, said: list[str]) -> None:
    assert first_difference(iter(then), iter(now)) == said


def examples(folder: Path, rows: list[dict[str, Any]], **settings: int) -> Folder:
    stage = Stage(
        Place(folder_of(str(folder)), "test"), "examples", "examples", {"data": "x"}, settings
    )
    return finish(stage, rows)


def test_tables_of_equal_rows_are_equal_whatever_their_parts(tmp_path: Path) -> None:
    one = examples(tmp_path / "one", ROWS)
    stage = Stage(
        Place(folder_of(str(tmp_path / "two")), "test"), "examples", "examples", {"data": "x"}, {}
    )
    open_stage(stage)
    write_part(stage, 0, PartResult(ROWS[:1], counts={"input": 1}))
    write_part(stage, 1, PartResult(ROWS[1:], counts={"input": 2}))
    commit(stage, {})
    assert differences(one, stage.folder) == []


def test_a_row_whose_hashes_were_made_to_agree_is_found(tmp_path: Path) -> None:
    then, now = examples(tmp_path / "then", ROWS), examples(tmp_path / "now", ROWS)
    content = examples(tmp_path / "other", OTHER).read_bytes("part-00000.parquet")
    then.write_bytes("part-00000.parquet", content)
    damaged, *_ = differences(then, now)
    assert "changed since it was finished: part-00000.parquet (expected" in damaged
    values = read_checked(then, "manifest.json")
    del values["checksum"]
    values["files"][0].update(size_and_hash(content))
    write_checked(then, "manifest.json", values)
    row, platform = differences(then, now)
    assert "(example_id b), 'token_ids' changed: [1, 3] -> [1, 2]" in row
    assert PLATFORM in platform


def test_another_fingerprint_setting_and_platform_are_named(tmp_path: Path) -> None:
    then, now = examples(tmp_path / "then", ROWS, limit=1), examples(tmp_path / "now", OTHER)
    values = read_checked(then, "manifest.json")
    del values["checksum"]
    values["platform"]["torch"] = "1.0"
    write_checked(then, "manifest.json", values)
    key, fingerprint, row, platform = differences(then, now)
    assert "made from something else: setting 'limit' changed: 1 -> not there" in key
    assert fingerprint.startswith("fingerprint ")
    assert "(example_id b)" in row
    assert """made on another platform: 'torch' changed: "1.0" -> """ in platform


def trained(folder: Path, scale: float) -> Folder:
    stage = Stage(Place(folder_of(str(folder)), "test"), "train", None, {"preferences": "x"}, {})
    open_stage(stage)
    (folder / "model").mkdir()
    file = folder / "model/model.safetensors"
    save_file({"layers.0.w": torch.ones(2), "layers.1.w": torch.ones(2) * scale}, file)
    steps = [f'{{"step": {step}, "loss": {0.7 if step == 1 else scale}}}\n' for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(steps))
    commit_files(stage, files_fingerprint([file]))
    return stage.folder


def evaluated(folder: Path, metrics: dict[str, Any]) -> Folder:
    """The folder of a finished evaluation with these metrics."""
    stage = Stage(Place(folder_of(str(folder)), "test"), "evaluation", None, {}, {})
    open_stage(stage)
    stage.folder.write_json("metrics.json", metrics)
    commit_files(stage, "equal")
    return stage.folder


def test_an_evaluation_of_a_version_that_wrote_fewer_keys_is_equal(tmp_path: Path) -> None:
    then = evaluated(tmp_path / "then", {"kl": 1.0})
    assert (
        differences(then, evaluated(tmp_path / "more", {"kl": 1.0, "verdict": "it helped"})) == []
    )
    found, _ = differences(then, evaluated(tmp_path / "other", {"kl": 2.0, "verdict": "it did"}))
    assert found.startswith("'kl' changed")


def test_of_models_the_layer_and_the_first_step_that_differ_are_named(tmp_path: Path) -> None:
    then = trained(tmp_path / "then", 0.5)
    assert differences(then, trained(tmp_path / "same", 0.5)) == []
    _, layer, step, _ = differences(then, trained(tmp_path / "now", 0.25))
    assert layer == "'weights of layers.1' changed"
    assert step == "first step that differs: 2, loss 0.5 -> 0.25"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model/model.safetensors", "'weights of layers.1' changed"),
        ("metrics.jsonl", "first step that differs: 2, loss 0.25 -> 0.5"),
    ],
)
def test_a_file_of_a_model_whose_hash_was_made_to_agree_is_found(
    tmp_path: Path, file: str, said: str
) -> None:
    then, now = trained(tmp_path / "then", 0.5), trained(tmp_path / "now", 0.5)
    content = trained(tmp_path / "other", 0.25).read_bytes(file)
    then.write_bytes(file, content)
    values = read_checked(then, "manifest.json")
    del values["checksum"]
    [entry] = [entry for entry in values["files"] if entry["name"] == file]
    entry.update(size_and_hash(content))
    write_checked(then, "manifest.json", values)
    found, platform = differences(then, now)
    assert found == said
    assert PLATFORM in platform


@pytest.mark.parametrize(
    ("online", "references"),
    [
        ({"reference": "original"}, ["model", "model", "model", "model"]),
        ({"reference": "previous"}, ["model", "0/policy", "1/policy", "2/policy"]),
        (
            {"reference": "previous", "reference_every_rounds": 2},
            ["model", "model", "1/policy", "1/policy"],
        ),
        ({"reference": "ema"}, ["model", *(f"{n}/reference-model" for n in (1, 2, 3))]),
        (
            {"reference": "ema", "reference_every_rounds": 3},
            ["model", "model", "model", "3/reference-model"],
        ),
    ],
)
def test_each_round_is_made_again_from_the_models_that_it_had(
    run: Path, online: dict[str, Any], references: list[str]
) -> None:
    config = job(run).model_copy(update={"online": None})
    values = yaml.safe_load((run / "config.yaml").read_text()) | {"online": online}
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    section, folder = job(run).online, folder_of(str(run))
    assert section is not None

    def path(name: str) -> str:
        return config.model.path if name == "model" else f"{run}/round-00{name}/model"

    for index, expected in enumerate(references):
        assert reference_of(config, section, folder, index).path == path(expected)
        before = "model" if index == 0 else f"{index - 1}/policy"
        assert policy_after(config, folder, index).path == path(before)
