"""The evaluation for real: Ray Data, vLLM, the judge and the log-prob stage, on models made here."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from raydpo.config.job import Config, ModelConfig
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
from raydpo.core.storage import Folder
from raydpo.core.tables import Row
from raydpo.evaluation.stage import evaluate, evaluate_reference
from raydpo.evaluation.summary import summary_table
from raydpo.models.loading import load_tokenizer
from raydpo.prompts.stage import run_prompts_stage
from tests.conftest import make_tiny_model
from tests.group_rows import group_row

pytestmark = pytest.mark.slow

SUBSTAGES = {
    "reference_samples",
    "policy_samples",
    "reference_scores",
    "policy_scores",
    "reference_rewards",
    "policy_rewards",
    "policy_groups",
    "kl_policy",
    "kl_reference",
    "heldout_policy",
    "heldout_reference",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def config(work: Path, tiny_model: Path) -> Config:
    starts = ["the film was", "I loved", "a bad", "it was very", "the plot", "<b>good</b> acting"]
    (work / "heldout.jsonl").write_text("".join(json.dumps({"prompt": s}) + "\n" for s in starts))
    return Config.model_validate(
        {
            "name": "test",
            "rows_per_part": 4,
            "model": str(tiny_model),
            "prompts": str(work / "heldout.jsonl"),
            "sampling": {"max_completion_tokens": 10, "engines": {"cpus": 0.5}},
            "labeling": {
                "reward": [
                    {"function": "tests.integration.rewards:constant", "weight": 0.5},
                    {"function": "tests.integration.rewards:count_e_of_some", "name": "e"},
                ]
            },
            "training": {"objective": {"beta": 0.5}},
            "evaluation": {
                "prompts": {"path": str(work / "heldout.jsonl"), "max_prompt_tokens": 32},
                "judge": {"function": "tests.integration.rewards:count_e"},
                "samples_per_prompt": 3,
                "report_samples": 4,
            },
        }
    )


@pytest.fixture(scope="module")
def prompts(work: Path, config: Config, ray_cluster: None) -> Table:
    assert config.evaluation is not None
    folder = Folder(str(work / "prompts"))
    return run_prompts_stage(config, config.evaluation.prompts, Place(folder, "test, prompts"))


@pytest.fixture(scope="module")
def heldout(work: Path, config: Config) -> Table:
    """Two preference groups of two completions each."""
    tokenizer = load_tokenizer(config.model)
    stage = Stage(Place(Folder(str(work / "heldout")), "test"), "heldout", "preferences", {}, {})
    open_stage(stage)
    rows = [_group(tokenizer, name, "the film was") for name in ("g", "h")]
    write_part(stage, 0, PartResult(rows, counts={"input": 2}))
    return Table(stage.folder, commit(stage, {}))


def _group(tokenizer: Any, name: str, prompt: str) -> Row:
    texts = [f" good {name}", " bad and boring"]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    asked = tokenizer(prompt)["input_ids"]
    return group_row(name, ids, prompt=prompt, prompt_ids=asked, completion_texts=texts)


def run(config: Config, folder: Path, prompts: Table, **arguments: Any) -> dict[str, Any]:
    values = {"policy": config.model, "heldout": None, **arguments}
    return evaluate(
        config,
        Place(Folder(str(folder)), "test, evaluate"),
        prompts=prompts,
        reference_model=config.model,
        inputs={"reference": "fingerprint"},
        **values,
    )


@pytest.fixture(scope="module")
def same(work: Path, config: Config, prompts: Table, heldout: Table) -> dict[str, Any]:
    """The reference evaluated as if it were the policy."""
    log = [{"step": step, "loss": math.log(2)} for step in range(3)]
    return run(config, work / "same", prompts, heldout=heldout, training_log=log)


def committed(folder: Path) -> dict[str, str]:
    """When each sub-stage was committed, to the bit."""
    return {
        path.parent.name: f"{path.stat().st_mtime_ns}" for path in folder.glob("*/manifest.json")
    }


def test_policy_that_is_the_reference_differs_in_nothing(same: dict[str, Any], work: Path):
    assert same["kl"]["nats_per_completion"]["mean"] == 0.0
    assert same["win_rate"]["mean"] == 0.5
    assert same["difference"]["score"]["mean"] == 0.0
    assert same["length_controlled_win_rate"]["mean"] == pytest.approx(0.5)
    assert same["difference"]["entropy_nats_per_token"]["mean"] == 0.0
    logps = [row["sampler_token_logps"] for row in _rows(work / "same" / "policy_samples")]
    entropy = -sum(map(sum, logps)) / sum(map(len, logps))
    assert same["policy"]["entropy_nats_per_token"]["mean"] == pytest.approx(entropy)
    assert same["heldout"]["logratio_margin_nats"]["mean"] == 0.0
    assert same["heldout"]["accuracy"]["mean"] == 0.5
    assert same["policy"]["score"]["observations"] == 18
    assert committed(work / "same").keys() == SUBSTAGES


def test_every_file_is_written_and_named_by_the_manifest(same: dict[str, Any], work: Path):
    folder = work / "same"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert same["report"] == f"{folder}/report.html"
    assert "&lt;b&gt;good&lt;/b&gt; acting" in page
    json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert {path.stem for path in (folder / "plots").glob("*.png")} == {
        "training",
        "scores",
        "score_against_kl",
        "scores_by_prompt",
        "lengths",
    }
    manifest = read_manifest(Folder(str(folder)))
    assert manifest is not None
    named = {file["name"] for file in manifest["files"]}
    assert {"metrics.json", "report.html", "plots/scores.png"} <= named
    assert "pi_dpo" in summary_table(same)


def test_done_again_nothing_is_done(
    same: dict[str, Any], work: Path, config: Config, prompts: Table, heldout: Table
):
    folder = work / "same"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    log = [{"step": step, "loss": math.log(2)} for step in range(3)]
    again = run(config, folder, prompts, heldout=heldout, training_log=log)
    assert again == same
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_another_page_is_made_from_the_same_samples(
    same: dict[str, Any], work: Path, config: Config, prompts: Table, heldout: Table
):
    assert config.evaluation is not None
    folder = work / "same"
    before = committed(folder)
    shorter = config.evaluation.model_copy(update={"report_samples": 1})
    again = run(config.model_copy(update={"evaluation": shorter}), folder, prompts, heldout=heldout)
    assert (folder / "report.html").read_text(encoding="utf-8").count("<article") == 1
    assert committed(folder) == before
    assert again["policy"] == same["policy"]
    assert not (folder / "plots" / "training.png").exists()


def test_another_policy_has_the_kl_that_its_sampler_saw_and_the_same_reference_samples(
    same: dict[str, Any], work: Path, config: Config, prompts: Table
):
    """vLLM's own log-probs of the samples against the log-prob stage's."""
    folder = shutil.copytree(work / "same", work / "other")
    before = committed(folder)
    policy = ModelConfig(path=str(make_tiny_model(work / "policy", seed=1)))
    metrics = run(config, folder, prompts, policy=policy)
    after = committed(folder)
    assert after["reference_samples"] == before["reference_samples"]
    assert after["policy_samples"] != before["policy_samples"]
    samples = _rows(folder / "policy_samples")
    reference = {
        row["group_id"]: row["reference_token_logps"] for row in _rows(folder / "kl_reference")
    }
    logratios = [
        sum(row["sampler_token_logps"]) - sum(reference[row["prompt_id"]][row["candidate"]])
        for row in samples
    ]
    kl = metrics["kl"]["nats_per_completion"]["mean"]
    assert kl > 0.1
    assert kl == pytest.approx(fmean(logratios), abs=5e-3)
    assert metrics["heldout"] is None
    assert metrics["win_rate"]["mean"] != 0.5


def test_samples_have_the_training_rewards_in_their_own_units(same: dict[str, Any], work: Path):
    found = same["training_reward"]
    constant, letters = found["components"]
    assert constant["policy"]["mean"] == 1.0
    assert found["sum"]["policy"]["mean"] == pytest.approx(0.5 + letters["policy"]["mean"])
    # No prompt ends with 0 or 1, so this reward is the judge.
    assert letters["policy"]["mean"] == pytest.approx(same["policy"]["score"]["mean"])
    assert letters["difference"]["mean"] == 0.0
    assert len(_rows(work / "same" / "policy_rewards")) == 2 * 18
    assert "of which 0.5 ×" in (work / "same" / "report.html").read_text(encoding="utf-8")


def with_best_of(config: Config, **best_of: Any) -> Config:
    values = config.model_dump(mode="json", exclude_unset=True)
    values["labeling"] = {"reward": {"function": "tests.integration.rewards:length"}}
    values["evaluation"]["best_of"] = {"n": [1, 2, 6], "samples_per_prompt": 6, **best_of}
    return Config.model_validate(values)


def test_best_of_n_goes_into_metrics_and_page_and_resumes(
    same: dict[str, Any], work: Path, config: Config, prompts: Table
):
    """Beside the policy; numbers against the tables by plain loops."""
    folder = shutil.copytree(work / "same", work / "best_of")
    before = committed(folder)
    asked = with_best_of(config, models=["reference", "policy"])
    metrics = run(asked, folder, prompts)
    kinds = [
        f"best_of_{m}_{k}"
        for m in ("reference", "policy")
        for k in ("samples", "rewards", "scores")
    ]
    assert committed(folder).keys() >= {*kinds}
    assert committed(folder)["reference_samples"] == before["reference_samples"]
    rows = metrics["best_of"]["models"]["reference"]
    assert metrics["best_of"]["models"]["policy"] == rows  # the same model, with the same seeds
    samples = _rows(folder / "best_of_reference_samples")
    assert not {r["seed"] for r in samples} & {
        r["seed"] for r in _rows(folder / "reference_samples")
    }
    rewards, scores = (
        {
            (r["prompt_id"], r["candidate"]): r["value"]
            for r in _rows(folder / f"best_of_reference_{k}")
        }
        for k in ("rewards", "scores")
    )
    best: list[float] = []
    for prompt in {r["prompt_id"] for r in samples}:
        top = max(rewards[prompt, k] for k in range(6))
        best.append(fmean(scores[prompt, k] for k in range(6) if rewards[prompt, k] == top))
    assert [row["n"] for row in rows] == [1, 2, 6]
    assert rows[0]["score"]["mean"] == pytest.approx(fmean(scores.values()))
    assert rows[2]["score"]["mean"] == pytest.approx(fmean(best))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Best of N, reference" in page
    assert "Best of N, policy" in page
    assert (folder / "plots" / "best_of.png").exists()
    assert "best of 6" in summary_table(metrics)
    times = committed(folder)
    fewer = with_best_of(config, n=[1, 3], models=["reference", "policy"])
    again = run(fewer, folder, prompts)  # the samples are there
    assert [row["n"] for row in again["best_of"]["models"]["reference"]] == [1, 3]
    assert committed(folder) == times


def test_best_of_n_of_the_reference_alone_needs_no_policy(
    work: Path, config: Config, prompts: Table
):
    alone = with_best_of(config).model_copy(update={"training": None})
    place = Place(Folder(str(work / "alone")), "test, evaluate")
    arguments = {"prompts": prompts, "reference_model": config.model}
    metrics = evaluate_reference(alone, place, **arguments)
    assert evaluate_reference(alone, place, **arguments) == metrics
    assert metrics.keys() == {"judge", "reference", "best_of", "counts", "report"}
    rows = metrics["best_of"]["models"]["reference"]
    assert rows[2]["reward"]["mean"] > rows[0]["reward"]["mean"]
    page = (work / "alone" / "report.html").read_text(encoding="utf-8")
    assert "Best-of-N of the reference" in page
    assert "pi_dpo" not in summary_table(metrics)
    assert "best of 6" in summary_table(metrics)


def _rows(folder: Path) -> list[Row]:
    place = Folder(str(folder))
    manifest = read_manifest(place)
    assert manifest is not None
    return list(read_rows(place, manifest))
