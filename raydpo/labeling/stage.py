"""The scoring stage: score candidates, one row per candidate and scorer.

From the table of candidates and one or more scorers it makes the table of scores, part i from part
i. If a scorer refuses a candidate, the candidate gets no score at all. It is in the quarantine
once, with the reasons.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Final

from raydpo.config.job import RewardConfig
from raydpo.core.cluster import uses_cuda
from raydpo.core.errors import ConfigError
from raydpo.core.metadata import WITH_METADATA, metadata_columns
from raydpo.core.notices import tell
from raydpo.core.own_functions import search_path
from raydpo.core.parts import (
    PartJob,
    PartStage,
    PartWork,
    Table,
    Target,
    Transform,
    Workers,
    part_work,
    run_work,
)
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import PartResult, Stage
from raydpo.core.storage import Folder, fingerprint
from raydpo.core.tables import Row
from raydpo.labeling.groups import candidate_id
from raydpo.labeling.judges.kept import answers_folder
from raydpo.labeling.rewards import Judged, Note, Refusal
from raydpo.labeling.scorers import Judge, scorer_of
from raydpo.labeling.signature import CANDIDATE_IDS, COMPLETION_IDS, FINISH_REASONS, MESSAGES

STAGE_NAME: Final = "scores"


def score_candidates(place: Place, candidates: Table, rewards: tuple[RewardConfig, ...]) -> Table:
    """Score every candidate with every scorer.

    Args:
        place: where the scores table goes.
        candidates: the completions.
        rewards: the scorers; their weights are not applied here.

    Raises:
        ConfigError: a function, a label or a scorer's name cannot be used.
        ModelError: a classifier cannot be loaded.
        ServiceError: a service is down, or does not answer as required.
        DataError: a function fails for every completion, or returns the wrong number.
        QuarantineBudgetError: too many candidates were refused.
    """
    return run_work(scoring_work([Target(place, candidates)], rewards))[0]


def scoring_work(targets: list[Target], rewards: tuple[RewardConfig, ...]) -> PartWork:
    """Define the work of `score_candidates` on one or more tables; workers load scorers once."""
    check_rewards(rewards)
    for target in targets:
        refuse_missing_columns(target.source, rewards)
    for reward in rewards:
        if (covered := scorer_of(reward).stale_with()) is not None:
            text = "[%s] %s is made again when these change: %s"
            logger.info(text, targets[0].place.label, reward.scorer, covered)
    stages = [
        PartStage(scores_stage(target.place, target.source, rewards), [target.source])
        for target in targets
    ]
    cuda = any(reward.device == "auto" for reward in rewards) and uses_cuda("auto")
    gpus = max(reward.gpus_per_worker for reward in rewards) if cuda else 0.0
    workers = Workers(
        max(reward.workers for reward in rewards),
        gpus=gpus,
        answer_within_seconds=max(reward.answer_within_seconds for reward in rewards),
        answer_setting="answer_within_seconds of the reward",
    )
    answers = answers_folder(targets[0].place.folder)
    make = functools.partial(_make_transform, rewards, search_path(), answers)
    identity = {**scorer_inputs(rewards), "rewards": [r.model_dump(mode="json") for r in rewards]}
    if any(reward.judge is not None for reward in rewards):  # a worker keeps answers of one run
        identity["answers"] = answers.uri
    job = PartJob(make, workers, fingerprint(identity))
    return part_work(stages, job)


def scores_stage(place: Place, candidates: Table, rewards: tuple[RewardConfig, ...]) -> Stage:
    """Describe what these scorers' scores of these candidates are made from."""
    return Stage(
        place=place,
        name=STAGE_NAME,
        table="scores",
        inputs={"candidates": candidates.fingerprint, **scorer_inputs(rewards)},
        settings={
            "scorers": [
                {"name": reward.scorer, **scorer_of(reward).settings()} for reward in rewards
            ]
        },
        parts_of=("candidates",),
    )


def check_rewards(rewards: tuple[RewardConfig, ...]) -> None:
    """Check that what the scorers name exists and fits, without a cluster.

    Raises:
        ConfigError: a function or a label does not exist, or two scorers share a name.
        ModelError: a classifier does not exist.
    """
    names = [reward.scorer for reward in rewards]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{names.count(name)} scorers are called {name!r}",
                "each scorer has a name of its own in the scores table",
                "give them different `name`s",
            )
    for reward in rewards:
        scorer_of(reward).check()


def all_judge(rewards: tuple[RewardConfig, ...], judges: tuple[RewardConfig, ...]) -> bool:
    """Return whether each of the rewards is one of the judges, so that the judges' scores have its own.

    Weights may differ, because tables of scores have none.
    """
    known = [_scored_by(judge) for judge in judges]
    return all(_scored_by(reward) in known for reward in rewards)


def _scored_by(reward: RewardConfig) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Return all that a row of the table of scores depends on, beside the candidate."""
    scorer = scorer_of(reward)
    return reward.scorer, scorer.settings(), scorer.inputs()


def refuse_missing_columns(table: Table, rewards: tuple[RewardConfig, ...]) -> None:
    """Refuse rewards that read columns of the data where a table brings none.

    Args:
        table: prompts or candidates; one that is still being made is not looked at.
        rewards: the scorers.

    Raises:
        ConfigError: a scorer cannot do without a column.
    """
    counts = table.manifest.get("counts")
    if counts is None or counts.get(WITH_METADATA):
        return
    for reward in rewards:
        if columns := scorer_of(reward).columns():
            raise ConfigError(
                f"{reward.scorer} reads {', '.join(map(repr, columns))}, and {table.folder.uri} "
                "brings no columns of the data",
                "prompts carry the columns that raydpo does not use (`metadata` of their section); "
                "tables that a version before 0.3 made have none",
                "let `metadata` name the columns; a run that is older starts under another `name`",
            )


def make_judge(
    reward: RewardConfig, search: tuple[str, ...] = (), answers: Folder | None = None
) -> Judge:
    """Load a scorer.

    Args:
        reward: the scorer.
        search: folders in which a function is looked for first.
        answers: where a judge keeps its answers; None for in memory alone.
    """
    return scorer_of(reward).load(search, answers)


def score_part(
    judges: dict[str, Judge], candidates: list[Row], elsewhere: frozenset[str] = frozenset()
) -> PartResult:
    """Score one part; `judges` by scorer, of which `elsewhere` work in other processes.

    If a reward function returns None for a candidate that another scorer has a value for, its
    value is null: it does not apply. Any other missing value refuses the candidate.
    """
    prompts = [row["prompt"] for row in candidates]
    completions = [row["completion"] for row in candidates]
    more = lists_of(candidates)
    judged = _judged(judges, elsewhere, lambda judge: judge(prompts, completions, more))
    rows: list[Row] = []
    refused: list[Row] = []
    not_applicable: Counter[str] = Counter()
    for index, candidate in enumerate(candidates):
        values = {scorer: given.values[index] for scorer, given in judged.items()}
        refusals = {s: v for s, v in values.items() if isinstance(v, Refusal)}
        if len(refusals) < len(values):  # another scorer has a value: these need none
            refusals = {s: v for s, v in refusals.items() if not v.does_not_apply}
        reasons = [f"{scorer}: {refusal.reason}" for scorer, refusal in refusals.items()]
        if reasons:
            refused.append(_quarantined(candidate, "; ".join(reasons)))
            if any(refusal.ended_process for refusal in refusals.values()):
                tell(f"candidate {candidate_id(candidate)} is refused: {'; '.join(reasons)}")
        else:
            rows += [
                _score(candidate, scorer, value, _note(judged[scorer], index))
                for scorer, value in values.items()
            ]
            not_applicable.update(s for s, v in values.items() if isinstance(v, Refusal))
    counts = {f"truncated_for_{scorer}": given.truncated for scorer, given in judged.items()}
    sums: dict[str, float] = {}
    for given in judged.values():
        counts |= given.counts
        sums |= given.sums
    counts |= {f"does_not_apply_{scorer}": count for scorer, count in not_applicable.items()}
    counts["scored"] = len(candidates) - len(refused)
    return PartResult(rows, refused, counts, sums)


def _judged(
    judges: dict[str, Judge], elsewhere: frozenset[str], ask: Callable[[Judge], Judged]
) -> dict[str, Judged]:
    """Ask all judges, and those that work elsewhere at the same time; the order is that of `judges`.

    If several fail, the error is that of the first of those, whichever was faster.
    """
    if len(judges) == 1 or not elsewhere:
        return {scorer: ask(judge) for scorer, judge in judges.items()}
    with ThreadPoolExecutor(len(elsewhere), "raydpo-judge") as pool:
        # A thread of a copied context tells the driver of the same part.
        begun = {
            s: pool.submit(copy_context().run, ask, judges[s]) for s in judges if s in elsewhere
        }
        here = {s: ask(judge) for s, judge in judges.items() if s not in elsewhere}
    return {s: begun[s].result() if s in begun else here[s] for s in judges}


def lists_of(candidates: list[Row]) -> dict[str, list[Any]]:
    """Return what scorers can read beside the texts: what raydpo knows, and the data's columns."""
    return {
        **metadata_columns(row.get("metadata") for row in candidates),
        COMPLETION_IDS: [row["completion_ids"] for row in candidates],
        FINISH_REASONS: [row["finish_reason"] for row in candidates],
        CANDIDATE_IDS: [candidate_id(row) for row in candidates],
        MESSAGES: [row.get("prompt_messages") for row in candidates],
    }


def _make_transform(
    rewards: tuple[RewardConfig, ...], search: tuple[str, ...], answers: Folder
) -> Transform:
    judges = {reward.scorer: make_judge(reward, search, answers) for reward in rewards}
    elsewhere = frozenset(reward.scorer for reward in rewards if reward.works_elsewhere)
    return functools.partial(score_part, judges, elsewhere=elsewhere)


def scorer_inputs(rewards: tuple[RewardConfig, ...]) -> dict[str, str]:
    """Return hashes of all components of the scorers, by what each is and whose.

    Raises:
        ConfigError: a function cannot be used, or a file that it depends on does not exist.
        ModelError: a classifier does not exist.
    """
    return {
        f"{name} of {reward.scorer}": value
        for reward in rewards
        for name, value in scorer_of(reward).inputs().items()
    }


def _note(judged: Judged, index: int) -> Note:
    return judged.notes[index] if judged.notes else Note()


def _score(candidate: Row, scorer: str, value: float | Refusal, note: Note) -> Row:
    return {
        "prompt_id": candidate["prompt_id"],
        "candidate": candidate["candidate"],
        "scorer": scorer,
        "value": None if isinstance(value, Refusal) else value,
        "rationale": note.rationale,
        "value_low": note.low,
        "value_high": note.high,
    }


def _quarantined(candidate: Row, reason: str) -> Row:
    return {
        "stage": STAGE_NAME,
        "id": candidate_id(candidate),
        "reason": reason,
        "row": json.dumps(candidate, ensure_ascii=False),
    }
