"""Sample and judge methods, by the stages of the product, with one set of engines.

Each table is a stage in the output folder, with a manifest, so a killed study loses no finished
one. Weights of one policy after another are pushed into the engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from raydpo.config.file import load_config
from raydpo.config.job import Config, ModelConfig, RewardConfig
from raydpo.core.parts import Table, Target, run_work
from raydpo.core.place import Place
from raydpo.core.storage import Folder
from raydpo.evaluation.best_of import Pool, pools_of
from raydpo.evaluation.samples import Sample, collect_samples
from raydpo.labeling.stage import scoring_work
from raydpo.pipeline.job import run_round
from raydpo.prompts.stage import run_prompts_stage
from raydpo.sampling.pool import Engines
from raydpo.sampling.stage import sample_candidates
from winrate.points import CURVE

JOB: Final = "jobs/best_of_n.yaml"
#: Rounds of the seeds of samples: those that all methods meet, and the methods' own. They differ,
#: so that no completion meets itself. All methods and temperatures have the same seeds.
_OPPONENTS, _CONTENDERS = 0, 1
#: How `--quick` cuts the job.
_QUICK: Final = (
    "evaluation.prompts={path: assets/heldout-prompts.jsonl, max_prompt_tokens: 16, limit: 6}",
    "sampling.max_completion_tokens=12",
    "evaluation.samples_per_prompt=2",
)


@dataclass(frozen=True)
class Bench:
    """The samplers and judges of one seed.

    Attributes:
        config: the job of Best-of-N at temperature 1, with this seed.
        engines: of the whole study.
        folder: of this seed's tables.
        prompts: held-out prompts.
    """

    config: Config
    engines: Engines
    folder: Path
    prompts: Table

    def place(self, *names: str, round_index: int = 0) -> Place:
        """Return the place of a stage of this seed."""
        named = [name.lower().replace(" ", "-") for name in names]
        folder = Folder(str(self.folder.joinpath(*named)))
        label = f"seed {self.config.seed}, {', '.join(names)}"
        return Place(folder, label, seed=self.config.seed, round_index=round_index)

    def opponents(self) -> list[Sample]:
        """Return the reference's judged completions at temperature 1 that all methods meet."""
        table = self._sample(
            "opponents", self.config.model, 1.0, _samples_per_prompt(self.config), _OPPONENTS
        )
        return self._judged({1.0: table}, "opponents")[1.0]

    def pools(
        self,
        name: str,
        model: ModelConfig,
        temperatures: Sequence[float],
        opponents: list[Sample],
        samples: int | None = None,
    ) -> dict[float, list[Pool]]:
        """Return a model's judged samples by temperature; greedy decoding has one a prompt.

        Args:
            name: of the folder.
            model: what samples.
            temperatures: of the samples.
            opponents: what they are compared with.
            samples: number a prompt, and then the labelling reward chooses; without it that of the
                evaluation, and rewards are 0.
        """
        tables = {
            t: self._sample(
                name, model, t, 1 if t == 0 else samples or _samples_per_prompt(self.config)
            )
            for t in temperatures
        }
        judged = self._judged(tables, name)
        rewards = self._rewards(tables, name) if samples else {}
        return {
            t: pools_of(
                judged[t],
                rewards.get(t) or {(s.prompt_id, s.candidate): 0.0 for s in judged[t]},
                opponents,
            )
            for t in temperatures
        }

    def curve(self) -> list[Pool]:
        """Run Best-of-N of the product for this seed, and return its pools."""
        run_round(self.config, "evaluation", engines=self.engines)
        evaluation = Folder(f"{self.config.output}/{self.config.name}/round-000/evaluation")
        samples, rewards, scores, theirs, of_theirs = (
            Table(evaluation.child(name), evaluation.child(name).read_json("manifest.json"))
            for name in (
                "best_of_reference_samples",
                "best_of_reference_rewards",
                "best_of_reference_scores",
                "reference_samples",
                "reference_scores",
            )
        )
        return pools_of(
            collect_samples(samples, scores, _judges(self.config)),
            _by_candidate(collect_samples(samples, rewards, _choosers(self.config))),
            collect_samples(theirs, of_theirs, _judges(self.config)),
        )

    def _sample(
        self,
        name: str,
        model: ModelConfig,
        temperature: float,
        samples: int,
        round_index: int = _CONTENDERS,
    ) -> Table:
        evaluation = self.config.evaluation
        assert evaluation is not None
        changes = {"candidates": samples, "temperature": temperature}
        return sample_candidates(
            self.place(name, f"temperature-{temperature:g}", "samples", round_index=round_index),
            self.prompts,
            model=model,
            sampling=self.config.sampling.model_copy(update=changes),
            max_prompt_tokens=evaluation.prompts.max_prompt_tokens,
            pool=self.engines.pool,
        )

    def _judged(self, tables: dict[float, Table], name: str) -> dict[float, list[Sample]]:
        scores = self._score(tables, name, "scores", _judges(self.config))
        return {
            t: collect_samples(table, scores[t], _judges(self.config))
            for t, table in tables.items()
        }

    def _rewards(
        self, tables: dict[float, Table], name: str
    ) -> dict[float, dict[tuple[str, int], float]]:
        rewards = _choosers(self.config)
        found = self._score(tables, name, "rewards", rewards)
        return {
            t: _by_candidate(collect_samples(table, found[t], rewards))
            for t, table in tables.items()
        }

    def _score(
        self, tables: dict[float, Table], name: str, kind: str, by: tuple[RewardConfig, ...]
    ) -> dict[float, Table]:
        """Score all temperatures in one go, so that workers load a classifier once."""
        targets = [
            Target(self.place(name, f"temperature-{t:g}", kind), table)
            for t, table in tables.items()
        ]
        return dict(zip(tables, run_work(scoring_work(targets, by)), strict=True))


def bench_of(output: Path, seed: int, engines: Engines, quick: bool) -> Bench:
    """Return the bench of a seed, with its prompts read."""
    config = study_config(output, seed, quick)
    folder = output / f"seed-{seed}"
    assert config.evaluation is not None
    place = Place(Folder(str(folder / "prompts")), f"seed {seed}, prompts", seed=seed)
    prompts = run_prompts_stage(config, config.evaluation.prompts, place)
    return Bench(config, engines, folder, prompts)


def study_config(output: Path, seed: int, quick: bool) -> Config:
    """Return the job of Best-of-N of a seed, whose sections the whole study uses."""
    cut = [*_QUICK, "evaluation.best_of={n: [1, 2, 4], samples_per_prompt: 4}"] if quick else []
    if not quick:
        cut = [f"evaluation.best_of.n={list(CURVE)}"]
    placed = [f"seed={seed}", f"output={output / f'seed-{seed}'}", "name=best-of-n"]
    return load_config(JOB, [*cut, *placed])


def _samples_per_prompt(config: Config) -> int:
    assert config.evaluation is not None
    return config.evaluation.samples_per_prompt


def _judges(config: Config) -> tuple[RewardConfig, ...]:
    assert config.evaluation is not None
    return config.evaluation.judge


def _choosers(config: Config) -> tuple[RewardConfig, ...]:
    assert config.labeling is not None
    return config.labeling.reward


def _by_candidate(samples: list[Sample]) -> dict[tuple[str, int], float]:
    return {(s.prompt_id, s.candidate): s.score for s in samples}
