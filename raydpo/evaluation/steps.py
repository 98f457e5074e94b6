"""The sub-stages of an evaluation: samples, judge scores, rewards and log-probs.

Each is a stage in a folder of its own inside the evaluation's, so that an interrupted evaluation
resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from raydpo.config.job import Config, EvaluationConfig, ModelConfig, RewardConfig
from raydpo.core.parts import Table, Target, run_work
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.evaluation.heldout import sample_heldout
from raydpo.labeling.stage import all_judge, scoring_work
from raydpo.reference.agreement import agreement_in, sampler_tolerance
from raydpo.reference.stage import reference_work
from raydpo.sampling.pool import EnginePool, Engines
from raydpo.sampling.stage import sample_candidates
from raydpo.sampling.weights import share_engines

#: Best-of-N's samples are drawn in this round, which no run has: none of them is among the
#: completions that they are compared with.
BEST_OF_ROUND: Final = -1


@dataclass(frozen=True)
class BestOfTables:
    """The samples of a model that Best-of-N chooses from, their rewards, and their judge scores."""

    samples: Table
    rewards: Table
    scores: Table


@dataclass(frozen=True)
class Steps:
    """The kinds of sub-stages, with what they share."""

    config: Config
    evaluation: EvaluationConfig
    place: Place

    @contextmanager
    def engines(
        self, models: list[ModelConfig], pool: Callable[[], EnginePool] | None
    ) -> Generator[Callable[[], EnginePool] | None]:
        """Yield one pool for all models, which receives the weights of one model after another.

        Yield None if they cannot share engines; each sub-stage then starts its own.
        """
        base, sampling = self.config.model, self.config.sampling
        if not share_engines([base, *models], sampling):
            yield None
        elif pool is not None:
            yield pool
        else:
            longest = self.evaluation.prompts.max_prompt_tokens
            with Engines(base, sampling, longest, self.place.label) as engines:
                yield engines.pool

    def sample(
        self,
        name: str,
        model: ModelConfig,
        prompts: Table,
        pool: Callable[[], EnginePool] | None,
    ) -> Table:
        """Sample completions of every prompt."""
        return sample_heldout(self.config, self.place.inside(name), prompts, model, pool)

    def sample_best_of(
        self,
        models: dict[str, ModelConfig],
        prompts: Table,
        pool: Callable[[], EnginePool] | None,
    ) -> dict[str, Table]:
        """Sample what Best-of-N chooses from, of each model that it is asked for; maybe none."""
        best_of = self.evaluation.best_of
        if best_of is None:
            return {}
        sampling = self.evaluation.sampling(self.config.sampling)
        sampling = sampling.model_copy(update={"candidates": best_of.samples_per_prompt})
        return {
            name: sample_candidates(
                replace(self.place.inside(f"best_of_{name}_samples"), round_index=BEST_OF_ROUND),
                prompts,
                model=models[name],
                sampling=sampling,
                max_prompt_tokens=self.evaluation.prompts.max_prompt_tokens,
                pool=pool,
            )
            for name in best_of.models
        }

    def judge(self, samples: dict[str, Table]) -> dict[str, Table]:
        """Return every judge's value of every completion; tables and folders by name."""
        return self._score(samples, self.evaluation.judge)

    def reward(self, reference_samples: Table, policy_samples: Table) -> list[Table | None]:
        """Return the same of the rewards that made the labels; None if they have no tables here."""
        rewards = self.config.rewards_evaluated
        if not rewards or all_judge(rewards, self.evaluation.judge):
            return [None, None]
        samples = {"reference_rewards": reference_samples, "policy_rewards": policy_samples}
        return [*self._score(samples, rewards).values()]

    def best_of(
        self, samples: dict[str, Table], scores: dict[str, Table]
    ) -> dict[str, BestOfTables]:
        """Add rewards to the samples of `sample_best_of` and their judge scores, by model."""
        if not samples or self.config.labeling is None:
            return {}
        rewards = self._score(
            {f"best_of_{name}_rewards": table for name, table in samples.items()},
            self.config.labeling.reward,
        )
        return {
            name: BestOfTables(
                table, rewards[f"best_of_{name}_rewards"], scores[f"best_of_{name}_scores"]
            )
            for name, table in samples.items()
        }

    def logps(
        self,
        role: str,
        model: ModelConfig,
        groups: Table,
        pairs: Table | None,
        samples: Table | None = None,
    ) -> dict[str, Table]:
        """Compute log-probs per token: of samples in groups (`kl`) or held-out pairs (`heldout`).

        `samples` are those of the groups that this model made. With them, the engines' own
        log-probs are compared with the trainer's forward pass.

        Raises:
            EngineError: they differ by more than `sampling.engines.probe_tolerance` allows.
        """
        sources = {"kl": groups} | ({"heldout": pairs} if pairs else {})
        targets = [
            Target(self.place.inside(f"{kind}_{role}"), table, samples if kind == "kl" else None)
            for kind, table in sources.items()
        ]
        config = self.config
        tolerance = sampler_tolerance(model, config.sampling.engines)
        work = reference_work(targets, model, config.reference, tolerance)
        return dict(zip(sources, run_work(work), strict=True))

    def say_agreement(self, logps: Table) -> None:
        """Log how much the engines differ from the trainer's forward pass."""
        if (found := agreement_in(logps.manifest)) is not None:
            logger.info("[%s] engine and trainer agree: %s", self.place.label, found)

    def _score(
        self, samples: dict[str, Table], rewards: tuple[RewardConfig, ...]
    ) -> dict[str, Table]:
        targets = [Target(self.place.inside(name), table) for name, table in samples.items()]
        return dict(zip(samples, run_work(scoring_work(targets, rewards)), strict=True))
