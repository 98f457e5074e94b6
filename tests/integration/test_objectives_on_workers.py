"""Objectives that read the whole global batch, or a model beside it, on several workers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from raydpo.config.file import config_from_values
from raydpo.config.job import LoraSettings, RewardConfig, TrainingConfig
from raydpo.labeling.classifier import judge_with_classifier, load_classifier
from raydpo.pipeline.job import run_round
from raydpo.training.composition import Plan
from raydpo.training.logps import TokenLogps
from raydpo.training.loop import Hooks, train
from raydpo.training.objectives import make_objective
from raydpo.training.reward import TokenRewards
from raydpo.training.sharding import current_world, full_parameters
from tests.integration.training_runs import CPU, assert_same, fail, run_ranks
from tests.unit.training.test_objectives import KINDS, dataset, make_model

pytestmark = pytest.mark.slow

SECTIONS: list[dict[str, Any]] = [
    {"name": "kto"},
    {"name": "aot", "alignment": "unpaired"},
    {"name": "tdpo2"},
    {"name": "policy_gradient", "advantages": "batch_mean", "loss_per": "token"},
    {"name": "pairwise_cringe"},
    {"name": "sum", "terms": [{"objective": "ipo"}, {"objective": "plackett_luce"}]},
    {"name": "reward_model"},
]


def train_with(section: dict[str, Any], strategy: str) -> tuple[list[float], dict[str, Any]]:
    """Three steps against another reference; losses and final parameters."""
    config = TrainingConfig.model_validate(
        {
            "objective": section,
            "strategy": strategy,
            "max_tokens_per_micro_batch": 60,
            "learning_rate": 1e-3,
            "max_grad_norm": None,
        }
    )
    losses: list[float] = []
    world = current_world(CPU)
    with torch.device("meta" if strategy == "fsdp" and world.rank > 0 else "cpu"):
        module = make_reward_module() if config.objective.scalar_head else make_policy_module()
    if not config.objective.scalar_head:
        module.put_beside(TokenLogps(make_model(1), attention="segments"))
    hooks = Hooks(
        log=lambda _step, metrics: losses.append(metrics["loss"]),
        checkpoint=lambda _step, _metrics, _save: lambda: None,
        first_step=lambda _: None,
        failed=lambda failure: fail(str(failure)),
    )
    data = dataset(KINDS.get(section["name"], "pairs"), reference_seed=1)
    objective = make_objective(config.objective, seed=5)
    wrapped = train(module, data, objective, config, Plan(6, 6, 3, 3, seed=0), world, hooks)
    return losses, full_parameters(wrapped)


def make_policy_module() -> TokenLogps:
    return TokenLogps(make_model(), attention="segments")


def make_reward_module() -> TokenLogps:
    config = make_model().config
    config.num_labels = 1
    torch.manual_seed(0)
    return TokenRewards(LlamaForSequenceClassification(config).eval())


def test_two_workers_equal_one_for_objectives_that_read_the_whole_batch(tmp_path: Path) -> None:
    cases = [{"section": s, "strategy": st} for st in ("ddp", "fsdp") for s in SECTIONS]
    alone = [train_with(section, "ddp") for section in SECTIONS]
    for result, one in zip(run_ranks(tmp_path, 2, cases, train_with), alone * 2, strict=True):
        assert_same(result, one, 1e-5)


def _job(folder: Path, model: Path, objective: str, rows: list[dict[str, Any]]) -> Any:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {
        "objective": objective,
        "num_workers": 2,
        "cpus_per_worker": 0.5,
        "global_batch_groups": 6,
        "learning_rate": 1e-3,
    }
    values = {
        "name": objective,
        "output": str(folder),
        "model": str(model),
        "rows_per_part": 12,
        "preferences": {
            "path": str(folder / "data.jsonl"),
            "max_prompt_tokens": 64,
            "max_completion_tokens": 32,
        },
        "training": training,
    }
    return config_from_values(values, "test")


def _metrics(folder: Path, name: str) -> list[dict[str, float]]:
    file = folder / name / "round-000/policy/metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_unpaired_data_is_scored_and_trained_on(tiny_model: Path, tmp_path, ray_cluster) -> None:
    rows = [
        {"prompt": f"the film {n} was", "completion": f" very good {n}", "label": n % 2 == 0}
        for n in range(24)
    ]
    run_round(_job(tmp_path, tiny_model, "kto", rows), until="training")
    metrics = _metrics(tmp_path, "kto")
    assert metrics[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_a_reward_model_is_trained_and_read_by_labeling(tiny_model, tmp_path, ray_cluster) -> None:
    rows = [
        {"prompt": f"the film {n} was", "chosen": " very good", "rejected": " bad and slow"}
        for n in range(24)
    ]
    result = run_round(_job(tmp_path, tiny_model, "reward_model", rows), until="training")
    assert not (tmp_path / "reward_model/round-000/reference").exists()
    metrics = _metrics(tmp_path, "reward_model")
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # a new head is zero
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert result.policy is not None
    reward = RewardConfig(classifier=result.policy.path, output="logit")
    texts = [" very good", " bad and slow"]
    good, bad = judge_with_classifier(
        load_classifier(reward), ["the film 99 was"] * 2, texts
    ).values
    assert good > bad


def test_a_reward_model_with_an_adapter_is_exported_whole_and_as_an_adapter(
    tiny_model, tmp_path, ray_cluster
) -> None:
    rows = [
        {"prompt": f"the film {n} was", "chosen": " very good", "rejected": " bad and slow"}
        for n in range(24)
    ]
    job = _job(tmp_path, tiny_model, "reward_model", rows)
    assert job.training is not None
    training = job.training.model_copy(update={"lora": LoraSettings(rank=8)})
    result = run_round(job.model_copy(update={"training": training}), until="training")
    assert result.policy is not None
    folder = Path(result.policy.path)
    merged = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).eval()
    adapted = PeftModel.from_pretrained(base, str(folder.parent / "adapter"))
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        expected = merged(input_ids=ids).logits
        assert expected.abs() > 1e-4
        torch.testing.assert_close(adapted(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_reference_free_training_skips_the_reference(tiny_model, tmp_path, ray_cluster) -> None:
    rows = [
        {"prompt": f"the film {n} was", "chosen": " very good", "rejected": " bad and slow"}
        for n in range(12)
    ]
    run_round(_job(tmp_path, tiny_model, "simpo", rows), until="training")
    assert not (tmp_path / "simpo/round-000/reference").exists()
    metrics = _metrics(tmp_path, "simpo")
    assert metrics[-1]["rewards/margins"] > metrics[0]["rewards/margins"]
