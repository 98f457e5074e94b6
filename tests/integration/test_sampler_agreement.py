"""An engine that reads a model otherwise than transformers is found before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raydpo.cli import main
from tests.conftest import make_tiny_model
from tests.integration.runs import manifest, write_prompts

pytestmark = pytest.mark.slow

#: vLLM turns by `max_trained_positions`, which transformers does not know.
OTHERWISE = {
    "rope_type": "dynamic",
    "rope_theta": 1e4,
    "factor": 4.0,
    "max_trained_positions": 16,
}


def job(work: Path, objective: str) -> dict[str, Any]:
    return {
        "name": objective,
        "output": str(work),
        "rows_per_part": 12,
        "model": str(work / "model"),
        "prompts": {"path": str(work / "prompts.jsonl"), "max_prompt_tokens": 32},
        "sampling": {
            "candidates": 2,
            "max_completion_tokens": 24,
            "temperature": 1.3,
            "top_p": 0.9,
            "min_completion_tokens": 4,
            "engines": {"cpus": 0.2},
        },
        "labeling": {"reward": {"function": "tests.integration.rewards:count_e"}},
        "training": {"objective": objective, "cpus_per_worker": 0.4},
    }


@pytest.mark.parametrize("objective", ["dpo", "simpo"])
def test_a_sampler_of_another_model_stops_the_run(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], objective: str
) -> None:
    """With a reference its table shows it; without one, a few samples that the trainer scores."""
    make_tiny_model(tmp_path / "model", seed=0, rope_parameters=OTHERWISE)
    write_prompts(tmp_path)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job(tmp_path, objective)))
    assert main(["train", str(tmp_path / "job.yaml")]) == 1
    error = capsys.readouterr().err
    assert "sampler and scorer give other log-probs to the same tokens: mean difference" in error
    assert "sampling.engines.probe_tolerance" in error
    assert not (tmp_path / objective / "round-000/policy/model").exists()


def test_what_is_cut_from_sampling_leaves_the_models_own_log_probs(
    ray_cluster: None, tmp_path: Path
) -> None:
    """At temperature 1.3 with top_p and a least length, and beyond where YaRN begins."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    rope["original_max_position_embeddings"] = 16
    make_tiny_model(tmp_path / "model", seed=0, rope_parameters=rope, max_position_embeddings=16)
    write_prompts(tmp_path)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job(tmp_path, "dpo")))
    assert main(["reference", str(tmp_path / "job.yaml")]) == 0
    found = manifest(tmp_path / "dpo", "reference")
    assert found["counts"]["compared_tokens"] > 100
    assert found["maxima"]["sampler_difference_nats"] < 1e-3
