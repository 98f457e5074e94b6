"""The whole round for real: Ray Data, vLLM, Ray Train, on a model made in the test."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import raydpo
from raydpo.cli import main
from raydpo.config.job import ModelConfig, SamplingConfig
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import read_rows
from raydpo.core.storage import folder_of
from raydpo.show.listing import show_run
from tests.integration.callbacks import noted_events
from tests.integration.runs import drive, manifest, rows, write_prompts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with prompts and a configuration that names them."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_prompts(folder)
    (folder / "job.yaml").write_text(yaml.safe_dump(job(folder, tiny_model)))
    return folder


def job(folder: Path, model: Path) -> dict[str, Any]:
    reward = {"function": "tests.integration.rewards:count_letter"}
    return {
        "name": "run",
        "output": str(folder),
        "seed": 5,
        "rows_per_part": 6,
        "callbacks": ["tests.integration.callbacks:note_event"],
        "model": str(model),
        "prompts": {"path": str(folder / "prompts.jsonl"), "max_prompt_tokens": 32},
        "sampling": {"candidates": 3, "max_completion_tokens": 12, "engines": {"cpus": 0.2}},
        "labeling": {"reward": reward, "pairs": {"builder": "all_pairs"}},
        "training": {
            "num_workers": 2,
            "cpus_per_worker": 0.4,
            "global_batch_groups": 4,
            "epochs": 2,
            "learning_rate": 1e-3,
            "checkpoint_every_steps": 2,
        },
        "evaluation": {
            "prompts": {"path": str(folder / "heldout.jsonl"), "max_prompt_tokens": 32},
            "judge": reward,
            "samples_per_prompt": 2,
            "heldout_fraction": 0.2,
        },
    }


#: What the environment of the undisturbed run holds, and nothing may keep or print.
CANARIES = {
    "HF_TOKEN": "hf_canary0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-object-store",
    "WANDB_API_KEY": "canary-of-a-tracker-0123456789",
}
#: Where people read prompts: tables, which are read through pyarrow here, and the report.
PROMPTS_STAND_IN = ("*.parquet", "report.html")


@pytest.fixture(scope="module")
def ray_files() -> Iterator[Path]:
    """Where Ray writes what it does in the undisturbed run; sockets need a short path."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def undisturbed(work: Path, ray_files: Path) -> tuple[Path, str]:
    """A finished run: its directory, and what the command printed."""
    done = drive(
        "never",
        work / "run",
        "run",
        str(work / "job.yaml"),
        RAY_TMPDIR=str(ray_files),
        **CANARIES,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return work / "run", done.stdout + done.stderr


def test_every_prompt_is_sampled_scored_and_accounted_for(undisturbed) -> None:
    run, output = undisturbed
    assert "[round 0, sampling to reference] 4/4 parts" in output
    prompts = {row["prompt_id"] for row in rows(run, "prompts")}
    assert len(prompts) == 24
    candidates = [(row["prompt_id"], row["candidate"]) for row in rows(run, "candidates")]
    assert sorted(candidates) == sorted((p, k) for p in prompts for k in range(3))
    assert {(row["prompt_id"], row["candidate"]) for row in rows(run, "scores")} == set(candidates)
    groups = rows(run, "preferences")
    counts = manifest(run, "preferences")["counts"]
    assert len(groups) + counts["groups_without_pairs"] == 24
    for group in groups:
        for pair in group["pairs"]:
            assert group["rewards"][pair["chosen"]] > group["rewards"][pair["rejected"]]


def test_columns_of_the_prompts_travel_to_every_table_that_has_the_prompt(undisturbed) -> None:
    run, _ = undisturbed
    for table in ("prompts", "candidates", "preferences"):
        assert {row["metadata"] for row in rows(run, table)} == {'{"letter": "e"}'}, table
    counted = [manifest(run, name)["counts"]["with_metadata"] for name in ("prompts", "candidates")]
    assert counted == [24, 72]
    scores = {(s["prompt_id"], s["candidate"]): s["value"] for s in rows(run, "scores")}
    for row in rows(run, "candidates"):
        expected = row["completion"].count("e") / (len(row["completion"]) + 1)
        assert scores[row["prompt_id"], row["candidate"]] == expected


def test_no_file_and_no_log_holds_a_secret_and_prompts_stand_where_people_read_them(
    undisturbed: tuple[Path, str], work: Path, ray_files: Path
) -> None:
    run, output = undisturbed
    lines = [*(work / "prompts.jsonl").open(), *(work / "heldout.jsonl").open()]
    prompts = [json.loads(line)["prompt"] for line in lines]
    files = [path for top in (run, ray_files) for path in top.rglob("*") if path.is_file()]
    assert any(path.name.startswith("worker-") for path in files)  # Ray's logs are among them
    texts = {path: text_of(path) for path in files} | {Path("the terminal"): output}
    secret = [str(path) for path, text in texts.items() if holds(text, [*CANARIES.values()])]
    assert secret == []
    told = {path.name for path, text in texts.items() if holds(text, prompts)}
    others = {name for name in told if not any(fnmatch(name, p) for p in PROMPTS_STAND_IN)}
    assert others == set()
    assert "report.html" in told  # so what is looked for can be found


def holds(text: str, words: list[str]) -> bool:
    return any(word in text for word in words)


def text_of(path: Path) -> str:
    """All that a file says; of a table its rows."""
    if path.suffix == ".parquet":
        return str(pq.read_table(path).to_pylist())
    return path.read_bytes().decode("utf-8", "replace")


def test_training_starts_at_log_two_with_margins_of_zero(undisturbed) -> None:
    run, _ = undisturbed
    log = (run / "round-000/policy/metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in log]
    assert [row["step"] for row in metrics] == list(range(1, len(metrics) + 1))
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert metrics[-1]["rewards/margins"] > 0.05


def test_callbacks_get_each_step_each_stage_and_the_round_in_order(undisturbed) -> None:
    run, _ = undisturbed
    events = noted_events(run)
    assert {event["run"] for event in events} == {str(run)}
    log = (run / "round-000/policy/metrics.jsonl").read_text().splitlines()
    steps = [event for event in events if event["kind"] == "step"]
    assert [event["metrics"] for event in steps] == [json.loads(line) for line in log]
    assert [event["step"] for event in steps] == list(range(1, len(log) + 1))
    stages = {event["folder"]: event for event in events if event["kind"] == "stage"}
    finished = {str(path.parent.relative_to(run)) for path in run.rglob("manifest.json")}
    assert stages.keys() == finished
    assert len(events) == len(steps) + len(stages) + 1
    policy = stages["round-000/policy"]
    assert policy["metrics"] == steps[-1]["metrics"]
    assert events.index(policy) == events.index(steps[-1]) + 1
    assert stages["round-000/candidates"]["metrics"] == manifest(run, "candidates")["counts"]
    assert (events[-1]["kind"], events[-1]["folder"]) == ("round", "round-000")
    report = {"report": str(run / "round-000/evaluation/report.html")}
    metrics = json.loads((run / "round-000/evaluation/metrics.json").read_text())
    assert events[-1]["metrics"] == {**metrics, **report}


def test_sampled_tokens_are_scored_alike_by_vllm_and_the_reference(undisturbed) -> None:
    run, _ = undisturbed
    sampled = {
        (row["prompt_id"], row["candidate"]): row["sampler_token_logps"]
        for row in rows(run, "candidates")
    }
    for group, scored in zip(rows(run, "preferences"), rows(run, "reference"), strict=True):
        assert group["group_id"] == scored["group_id"]
        for k, values in enumerate(scored["reference_token_logps"]):
            assert values == pytest.approx(sampled[group["prompt_id"], k], abs=1e-3)


def test_sampler_and_reference_are_held_against_each_other_and_the_number_is_kept(
    undisturbed,
) -> None:
    run, output = undisturbed
    found = manifest(run, "reference")
    tokens = sum(len(ids) for group in rows(run, "preferences") for ids in group["completions"])
    assert found["counts"]["compared_tokens"] == tokens
    assert 0 < found["maxima"]["sampler_difference_nats"] < 1e-3
    assert "[round 0, sampler] sampler and reference agree: mean difference" in output
    apart = json.loads((run / "round-000/evaluation/metrics.json").read_text())[
        "sampler_difference"
    ]
    assert apart["training samples"]["tokens"] == tokens
    assert 0 < apart["policy samples"]["largest_nats"] < 1e-3
    report = (run / "round-000/evaluation/report.html").read_text()
    assert "sampler against trainer, training samples" in report


def test_report_and_metrics_are_there_and_finite(undisturbed) -> None:
    run, output = undisturbed
    evaluation = run / "round-000/evaluation"
    text = (evaluation / "metrics.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["kl"]["nats_per_completion"]["mean"] > 0
    assert "</html>" in (evaluation / "report.html").read_text()
    assert "pi_dpo" in output


def test_a_comparison_of_the_run_with_itself_has_the_numbers_of_its_report(undisturbed) -> None:
    run, _ = undisturbed
    report = json.loads((run / "round-000/evaluation/metrics.json").read_text())
    found = raydpo.compare_runs([str(run), str(run)], resamples=200)
    ours = found["runs"][1]
    assert ours["score"] == report["policy"]["score"]
    assert ours["reference_score"] == report["reference"]["score"]
    assert ours["win_rate_against_reference"] == report["win_rate"]
    assert ours["kl_nats_per_completion"] == report["kl"]["nats_per_completion"]
    assert ours["completion_tokens"] == report["policy"]["completion_tokens"]
    assert found["prompts"]["dropped"] == {"run": 0, "run (2)": 0}
    assert found["pairs"][0]["score_difference"]["ci95"] == [0, 0]
    assert found["notes"] == []


def test_the_published_policy_loads_and_its_card_has_the_verdict(undisturbed, tmp_path) -> None:
    run, _ = undisturbed
    before = {path: path.read_bytes() for path in run.rglob("manifest.json")}
    raydpo.publish_run(str(run), str(tmp_path / "public"))
    assert {path: path.read_bytes() for path in run.rglob("manifest.json")} == before
    card = ModelCard((tmp_path / "public/README.md").read_text())
    report = json.loads((run / "round-000/evaluation/metrics.json").read_text())
    assert report["verdict"] in card.text
    results = {found.metric_type: found.metric_value for found in card.data.eval_results or []}
    assert results["judge_score"] == report["policy"]["score"]["mean"]
    assert results["kl"] == report["kl"]["nats_per_completion"]["mean"]
    assert "| sampling | 24 | 72 | 0 |" in card.text
    published = AutoModelForCausalLM.from_pretrained(tmp_path / "public").state_dict()
    trained = AutoModelForCausalLM.from_pretrained(run / "round-000/policy/model").state_dict()
    assert all(torch.equal(published[name], value) for name, value in trained.items())


def test_show_lists_every_stage_with_its_counts(undisturbed) -> None:
    run, _ = undisturbed
    text = "\n".join(show_run(str(run), 1))
    for stage in ("prompts", "candidates", "preferences", "reference", "policy", "evaluation"):
        assert f"round-000/{stage}: done" in text
    assert "output 72" in text


def test_second_run_has_nothing_to_do(undisturbed, work, ray_cluster, capsys) -> None:
    run, _ = undisturbed
    before = {path: path.read_bytes() for path in run.rglob("manifest.json")}
    assert main(["run", str(work / "job.yaml")]) == 0
    assert capsys.readouterr().err.count("nothing to do") >= 6
    assert {path: path.read_bytes() for path in run.rglob("manifest.json")} == before


def test_every_stage_is_equal_when_it_is_made_again_and_the_run_is_left_alone(
    undisturbed, work: Path, ray_cluster, capsys
) -> None:
    run, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    status = main(["replay", str(run)])
    said = capsys.readouterr().out
    assert status == 0, said
    lines = [line.split() for line in said.splitlines() if line.startswith("round-000/")]
    found = {name.removeprefix("round-000/") for name, _ in lines}
    assert found >= {"prompts", "candidates", "scores", "preferences", "reference", "policy"}
    assert found >= {"heldout", "evaluation-prompts", "evaluation", "evaluation/policy_samples"}
    assert {state for _, state in lines} == {"equal"}
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before


def in_another_layout(work: Path, model: Path) -> dict[str, Any]:
    """The job on the same content: other parts, JSON, shards of the weights and files of prompts."""
    other = Path(shutil.copytree(model, work / "relaid"))
    for file in other.glob("*.json"):
        values = dict(reversed(json.loads(file.read_text()).items()))
        file.write_text(json.dumps(values, indent=5) + "\n")
    tensors = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    names = {
        name: f"model-0000{at % 2 + 1}-of-00002.safetensors" for at, name in enumerate(tensors)
    }
    for file in set(names.values()):
        own = {name: tensors[name] for name in tensors if names[name] == file}
        save_file(own, other / file, {"format": "pt"})
    (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    lines = (work / "prompts.jsonl").read_text().splitlines()
    (work / "relaid-prompts.jsonl").write_text("\n\n".join(lines))
    changed = {"rows_per_part": 4, "model": str(other), "callbacks": []}
    source = {"path": str(work / "relaid-prompts.jsonl"), "max_prompt_tokens": 32}
    return {**job(work, model), **changed, "prompts": source}


def test_another_layout_of_the_same_content_makes_nothing_stale_and_other_content_is_named(
    undisturbed, work: Path, tiny_model: Path, ray_cluster, capsys
) -> None:
    run, _ = undisturbed
    values, file = in_another_layout(work, tiny_model), work / "relaid.yaml"
    file.write_text(yaml.safe_dump(values))
    before = {path: path.read_bytes() for path in run.rglob("manifest.json")}
    assert main(["run", str(file)]) == 0
    assert capsys.readouterr().err.count("nothing to do") >= 6
    assert {path: path.read_bytes() for path in run.rglob("manifest.json")} == before
    assert kept_stages(file, capsys)[0].keys() == {"kept"}

    model, prompts = work / "relaid", work / "relaid-prompts.jsonl"
    tokens = (model / "tokenizer.json").read_text()
    changed = json.loads(tokens)
    changed["added_tokens"][0]["single_word"] ^= True
    with other_content(model / "tokenizer.json", json.dumps(changed).encode()):
        _, said = kept_stages(file, capsys)
        assert "input 'tokenizer' changed (tokenizer.json: added_tokens)" in said
    shard = model / "model-00001-of-00002.safetensors"
    content = shard.read_bytes()
    with other_content(shard, content[:-1] + bytes([content[-1] ^ 1])):
        _, said = kept_stages(file, capsys)
        assert "input 'policy' changed (weights of " in said
    with other_content(prompts, prompts.read_bytes().replace(b"a bad 1", b"a bad 7")):
        _, said = kept_stages(file, capsys)
        assert "input 'data' changed (row 9)" in said
    assert kept_stages(file, capsys)[0].keys() == {"kept"}


@contextmanager
def other_content(file: Path, content: bytes) -> Iterator[None]:
    """A file with another content while the block runs."""
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


def kept_stages(file: Path, capsys) -> tuple[dict[str, list[str]], str]:
    """What the dry run says of the stages: their names by the action, and all of its text."""
    assert main(["run", str(file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    found: dict[str, list[str]] = {}
    for line in said.splitlines():
        name, action = line.split(maxsplit=1)
        found.setdefault(action, []).append(name)
    return found, said


#: Of each kind of stage, a file that is changed by one bit.
FLIPPED = (
    "candidates/part-00002.parquet",
    "reference/part-00000.parquet",
    "policy/model/model.safetensors",
    "policy/model/tokenizer.json",
    "evaluation/metrics.json",
)


def test_flipped_bytes_are_named_and_only_what_they_damage_is_made_again(
    undisturbed: tuple[Path, str],
    work: Path,
    ray_cluster: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = shutil.copytree(undisturbed[0], work / "flipped") / "round-000"
    whole = {path: path.read_bytes() for path in other.rglob("*.parquet")}
    policy = {path: path.read_bytes() for path in (other / "policy/model").iterdir()}
    for name in FLIPPED:
        content = bytearray((other / name).read_bytes())
        content[len(content) // 2] ^= 1
        (other / name).write_bytes(content)
    assert main(["run", str(work / "job.yaml"), "--set", "name=flipped"]) == 0
    said = capsys.readouterr().err
    for name in FLIPPED[:-1]:
        assert name.rpartition("/")[2] in said
    assert said.count("damaged, made again") == 4
    assert {path: path.read_bytes() for path in other.rglob("*.parquet")} == whole
    assert {path: path.read_bytes() for path in (other / "policy/model").iterdir()} == policy
    for stage in ("candidates", "reference", "policy", "evaluation"):
        assert (
            manifest(work / "flipped", stage)["fingerprint"]
            == manifest(undisturbed[0], stage)["fingerprint"]
        )
    metrics = other / "policy/metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b"0.69", b"0.68", 1))
    assert main(["run", str(work / "job.yaml"), "--set", "name=flipped"]) == 1
    refused = capsys.readouterr().err
    assert "metrics.jsonl (expected " in refused
    assert "is made by the training itself" in refused


@pytest.mark.timeout(1200)
def test_run_killed_in_sampling_and_in_training_ends_as_if_undisturbed(
    undisturbed, work, request
) -> None:
    run = work / "killed"
    command = ("training", str(work / "job.yaml"), "--set", "name=killed")
    assert drive("sampling", run, *command).returncode == -9
    assert not (run / "round-000/candidates/manifest.json").exists()
    assert drive("training", run, *command).returncode == -9
    assert not (run / "round-000/policy/manifest.json").exists()
    request.getfixturevalue("ray_cluster")
    assert main(list(command)) == 0
    other, _ = undisturbed
    for stage in ("candidates", "preferences", "reference", "policy"):
        assert manifest(run, stage)["fingerprint"] == manifest(other, stage)["fingerprint"], stage
    log = (run / "round-000/policy/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in log]
    assert steps == list(range(1, len(steps) + 1))
    events = noted_events(run)
    told = [event["step"] for event in events if event["kind"] == "step"]
    # All are told, in order: at most the one at which the driver was killed comes twice.
    assert told == sorted(told)
    assert sorted(set(told)) == steps
    assert len(told) <= len(steps) + 1
    stages = [event["folder"] for event in events if event["kind"] == "stage"]
    assert sorted(stages) == sorted(
        str(p.parent.relative_to(run)) for p in run.rglob("manifest.json")
    )
    assert not [event for event in events if event["kind"] == "round"]  # `train` ends none


def test_trained_folder_gives_the_same_greedy_tokens_in_transformers_and_vllm(
    undisturbed, ray_cluster, tmp_path
) -> None:
    from raydpo.sampling.stage import sample_candidates

    run, _ = undisturbed
    folder = run / "round-000/policy/model"
    prompts = Table(folder_of(str(run / "round-000/prompts")), manifest(run, "prompts"))
    table = sample_candidates(
        Place(folder_of(str(tmp_path / "greedy")), "test"),
        prompts,
        model=ModelConfig(path=str(folder)),
        sampling=SamplingConfig(candidates=1, temperature=0.0, max_completion_tokens=12),
        max_prompt_tokens=32,
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    for row in read_rows(table.folder, table.manifest):
        ids = torch.tensor([row["prompt_ids"]])
        output = model.generate(ids, max_new_tokens=12, do_sample=False)
        assert row["completion_ids"] == output[0, ids.shape[1] :].tolist()


def copy_of(run: Path, name: str, *stages: str) -> Path:
    """Another run that has some stages of this one finished already."""
    for stage in stages:
        shutil.copytree(run / "round-000" / stage, run.parent / name / "round-000" / stage)
    return run.parent / name


def test_constant_reward_is_an_error_that_says_so(undisturbed, work, ray_cluster, capsys) -> None:
    other = copy_of(undisturbed[0], "constant", "prompts", "candidates", "scores", "preferences")
    reward = "labeling.reward.function=tests.integration.rewards:constant"
    command = ["labeling", str(work / "job.yaml"), "--set", "name=constant", "--set", reward]
    assert main(command) == 1
    assert "DataError" in capsys.readouterr().err
    assert not (other / "round-000/preferences/manifest.json").exists()


def test_votes_of_people_become_the_preferences_that_the_reference_scores(
    undisturbed, work, ray_cluster, capsys
) -> None:
    run = copy_of(undisturbed[0], "people", "prompts", "candidates")
    values = yaml.safe_load((work / "job.yaml").read_text())
    kept = {k: v for k, v in values.items() if k not in ("labeling", "training", "evaluation")}
    job = {**kept, "name": "people", "labeling": {"people": {}}}
    (work / "people.yaml").write_text(yaml.safe_dump(job))
    reference = ["reference", str(work / "people.yaml")]
    assert main(reference) == 3  # nobody has judged anything yet
    assert f"raydpo annotate export {run}" in capsys.readouterr().out
    assert main(["annotate", "export", str(run)]) == 0
    pairs = [json.loads(line) for line in (run / "annotation.jsonl").open()]
    votes = [{**pair, "choice": "a", "annotator": who} for pair in pairs for who in ("ann", "bo")]
    (work / "votes.jsonl").write_text("".join(json.dumps(vote) + "\n" for vote in votes))
    assert main(["annotate", "import", str(run), str(work / "votes.jsonl")]) == 0
    assert main(reference) == 0
    chosen = {
        row["completion_texts"][pair["chosen"]]
        for row in rows(run, "preferences")
        for pair in row["pairs"]
    }
    assert chosen == {pair["completion_a"] for pair in pairs}
    scored = manifest(run, "reference")["counts"]["output"]
    assert scored == manifest(run, "preferences")["counts"]["output"] == len(pairs)


def test_a_program_reads_what_the_run_made(undisturbed, ray_cluster) -> None:
    run = raydpo.open_run(str(undisturbed[0]))
    assert {"candidates", "preferences", "prompts", "reference", "scores"} <= set(run.tables())
    table = run.arrow("candidates")
    by_id = sorted(
        run.dataset("candidates").take_all(), key=lambda r: (r["prompt_id"], r["candidate"])
    )
    there = sorted(table.to_pylist(), key=lambda r: (r["prompt_id"], r["candidate"]))
    assert [r["completion_ids"] for r in by_id] == [r["completion_ids"] for r in there]
    assert raydpo.check_job(run.config) == []
