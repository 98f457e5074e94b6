"""Online rounds for real: engines that live through them, and a run that is killed in its second round."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import ModelCard

import raydpo
from raydpo.cli import main
from raydpo.core.checked import read_checked, size_and_hash, write_checked
from raydpo.core.storage import folder_of
from tests.integration.callbacks import noted_events
from tests.integration.runs import drive, manifest, rows, write_prompts

pytestmark = pytest.mark.slow
TABLES = ("candidates", "scores", "preferences", "training-groups", "reference", "policy")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with prompts and a configuration that names them."""
    folder = tmp_path_factory.mktemp("online")
    write_prompts(folder, heldout=6)
    (folder / "job.yaml").write_text(yaml.safe_dump(job(folder, tiny_model)))
    return folder


def job(folder: Path, model: Path) -> dict[str, Any]:
    reward = {"function": "tests.integration.rewards:count_e"}
    return {
        "name": "run",
        "output": str(folder),
        "seed": 5,
        "rows_per_part": 6,
        "callbacks": ["tests.integration.callbacks:note_event"],
        "model": str(model),
        "prompts": {"path": str(folder / "prompts.jsonl"), "max_prompt_tokens": 32},
        "sampling": {"candidates": 3, "max_completion_tokens": 12, "engines": {"cpus": 0.1}},
        "labeling": {"reward": reward, "pairs": {"builder": "all_pairs"}},
        "training": {
            "cpus_per_worker": 0.5,
            "global_batch_groups": 4,
            "epochs": 2,
            "learning_rate": 1e-3,
            "checkpoint_every_steps": 2,
            "trackers": [],
        },
        "online": {
            "rounds": 2,
            "prompts_per_round": 12,
            "reference": "ema",
            "min_spread_quantile": 0.1,
            "replay": {"share": 0.3},
        },
        "evaluation": {
            "prompts": {"path": str(folder / "heldout.jsonl"), "max_prompt_tokens": 32},
            "judge": reward,
            "samples_per_prompt": 2,
            "heldout_fraction": 0,
        },
    }


@pytest.fixture(scope="module")
def undisturbed(work: Path) -> tuple[Path, str]:
    """A finished run: its directory, and what the command printed."""
    done = drive("never", work / "run", "online", str(work / "job.yaml"))
    assert done.returncode == 0, done.stderr[-4000:]
    return work / "run", done.stdout + done.stderr


def overrides(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def logps_of(model: Any, row: dict[str, Any], completion: list[int]) -> list[float]:
    """What a model of transformers says of a completion of the row's prompt."""
    import torch

    ids = torch.tensor([row["prompt_ids"] + completion])
    with torch.no_grad():
        logps = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
    return logps[len(row["prompt_ids"]) - 1 :, 0].tolist()


def record_of_files(stage: Path, name: str) -> None:
    """Let a stage's manifest say of a file what it is now: else it is a damaged file."""
    written = read_checked(folder_of(str(stage)), "manifest.json")
    for file in written["files"]:
        if file["name"] == name:
            file.update(size_and_hash((stage / name).read_bytes()))
    del written["checksum"]
    write_checked(folder_of(str(stage)), "manifest.json", written)


def policies(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "online.json").read_text())["policies"]


def test_engines_start_once_and_each_round_samples_from_the_newest_policy(undisturbed) -> None:
    run, output = undisturbed
    assert output.count("starting 1 engine(s)") == 1
    assert "engines were started 1 time(s)" in output
    assert output.count("starting 1 workers, which wait for the data") == 2
    original, first, second = policies(run)
    for index, sampler in ((0, original), (1, first)):
        sampled = {row["policy"] for row in rows(run, "candidates", index)}
        assert sampled == {sampler["policy_weights"]}
    assert second["sampler_weights"] == first["policy_weights"] != original["policy_weights"]
    assert manifest(run, "policy", 1)["inputs"]["model"] == first["policy_weights"]


def test_callbacks_get_each_round_after_its_steps_and_stages(undisturbed) -> None:
    run, _ = undisturbed
    events = noted_events(run)
    rounds = [event for event in events if event["kind"] == "round"]
    assert [event["folder"] for event in rounds] == ["round-000", "round-001"]
    for event in rounds:
        folder = event["folder"]
        assert event["metrics"] == json.loads((run / folder / "round.json").read_text())
        before = events[: events.index(event)]
        steps = [
            e["step"] for e in before if (e["kind"], e["folder"]) == ("step", f"{folder}/policy")
        ]
        log = (run / folder / "policy/metrics.jsonl").read_text().splitlines()
        assert steps == [json.loads(line)["step"] for line in log]
        stages = {e["folder"] for e in before if e["kind"] == "stage"}
        made = {str(path.parent.relative_to(run)) for path in (run / folder).rglob("manifest.json")}
        assert made <= stages
    stages = [event["folder"] for event in events if event["kind"] == "stage"]
    finished = [str(path.parent.relative_to(run)) for path in run.rglob("manifest.json")]
    assert sorted(stages) == sorted(finished)


def test_the_engines_log_probs_are_the_trained_policys_own(undisturbed) -> None:
    """After a push: what the engine says of its samples, against transformers' forward pass."""
    from transformers import AutoModelForCausalLM

    run, _ = undisturbed
    model = AutoModelForCausalLM.from_pretrained(run / "round-000/policy/model")
    for row in rows(run, "candidates", 1)[:6]:
        found = logps_of(model, row, row["completion_ids"])
        assert row["sampler_token_logps"] == pytest.approx(found, abs=1e-3)


def test_every_pushed_policy_is_held_against_the_trainers_forward_pass(undisturbed) -> None:
    """Its probe is what transformers says of the exported weights, and the engine agrees."""
    from transformers import AutoModelForCausalLM

    run, output = undisturbed
    for index, policy in enumerate(policies(run)[1:]):
        folder = run / f"round-{index:03d}/policy/model"
        model = AutoModelForCausalLM.from_pretrained(folder)
        for row in json.loads((folder / "probe.json").read_text()):
            for completion, logps in zip(row["completions"], row["token_logps"], strict=True):
                found = logps_of(model, row, completion)
                assert logps == pytest.approx(found, abs=1e-4)
        assert f"probe of weights {policy['policy_weights'][:12]}" in output
    seconds = json.loads((run / "round-001/round.json").read_text())["seconds"]
    assert seconds["probe"] > 0


def test_an_engine_that_disagrees_with_the_trainer_ends_the_run(
    undisturbed, work, ray_cluster, capsys
) -> None:
    run = work / "doubted"
    shutil.copytree(undisturbed[0], run, ignore=shutil.ignore_patterns("round-001", "online.*"))
    probe = run / "round-000/policy/model/probe.json"
    rows = json.loads(probe.read_text())
    rows[0]["token_logps"][0][0] -= 0.01
    probe.write_text(json.dumps(rows))
    record_of_files(run / "round-000/policy", "model/probe.json")
    assert main(["online", str(work / "job.yaml"), "--set", "name=doubted"]) == 1
    assert "differs by 0.01 nats from the trainer's" in capsys.readouterr().err
    assert not (run / "round-001/candidates/manifest.json").exists()


def test_the_reference_moves_and_replayed_groups_are_scored_under_it(undisturbed) -> None:
    run, _ = undisturbed
    original, first, second = policies(run)
    assert first["reference_weights"] == original["policy_weights"]
    average = manifest(run, "reference-model", 1)["fingerprint"]
    assert second["reference_weights"] == average
    assert manifest(run, "reference", 1)["inputs"]["model"] == average
    groups = rows(run, "training-groups", 1)
    replayed = [group for group in groups if group["group_id"].endswith("@round-000")]
    assert len(replayed) == second["replayed"] > 0
    old = {row["group_id"]: row["reference_token_logps"] for row in rows(run, "reference", 0)}
    new = {row["group_id"]: row["reference_token_logps"] for row in rows(run, "reference", 1)}
    assert len(new) == len(groups)
    for group in replayed:
        before = old.get(group["group_id"].removesuffix("@round-000"))
        assert before is None or new[group["group_id"]] != before


def test_held_out_numbers_of_every_policy_are_recorded_and_drawn(undisturbed) -> None:
    run, output = undisturbed
    evaluations = [policy["evaluation"] for policy in policies(run)]
    assert evaluations[0]["kl_nats_per_completion"]["mean"] == pytest.approx(0, abs=1e-3)
    assert evaluations[1]["kl_nats_per_completion"]["mean"] > 0.01
    for before, after in itertools.pairwise(evaluations):
        difference = after["reward"]["mean"] - before["reward"]["mean"]
        assert after["gain"]["mean"] == pytest.approx(difference)
    assert (run / "online.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((run / "online.json").read_text())
    assert f"verdict:     {found['verdict'][:40]}" in output
    assert f"{run}/online.html" in output
    assert [of["steps"] > 0 for of in found["rounds"]] == [True, True]
    assert found["rounds"][1]["updates_behind"]["first"] == 0
    win = found["against_original"][2]["win_rate"]
    assert win["prompts"] == evaluations[2]["reward"]["prompts"]
    assert "The same prompts by round" in (run / "online.html").read_text()
    seconds = json.loads((run / "round-001/round.json").read_text())["seconds"]
    assert seconds["training start-up"] > 0
    assert sum(v for k, v in seconds.items() if k != "total") == pytest.approx(seconds["total"])
    assert "outside work" in output


def test_a_comparison_has_the_last_policys_numbers(undisturbed) -> None:
    run, _ = undisturbed
    last = policies(run)[-1]["evaluation"]
    found = raydpo.compare_runs([str(run), str(run)], resamples=200)["runs"][0]
    assert (found["round"], found["online"]) == (1, True)
    assert found["score"] == last["reward"]
    assert found["completion_tokens"] == last["completion_tokens"]
    kl = last["kl_nats_per_completion"]["mean"]
    assert found["kl_nats_per_completion"]["mean"] == pytest.approx(kl)


def test_the_best_policy_is_published_with_its_held_out_numbers(undisturbed, tmp_path) -> None:
    run, _ = undisturbed
    best = json.loads((run / "online.json").read_text())["best"]["rounds_done"]
    chosen = None if best else 1  # the original model may be the best one, and is not published
    raydpo.publish_run(str(run), str(tmp_path / "public"), round_index=chosen)
    done = best or 2
    card = ModelCard((tmp_path / "public/README.md").read_text())
    assert f"after {done} online round(s)" in card.text
    results = {found.metric_type: found.metric_value for found in card.data.eval_results or []}
    measured = policies(run)[done]["evaluation"]
    assert results["judge_score"] == pytest.approx(measured["reward"]["mean"])
    assert results["kl"] == pytest.approx(measured["kl_nats_per_completion"]["mean"])
    assert (tmp_path / "public/plots/online.png").is_file()
    assert "online" in (card.data.tags or [])


def test_a_finished_run_has_nothing_to_do_and_starts_no_engine(
    undisturbed, work, ray_cluster, capsys
) -> None:
    run, _ = undisturbed
    kept = {p: p.read_bytes() for p in run.rglob("*.json")}
    assert main(["online", str(work / "job.yaml")]) == 0
    printed = capsys.readouterr()
    assert "engines were started 0 time(s)" in printed.out
    assert "starting" not in printed.err
    assert {p: p.read_bytes() for p in run.rglob("*.json")} == kept


def test_replay_makes_every_stage_of_both_rounds_equal_and_names_a_row_that_was_changed(
    undisturbed, ray_cluster, capsys
) -> None:
    run, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")}
    assert main(["replay", str(run)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {state for _, state in lines} == {"equal"}
    finished = {str(path.parent.relative_to(run)) for path in run.rglob("manifest.json")}
    assert {name for name, _ in lines} == finished >= {"round-001/reference-model", "prompts"}
    assert {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")} == before

    folder = run / "round-001/training-groups"
    part = sorted(folder.glob("part-*.parquet"))[0]
    table = pq.read_table(part)
    changed = table.to_pylist()
    pair = changed[1]["pairs"][0]
    pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    kept = {path: path.read_bytes() for path in (part, folder / "manifest.json")}
    pq.write_table(pa.Table.from_pylist(changed, table.schema), part)
    try:
        # Nothing is trained on a row that was changed, and nothing else is begun.
        assert main(["replay", str(run), "round-001/policy"]) == 1
        assert f"{part} was changed" in capsys.readouterr().err
        record_of_files(folder, part.name)
        assert main(["replay", str(run), "training-groups"]) == 1
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    shutil.rmtree(next(run.parent.glob("run.replay-*")))
    said = capsys.readouterr().out
    assert re.search(r"^round-000/training-groups +equal$", said, re.MULTILINE)
    assert re.search(r"^round-001/training-groups +differs$", said, re.MULTILINE)
    assert f"first row that differs: 1 (group_id {changed[1]['group_id']}), 'pairs" in said


def test_engines_that_sleep_between_their_stages_change_no_table(
    undisturbed, work, ray_cluster, capsys
) -> None:
    settings = [
        "name=slept",
        "online.rounds=1",
        "stream_stages=false",
        "sampling.engines.sleep=true",
        "sampling.engines.gpu_share=0.6",
        "training.gpus_per_worker=0.4",
        "reference.gpus_per_worker=0.4",
    ]
    assert main(["online", str(work / "job.yaml"), *overrides(settings)]) == 0
    assert capsys.readouterr().err.count("[engines] asleep after") == 3  # 1 round, 2 policies
    awake, slept = (policies(run)[1] for run in (undisturbed[0], work / "slept"))
    assert slept == {**awake, "policy": awake["policy"].replace("/run/", "/slept/")}


def test_policies_that_the_train_worker_sends_change_no_table(
    undisturbed, work, ray_cluster, capsys
) -> None:
    settings = ["name=sent", "online.rounds=1", "sampling.engines.weight_transfer=broadcast"]
    assert main(["online", str(work / "job.yaml"), *overrides(settings)]) == 0
    printed = capsys.readouterr().err
    read, sent = (policies(run)[1] for run in (undisturbed[0], work / "sent"))
    name = sent["policy_weights"][:12]
    assert f"weights {name}: sent by the train worker in" in printed
    assert f"weights {name} pushed" not in printed  # no engine read the files
    assert sent == {**read, "policy": read["policy"].replace("/run/", "/sent/")}


def test_engines_that_are_not_kept_may_hold_every_cpu_and_change_no_table(
    undisturbed, work, ray_cluster, capsys
) -> None:
    """All other stages need a CPU: they would wait for ever beside such engines."""
    import ray

    settings = [
        "name=ended",
        "online.rounds=1",
        "online.keep_engines=false",
        f"sampling.engines.cpus={ray.cluster_resources()['CPU']}",
        "evaluation=null",
    ]
    assert main(["online", str(work / "job.yaml"), *overrides(settings)]) == 0
    assert "engines were started 1 time(s)" in capsys.readouterr().out
    kept, ended = (policies(run)[1] for run in (undisturbed[0], work / "ended"))
    assert ended["policy_weights"] == kept["policy_weights"]


def test_self_play_that_stops_early_ends_well_while_train_workers_wait(
    work, ray_cluster, capsys
) -> None:
    values = yaml.safe_load((work / "job.yaml").read_text())
    examples = [{"prompt": f"the film {n} was", "completion": " very good"} for n in range(8)]
    (work / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    values["sft"] = {"data": str(work / "examples.jsonl"), "max_sequence_tokens": 32}
    stopping = {"max_kl_nats": 0.01}
    online = {"pairs": "self_play", "reference": "previous", "stopping": stopping, "rounds": 3}
    kept = {k: v for k, v in values.items() if k not in ("prompts", "labeling")}
    (work / "spin.yaml").write_text(yaml.safe_dump({**kept, "name": "spin", "online": online}))
    assert main(["online", str(work / "spin.yaml")]) == 0
    printed = capsys.readouterr()
    assert "ended early: KL budget" in printed.out
    assert printed.err.count("starting 1 workers, which wait for the data") == 2
    original, first = policies(work / "spin")
    assert first["evaluation"]["kl_nats_per_completion"]["mean"] > 0.01
    assert f"best policy: {original['policy']}" in printed.out
    assert {" very good"} == {
        row["completion_texts"][0] for row in rows(work / "spin", "preferences")
    }


@pytest.mark.timeout(1200)
def test_engine_train_worker_and_driver_killed_in_round_1_end_as_if_undisturbed(
    undisturbed, work, request
) -> None:
    run, killed = undisturbed[0], work / "killed"
    shutil.copytree(run, killed, ignore=shutil.ignore_patterns("round-001", "online.*"))
    command = ("online", str(work / "job.yaml"), "--set", "name=killed")
    first = drive("round-1", killed, *command)
    assert first.returncode == -9, first.stderr[-4000:]
    assert "killed ray::Engine" in first.stderr
    assert "killed RayTrainWorker" in first.stderr
    assert not (killed / "round-001/policy/manifest.json").exists()
    request.getfixturevalue("ray_cluster")
    assert main(list(command)) == 0
    for stage in TABLES:
        assert manifest(killed, stage, 1)["fingerprint"] == manifest(run, stage, 1)["fingerprint"]
    assert [p["evaluation"] for p in policies(killed)] == [p["evaluation"] for p in policies(run)]
    events = noted_events(killed)
    steps = [event["step"] for event in events if event["kind"] == "step"]
    log = (killed / "round-001/policy/metrics.jsonl").read_text().splitlines()
    assert sorted(set(steps)) == [json.loads(line)["step"] for line in log]
    assert len(steps) <= len(log) + 1  # the one at which the driver was killed may come twice
    rounds = [event["folder"] for event in events if event["kind"] == "round"]
    # The killed process writes round.json of round 0 again, since the copied policy has another path.
    assert rounds == ["round-000", "round-001"]
