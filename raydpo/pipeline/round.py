"""Plan the stages of one round: what each reads, does and writes.

The configuration, the round's folder and the tables of the stages before give a `Planned` for each
stage. `order.py` has the order of the stages and the names of their folders.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from raydpo.config.job import (
    Config,
    LabelingConfig,
    ModelConfig,
    PeopleConfig,
    PreferencesConfig,
    PromptsConfig,
    RewardConfig,
)
from raydpo.core.chain import Chain
from raydpo.core.cluster import cluster_size
from raydpo.core.errors import ConfigError
from raydpo.core.nodes import living_nodes
from raydpo.core.on_driver import map_on_driver
from raydpo.core.parts import PartWork, Table, Target, run_work
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import PartResult, Stage
from raydpo.core.storage import Folder, fingerprint
from raydpo.core.tables import Row
from raydpo.core.walk import Planned, planned_work, table_there
from raydpo.evaluation.samples import groups_of_samples
from raydpo.evaluation.stage import (
    evaluate,
    evaluate_reference,
    evaluation_stage,
    reference_evaluation_stage,
)
from raydpo.evaluation.training_report import report_training, training_report_stage
from raydpo.labeling.implicit import implicit_scores, implicit_stage, refuse_equal_models
from raydpo.labeling.kept_votes import refuse_other_candidates, refuse_other_labels, votes_files
from raydpo.labeling.people import people_stage, preferences_of_people
from raydpo.labeling.preferences import finish_preferences, preferences_stage, preferences_work
from raydpo.labeling.self_play import self_play_preferences
from raydpo.labeling.stage import refuse_missing_columns, scores_stage, scoring_work
from raydpo.models.loading import weights_fingerprint
from raydpo.pipeline.inspection import inspection_stage, run_inspection
from raydpo.pipeline.measured import policy_record
from raydpo.pipeline.order import FOLDERS
from raydpo.plan import stages_can_stream
from raydpo.prompts.preferences import existing_preferences_stage, run_preferences_stage
from raydpo.prompts.stage import prompts_stage, run_prompts_stage
from raydpo.reference.agreement import (
    Agreement,
    agreement_in,
    check_ratios,
    sampler_tolerance,
)
from raydpo.reference.stage import (
    check_sampler,
    reference_stage,
    reference_work,
    sampler_agreement,
    score_reference,
    verify_reference,
)
from raydpo.sampling.pool import EnginePool
from raydpo.sampling.stage import sampling_work
from raydpo.training.export import MODEL
from raydpo.training.metrics_log import read_metrics
from raydpo.training.ray_worker import CheckRatios, Publish
from raydpo.training.split import is_heldout
from raydpo.training.stage import policy_stage, train_policy
from raydpo.training.workers import EarlyWorkers


def place_in(config: Config, run: Folder, name: str) -> Place:
    """Return the place of a stage that belongs to no round; the log calls it by its folder."""
    budget = config.max_quarantined_fraction
    label = name.replace("/", ", ")
    return Place(run.child(name), label, seed=config.seed, max_quarantined_fraction=budget)


@dataclass(frozen=True)
class Round:
    """Plans the stages of one round.

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
        """Return the place of the stage that has this folder of the round (one of `FOLDERS`)."""
        return Place(
            folder=self.folder.child(folder),
            label=f"round {self.index}, {label or FOLDERS[folder].label}",
            seed=self.config.seed,
            round_index=self.index,
            max_quarantined_fraction=self.config.max_quarantined_fraction,
        )

    def existing_preferences(self, source: PreferencesConfig) -> Planned:
        """Read the preference data that the configuration names."""
        place = self.place("preferences", "preferences")

        def make() -> Table:
            refuse_other_labels(self.folder)
            return run_preferences_stage(self.config, place)

        return Planned(place, make, lambda: existing_preferences_stage(self.config, source, place))

    def prompts(self) -> Planned:
        """Read the prompts that the configuration names."""
        assert self.config.prompts is not None
        return self._prompts("prompts", self.config.prompts)

    def _prompts(self, folder: str, source: PromptsConfig) -> Planned:
        of = self.config, source, self.place(folder)
        return Planned(of[-1], lambda: run_prompts_stage(*of), lambda: prompts_stage(*of))

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
        refuse_missing_columns(prompts, config.labeling.reward)
        sampler.refuse_other_candidates(prompts)
        stages = "sampling to reference" if to_reference else "sampling to labeling"
        chain = Chain(f"round {self.index}, {stages}")
        candidates = chain.add(sampler._sampling(prompts))
        scores = chain.add(self._scoring(candidates, config.labeling))
        preferences = chain.add(self._preferences(candidates, scores, config.labeling))
        if to_reference and self.config.uses_reference:
            chain.add(self._reference_scoring(preferences, candidates))
        nodes = living_nodes()

        def no_room() -> bool:
            """Return whether engines would take room that others need after the loss of a node."""
            return living_nodes() != nodes and not stages_can_stream(config, cluster_size())

        if not chain.run(no_room):
            logger.warning("[%s] the cluster became too small: one after the other", chain.what)

    def sample(self, prompts: Table) -> Planned:
        """Sample K candidates of the configured model for each prompt."""
        sampling = planned_work(self.place("candidates"), lambda: self._sampling(prompts))

        def make() -> object:
            self.refuse_other_candidates(prompts)
            return sampling.make()

        return replace(sampling, make=make)

    def refuse_other_candidates(self, prompts: Table) -> None:
        """Refuse to sample candidates again that people judge.

        Raises:
            RunError: people have voted on the existing candidates, or were given pairs of them.
        """
        refuse_other_candidates(self._sampling(prompts).stages[0].stage, self.folder)

    def _sampling(self, prompts: Table) -> PartWork:
        config = self.config
        return sampling_work(
            self.place("candidates"),
            prompts,
            model=config.model,
            sampling=config.sampling,
            max_prompt_tokens=config.longest_prompt_tokens,
            pool=self.pool,
        )

    def scores(self, candidates: Table, labeling: LabelingConfig) -> Planned:
        """Give each candidate each reward's value."""
        place = self.place("scores")
        if labeling.is_implicit:
            return self._implicit_scores(place, candidates, labeling.reward[0])
        return Planned(
            place,
            lambda: run_work(self._scoring(candidates, labeling))[0],
            lambda: scores_stage(place, candidates, labeling.reward),
        )

    def preferences(self, candidates: Table, scores: Table, labeling: LabelingConfig) -> Planned:
        """Make preferences from the candidates' scores."""
        place, samples = self.place("preferences"), self.config.trains_on_samples
        model = self.config.model
        return Planned(
            place,
            lambda: finish_preferences(self._preferences(candidates, scores, labeling)),
            lambda: preferences_stage(place, candidates, scores, labeling, model, samples),
        )

    def _scoring(self, candidates: Table, labeling: LabelingConfig) -> PartWork:
        return scoring_work([Target(self.place("scores"), candidates)], labeling.reward)

    def _preferences(self, candidates: Table, scores: Table, labeling: LabelingConfig) -> PartWork:
        of = self.config.model, self.config.trains_on_samples
        return preferences_work(self.place("preferences"), candidates, scores, labeling, *of)

    def self_play(self, candidates: Table, examples: Table) -> Planned:
        """Make preferences for the data's completions over the policy's own."""
        place = self.place("preferences")

        def make() -> Table:
            refuse_other_labels(self.folder)
            return self_play_preferences(place, candidates, examples, self.config.model)

        return Planned(place, make)

    def _implicit_scores(self, place: Place, candidates: Table, reward: RewardConfig) -> Planned:
        """Let the policy judge, by log-ratios of the candidates to the reference."""
        models = {"score-policy": self.config.model, "score-reference": self.config.reference_model}

        def make() -> Table:
            refuse_equal_models(self.config.model, self.config.reference_model)
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
                for name, model in models.items()
            )
            return implicit_scores(place, candidates, policy, reference, reward)

        def describe() -> Stage:
            policy, reference = (table_there(self.folder.child(name)) for name in models)
            return implicit_stage(place, candidates, policy, reference, reward)

        return Planned(place, make, describe)

    def has_votes(self, candidates: Table) -> bool:
        """Return whether people have voted on exactly these candidates."""
        return bool(votes_files(self.folder, candidates.fingerprint).files())

    def require_labeling(self) -> None:
        """Refuse a job that does not say who labels.

        Raises:
            ConfigError: it has no `labeling` section.
        """
        if self.config.labeling is None:
            raise ConfigError(
                f"there is no `labeling` section, and no votes of people are in {self.folder.uri}",
                "something tells a better completion from a worse one: a reward, or people",
                "add `labeling:` with a `reward`, or with `people: {}`",
            )

    def of_people(self, candidates: Table) -> Planned:
        """Make preferences from people's votes on exactly these candidates."""
        labeling = self.config.labeling
        people = (labeling.people if labeling is not None else None) or PeopleConfig()
        place, votes = self.place("preferences"), self.folder.child("votes")
        return Planned(
            place,
            lambda: preferences_of_people(candidates, self.folder, people),
            lambda: people_stage(place, candidates, table_there(votes), people),
        )

    def inspect(self, preferences: Table, prompts: Table | None) -> Planned:
        """Inspect the preferences, and compare their prompts with those of the evaluation."""
        of = self.config, self.place("inspection"), preferences, prompts
        make = functools.partial(run_inspection, of[0], self.folder, *of[1:])
        return Planned(of[1], make, lambda: inspection_stage(*of))

    def reference(self, preferences: Table, candidates: Table | None = None) -> Planned:
        """Score all completions by the reference.

        If the reference itself sampled `candidates`, their log-probs are compared with the
        sampler's.
        """
        place, model, settings = (
            self.place("reference"),
            self.config.reference_model,
            self.config.reference,
        )
        return Planned(
            place,
            lambda: run_work(self._reference_scoring(preferences, candidates))[0],
            lambda: reference_stage(place, preferences, model, settings),
        )

    def _reference_scoring(self, preferences: Table, candidates: Table | None) -> PartWork:
        config = self.config
        same_parts = candidates and candidates.manifest["parts"] == preferences.manifest["parts"]
        samples = candidates if same_parts else None
        target = Target(self.place("reference"), preferences, samples)
        model = self.config.reference_model
        tolerance = sampler_tolerance(model, config.sampling.engines)
        return reference_work([target], model, config.reference, tolerance)

    def check_sampler(self, candidates: Table, reference: Table | None) -> None:
        """Check by the reference's table or a sample that the sampler is the trained model.

        Raises:
            EngineError: the sampler computes something else.
        """
        config, place = self.config, self.place("sampler")
        trained = self.folder.exists("policy/manifest.json")
        scorer = config.model, config.reference, config.sampling.engines
        check_sampler(place, candidates, reference, *scorer, again=not trained)

    def verify(self, preferences: Table, reference: Table | None) -> None:
        """Score a sample of the preferences again before training; compare it with the table."""
        if reference is not None and not self.folder.exists("policy/manifest.json"):
            scorer = self.config.reference_model, self.config.reference
            verify_reference(self.place("reference"), preferences, reference, *scorer)

    def train(
        self, preferences: Table, reference: Table | None, candidates: Table | None = None
    ) -> Planned:
        """Train the policy on the preferences.

        If this policy sampled all of `candidates`, and they are all that is trained on, step 0
        compares its log-probs with the sampler's.
        """
        of = self.config, self.place("policy"), preferences, reference

        def make() -> None:
            check = self._ratio_check(preferences, candidates)
            train_policy(*of, workers=self.workers, publish=self.publish, check_ratios=check)

        return Planned(of[1], make, lambda: policy_stage(*of))

    @property
    def policy(self) -> ModelConfig:
        """The policy that this round trains."""
        path = self.folder.child("policy", MODEL).uri
        return self.config.model.model_copy(update={"path": path, "revision": None})

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
        self, prompts: Table, preferences: Table, reference: Table | None, policy: Table
    ) -> Planned:
        """Compare the trained policy with the reference on held-out prompts."""
        place, reference_model = self.place("evaluation"), self.config.reference_model
        inputs = {"reference": reference.fingerprint if reference is not None else ""}

        def make() -> None:
            evaluate(
                self.config,
                place,
                prompts=prompts,
                policy=self.policy,
                reference_model=reference_model,
                heldout=self.heldout(preferences),
                inputs=inputs,
                preferences=preferences,
                training_log=read_metrics(policy.folder),
                stage_counts=self.counts(),
                agreement=self.agreement(reference),
                pool=self.pool,
            )

        def describe() -> Stage:
            models = {"policy": self.policy, "reference": reference_model}
            log = fingerprint(read_metrics(policy.folder))
            of = {**inputs, "training_log": log, "preferences": preferences.fingerprint}
            heldout = table_there(self.folder.child("heldout"))
            return evaluation_stage(self.config, place, prompts, models, heldout, of)

        return Planned(place, make, describe, (policy, "policy"))

    def evaluate_reference(self, prompts: Table) -> Planned:
        """Measure Best-of-N of the reference alone."""
        of = self.config, self.place("evaluation"), prompts, self.config.reference_model
        return Planned(
            of[1],
            lambda: evaluate_reference(
                *of[:2], prompts=prompts, reference_model=of[3], pool=self.pool
            ),
            lambda: reference_evaluation_stage(*of),
        )

    def report(self, policy: Table) -> Planned:
        """Report a training on held-out data; nothing is made if the training was not measured."""
        place, training = self.place("report"), self.config.training
        measured = training is not None and training.evaluates_heldout

        def make() -> None:
            if (record := policy_record(self.config, self.folder, self.counts())) is not None:
                report_training(self.config, place, record)

        def describe() -> Stage | None:
            record = policy_record(self.config, self.folder, self.counts()) if measured else None
            return record and training_report_stage(self.config, place, record)

        return Planned(place, make, describe, (policy, "model") if measured else None)

    def evaluation_prompts(self) -> Planned:
        """Read the prompts on which policy and reference are compared."""
        assert self.config.evaluation is not None
        return self._prompts("evaluation-prompts", self.config.evaluation.prompts)

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
