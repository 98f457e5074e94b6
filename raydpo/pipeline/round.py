"""Define the stages of one round: what each reads, does and writes.

The configuration and the round's folder give finished tables, a policy and metrics. `job.py` runs
the stages once; `online/rounds.py` runs them round after round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raydpo.config.job import Config, LabelingConfig, ModelConfig, PeopleConfig, RewardConfig
from raydpo.core.chain import Chain
from raydpo.core.cluster import cluster_size
from raydpo.core.nodes import living_nodes
from raydpo.core.on_driver import map_on_driver
from raydpo.core.parts import PartWork, Table, Target, run_work
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import PartResult, Stage
from raydpo.core.stages import LABELS
from raydpo.core.storage import Folder
from raydpo.core.tables import Row
from raydpo.evaluation.samples import groups_of_samples
from raydpo.evaluation.stage import evaluate, evaluate_reference
from raydpo.evaluation.training_report import report_training
from raydpo.labeling.implicit import implicit_scores, refuse_equal_models
from raydpo.labeling.kept_votes import refuse_other_candidates, refuse_other_labels
from raydpo.labeling.people import preferences_of_people
from raydpo.labeling.preferences import finish_preferences, preferences_work
from raydpo.labeling.self_play import self_play_preferences
from raydpo.labeling.stage import scoring_work
from raydpo.models.loading import adapter_base, weights_fingerprint
from raydpo.pipeline.measured import policy_record
from raydpo.plan import stages_can_stream
from raydpo.prompts.preferences import run_preferences_stage
from raydpo.prompts.stage import run_prompts_stage
from raydpo.reference.agreement import (
    Agreement,
    agreement_in,
    check_ratios,
    sampler_tolerance,
)
from raydpo.reference.stage import (
    reference_work,
    sampler_agreement,
    score_reference,
    verify_reference,
    verify_sampler,
)
from raydpo.sampling.pool import EnginePool
from raydpo.sampling.stage import sampling_work
from raydpo.training.metrics_log import read_metrics
from raydpo.training.ray_worker import CheckRatios, Publish
from raydpo.training.split import is_heldout
from raydpo.training.stage import train_policy
from raydpo.training.workers import EarlyWorkers


def place_in(config: Config, run: Folder, name: str) -> Place:
    """Return the place of a stage that belongs to no round; the log calls it by its folder."""
    budget = config.max_quarantined_fraction
    label = name.replace("/", ", ")
    return Place(run.child(name), label, seed=config.seed, max_quarantined_fraction=budget)


@dataclass(frozen=True)
class Round:
    """The stages of one round.

    Attributes:
        config: the job; its `model` samples, and training starts from it.
        folder: the folder of the round.
        index: the round's number, from 0.
        pool: gives engines that outlive the round; without it, sampling starts its own.
        workers: train workers that wait for the round's data; without them, training starts its
            own.
        publish: takes the trained policy before its stage ends.
    """

    config: Config
    folder: Folder
    index: int
    pool: Callable[[], EnginePool] | None = None
    workers: EarlyWorkers | None = None
    publish: Publish | None = None

    def place(self, folder: str, label: str | None = None) -> Place:
        """Return the place of the stage that has this folder of the round (one of `LABELS`)."""
        return Place(
            folder=self.folder.child(folder),
            label=f"round {self.index}, {label or LABELS[folder]}",
            seed=self.config.seed,
            round_index=self.index,
            max_quarantined_fraction=self.config.max_quarantined_fraction,
        )

    def existing_preferences(self) -> Table:
        """Read the preference data that the configuration names."""
        refuse_other_labels(self.folder)
        return run_preferences_stage(self.config, self.place("preferences", "preferences"))

    def prompts(self) -> Table:
        """Read the prompts that the configuration names."""
        assert self.config.prompts is not None
        return run_prompts_stage(self.config, self.config.prompts, self.place("prompts"))

    def work_ahead(self, prompts: Table, sampler: Round, to_reference: bool) -> None:
        """Sample, label and score each part as soon as its input part exists.

        The stages run afterwards as usual and find their parts made. The method does nothing if
        people or the policy judge, or if the cluster has no room for all of these stages at once.

        Args:
            prompts: the prompts of the round.
            sampler: the round with the model that samples; with lookahead this is an older policy.
            to_reference: whether the reference scores the preferences as they are.
        """
        config = self.config
        if config.labeling is None or not config.labeling.reward or config.labeling.is_implicit:
            return
        if not config.stream_stages or not stages_can_stream(config, cluster_size()):
            return
        refuse_other_labels(self.folder)
        sampler.refuse_other_candidates(prompts)
        stages = "sampling to reference" if to_reference else "sampling to labeling"
        chain = Chain(f"round {self.index}, {stages}")
        candidates = chain.add(sampler._sampling(prompts))
        scores = chain.add(self._scoring(candidates, config.labeling))
        preferences = chain.add(self._preferences(candidates, scores, config.labeling))
        if to_reference and self._uses_reference:
            chain.add(self._reference_scoring(preferences, candidates))
        nodes = living_nodes()

        def no_room() -> bool:
            """Return whether engines would take room that others need after the loss of a node."""
            return living_nodes() != nodes and not stages_can_stream(config, cluster_size())

        if not chain.run(no_room):
            logger.warning("[%s] the cluster became too small: one after the other", chain.what)

    def sample(self, prompts: Table) -> Table:
        """Sample K candidates of the configured model for each prompt."""
        self.refuse_other_candidates(prompts)
        return run_work(self._sampling(prompts))[0]

    def refuse_other_candidates(self, prompts: Table) -> None:
        """Refuse to sample candidates again that people judge.

        Raises:
            RunError: people have voted on the existing candidates, or were given pairs of them.
        """
        refuse_other_candidates(self.sampling_stage(prompts), self.folder)

    def sampling_stage(self, prompts: Table) -> Stage:
        """Describe what the candidates are made from."""
        return self._sampling(prompts).stages[0].stage

    def _sampling(self, prompts: Table) -> PartWork:
        config = self.config
        return sampling_work(
            self.place("candidates"),
            prompts,
            model=config.model,
            sampling=config.sampling,
            max_prompt_tokens=longest_prompt(config),
            pool=self.pool,
        )

    def label(self, candidates: Table) -> Table:
        """Make preferences over the candidates by rewards."""
        config = self.config
        assert config.labeling is not None
        refuse_other_labels(self.folder)
        scores = self.scores(candidates, config.labeling)
        return self.preferences(candidates, scores, config.labeling)

    def scores(self, candidates: Table, labeling: LabelingConfig) -> Table:
        """Return each reward's value of every candidate."""
        if labeling.is_implicit:
            return self._implicit_scores(candidates, labeling.reward[0])
        return run_work(self._scoring(candidates, labeling))[0]

    def preferences(self, candidates: Table, scores: Table, labeling: LabelingConfig) -> Table:
        """Make preferences from the candidates' scores."""
        return finish_preferences(self._preferences(candidates, scores, labeling))

    def _scoring(self, candidates: Table, labeling: LabelingConfig) -> PartWork:
        return scoring_work([Target(self.place("scores"), candidates)], labeling.reward)

    def _preferences(self, candidates: Table, scores: Table, labeling: LabelingConfig) -> PartWork:
        samples = self.config.trains_on_samples
        return preferences_work(self.place("preferences"), candidates, scores, labeling, samples)

    def self_play(self, candidates: Table, examples: Table) -> Table:
        """Make preferences for the data's completions over the policy's own."""
        refuse_other_labels(self.folder)
        place = self.place("preferences")
        return self_play_preferences(place, candidates, examples, self.config.model)

    def _implicit_scores(self, candidates: Table, reward: RewardConfig) -> Table:
        """Let the policy judge, by log-ratios of the candidates to the reference."""
        refuse_equal_models(self.config.model, self._reference_model())
        groups = groups_of_samples(self.place("score-groups"), candidates)
        policy, reference = (
            score_reference(
                self.place(name),
                groups,
                model,
                self.config.reference,
                samples=candidates if model == self.config.model else None,
                tolerance=sampler_tolerance(model, self.config.sampling.engines),
            )
            for name, model in (
                ("score-policy", self.config.model),
                ("score-reference", self._reference_model()),
            )
        )
        return implicit_scores(self.place("scores"), candidates, policy, reference, reward)

    def of_people(self, candidates: Table) -> Table | None:
        """Make preferences from people's votes on exactly these candidates; None without votes."""
        labeling = self.config.labeling
        people = labeling.people if labeling is not None else None
        return preferences_of_people(candidates, self.folder, people or PeopleConfig())

    def reference(self, preferences: Table, candidates: Table | None = None) -> Table | None:
        """Return the reference's log-probs of all completions; None if the objective needs none.

        If the reference itself sampled `candidates`, their log-probs are compared with the
        sampler's.
        """
        if not self._uses_reference:
            logger.info("[%s] skipped: the objective needs none", self.place("reference").label)
            return None
        return run_work(self._reference_scoring(preferences, candidates))[0]

    @property
    def _uses_reference(self) -> bool:
        training = self.config.training
        return training is None or training.objective.uses_reference

    def _reference_scoring(self, preferences: Table, candidates: Table | None) -> PartWork:
        config = self.config
        same_parts = candidates and candidates.manifest["parts"] == preferences.manifest["parts"]
        samples = candidates if same_parts else None
        target = Target(self.place("reference"), preferences, samples)
        model = self._reference_model()
        tolerance = sampler_tolerance(model, config.sampling.engines)
        return reference_work([target], model, config.reference, tolerance)

    def check_sampler(self, candidates: Table, reference: Table | None) -> None:
        """Check by the reference's table or a sample that the sampler is the trained model.

        Raises:
            EngineError: the sampler computes something else.
        """
        place, settings = self.place("sampler"), self.config.reference
        found = reference and agreement_in(reference.manifest)
        if found:
            logger.info("[%s] sampler and reference agree: %s", place.label, found)
        elif adapter_base(self.config.model) is not None or not settings.verify_groups:
            why = "an adapter samples" if settings.verify_groups else "reference.verify_groups is 0"
            text = "[%s] not compared with the trainer's forward pass: %s"
            logger.info(text, place.label, why)
        elif not self.folder.exists("policy/manifest.json"):
            tolerance = sampler_tolerance(self.config.model, self.config.sampling.engines)
            compared = verify_sampler(place, candidates, self.config.model, settings, tolerance)
            if compared is None:
                text = "[%s] not compared with the trainer's forward pass: %s"
                logger.info(text, place.label, "no sample has log-probs of the model")

    def verify(self, preferences: Table, reference: Table | None) -> None:
        """Score a sample of the preferences again before training; compare it with the table."""
        if reference is not None and not self.folder.exists("policy/manifest.json"):
            scorer = self._reference_model(), self.config.reference
            verify_reference(self.place("reference"), preferences, reference, *scorer)

    def train(
        self, preferences: Table, reference: Table | None, candidates: Table | None = None
    ) -> ModelConfig:
        """Train the policy on the preferences, and return it.

        If this policy sampled all of `candidates`, and they are all that is trained on, step 0
        compares its log-probs with the sampler's.
        """
        return train_policy(
            self.config,
            self.place("policy"),
            preferences,
            reference,
            workers=self.workers,
            publish=self.publish,
            check_ratios=self._ratio_check(preferences, candidates),
        )

    def _ratio_check(self, preferences: Table, candidates: Table | None) -> CheckRatios | None:
        config = self.config
        if candidates is None or not config.trains_on_samples:
            return None
        sampler = candidates.manifest["inputs"].get("policy")
        replayed = preferences.manifest["counts"].get("replayed", 0)
        if replayed or sampler != weights_fingerprint(config.model):
            return None  # with replay and with lookahead another policy sampled
        tolerance = sampler_tolerance(config.model, config.sampling.engines)
        return functools.partial(check_ratios, tolerance, config.model.path)

    def evaluate(
        self, preferences: Table, reference: Table | None, policy: ModelConfig
    ) -> dict[str, Any]:
        """Compare the trained policy with the reference; return the content of metrics.json."""
        return evaluate(
            self.config,
            self.place("evaluation"),
            prompts=self.evaluation_prompts(),
            policy=policy,
            reference_model=self._reference_model(),
            heldout=self.heldout(preferences),
            inputs={"reference": reference.fingerprint if reference is not None else ""},
            preferences=preferences,
            training_log=read_metrics(self.folder.child("policy")),
            stage_counts=self.counts(),
            agreement=self.agreement(reference),
            pool=self.pool,
        )

    def evaluate_reference(self) -> dict[str, Any]:
        """Measure Best-of-N of the reference alone; return the content of metrics.json."""
        return evaluate_reference(
            self.config,
            self.place("evaluation"),
            prompts=self.evaluation_prompts(),
            reference_model=self._reference_model(),
            pool=self.pool,
        )

    def report_training(self) -> dict[str, Any] | None:
        """Write the report of a training on held-out data; None if the training was not measured."""
        record = policy_record(self.config, self.folder, self.counts())
        return record and report_training(self.config, self.place("report"), record)

    def evaluation_prompts(self) -> Table:
        """Return the prompts on which policy and reference are compared."""
        assert self.config.evaluation is not None
        source = self.config.evaluation.prompts
        return run_prompts_stage(self.config, source, self.place("evaluation-prompts"))

    def heldout(self, preferences: Table) -> Table:
        """Return the preference groups that training left out."""
        assert self.config.evaluation is not None
        fraction = self.config.evaluation.heldout_fraction
        stage = Stage(
            self.place("heldout"),
            "heldout",
            preferences.manifest["table"],
            {"preferences": preferences.fingerprint},
            {"heldout_fraction": fraction, "seed": self.config.seed},
        )

        def part(rows: list[Row]) -> PartResult:
            return PartResult(
                [r for r in rows if is_heldout(r["prompt_id"], fraction, self.config.seed)]
            )

        return map_on_driver(stage, part, preferences)

    def agreement(self, reference: Table | None) -> Agreement | None:
        """Return how far the sampler was from the reference or, by a scored sample, the trainer."""
        folder = self.folder.child("sampler")
        if reference is not None and (found := agreement_in(reference.manifest)):
            return found
        return sampler_agreement(folder) if folder.exists("manifest.json") else None

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the counts of the stages so far, for the report."""
        counts: dict[str, dict[str, int]] = {}
        for name in ("prompts", "candidates", "scores", "preferences", "reference"):
            folder = self.folder.child(name)
            if folder.exists("manifest.json"):
                counts[name] = folder.read_json("manifest.json")["counts"]
        return counts

    def _reference_model(self) -> ModelConfig:
        return self.config.reference.model or self.config.model


def longest_prompt(config: Config) -> int:
    """Return the token limit of prompts to sample for: of `prompts`, or of `sft` in self-play."""
    if config.prompts is not None:
        return config.prompts.max_prompt_tokens
    assert config.sft is not None
    return config.sft.max_sequence_tokens
