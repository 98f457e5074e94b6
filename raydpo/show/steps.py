"""The stages of a run that can be made again, each from the run's own tables.

The steps are listed in the order in which the run made them. Nothing is read before a step is
planned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from raydpo.config.job import Config, PromptsConfig
from raydpo.core.errors import RunError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import read_manifest, round_folder
from raydpo.core.storage import Folder, fingerprint
from raydpo.core.walk import Planned
from raydpo.evaluation.stage import evaluate, evaluation_stage
from raydpo.evaluation.training_report import (
    TrainingRecord,
    report_training,
    training_report_stage,
)
from raydpo.labeling.implicit import implicit_stage
from raydpo.labeling.kept_votes import is_of_people, votes_files
from raydpo.pipeline.inspection import inspection_stage, run_inspection
from raydpo.pipeline.measured import policy_record, sft_record
from raydpo.pipeline.round import Round, place_in
from raydpo.prompts.examples import examples_stage, run_examples_stage
from raydpo.prompts.preferences import existing_preferences_stage, run_preferences_stage
from raydpo.prompts.stage import prompts_stage, run_prompts_stage
from raydpo.reference.sequences import score_sequences, sequences_stage
from raydpo.show.inputs import Again, finished_table, policy_after, section
from raydpo.training.metrics_log import read_metrics
from raydpo.training.stage import sft_stage, train_sft


@dataclass(frozen=True)
class Step:
    """A stage that can be made again.

    Attributes:
        name: its folder in the run directory, as `raydpo show` prints it.
        plan: reads its inputs; raises a RaydpoError where one is missing or damaged.
        last: the folder inside that is finished last, where the stage is made of several.
    """

    name: str
    plan: Callable[[], Planned]
    last: str = ""

    def finished_in(self, run: Folder) -> bool:
        """Whether the run has it."""
        return run.child(self.name, *filter(None, [self.last])).exists("manifest.json")


@dataclass(frozen=True)
class RoundAgain:
    """One round: the stages that a single round and a round of several have in common.

    Attributes:
        sampler: the job with the model that samples.
        config: the job with the model that is trained and its reference.
        there: the round's folder in the run.
        here: the same one in the scratch folder.
        index: the round.
        groups: name of the table that is trained on.
        run: the run directory.
    """

    sampler: Config
    config: Config
    there: Folder
    here: Folder
    index: int
    groups: str
    run: Folder

    def steps(self, *names: str) -> list[Step]:
        """Steps by the names of their folders in the round; without names, all in their order."""
        plans: dict[str, Callable[[], Planned]] = {
            "prompts": self._prompts,
            "candidates": self._candidates,
            "scores": self._scores,
            "preferences": self._preferences,
            "inspection": self._inspection,
            "reference": self._reference,
            "sampler": self._sampler,
            "policy": self._policy,
            "heldout": self._heldout,
            "evaluation-prompts": self._evaluation_prompts,
            "evaluation": self._evaluation,
            "report": self._report,
        }
        return [Step(f"{folder_name(self.there)}/{n}", plans[n]) for n in names or plans]

    def table(self, name: str) -> Table:
        """A table of the round as the run has it."""
        return finished_table(self.there.child(name))

    def reference_table(self) -> Table | None:
        """The reference's log-probs; None where the objective needs none."""
        return self.table("reference") if self.config.uses_reference else None

    @property
    def stages(self) -> Round:
        """The round's stages, in the scratch folder."""
        return Round(self.config, self.here, self.index)

    def _prompts(self) -> Planned:
        section(self.config.prompts, "prompts", self.run)
        return self.stages.prompts()

    def _candidates(self) -> Planned:
        return replace(self.stages, config=self.sampler).sample(self.table("prompts"))

    def _scores(self) -> Planned:
        labeling = section(self.config.labeling, "labeling", self.run)
        candidates = self.table("candidates")
        planned = self.stages.scores(candidates, labeling)
        if not labeling.is_implicit:
            return planned
        logps = self.table("score-policy"), self.table("score-reference")
        of = planned.place, candidates, *logps, labeling.reward[0]
        return replace(planned, describe=partial(implicit_stage, *of))

    def _preferences(self) -> Planned:
        config = self.config
        manifest = read_manifest(self.there.child("preferences"))
        if manifest is not None and is_of_people(manifest):
            return self._of_people()
        if config.preferences is not None:
            return self.stages.existing_preferences(config.preferences)
        labeling = section(config.labeling, "labeling", self.run)
        return self.stages.preferences(self.table("candidates"), self.table("scores"), labeling)

    def _of_people(self) -> Planned:
        candidates = self.table("candidates")
        votes = votes_files(self.there, candidates.fingerprint)
        copies = votes_files(self.here, candidates.fingerprint)
        if not votes.files():
            raise RunError(
                f"{votes.uri} has no file of votes",
                "preferences of people are made again from the votes that the run keeps",
                "put the files back, or import them again: `raydpo annotate import RUN FILE`",
            )

        planned = self.stages.of_people(candidates)

        def make() -> None:
            for name in votes.files():
                copies.write_bytes(name, votes.read_bytes(name))
            planned.make()

        return Planned(planned.place, make)

    def _inspection(self) -> Planned:
        measured = self.config.evaluation is not None
        return self.inspection(self.table("evaluation-prompts") if measured else None)

    def inspection(self, prompts: Table | None) -> Planned:
        """The inspection of the round's preferences, beside the prompts of the evaluation."""
        section(self.config.inspect, "inspect", self.run)
        config, place = self.config, self.stages.place("inspection")
        of = self.there, place, self.table("preferences"), prompts
        make = partial(run_inspection, config, *of)
        return Planned(place, make, partial(inspection_stage, config, *of[1:]))

    def _reference(self) -> Planned:
        candidates = self.table("candidates") if self.config.preferences is None else None
        return self.stages.reference(self.table(self.groups), candidates)

    def _sampler(self) -> Planned:
        make = partial(self.stages.check_sampler, self.table("candidates"), None)
        return Planned(self.stages.place("sampler"), make)

    def _policy(self) -> Planned:
        section(self.config.training, "training", self.run)
        return self.stages.train(self.table(self.groups), self.reference_table())

    def _heldout(self) -> Planned:
        section(self.config.evaluation, "evaluation", self.run)
        make = partial(self.stages.heldout, self.table("preferences"))
        return Planned(self.stages.place("heldout"), make)

    def _evaluation_prompts(self) -> Planned:
        section(self.config.evaluation, "evaluation", self.run)
        return self.stages.evaluation_prompts()

    def _evaluation(self) -> Planned:
        section(self.config.evaluation, "evaluation", self.run)
        config, place = self.config, self.stages.place("evaluation")
        if config.evaluates_reference_alone:
            return self.stages.evaluate_reference(self.table("evaluation-prompts"))
        prompts, heldout = self.table("evaluation-prompts"), self.table("heldout")
        reference, log = self.reference_table(), read_metrics(self.there.child("policy"))
        policy = policy_after(config, self.run, 1)
        inputs = {"reference": reference.fingerprint if reference is not None else ""}
        original = config.reference_model
        models = {"policy": policy, "reference": original}
        preferences = self.table("preferences")
        of = {**inputs, "training_log": fingerprint(log), "preferences": preferences.fingerprint}
        there = Round(config, self.there, self.index)
        make = partial(
            evaluate,
            config,
            place,
            prompts=prompts,
            policy=policy,
            reference_model=original,
            heldout=heldout,
            inputs=inputs,
            preferences=preferences,
            training_log=log,
            stage_counts=there.counts(),
            agreement=there.agreement(reference),
        )
        described = partial(evaluation_stage, config, place, prompts, models, heldout, of)
        return Planned(place, make, described)

    def _report(self) -> Planned:
        section(self.config.training, "training", self.run)
        counts = Round(self.config, self.there, self.index).counts()
        record = policy_record(self.config, self.there, counts)
        return _planned_report(self.config, self.stages.place("report"), record, self.there)


def _planned_report(
    config: Config, place: Place, record: TrainingRecord | None, there: Folder
) -> Planned:
    if record is None:
        raise RunError(
            f"{there.uri} has no training that was measured on held-out data",
            "a report is made again from the measurements of the training",
            "give the command of the run again: it makes what is missing",
        )
    of = config, place, record
    return Planned(place, partial(report_training, *of), partial(training_report_stage, *of))


def round_steps(again: Again) -> list[Step]:
    """The stages that `raydpo run` made."""
    there, here = round_folder(again.run, 0), round_folder(again.scratch, 0)
    config = again.config
    only = RoundAgain(config, config, there, here, 0, "preferences", again.run)
    return only.steps()


def sft_steps(again: Again) -> list[Step]:
    """The stages that `raydpo sft` made."""
    config = again.config

    def policy() -> Planned:
        section(config.sft, "sft", again.run)
        examples = finished_table(again.run.child("sft", "examples"))
        place = place_in(config, again.scratch, "sft/policy")
        of = config, place, examples
        return Planned(place, partial(train_sft, *of), partial(sft_stage, *of))

    def report() -> Planned:
        place = place_in(config, again.scratch, "sft/report")
        return _planned_report(config, place, sft_record(again.run), again.run.child("sft"))

    return [
        examples_step(again, "sft/examples"),
        Step("sft/policy", policy),
        Step("sft/report", report),
    ]


def score_steps(again: Again) -> list[Step]:
    """The stages that `raydpo score` made."""
    config, there = again.config, again.run.child("score")
    data = "preferences" if config.preferences is not None else "examples"

    def preferences() -> Planned:
        source = section(config.preferences, "preferences", again.run)
        place = place_in(config, again.scratch, "score/preferences")
        describe = partial(existing_preferences_stage, config, source, place)
        return Planned(place, partial(run_preferences_stage, config, place), describe)

    def logps() -> Planned:
        sequences = finished_table(there.child(data))
        place = place_in(config, again.scratch, "score/logps")
        of = place, sequences, config.model, config.reference
        return Planned(place, partial(score_sequences, *of), partial(sequences_stage, *of))

    return [
        Step("score/preferences", preferences),
        examples_step(again, "score/examples"),
        Step("score/logps", logps),
    ]


def examples_step(again: Again, name: str) -> Step:
    """The table of supervised examples in the folder `name`."""

    def plan() -> Planned:
        config, place = again.config, place_in(again.config, again.scratch, name)
        describe = partial(examples_stage, config, section(config.sft, "sft", again.run), place)
        return Planned(place, partial(run_examples_stage, config, place), describe)

    return Step(name, plan)


def prompts_step(again: Again, name: str, source: PromptsConfig | None, of: str) -> Step:
    """A table of prompts in the folder `name`, from the source in the section `of`."""

    def plan() -> Planned:
        config, place = again.config, place_in(again.config, again.scratch, name)
        read = config, section(source, of, again.run), place
        return Planned(place, partial(run_prompts_stage, *read), partial(prompts_stage, *read))

    return Step(name, plan)


def folder_name(folder: Folder) -> str:
    """The last part of a folder's path or URI."""
    return folder.uri.rpartition("/")[2]
