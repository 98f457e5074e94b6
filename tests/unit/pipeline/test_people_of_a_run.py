"""Votes of people in a run: raydpo never replaces them unless asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydpo.cli import main
from raydpo.config.file import load_config
from raydpo.config.job import Config, LabelingConfig
from raydpo.core.errors import RunError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import (
    PartResult,
    Stage,
    commit,
    open_stage,
    read_manifest,
    read_rows,
    write_part,
)
from raydpo.core.storage import folder_of
from raydpo.labeling.preferences import preferences_stage
from raydpo.labeling.stage import scores_stage
from raydpo.pipeline.job import run_round
from raydpo.pipeline.round import Round
from raydpo.prompts.stage import run_prompts_stage
from tests.unit.labeling.conftest import candidate_row

ASSETS = Path(__file__).parents[3] / "assets"
REWARD = {"reward": {"classifier": str(ASSETS / "sentiment-reward"), "label": "positive"}}
PEOPLE: dict[str, Any] = {"people": {}}

WriteJob = Callable[..., str]


@pytest.fixture
def write_job(tmp_path) -> WriteJob:
    """Writes the job's YAML with a labelling; returns its path."""

    def write(labeling: dict[str, Any] | None, **sections: Any) -> str:
        values = {
            "name": "run",
            "output": str(tmp_path),
            "model": str(ASSETS / "review-lm"),
            "prompts": {"path": str(ASSETS / "prompts.jsonl"), "limit": 3, "max_prompt_tokens": 32},
            "sampling": {"candidates": 2, "max_completion_tokens": 8},
            "training": {},
            **sections,
        }
        job = tmp_path / "job.yaml"
        job.write_text(yaml.safe_dump({**values, **({"labeling": labeling} if labeling else {})}))
        return str(job)

    return write


def finish(stage: Stage, rows: list[dict], **counts: int) -> Table:
    assert open_stage(stage) is None
    write_part(stage, 0, PartResult(rows, counts={"input": len(rows), **counts}))
    return Table(stage.folder, commit(stage, {}))


@pytest.fixture
def run(tmp_path, write_job) -> Path:
    """A run directory with prompts and candidates, as `raydpo sampling` leaves them."""
    config = load_config(write_job(REWARD))
    folder = folder_of(str(tmp_path / "run/round-000"))
    assert config.prompts is not None
    prompts = run_prompts_stage(config, config.prompts, Place(folder.child("prompts"), "prompts"))
    stage = Round(config, folder, 0).sample(prompts).describe()
    assert stage is not None
    names = [row["prompt_id"] for row in read_rows(prompts.folder, prompts.manifest)]
    finish(stage, [candidate_row(name, k) for name in names for k in range(2)])
    (tmp_path / "run/config.yaml").write_text((tmp_path / "job.yaml").read_text())
    return tmp_path / "run"


def labelled_by_reward(run: Path, job: str) -> None:
    """Scores and preferences as the reward's stages leave them."""
    config = load_config(job)
    assert config.labeling is not None
    folder = folder_of(str(run / "round-000"))
    candidates = table_of(run, "candidates")
    stages = Round(config, folder, 0)
    reward = config.labeling.reward
    scores = finish(scores_stage(stages.place("scores"), candidates, reward), [])
    place = stages.place("preferences")
    finish(preferences_stage(place, candidates, scores, config.labeling, config.model), [], pairs=1)


def table_of(run: Path, name: str) -> Table:
    folder = folder_of(str(run / "round-000" / name))
    manifest = read_manifest(folder)
    assert manifest is not None
    return Table(folder, manifest)


def votes(run: Path, *annotators: str) -> str:
    """Pairs exported from the run, with the votes of people filled in."""
    assert main(["annotate", "export", str(run)]) == 0
    pairs = [json.loads(line) for line in (run / "annotation.jsonl").open()]
    filled = [{**pair, "choice": "a", "annotator": who} for pair in pairs for who in annotators]
    file = run.parent / "votes.jsonl"
    file.write_text("".join(json.dumps(vote) + "\n" for vote in filled))
    return str(file)


def everything(run: Path) -> dict[str, bytes]:
    """Content by file, but for the lock that each command holds."""
    files = [file for file in run.rglob("*") if file.is_file() and file.name != "lock"]
    return {str(file): file.read_bytes() for file in files}


def test_a_reward_never_replaces_votes_unasked(run, write_job, capsys) -> None:
    assert main(["annotate", "import", str(run), votes(run, "ann")]) == 0
    assert "the job labels by a reward" in capsys.readouterr().err
    before = everything(run / "round-000")
    assert main(["training", write_job(REWARD)]) == 1
    said = capsys.readouterr().err
    assert "was made from people's votes, and this job labels otherwise" in said
    assert "labeling: {people: {}}" in said
    assert "--redo labeling" in said
    assert everything(run / "round-000") == before


def test_preference_data_never_replaces_votes_either(run, write_job) -> None:
    assert main(["annotate", "import", str(run), votes(run, "ann")]) == 0
    data = {"prompts": None, "preferences": {"path": str(ASSETS / "prompts.jsonl")}}
    with pytest.raises(RunError, match="labels otherwise"):
        run_round(load_config(write_job(None, **data)), "training")


def test_votes_never_replace_finished_labels_unasked(run, write_job, capsys) -> None:
    labelled_by_reward(run, write_job(REWARD))
    file = votes(run, "ann")
    before = everything(run)
    assert main(["annotate", "import", str(run), file]) == 1
    assert "nothing was imported" in capsys.readouterr().err
    assert everything(run) == before
    assert main(["annotate", "import", str(run), file, "--redo", "labeling"]) == 0
    assert "votes" in table_of(run, "preferences").manifest["inputs"]


def test_a_job_that_asks_for_people_takes_their_votes_over_labels(run, write_job) -> None:
    labelled_by_reward(run, write_job(REWARD))
    (run / "config.yaml").write_text(Path(write_job(PEOPLE)).read_text())
    assert main(["annotate", "import", str(run), votes(run, "ann")]) == 0
    assert "votes" in table_of(run, "preferences").manifest["inputs"]


@pytest.mark.parametrize("imported", [False, True], ids=["exported", "voted on"])
def test_candidates_that_people_judge_are_not_sampled_anew_unasked(
    run, write_job, imported
) -> None:
    file = votes(run, "ann")
    if imported:
        assert main(["annotate", "import", str(run), file]) == 0
    sampling = {"candidates": 2, "max_completion_tokens": 8, "temperature": 0.5}
    before = everything(run)
    with pytest.raises(RunError) as refused:
        run_round(load_config(write_job(PEOPLE, sampling=sampling)), "sampling")
    assert "setting 'temperature' changed" in refused.value.value
    assert ("votes on it are there" in refused.value.value) == imported
    assert "--redo sampling" in refused.value.way_out
    assert everything(run) == before


def lines(capsys) -> dict[str, str]:
    """Stage -> what the dry run says of it."""
    said = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return dict(said)


def test_the_same_job_works_before_and_after_the_votes(run, write_job, capsys) -> None:
    job = write_job(PEOPLE)
    assert main(["training", job, "--dry-run"]) == 0
    assert lines(capsys) == {
        "prompts": "kept",
        "candidates": "kept",
        "preferences": "waits: there are no votes of people yet",
    }
    assert main(["annotate", "import", str(run), votes(run, "ann")]) == 0
    capsys.readouterr()
    assert main(["training", job, "--dry-run"]) == 0
    assert lines(capsys) == {
        "prompts": "kept",
        "candidates": "kept",
        "preferences": "kept",
        "reference": "done",
        "policy": "done",
    }


@pytest.mark.thorough
def test_a_dry_run_says_what_is_done_again_and_why_and_changes_nothing(
    run, write_job, capsys
) -> None:
    labelled_by_reward(run, write_job(REWARD))
    before = everything(run)
    pairs = {"builder": "all_pairs"}
    assert main(["training", write_job({**REWARD, "pairs": pairs}), "--dry-run"]) == 0
    assert lines(capsys) == {
        "prompts": "kept",
        "candidates": "kept",
        "scores": "kept",
        "preferences": 'done again: setting \'builder\' changed: "best_worst" -> "all_pairs"',
        "reference": "done",
        "policy": "done",
    }
    sampling = {"candidates": 3, "max_completion_tokens": 8}
    job = write_job(REWARD, sampling=sampling)
    assert main(["labeling", job, "--dry-run", "--redo", "labeling"]) == 0
    assert lines(capsys) == {
        "prompts": "kept",
        "candidates": "done again: setting 'candidates' changed: 2 -> 3",
        "scores": "looked at again: kept where candidates come(s) out alike",
        "preferences": "done again: --redo",
    }
    assert everything(run) == before


def test_a_stage_after_the_last_one_is_not_taken_away(run, write_job, capsys) -> None:
    before = everything(run)
    assert main(["labeling", write_job(REWARD), "--redo", "training"]) == 1
    assert "--redo training, and the last stage is 'labeling'" in capsys.readouterr().err
    assert everything(run) == before


def test_show_says_that_people_labelled(run, capsys) -> None:
    assert main(["annotate", "import", str(run), votes(run, "ann")]) == 0
    assert main(["show", str(run)]) == 0
    assert "made from people's votes" in capsys.readouterr().out


def test_pairs_with_too_few_votes_are_left_out_and_counted(run, write_job) -> None:
    (run / "config.yaml").write_text(Path(write_job({"people": {"min_votes": 2}})).read_text())
    file = Path(votes(run, "ann", "bo"))
    first, *others = file.read_text().splitlines()
    file.write_text("\n".join([first, *others[1:]]))  # one pair has ann's vote only
    assert main(["annotate", "import", str(run), str(file)]) == 0
    counts = table_of(run, "preferences").manifest["counts"]
    assert (counts["pairs"], counts["too_few_votes"]) == (2, 1)


@pytest.mark.parametrize(
    ("labeling", "words"),
    [
        ({}, "give `reward`, or `people: {}`"),
        ({**REWARD, **PEOPLE}, "and not both"),
        ({**PEOPLE, "pairs": {"min_margin": 1}}, "leave it out"),
    ],
)
def test_rewards_and_people_exclude_each_other(labeling, words) -> None:
    with pytest.raises(ValueError, match=words):
        LabelingConfig.model_validate(labeling)


def test_a_resolved_configuration_with_people_is_read_back(write_job, tmp_path) -> None:
    from raydpo.config.file import config_to_yaml

    config: Config = load_config(write_job(PEOPLE))
    (tmp_path / "again.yaml").write_text(config_to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config
