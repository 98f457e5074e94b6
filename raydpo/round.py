"""The stages of one round, each a few lines: what is read, done, written.

What comes in: the configuration and the round's folder. What goes out: finished tables,
a policy, metrics. `pipeline.py` runs them once, `online.py` round after round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raydpo.config import Config, ModelConfig
from raydpo.errors import ConfigError
from raydpo.evaluation.samples import groups_of_samples
from raydpo.evaluation.stage import evaluate
from raydpo.labeling.implicit import implicit_scores, refuse_equal_models
from raydpo.labeling.preferences import build_preferences
from raydpo.labeling.self_play import self_play_preferences
from raydpo.labeling.stage import score_candidates
from raydpo.parts import Table
from raydpo.progress import logger
from raydpo.prompts.preferences import run_preferences_stage
from raydpo.prompts.stage import run_prompts_stage
from raydpo.reference.stage import score_reference, verify_reference
from raydpo.run import PartResult, Stage, commit, open_stage, read_manifest, write_part
from raydpo.sampling.pool import EnginePool
from raydpo.sampling.stage import sample_candidates
from raydpo.split import is_heldout
from raydpo.storage import Folder
from raydpo.training.metrics_log import read_metrics
from raydpo.training.stage import train_policy
from raydpo.training.workers import EarlyWorkers


@dataclass(frozen=True)
class Round:
    """The stages of one round.

    Attributes:
        config: the job; its `model` samples and is what training starts from.
        folder: of the round.
        index: the round's number, from 0.
        pool: gives engines that outlive the round; without it sampling starts its own.
        workers: train workers that wait for the round's data; without them training starts its own.
    """

    config: Config
    folder: Folder
    index: int
    pool: Callable[[], EnginePool] | None = None
    workers: EarlyWorkers | None = None

    def existing_preferences(self) -> Table:
        """Preference data that the configuration names."""
        return run_preferences_stage(
            self.config, self.folder.child("preferences"), self._what("preferences")
        )

    def prompts(self) -> Table:
        """The prompts that the configuration names."""
        assert self.config.prompts is not None
        return run_prompts_stage(
            self.config, self.config.prompts, self.folder.child("prompts"), self._what("prompts")
        )

    def sample(self, prompts: Table) -> Table:
        """K candidates of the configured model for each prompt."""
        config = self.config
        return sample_candidates(
            folder=self.folder.child("candidates"),
            prompts=prompts,
            model=config.model,
            sampling=config.sampling,
            seed=config.seed,
            round_index=self.index,
            max_prompt_tokens=longest_prompt(config),
            what=self._what("sample"),
            max_quarantined_fraction=config.max_quarantined_fraction,
            pool=self.pool,
        )

    def label(self, candidates: Table) -> Table:
        """Preferences over the candidates, by rewards or by people."""
        config = self.config
        if config.labeling is None:
            return self._preferences_of_people(candidates)
        if config.labeling.is_implicit:
            scores = self._implicit_scores(candidates, config.labeling.reward[0].scorer)
        else:
            scores = score_candidates(
                folder=self.folder.child("scores"),
                candidates=candidates,
                rewards=config.labeling.reward,
                what=self._what("score"),
                max_quarantined_fraction=config.max_quarantined_fraction,
            )
        return build_preferences(
            folder=self.folder.child("preferences"),
            candidates=candidates,
            scores=scores,
            labeling=config.labeling,
            seed=config.seed,
            round_index=self.index,
            what=self._what("label"),
            max_quarantined_fraction=config.max_quarantined_fraction,
        )

    def self_play(self, candidates: Table, examples: Table) -> Table:
        """Preferences for the data's completions over the policy's own."""
        return self_play_preferences(
            config=self.config,
            folder=self.folder.child("preferences"),
            candidates=candidates,
            examples=examples,
            what=self._what("label"),
        )

    def _implicit_scores(self, candidates: Table, scorer: str) -> Table:
        """The policy judges: log-ratios of the candidates to the reference."""
        refuse_equal_models(self.config.model, self._reference_model())
        groups = groups_of_samples(self.folder.child("score-groups"), candidates)
        policy, reference = (
            score_reference(
                folder=self.folder.child(name),
                groups=groups,
                model=model,
                settings=self.config.reference,
                what=self._what(name.replace("-", ", ")),
                max_quarantined_fraction=self.config.max_quarantined_fraction,
            )
            for name, model in (
                ("score-policy", self.config.model),
                ("score-reference", self._reference_model()),
            )
        )
        return implicit_scores(
            folder=self.folder.child("scores"),
            candidates=candidates,
            policy_logps=policy,
            reference_logps=reference,
            scorer=scorer,
            what=self._what("score"),
        )

    def _preferences_of_people(self, candidates: Table) -> Table:
        """What `raydpo annotate import` built from votes on these very candidates."""
        folder = self.folder.child("preferences")
        manifest = read_manifest(folder)
        if manifest is None or manifest["inputs"].get("candidates") != candidates.fingerprint:
            raise ConfigError(
                f"there is no `labeling` section, and no preferences of people in {folder.uri}",
                "something tells a better completion from a worse one: a reward, or people",
                "add `labeling:`, or `raydpo annotate export RUN`, let people choose, and "
                "`raydpo annotate import RUN FILE`",
            )
        return Table(folder, manifest)

    def reference(self, preferences: Table) -> Table | None:
        """The reference's log-probs of all completions; None where the objective needs none."""
        training = self.config.training
        if training is not None and not training.objective.uses_reference:
            logger.info(
                "[%s] skipped: %s needs none", self._what("reference"), training.objective.name
            )
            return None
        return score_reference(
            folder=self.folder.child("reference"),
            groups=preferences,
            model=self._reference_model(),
            settings=self.config.reference,
            what=self._what("reference"),
            max_quarantined_fraction=self.config.max_quarantined_fraction,
        )

    def verify(self, preferences: Table, reference: Table | None) -> None:
        """Score a sample of the preferences again before training, and hold it against the table."""
        if reference is not None and not self.folder.exists("policy/manifest.json"):
            verify_reference(
                groups=preferences,
                reference=reference,
                model=self._reference_model(),
                settings=self.config.reference,
                seed=self.config.seed,
                what=self._what("reference"),
            )

    def train(self, preferences: Table, reference: Table | None) -> ModelConfig:
        """The policy, trained on the preferences."""
        return train_policy(
            config=self.config,
            folder=self.folder.child("policy"),
            preferences=preferences,
            reference=reference,
            what=self._what("train"),
            workers=self.workers,
        )

    def evaluate(
        self, preferences: Table, reference: Table | None, policy: ModelConfig
    ) -> dict[str, Any]:
        """The trained policy against the reference; the content of metrics.json."""
        config = self.config
        assert config.evaluation is not None
        folder = self.folder.child("evaluation")
        what = self._what("evaluate")
        prompts = run_prompts_stage(
            config, config.evaluation.prompts, self.folder.child("evaluation-prompts"), what
        )
        return evaluate(
            config=config,
            folder=folder,
            prompts=prompts,
            policy=policy,
            reference_model=self._reference_model(),
            heldout=self.heldout(preferences),
            what=what,
            inputs={"reference": reference.fingerprint if reference is not None else ""},
            training_log=read_metrics(self.folder.child("policy")),
            stage_counts=self._counts(),
            pool=self.pool,
        )

    def heldout(self, preferences: Table) -> Table:
        """The preference groups that training left out."""
        assert self.config.evaluation is not None
        fraction = self.config.evaluation.heldout_fraction
        stage = Stage(
            self.folder.child("heldout"),
            "heldout",
            "preferences",
            {"preferences": preferences.fingerprint},
            {"heldout_fraction": fraction, "seed": self.config.seed},
        )
        manifest = open_stage(stage)
        if manifest is None:
            for index in range(preferences.manifest["parts"]):
                rows = preferences.part(index)
                kept = [r for r in rows if is_heldout(r["prompt_id"], fraction, self.config.seed)]
                write_part(stage, index, PartResult(kept, counts={"input": len(rows)}))
            manifest = commit(stage, {})
        return Table(stage.folder, manifest)

    def _counts(self) -> dict[str, dict[str, int]]:
        """The counts of the stages so far, for the report."""
        counts: dict[str, dict[str, int]] = {}
        for name in ("prompts", "candidates", "scores", "preferences", "reference"):
            folder = self.folder.child(name)
            if folder.exists("manifest.json"):
                counts[name] = folder.read_json("manifest.json")["counts"]
        return counts

    def _reference_model(self) -> ModelConfig:
        return self.config.reference.model or self.config.model

    def _what(self, stage: str) -> str:
        return f"round {self.index}, {stage}"


def longest_prompt(config: Config) -> int:
    """Tokens of the longest prompt that is sampled for: of `prompts`, or of `sft` in self-play."""
    if config.prompts is not None:
        return config.prompts.max_prompt_tokens
    assert config.sft is not None
    return config.sft.max_sequence_tokens
