"""Online rounds of policy gradient for real: whole groups, the sampler's log-probs, replay, a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydpo.cli import main
from tests.integration.runs import drive, manifest, rows, write_prompts
from tests.integration.test_online import TABLES, logps_of, overrides, policies

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with prompts and a configuration that names them."""
    folder = tmp_path_factory.mktemp("policy-gradient")
    write_prompts(folder)
    (folder / "job.yaml").write_text(yaml.safe_dump(job(folder, tiny_model)))
    return folder


def job(folder: Path, model: Path) -> dict[str, Any]:
    return {
        "name": "run",
        "output": str(folder),
        "seed": 5,
        "rows_per_part": 6,
        "model": str(model),
        "prompts": {"path": str(folder / "prompts.jsonl"), "max_prompt_tokens": 32},
        "sampling": {"candidates": 3, "max_completion_tokens": 12, "engines": {"cpus": 0.1}},
        "labeling": {"reward": {"function": "tests.integration.rewards:count_e_of_some"}},
        "training": {
            "objective": {"name": "policy_gradient", "beta": 0.05},
            "cpus_per_worker": 0.5,
            "global_batch_groups": 4,
            "learning_rate": 1e-3,
            "checkpoint_every_steps": 2,
            "trackers": [],
        },
        "online": {"rounds": 2, "prompts_per_round": 12, "replay": {"share": 0.4}},
    }


@pytest.fixture(scope="module")
def undisturbed(work: Path) -> Path:
    """The directory of a finished run."""
    done = drive("never", work / "run", "online", str(work / "job.yaml"))
    assert done.returncode == 0, done.stderr[-4000:]
    return work / "run"


def steps(run: Path, round_index: int) -> list[dict[str, float]]:
    log = run / f"round-{round_index:03d}/policy/metrics.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_no_prompt_of_a_round_is_lost_whatever_its_rewards(undisturbed) -> None:
    groups = rows(undisturbed, "preferences")
    assert [group["prompt_id"] for group in groups] == [
        prompt["prompt_id"] for prompt in rows(undisturbed, "prompts")
    ]
    assert len(groups) == 12
    equal = [group for group in groups if len(set(group["rewards"])) == 1]
    assert 0 < len(equal) < 12
    assert all(group["pairs"] == [] for group in equal)
    counts = manifest(undisturbed, "preferences")["counts"]
    assert (counts["samples"], counts["groups_with_equal_rewards"]) == (36, len(equal))
    assert len(rows(undisturbed, "reference")) == 12
    trained = steps(undisturbed, 0)
    assert len(trained) == 3
    assert sum(row["rewards/mean"] for row in trained) / 3 == pytest.approx(
        sum(sum(group["rewards"]) for group in groups) / 36, rel=1e-5
    )


def test_a_round_begins_where_its_samples_come_from_and_leaves_it(undisturbed) -> None:
    first, *later = steps(undisturbed, 0)
    assert first["ratio/mean"] == pytest.approx(1, abs=1e-4)
    assert first["ratio/clipped"] == 0
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert all(abs(row["ratio/mean"] - 1) > 1e-5 for row in later)


def test_replayed_groups_bring_the_logps_of_the_policy_that_sampled_them(undisturbed) -> None:
    from transformers import AutoModelForCausalLM

    run = undisturbed
    groups = rows(run, "training-groups", 1)
    replayed = [group for group in groups if group["group_id"].endswith("@round-000")]
    assert len(groups) - len(replayed) == 12
    assert len(replayed) == 8
    own = next(group for group in groups if "@" not in group["group_id"])
    folders = [policies(run)[0]["policy"], run / "round-000/policy/model"]
    original, policy = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    for group, model, other in ((replayed[0], original, policy), (own, policy, original)):
        for ids, logps in zip(group["completions"], group["sampler_token_logps"], strict=True):
            assert logps == pytest.approx(logps_of(model, group, ids), abs=1e-3)
            assert logps != pytest.approx(logps_of(other, group, ids), abs=1e-3)


def test_without_replay_every_round_begins_with_ratios_of_one(
    undisturbed, work, ray_cluster
) -> None:
    settings = ["name=plain", "online.replay.share=0"]
    assert main(["online", str(work / "job.yaml"), *overrides(settings)]) == 0
    for index in (0, 1):
        first = steps(work / "plain", index)[0]
        assert first["ratio/mean"] == pytest.approx(1, abs=1e-4)
        assert first["ratio/clipped"] == 0
    assert (
        policies(work / "plain")[1]["policy_weights"] == policies(undisturbed)[1]["policy_weights"]
    )


def test_its_stages_are_made_again_with_the_same_rows_and_weights(
    undisturbed, ray_cluster, capsys
) -> None:
    stages = ["round-000/preferences", "round-001/training-groups", "round-001/policy"]
    assert main(["replay", str(undisturbed), *stages]) == 0
    assert capsys.readouterr().out.count("equal") >= 3


def test_one_round_is_evaluated_on_held_out_groups_with_and_without_pairs(
    work, ray_cluster
) -> None:
    values = yaml.safe_load((work / "job.yaml").read_text())
    objective = {"name": "policy_gradient", "kl": "weighted_loss", "advantages": "batch_mean"}
    values["training"]["objective"] = objective
    values["evaluation"] = {
        "prompts": {"path": str(work / "heldout.jsonl"), "max_prompt_tokens": 32},
        "judge": {"function": "tests.integration.rewards:count_e"},
        "samples_per_prompt": 2,
        "heldout_fraction": 0.4,
    }
    (work / "once.yaml").write_text(yaml.safe_dump({**values, "name": "once", "online": None}))
    assert main(["run", str(work / "once.yaml")]) == 0
    heldout, groups = (rows(work / "once", stage) for stage in ("heldout", "preferences"))
    assert len(groups) == 24
    assert {len(group["pairs"]) for group in heldout} == {0, 1}
    trained = sum(row["num_tokens"] for row in steps(work / "once", 0))
    names = {group["group_id"] for group in heldout}
    assert trained == sum(
        len(group["prompt_ids"]) + sum(map(len, group["completions"]))
        for group in groups
        if group["group_id"] not in names
    )
    metrics = json.loads((work / "once/round-000/evaluation/metrics.json").read_text())
    pairs = sum(len(group["pairs"]) for group in heldout)
    assert metrics["heldout"]["accuracy"]["observations"] == pairs


def test_a_sampler_that_is_not_the_policy_is_refused_before_the_first_update(
    undisturbed, work, ray_cluster, capsys
) -> None:
    """The reference's own check is taken away here, since it would notice first."""
    settings = ["name=doubted", "online=null", "training.objective.beta=0"]
    settings += ["reference.verify_groups=0", "sampling.engines.probe_tolerance=1e-9"]
    assert main(["run", str(work / "job.yaml"), *overrides(settings)]) == 1
    printed = capsys.readouterr().err
    assert "before the first update the policy's log-probs differ from its sampler's" in printed
    assert not (work / "doubted/round-000/policy/model").exists()


@pytest.mark.timeout(1200)
def test_engine_train_worker_and_driver_killed_in_round_1_end_as_if_undisturbed(
    undisturbed, work, request
) -> None:
    run, killed = undisturbed, work / "killed"
    shutil.copytree(run, killed, ignore=shutil.ignore_patterns("round-001", "online.*"))
    command = ("online", str(work / "job.yaml"), "--set", "name=killed")
    first = drive("round-1", killed, *command)
    assert first.returncode == -9, first.stderr[-4000:]
    request.getfixturevalue("ray_cluster")
    assert main(list(command)) == 0
    for stage in TABLES:
        assert manifest(killed, stage, 1)["fingerprint"] == manifest(run, stage, 1)["fingerprint"]
