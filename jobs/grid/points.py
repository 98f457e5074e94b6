"""The points of a study: one job each, with the settings that make it this point."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from raydpo.config.file import load_config
from raydpo.config.job import Config

#: The offline job, from whose preferences all offline points of a seed learn.
OFFLINE_JOB: Final = "jobs/demo.yaml"
#: The job of Best-of-N, which trains nothing: all N of a seed are points of its one run.
BEST_OF_JOB: Final = "jobs/best_of_n.yaml"
#: How `--quick` cuts jobs with rounds.
_QUICK_ONLINE: Final = ("online.rounds=1", "online.prompts_per_round=16")
#: How it cuts every evaluation.
_QUICK_EVALUATION: Final = (
    "sampling.max_completion_tokens=12",
    "evaluation.samples_per_prompt=2",
    "evaluation.prompts={path: assets/heldout-prompts.jsonl, max_prompt_tokens: 16, limit: 6}",
)
#: How it cuts every training. Steps are few, so they are large.
_QUICK_TRAINING: Final = (
    "prompts.limit=24",
    "training.epochs=1",
    "training.learning_rate=1.0e-3",
)
#: Offline trainings measure log-probs of held-out pairs on the way.
_MEASURED: Final = "training.evaluate_every_steps=12"
#: A second worker costs more of two cores than it saves, and changes no result beyond rounding.
ONE_WORKER: Final = ("training.num_workers=1",)


@dataclass(frozen=True)
class Point:
    """One training of a study.

    Attributes:
        method: its name in tables.
        strength: what distinguishes it from other points of the method, such as `beta 0.1`.
        overrides: `section.key=value` of the job.
        job: the YAML file.
        learned_reward: whether rounds are labelled by a reward model that is fitted first.
        level: points of level 1 run for all seeds before those of level 2.
        best_of: N, of a point that trains nothing.
    """

    method: str
    strength: str
    overrides: tuple[str, ...] = ()
    job: str = OFFLINE_JOB
    learned_reward: bool = False
    level: int = 1
    best_of: int | None = None

    @property
    def online(self) -> bool:
        """Whether rounds make it."""
        return self.job not in (OFFLINE_JOB, BEST_OF_JOB)

    @property
    def name(self) -> str:
        """Name of its run directory."""
        named = self.method if self.best_of else f"{self.method} {self.strength}"
        return re.sub(r"[^a-z0-9_.]+", "-", named.lower()).strip("-")

    @property
    def cost(self) -> float:
        """About how long it takes, in offline trainings; pi_ref takes none."""
        return 4.0 if self.online else float(bool(self.strength))


def offline(
    method: str, strength: str, objective: dict[str, Any], *overrides: str, level: int = 1
) -> Point:
    """Return a point with another `training.objective` on the offline job."""
    section = f"training.objective={json.dumps(objective)}"
    return Point(method, strength, (section, _MEASURED, *ONE_WORKER, *overrides), level=level)


@dataclass(frozen=True)
class Settings:
    """Where a study's runs are, and what all of them have in common.

    Attributes:
        output: the study's folder.
        overrides: `section.key=value` of every job.
        quick: whether the jobs are cut to a few prompts and steps.
    """

    output: Path
    overrides: tuple[str, ...] = ()
    quick: bool = False

    def of(self, point: Point, seed: int) -> tuple[str, ...]:
        """Return all overrides that decide a point's result."""
        trains = () if point.best_of else _QUICK_TRAINING
        rounds = _QUICK_ONLINE if point.online else ()
        quick = (*_QUICK_EVALUATION, *trains, *rounds) if self.quick else ()
        return (*quick, *self.overrides, *point.overrides, f"seed={seed}")

    def folder(self, seed: int) -> Path:
        """Return the folder of a seed's run directories."""
        return self.output / f"seed-{seed}"

    def job(self, point: Point, seed: int) -> Config:
        """Return the job of a point.

        Raises:
            ConfigError: a key or value is wrong.
        """
        folder = self.folder(seed)
        placed = [f"output={folder}", f"name={point.name}"]
        if point.learned_reward:
            model = folder / REWARD_MODEL.name / "round-000/policy/model"
            placed.append(f"labeling.reward.classifier={model}")
        return load_config(point.job, [*self.of(point, seed), *placed])


#: DPO as in the offline job: each seed's first run, from which the others copy what they share.
BASE: Final = offline("dpo", "beta 0.1", {"name": "dpo", "beta": 0.1})
#: The model that all trainings start from: its samples are in each seed's first run.
REFERENCE: Final = Point("pi_ref", "")
#: The reward model of a seed's preferences, trained as jobs/reward_reviews.yaml trains its own. It
#: has no evaluation, whose held-out share it keeps: it learns from what policies learn from.
REWARD_MODEL: Final = offline(
    "reward_model",
    "",
    {"name": "reward_model"},
    "evaluation=null",
    "training.heldout_fraction=0.1",
    "training.epochs=4",
    "training.learning_rate=3.0e-4",
)
