"""The stages of one round, from prompts to a report, in their order.

This is the one place that has the order. A run walks through the stages and makes each (`job.py`),
and a dry run walks through them and says what that would do (`dry_run.py`). `round.py` plans each
stage. `online/rounds.py` makes the stages round after round, in an order of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from raydpo.config.fit import check_counts_fit
from raydpo.core.parts import Table
from raydpo.core.stages import STAGES
from raydpo.core.walk import Walk
from raydpo.labeling.kept_votes import refuse_other_labels
from raydpo.pipeline.inspection import refuse_beyond_limits

if TYPE_CHECKING:
    from raydpo.pipeline.round import Round


@dataclass(frozen=True)
class Named:
    """What people call the work that fills a folder of a round.

    Attributes:
        label: in the log.
        redo: the word of `--redo` that sets the folder aside; None if no word does.
    """

    label: str
    redo: str | None = None


#: The stages of a round in their order, by folder. A folder has the name of the table that it holds.
FOLDERS: Final = {
    "prompts": Named("prompts"),
    "candidates": Named("sampling", "sampling"),
    "scores": Named("labeling, scores", "scores"),
    "score-groups": Named("labeling, groups to score", "scores"),
    "score-policy": Named("labeling, scores of the policy", "scores"),
    "score-reference": Named("labeling, scores of the reference", "scores"),
    "preferences": Named("labeling", "labeling"),
    "inspection": Named("labeling, inspection", "labeling"),
    "training-groups": Named("labeling, training groups"),
    "reference-model": Named("reference, model"),
    "reference": Named("reference", "reference"),
    "sampler": Named("sampler"),
    "policy": Named("training", "training"),
    "heldout": Named("evaluation, held-out groups"),
    "evaluation-prompts": Named("evaluation, prompts", "evaluation"),
    "evaluation": Named("evaluation", "evaluation"),
    "report": Named("evaluation, report", "evaluation"),
}


def redone_folders(word: str) -> list[str]:
    """Return the folders of a round that `--redo` sets aside for one of its words."""
    return [folder for folder, named in FOLDERS.items() if named.redo == word]


@dataclass(frozen=True)
class RoundTables:
    """What a walk through a round ended with; None for what it did not reach.

    Attributes:
        preferences: the groups that are trained on.
        policy: the folder of the trained policy.
        report: the folder of the evaluation, or of the report of a measured training.
        waits_for: who has to do something before the round can go on.
    """

    preferences: Table | None = None
    policy: Table | None = None
    report: Table | None = None
    waits_for: str | None = None


def run_stages(
    stages: Round, until: str, walk: Walk, sampled: Callable[[], None] = lambda: None
) -> RoundTables:
    """Walk through the stages of a round up to and including `until`.

    Args:
        stages: the round.
        until: one of `STAGES`.
        walk: makes each stage, or only looks at it.
        sampled: called when engines have nothing to do until the evaluation.
    """
    config, last = stages.config, STAGES.index(until)
    candidates = None
    if config.evaluates_reference_alone and until == "evaluation":
        prompts = walk.stage(stages.evaluation_prompts())
        return RoundTables(report=walk.stage(stages.evaluate_reference(prompts)))
    if config.preferences is not None:
        preferences = walk.stage(stages.existing_preferences(config.preferences))
    else:
        prompts = walk.stage(stages.prompts())
        if last >= STAGES.index("labeling"):
            # Limits of the inspection may stop the run before the reference scores anything.
            to_reference = last >= STAGES.index("reference") and config.inspect is None
            walk.between(lambda: stages.work_ahead(prompts, stages, to_reference))
        candidates = walk.stage(stages.sample(prompts))
        walk.between(sampled)
        if last < STAGES.index("labeling"):
            return RoundTables()
        made = _labelled(stages, candidates, walk)
        if made is None:
            return RoundTables(waits_for="people's votes")
        preferences = made
    walk.between(lambda: check_counts_fit(config, preferences.manifest["counts"]))
    measuring = _inspected(stages, preferences, walk)
    if last < STAGES.index("reference"):
        return RoundTables(preferences)
    reference = score_by_reference(stages, preferences, candidates, walk)
    if candidates is not None:
        walk.between(lambda: stages.check_sampler(candidates, reference))
    if last < STAGES.index("training"):
        return RoundTables(preferences)
    walk.between(lambda: stages.verify(preferences, reference))
    policy = walk.stage(stages.train(preferences, reference, candidates))
    if last < STAGES.index("evaluation"):
        return RoundTables(preferences, policy)
    if config.evaluation is None:
        return RoundTables(preferences, policy, walk.stage(stages.report(policy)))
    prompts = measuring or walk.stage(stages.evaluation_prompts())
    report = walk.stage(stages.evaluate(prompts, preferences, reference, policy))
    return RoundTables(preferences, policy, report)


def _inspected(stages: Round, preferences: Table, walk: Walk) -> Table | None:
    """Inspect the preferences if the job asks for it; return the evaluation's prompts that it read.

    Raises:
        DataError: the preferences exceed a limit of the job.
    """
    config = stages.config
    if config.inspect is None:
        return None
    prompts = None if config.evaluation is None else walk.stage(stages.evaluation_prompts())
    inspect_before_training(stages, preferences, prompts, walk)
    return prompts


def inspect_before_training(
    stages: Round, preferences: Table, prompts: Table | None, walk: Walk
) -> None:
    """Inspect the preferences of a round if the job asks for it.

    Raises:
        DataError: the preferences exceed a limit of the job.
    """
    limits = stages.config.inspect
    if limits is not None:
        inspection = walk.stage(stages.inspect(preferences, prompts))
        walk.between(lambda: refuse_beyond_limits(limits, inspection.folder))


def _labelled(stages: Round, candidates: Table, walk: Walk) -> Table | None:
    """Return preferences by rewards or people; None if people have not voted yet.

    Raises:
        ConfigError: the job does not say who labels, and there are no votes.
    """
    if not stages.config.waits_for_people:
        return label_by_rewards(stages, candidates, walk)
    if stages.has_votes(candidates):
        return walk.stage(stages.of_people(candidates))
    walk.between(stages.require_labeling)
    walk.wait(stages.place("preferences"), "there are no votes of people yet")
    return None


def label_by_rewards(stages: Round, candidates: Table, walk: Walk) -> Table:
    """Make preferences over the candidates by rewards."""
    labeling = stages.config.labeling
    assert labeling is not None
    walk.between(lambda: refuse_other_labels(stages.folder))
    scores = walk.stage(stages.scores(candidates, labeling))
    return walk.stage(stages.preferences(candidates, scores, labeling))


def score_by_reference(
    stages: Round, preferences: Table, candidates: Table | None, walk: Walk
) -> Table | None:
    """Return the reference's log-probs of all completions; None if the objective needs none."""
    if not stages.config.uses_reference:
        walk.skip(stages.place("reference"), "the objective needs none")
        return None
    return walk.stage(stages.reference(preferences, candidates))
