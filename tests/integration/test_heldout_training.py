"""Trainings that are measured on held-out data, on real Ray Train, from the job to the report."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import raydpo
from raydpo.cli import main
from raydpo.core.run import read_manifest, read_rows
from raydpo.core.storage import folder_of
from raydpo.core.tables import Row
from raydpo.pipeline.results import open_run
from raydpo.show.replay import replay
from raydpo.training.metrics_log import read_heldout, read_metrics
from raydpo.training.split import is_heldout

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SHARE = 0.25
SEED = 4
TIMES = ("step_seconds", "tokens_per_second", "groups_per_second")


def write_job(folder: Path, model: Path, name: str, **training: Any) -> Path:
    """A job on existing preferences whose labels are drawn: training can only learn them by heart."""
    adjectives = ["good", "bad", "great", "awful", "boring", "funny", "sad", "slow"]
    draw = random.Random(0)
    rows: list[dict[str, str]] = []
    for n in range(40):
        chosen, rejected = draw.sample(adjectives, 2)
        prompt = f"the film {n} was"
        rows.append({"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "name": name,
        "output": str(folder),
        "seed": SEED,
        "model": str(model),
        "preferences": {
            "path": str(folder / "pairs.jsonl"),
            "max_prompt_tokens": 64,
            "max_completion_tokens": 32,
        },
        "training": {
            "num_workers": 2,
            "cpus_per_worker": 0.5,
            "global_batch_groups": 10,
            "epochs": 6,
            "heldout_fraction": SHARE,
            **training,
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def heldout_rows(run: Path) -> list[Row]:
    folder = folder_of(str(run / "round-000/preferences"))
    rows = read_rows(folder, read_manifest(folder) or {})
    return [row for row in rows if is_heldout(row["prompt_id"], SHARE, SEED)]


def sequence_logps(model: Any, row: Row) -> list[float]:
    """Log-probs of a group's completions by transformers' own forward pass."""
    found = []
    for completion in row["completions"]:
        ids = torch.tensor([row["prompt_ids"] + completion])
        with torch.no_grad():
            logps = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        own = logps.gather(-1, ids[0, 1:, None]).squeeze(-1)
        found.append(own[len(row["prompt_ids"]) - 1 :].sum().item())
    return found


STOPPING: dict[str, Any] = {
    "strategy": "fsdp",
    "learning_rate": 2e-2,
    "checkpoint_every_steps": 2,
    "evaluate_every_steps": 2,
    "early_stopping": {"patience": 3},
}


def test_killed_and_resumed_it_stops_at_the_same_step_and_exports_the_best(
    tiny_model: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = write_job(tmp_path, tiny_model, "whole", **STOPPING)
    killed = write_job(tmp_path, tiny_model, "killed", **STOPPING)
    command = [sys.executable, "-m", "tests.integration.drive", "checkpoints"]
    command += [str(tmp_path / "killed"), "run", str(killed)]
    assert subprocess.run(command, timeout=300, cwd=ROOT, check=False).returncode == -9
    request.getfixturevalue("ray_cluster")
    assert main(["run", str(killed)]) == 0
    assert main(["run", str(whole)]) == 0
    policies = [
        folder_of(str(tmp_path / name / "round-000/policy")) for name in ("whole", "killed")
    ]
    assert untimed(read_metrics(policies[1])) == untimed(read_metrics(policies[0]))
    measured = read_heldout(policies[0])
    assert read_heldout(policies[1]) == measured
    manifests = [read_manifest(policy) or {} for policy in policies]
    assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]
    exported = manifests[0]["exported_step"]
    losses = {row["step"]: row["loss"] for row in measured}
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[exported] == min(loss for step, loss in losses.items() if step)
    assert exported < manifests[0]["steps"] < manifests[0]["planned_steps"]
    assert_numbers_of_the_exported_model(tmp_path / "whole", tiny_model, manifests[0]["heldout"])
    assert_report(tmp_path / "whole", exported)
    assert_the_same_command_keeps_all_and_exports_again(whole, capsys)


def assert_numbers_of_the_exported_model(run: Path, start: Path, found: dict[str, float]) -> None:
    """They are those of a plain forward pass of the exported folder on the held-out pairs."""
    policy = AutoModelForCausalLM.from_pretrained(run / "round-000/policy/model").float()
    reference = AutoModelForCausalLM.from_pretrained(start)
    margins, chosen = [], []
    for row in heldout_rows(run):
        ours, theirs = sequence_logps(policy, row), sequence_logps(reference, row)
        [pair] = row["pairs"]
        ratios = [a - b for a, b in zip(ours, theirs, strict=True)]
        margins.append(0.1 * (ratios[pair["chosen"]] - ratios[pair["rejected"]]))
        chosen.append(ours[pair["chosen"]])
    count = len(margins)
    assert 4 <= count <= 16
    expected = {
        "loss": sum(math.log1p(math.exp(-m)) for m in margins) / count,
        "rewards/accuracies": sum(m > 0 for m in margins) / count,
        "rewards/margins": sum(margins) / count,
        "logps/chosen": sum(chosen) / count,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def assert_report(run: Path, exported: int) -> None:
    opened = open_run(str(run))
    page = Path(opened.report()).read_text(encoding="utf-8")
    assert set(opened.figures()) == {"heldout"}
    assert opened.heldout_metrics()[0]["step"] == 0
    assert f"exported is {exported}" in page
    found = list(replay(str(run), ["report"]))
    assert [one.problems for one in found] == [[]]


def assert_the_same_command_keeps_all_and_exports_again(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["run", str(job), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[:2] for line in shown.splitlines()[:4]] == [
        [name, "kept"] for name in ("preferences", "reference", "policy", "report")
    ]
    policy = job.parent / job.stem / "round-000/policy"
    manifest = json.loads((policy / "manifest.json").read_text())
    (policy / "model/model.safetensors").write_bytes(b"damaged")
    assert main(["run", str(job)]) == 0
    assert "Training " in capsys.readouterr().out
    again = json.loads((policy / "manifest.json").read_text())
    for name in ("fingerprint", "heldout", "exported_step", "steps"):
        assert again[name] == manifest[name], name


@pytest.mark.usefixtures("ray_cluster")
def test_a_reward_model_is_measured_by_its_own_head(tiny_model: Path, tmp_path: Path) -> None:
    objective = {"objective": "reward_model", "learning_rate": 1e-3, "epochs": 1}
    job = write_job(tmp_path, tiny_model, "run", **objective)
    assert main(["run", str(job)]) == 0
    folder = tmp_path / "run/round-000/policy"
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").float()
    margins = []
    for row in heldout_rows(tmp_path / "run"):
        rewards = []
        for completion in row["completions"]:
            ids = row["prompt_ids"] + completion
            ids = ids[:-1] if ids[-1] == model.config.eos_token_id else ids
            with torch.no_grad():
                rewards.append(model(input_ids=torch.tensor([ids])).logits.item())
        margins.append(rewards[0] - rewards[1])
    found = json.loads((folder / "manifest.json").read_text())["heldout"]
    assert found["rewards/margins"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)
    measured = read_heldout(folder_of(str(folder)))
    steps = len(read_metrics(folder_of(str(folder))))
    assert [row["step"] for row in measured] == [0, steps]
    assert (tmp_path / "run/round-000/report/report.html").is_file()
    raydpo.publish_run(str(tmp_path / "run"), str(tmp_path / "public"))
    published = AutoModelForSequenceClassification.from_pretrained(tmp_path / "public").float()
    assert torch.equal(published.score.weight, model.score.weight)
    card = ModelCard((tmp_path / "public/README.md").read_text())
    results = {one.metric_type: one.metric_value for one in card.data.eval_results or []}
    assert results["heldout_margin"] == pytest.approx(found["rewards/margins"])
    assert card.data.pipeline_tag == "text-classification"


@pytest.mark.usefixtures("ray_cluster")
def test_fine_tuning_is_measured_by_the_token_and_has_a_report(
    tiny_model: Path, tmp_path: Path
) -> None:
    data, job = tmp_path / "text.jsonl", tmp_path / "job.yaml"
    texts = [f"the film {n} was very good and I loved the acting" for n in range(40)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sft = {
        "data": str(data),
        "loss_on": "all",
        "max_sequence_tokens": 64,
        "global_batch_sequences": 8,
        "learning_rate": 5e-3,
        "heldout_fraction": SHARE,
        "evaluate_every_steps": 2,
    }
    values = {"name": "run", "output": str(tmp_path), "model": str(tiny_model), "sft": sft}
    job.write_text(yaml.safe_dump(values))
    assert main(["sft", str(job)]) == 0
    policy = tmp_path / "run/sft/policy"
    found = json.loads((policy / "manifest.json").read_text())["heldout"]
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    before = read_heldout(folder_of(str(policy)))[0]
    assert found["loss"] < before["loss"]
    assert "fine-tuned model" in (tmp_path / "run/sft/report/report.html").read_text()
    assert [one.problems for one in replay(str(tmp_path / "run"), ["report"])] == [[]]
    raydpo.publish_run(str(tmp_path / "run"), str(tmp_path / "public"))
    card = (tmp_path / "public/README.md").read_text()
    assert "A language model fine-tuned from `" in card
    assert "| held-out perplexity |" in card
    shutil.rmtree(tmp_path / "run")
