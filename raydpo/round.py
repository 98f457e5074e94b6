"""The stages of one round, each a few lines: what is read, done, written.

What comes in: the configuration and the round's folder. What goes out: finished tables,
a policy, metrics. `pipeline.py` runs them once, `online.py` round after round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raydpo.agreement import Agreement, agreement_in, sampler_tolerance
from raydpo.cluster import cluster_size
from raydpo.config import Config, LabelingConfig, ModelConfig, PeopleConfig, RewardConfig
from raydpo.evaluation.samples import groups_of_samples
from raydpo.evaluation.stage import evaluate
from raydpo.labeling.implicit import implicit_scores, refuse_equal_models
from raydpo.labeling.kept_votes import refuse_other_candidates, refuse_other_labels
from raydpo.labeling.people import preferences_of_people
from raydpo.labeling.preferences import finish_preferences, preferences_work
from raydpo.labeling.self_play import self_play_preferences
from raydpo.labeling.stage import scoring_work
from raydpo.models import adapter_base
from raydpo.parts import PartWork, Table, Target, run_work
from raydpo.plan import stages_can_stream
from raydpo.progress import logger
from raydpo.prompts.preferences import run_preferences_stage
from raydpo.prompts.stage import run_prompts_stage
from raydpo.reference.stage import (
    reference_work,
    sampler_agreement,
    score_reference,
    verify_reference,
    verify_sampler,
)
from raydpo.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.sampling.pool import EnginePool
from raydpo.sampling.stage import sampling_work
from raydpo.split import is_heldout
from raydpo.storage import Folder
from raydpo.stream import Chain
from raydpo.training.metrics_log import read_metrics
from raydpo.training.ray_worker import Publish
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
        publish: takes the trained policy before its stage ends.
    """

    config: Config
    folder: Folder
    index: int
    pool: Callable[[], EnginePool] | None = None
    workers: EarlyWorkers | None = None
    publish: Publish | None = None

    def existing_preferences(self) -> Table:
        """Preference data that the configuration names."""
        refuse_other_labels(self.folder)
        return run_preferences_stage(
            self.config, self.folder.child("preferences"), self._what("preferences")
        )

    def prompts(self) -> Table:
        """The prompts that the configuration names."""
        assert self.config.prompts is not None
        return run_prompts_stage(
            self.config, self.config.prompts, self.folder.child("prompts"), self._what("prompts")
        )

    def work_ahead(self, prompts: Table, sampler: Round, to_reference: bool) -> None:
        """Sample, label and score each part as soon as the one that it is made from is there.

        The stages run afterwards as ever and find their parts made. Does nothing where people or
        the policy judge, or where the cluster has no room for all of these stages at once.

        Args:
            prompts: of the round.
            sampler: the round as it samples: with lookahead, an older policy does.
            to_reference: the reference scores the preferences as they are.
        """
        config = self.config
        if config.labeling is None or not config.labeling.reward or config.labeling.is_implicit:
            return
        if not config.stream_stages or not stages_can_stream(config, cluster_size()):
            return
        refuse_other_labels(self.folder)
        sampler.refuse_other_candidates(prompts)
        chain = Chain(self._what("sample to reference" if to_reference else "sample to label"))
        candidates = chain.add(sampler._sampling(prompts))
        scores = chain.add(self._scoring(candidates, config.labeling))
        preferences = chain.add(self._preferences(candidates, scores, config.labeling))
        if to_reference and self._uses_reference:
            chain.add(self._reference_scoring(preferences, candidates))
        chain.run()

    def sample(self, prompts: Table) -> Table:
        """K candidates of the configured model for each prompt."""
        self.refuse_other_candidates(prompts)
        return run_work(self._sampling(prompts))[0]

    def refuse_other_candidates(self, prompts: Table) -> None:
        """Stop before candidates that people judge are sampled anew.

        Raises:
            RunError: people have voted on those that are there, or were given pairs of them.
        """
        refuse_other_candidates(self.sampling_stage(prompts), self.folder)

    def sampling_stage(self, prompts: Table) -> Stage:
        """What the candidates are made from."""
        return self._sampling(prompts).stages[0].stage

    def _sampling(self, prompts: Table) -> PartWork:
        config = self.config
        return sampling_work(
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
        """Preferences over the candidates, by rewards."""
        config = self.config
        assert config.labeling is not None
        refuse_other_labels(self.folder)
        if config.labeling.is_implicit:
            scores = self._implicit_scores(candidates, config.labeling.reward[0])
        else:
            [scores] = run_work(self._scoring(candidates, config.labeling))
        return finish_preferences(self._preferences(candidates, scores, config.labeling))

    def _scoring(self, candidates: Table, labeling: LabelingConfig) -> PartWork:
        target = Target(self.folder.child("scores"), candidates, self._what("score"))
        return scoring_work([target], labeling.reward, self.config.max_quarantined_fraction)

    def _preferences(self, candidates: Table, scores: Table, labeling: LabelingConfig) -> PartWork:
        config = self.config
        return preferences_work(
            folder=self.folder.child("preferences"),
            candidates=candidates,
            scores=scores,
            labeling=labeling,
            seed=config.seed,
            round_index=self.index,
            what=self._what("label"),
            max_quarantined_fraction=config.max_quarantined_fraction,
        )

    def self_play(self, candidates: Table, examples: Table) -> Table:
        """Preferences for the data's completions over the policy's own."""
        refuse_other_labels(self.folder)
        return self_play_preferences(
            config=self.config,
            folder=self.folder.child("preferences"),
            candidates=candidates,
            examples=examples,
            what=self._what("label"),
        )

    def _implicit_scores(self, candidates: Table, reward: RewardConfig) -> Table:
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
                samples=candidates if model == self.config.model else None,
                tolerance=sampler_tolerance(model, self.config.sampling.engines),
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
            reward=reward,
            what=self._what("score"),
        )

    def of_people(self, candidates: Table) -> Table | None:
        """Preferences by people's votes on these very candidates; None before there are any."""
        labeling = self.config.labeling
        people = labeling.people if labeling is not None else None
        return preferences_of_people(candidates, self.folder, people or PeopleConfig())

    def reference(self, preferences: Table, candidates: Table | None = None) -> Table | None:
        """The reference's log-probs of all completions; None where the objective needs none.

        Those of `candidates` that the reference itself sampled are held against the sampler's.
        """
        if not self._uses_reference:
            logger.info("[%s] skipped: the objective needs none", self._what("reference"))
            return None
        return run_work(self._reference_scoring(preferences, candidates))[0]

    @property
    def _uses_reference(self) -> bool:
        training = self.config.training
        return training is None or training.objective.uses_reference

    def _reference_scoring(self, preferences: Table, candidates: Table | None) -> PartWork:
        config = self.config
        same_parts = candidates and candidates.manifest["parts"] == preferences.manifest["parts"]
        target = Target(
            self.folder.child("reference"),
            preferences,
            self._what("reference"),
            candidates if same_parts else None,
        )
        model, budget = self._reference_model(), config.max_quarantined_fraction
        tolerance = sampler_tolerance(model, config.sampling.engines)
        return reference_work([target], model, config.reference, budget, tolerance)

    def check_sampler(self, candidates: Table, reference: Table | None) -> None:
        """See that the sampler is the model that is trained: by the reference's table, or a sample.

        Raises:
            EngineError: it computes something else.
        """
        what, settings = self._what("sampler"), self.config.reference
        found = reference and agreement_in(reference.manifest)
        if found:
            logger.info("[%s] sampler and reference agree: %s", what, found)
        elif adapter_base(self.config.model) is not None or not settings.verify_groups:
            why = "an adapter samples" if settings.verify_groups else "reference.verify_groups is 0"
            logger.info("[%s] not held against the trainer's forward pass: %s", what, why)
        elif not self.folder.exists("policy/manifest.json"):
            verify_sampler(
                folder=self.folder.child("sampler"),
                samples=candidates,
                model=self.config.model,
                settings=settings,
                tolerance=sampler_tolerance(self.config.model, self.config.sampling.engines),
                seed=self.config.seed,
                what=what,
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
            publish=self.publish,
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
            agreement=self._agreement(reference),
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

    def _agreement(self, reference: Table | None) -> Agreement | None:
        """How far the sampler was from the reference or, where a sample was scored, the trainer."""
        folder = self.folder.child("sampler")
        if reference is not None and (found := agreement_in(reference.manifest)):
            return found
        return sampler_agreement(folder) if folder.exists("manifest.json") else None

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
