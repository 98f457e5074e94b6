"""Report what a command would do, stage by stage, without a cluster and without changing
anything.

From the configuration and the run directory the module makes one line per stage, with the same keys
by which the stages decide. If a stage has to run first, its table is not known yet. A stage that
depends on it will be kept if that table turns out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Final

from raydpo.config.job import Config, LabelingConfig, PeopleConfig
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import Stage, look_at, read_manifest, round_folder, run_folder
from raydpo.core.stages import FOLDERS, STAGES
from raydpo.core.storage import Folder, fingerprint
from raydpo.evaluation.stage import evaluation_stage, reference_evaluation_stage
from raydpo.evaluation.training_report import training_report_stage
from raydpo.labeling.implicit import implicit_stage
from raydpo.labeling.kept_votes import votes_files
from raydpo.labeling.people import people_stage
from raydpo.labeling.preferences import preferences_stage
from raydpo.labeling.stage import scores_stage
from raydpo.pipeline.job import (
    check_sections,
    refuse_to_replace_people,
    waits_for_people,
)
from raydpo.pipeline.measured import policy_record
from raydpo.pipeline.round import Round
from raydpo.prompts.preferences import existing_preferences_stage
from raydpo.prompts.stage import prompts_stage
from raydpo.reference.stage import reference_stage
from raydpo.training.metrics_log import read_metrics
from raydpo.training.ray_worker import MODEL
from raydpo.training.stage import policy_stage

#: Stands for the fingerprint of a table that has to be made first.
_UNKNOWN: Final = "to be made"


@dataclass(frozen=True)
class Outlook:
    """What a command would do with a stage, and why."""

    stage: str
    action: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.stage:18} {self.action}" + (f": {self.why}" if self.why else "")


def outlook_of_round(config: Config, until: str, redo: Collection[str] = ()) -> list[Outlook]:
    """Return what `run_round` would do, in order.

    Args:
        config: the job.
        until: the last stage.
        redo: finished stages that are to run again.

    Raises:
        RaydpoError: the command would refuse the job or a stage's source.
    """
    check_sections(config, until, redo)
    folder = round_folder(run_folder(config.output, config.name), 0)
    refuse_to_replace_people(config, folder, until, redo)
    taken = {name for stage in redo for name in FOLDERS[stage]}
    return outlook_in(config, folder, until, taken)


def outlook_in(
    config: Config, folder: Folder, until: str, taken: Collection[str] = ()
) -> list[Outlook]:
    """Return what a job would do in a round's folder, in order.

    Args:
        config: the job.
        folder: the folder of the round, wherever the run directory is.
        until: the last stage.
        taken: folders that are removed first.
    """
    walk = _Walk(config, folder, set(taken))
    walk.go(STAGES.index(until))
    return walk.found


@dataclass
class _Walk:
    """Goes through a round's stages; `taken` are folders that `--redo` removes first."""

    config: Config
    folder: Folder
    taken: set[str]
    found: list[Outlook] = field(default_factory=list[Outlook])

    @property
    def stages(self) -> Round:
        """The round's stages."""
        return Round(self.config, self.folder, 0)

    def go(self, last: int) -> None:
        """Look at each stage up to the one with this number."""
        if self.config.evaluates_reference_alone and last == STAGES.index("evaluation"):
            self._evaluation_of_reference()
            return
        preferences = self._preferences(last)
        if preferences is None or last < STAGES.index("reference"):
            return
        reference = self._reference(preferences)
        if last < STAGES.index("training"):
            return
        policy = self._look(
            "policy", lambda place: policy_stage(self.config, place, preferences, reference)
        )
        if last < STAGES.index("evaluation"):
            return
        if self.config.evaluation is not None:
            self._evaluation(policy, reference, preferences)
        else:
            self._report(policy)

    def _look(self, name: str, stage_at: Callable[[Place], Stage]) -> Table:
        """Record what would happen to a stage; return its table, or one that is not known yet."""
        stage = stage_at(self.stages.place(name))
        outlook = _outlook(name, stage, name in self.taken)
        self.found.append(outlook)
        manifest = read_manifest(stage.folder)
        if outlook.action == "kept" and manifest is not None:
            return Table(stage.folder, manifest)
        return Table(stage.folder, {"fingerprint": _UNKNOWN})

    def _preferences(self, last: int) -> Table | None:
        """Return the groups to train on; None if the command ends before they are needed."""
        config = self.config
        source = config.preferences
        if source is not None:
            return self._look(
                "preferences", lambda place: existing_preferences_stage(config, source, place)
            )
        candidates = self._candidates()
        if last < STAGES.index("labeling"):
            return None
        if waits_for_people(config):
            return self._of_people(candidates)
        labeling = config.labeling
        assert labeling is not None
        scores = self._scores(candidates, labeling)
        return self._look(
            "preferences",
            lambda place: preferences_stage(
                place, candidates, scores, labeling, config.trains_on_samples
            ),
        )

    def _candidates(self) -> Table:
        config, source = self.config, self.config.prompts
        assert source is not None
        prompts = self._look("prompts", lambda place: prompts_stage(config, source, place))
        return self._look("candidates", lambda _: self.stages.sampling_stage(prompts))

    def _of_people(self, candidates: Table) -> Table | None:
        fingerprint_there = candidates.fingerprint if _known(candidates) else ""
        if not votes_files(self.folder, fingerprint_there).files():
            self.found.append(Outlook("preferences", "waits", "there are no votes of people yet"))
            return None
        labeling = self.config.labeling
        people = (labeling.people if labeling is not None else None) or PeopleConfig()
        votes = self._there("votes")
        return self._look(
            "preferences", lambda place: people_stage(place, candidates, votes, people)
        )

    def _scores(self, candidates: Table, labeling: LabelingConfig) -> Table:
        if labeling.is_implicit:
            logps = self._there("score-policy"), self._there("score-reference")
            reward = labeling.reward[0]
            return self._look(
                "scores", lambda place: implicit_stage(place, candidates, *logps, reward)
            )
        return self._look("scores", lambda place: scores_stage(place, candidates, labeling.reward))

    def _there(self, name: str) -> Table:
        """Return a table as it is."""
        manifest = read_manifest(self.folder.child(name))
        return Table(self.folder.child(name), manifest or {"fingerprint": _UNKNOWN})

    def _reference(self, preferences: Table) -> Table | None:
        config = self.config
        if config.training is not None and not config.training.objective.uses_reference:
            self.found.append(Outlook("reference", "skipped", "the objective needs none"))
            return None
        model = config.reference.model or config.model
        return self._look(
            "reference",
            lambda place: reference_stage(place, preferences, model, config.reference),
        )

    def _evaluation(self, policy: Table, reference: Table | None, preferences: Table) -> None:
        config, evaluation = self.config, self.config.evaluation
        assert evaluation is not None
        prompts = self._look(
            "evaluation-prompts", lambda place: prompts_stage(config, evaluation.prompts, place)
        )
        if not _known(policy):
            there = read_manifest(self.folder.child("evaluation")) is not None
            again = Outlook("evaluation", "done again", "the policy is trained first")
            self.found.append(again if there else Outlook("evaluation", "done"))
            return
        trained = config.model.model_copy(
            update={"path": policy.folder.child(MODEL).uri, "revision": None}
        )
        models = {"policy": trained, "reference": config.reference.model or config.model}
        inputs = {
            "reference": reference.fingerprint if reference is not None else "",
            "training_log": fingerprint(read_metrics(policy.folder)),
            "preferences": preferences.fingerprint,
        }
        heldout = self._there("heldout")
        self._look(
            "evaluation",
            lambda place: evaluation_stage(config, place, prompts, models, heldout, inputs),
        )

    def _evaluation_of_reference(self) -> None:
        config, evaluation = self.config, self.config.evaluation
        assert evaluation is not None
        prompts = self._look(
            "evaluation-prompts", lambda place: prompts_stage(config, evaluation.prompts, place)
        )
        model = config.reference.model or config.model
        self._look(
            "evaluation",
            lambda place: reference_evaluation_stage(config, place, prompts, model),
        )

    def _report(self, policy: Table) -> None:
        """Look at the report of a training that is measured on held-out data."""
        training = self.config.training
        if training is None or not training.evaluates_heldout:
            return
        if not _known(policy):
            there = read_manifest(self.folder.child("report")) is not None
            again = Outlook("report", "done again", "the model is trained first")
            self.found.append(again if there else Outlook("report", "done"))
            return
        record = policy_record(self.config, self.folder, self.stages.counts())
        if record is not None:
            self._look("report", lambda place: training_report_stage(self.config, place, record))


def _known(table: Table) -> bool:
    return table.fingerprint != _UNKNOWN


def _outlook(name: str, stage: Stage, taken: bool) -> Outlook:
    """Return what would happen to a stage; missing inputs are assumed to stay as they were."""
    if taken:
        return Outlook(name, "done again", "--redo")
    unknown = [kind for kind, value in stage.inputs.items() if value == _UNKNOWN]
    found = read_manifest(stage.folder)
    if unknown and found is not None:
        as_before = {kind: found["inputs"].get(kind) for kind in unknown}
        stage = replace(stage, inputs={**stage.inputs, **as_before})
    state, why = look_at(stage)
    if state == "done" and unknown:
        return Outlook(
            name, "looked at again", f"kept where {', '.join(unknown)} come(s) out alike"
        )
    actions = {"done": "kept", "begun": "goes on", "stale": "done again", "new": "done"}
    return Outlook(name, actions[state], why)
