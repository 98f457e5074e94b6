"""The trainings of the study, as jobs of raydpo: a policy and a reward model on the same pairs.

A data set, a seed and a folder give finished run directories. A finished run is not made again, so
an interrupted study goes on where it was.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

import raydpo
from raydpo.config.job import Config, ModelConfig
from raydpo.pipeline.results import Run

ROOT: Final = Path(__file__).parents[2]
JOBS: Final = ROOT / "jobs"
BETA: Final = 0.1
HELDOUT_FRACTION: Final = 0.3
#: Trainings on pairs of people, in the paper's order: Preferred-FT makes pi_ref, and the policy and
#: the reward model start from it. The settings were fixed before the first run.
_EACH: Final[dict[str, Any]] = {
    "num_workers": 1,
    "cpus_per_worker": 0.5,
    "global_batch_groups": 16,
    "epochs": 1,
    "schedule": "cosine",
    "warmup_fraction": 0.1,
    "heldout_fraction": HELDOUT_FRACTION,
}
_PREFERRED_FT: Final = {"objective": {"name": "preferred_sft"}, "learning_rate": 1e-3}
_DPO: Final = {"objective": {"name": "dpo", "beta": BETA}, "learning_rate": 2e-4}
_REWARD: Final = {"objective": {"name": "reward_model"}, "learning_rate": 3e-4}


@dataclass(frozen=True)
class Trained:
    """What one seed's jobs left.

    Attributes:
        policy: the run of the DPO policy, with the tables of pairs and of reference log-probs.
        reward: the run of the reward model, on the same pairs.
        original: on pairs of people, the model before it was fine-tuned on them.
    """

    policy: Run
    reward: Run
    original: ModelConfig | None = None


def train_on_demo(output: Path, seed: int, limit: int | None) -> Trained:
    """Run the demo's job without its evaluation, and the reward model's on the demo's pairs.

    Args:
        output: folder of run directories.
        seed: of samples, split and order.
        limit: number of prompts to use; None for all.
    """
    job = yaml.safe_load((JOBS / "demo.yaml").read_text(encoding="utf-8"))
    del job["evaluation"]
    job |= {"name": f"demo-{seed}-policy", "output": str(output), "seed": seed}
    # The number of workers changes no parameter, and one is cheaper to start.
    held = {"heldout_fraction": HELDOUT_FRACTION, "num_workers": 1}
    job["training"] |= held
    job["prompts"]["limit"] = limit
    policy = _run(job)
    reward = yaml.safe_load((JOBS / "reward_reviews.yaml").read_text(encoding="utf-8"))["training"]
    job |= {"name": f"demo-{seed}-reward"}
    job["training"] = {**reward, **held}
    _copy_tables(output / f"demo-{seed}-policy", output / f"demo-{seed}-reward")
    return Trained(policy, _run(job))


def train_on_people(
    output: Path, pairs: Path, model: Path, seed: int, limit: int | None
) -> Trained:
    """Fine-tune a model on the chosen completions of people's pairs, then train both on the pairs.

    Args:
        output: folder of run directories.
        pairs: `Human:`/`Assistant:` transcripts, as in jobs/existing_pairs.yaml.
        model: folder of the model.
        seed: of split and order.
        limit: number of pairs to use; None for all.
    """
    shared = human_job(output, pairs, model, seed, limit)
    name = f"{model.name}-{seed}"
    tuned = _run(_job(shared, f"{name}-tuned", str(model), _PREFERRED_FT)).policy().path
    policy = _run(_job(shared, f"{name}-policy", tuned, _DPO))
    reward = _run(_job(shared, f"{name}-reward", tuned, _REWARD))
    return Trained(policy, reward, ModelConfig(path=str(model)))


def human_job(
    output: Path, pairs: Path, model: Path, seed: int, limit: int | None
) -> dict[str, Any]:
    """What the three jobs on people's pairs share; arguments as of `train_on_people`."""
    context = _longest(model)
    return {
        "output": str(output),
        "seed": seed,
        "rows_per_part": 512,
        # Identical pairs, prompts that differ, empty turns, and pairs that a cut makes identical.
        "max_quarantined_fraction": 0.1,
        "preferences": {
            "path": str(pairs),
            "layout": "transcript",
            "max_prompt_tokens": context * 3 // 8,
            "max_completion_tokens": context - context * 3 // 8,
            "too_long_prompt": "keep_end",
            "too_long_completion": "keep_start",
            "limit": limit,
        },
    }


def _job(shared: dict[str, Any], name: str, model: str, training: dict[str, Any]) -> dict[str, Any]:
    return {**shared, "name": name, "model": model, "training": {**_EACH, **training}}


def _run(values: dict[str, Any]) -> Run:
    before = Path.cwd()
    os.chdir(ROOT)  # the shipped jobs name files of the repository
    try:
        config: Config = raydpo.load_job(values)
        raydpo.run_job(config, until="training")
    finally:
        os.chdir(before)
    return raydpo.open_run(str(Path(config.output, config.name)))


def _copy_tables(source: Path, target: Path) -> None:
    """Give a run the finished tables of another one: its job makes only the training anew."""
    for folder in ("prompts", "candidates", "scores", "preferences"):
        place = Path("round-000", folder)
        if (source / place).exists() and not (target / place).exists():
            shutil.copytree(source / place, target / place)


def _longest(model: Path) -> int:
    config = yaml.safe_load((model / "config.json").read_text(encoding="utf-8"))
    return int(config["max_position_embeddings"])
