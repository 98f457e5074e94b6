"""The scoring stage: candidates in, scores out, one row a candidate and scorer.

What comes in: the table of candidates and one or more scorers. What goes out: the table
of scores, part i for part i. A candidate that a scorer refuses has no score at all: it
stands in the quarantine once, with the reasons.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import ray

from raydpo.cluster import uses_cuda
from raydpo.config import ClassifierReading, ModelConfig, RewardConfig
from raydpo.config_content import content_of
from raydpo.errors import ConfigError
from raydpo.labeling.bounded import judge_bounded
from raydpo.labeling.classifier import (
    judge_with_classifier,
    label_index,
    load_classifier,
    read_otherwise_before,
)
from raydpo.labeling.functions import code_of, look_at
from raydpo.labeling.groups import candidate_id
from raydpo.labeling.own_code import OwnCode
from raydpo.labeling.reward_process import RewardProcess
from raydpo.labeling.rewards import Judged, Refusal
from raydpo.models import tokenizer_fingerprint, weights_fingerprint
from raydpo.notices import tell
from raydpo.parts import (
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
from raydpo.progress import logger
from raydpo.run import PartResult, Stage
from raydpo.storage import Folder, fingerprint
from raydpo.tables import Row

STAGE_NAME: Final = "scores"

#: (prompts, completions) -> rewards or refusals.
Judge = Callable[[list[str], list[str]], Judged]


def score_candidates(
    *,
    folder: Folder,
    candidates: Table,
    rewards: tuple[RewardConfig, ...],
    what: str,
    max_quarantined_fraction: float,
) -> Table:
    """Score every candidate with every scorer.

    Args:
        folder: where the scores table goes.
        candidates: the completions.
        rewards: the scorers; their weights are not applied here.
        what: the stage and round, for the log.
        max_quarantined_fraction: share of the candidates that may be refused.

    Raises:
        ConfigError: a function, a label or a scorer's name cannot be used.
        ModelError: a classifier cannot be loaded.
        DataError: a function fails for every completion, or returns the wrong number.
        QuarantineBudgetError: too many candidates were refused.
    """
    targets = [Target(folder, candidates, what)]
    return run_work(scoring_work(targets, rewards, max_quarantined_fraction))[0]


def scoring_work(
    targets: list[Target], rewards: tuple[RewardConfig, ...], max_quarantined_fraction: float
) -> PartWork:
    """The work of `score_candidates` on one or more tables: its workers load the scorers once."""
    check_rewards(rewards)
    codes = _codes(rewards)
    for scorer, code in codes.items():
        text = "[%s] %s is made again when these change: %s"
        logger.info(text, targets[0].what, scorer, code.covered)
    stages = [
        PartStage(scores_stage(target.folder, target.source, rewards), [target.source], target.what)
        for target in targets
    ]
    cuda = any(reward.classifier for reward in rewards) and uses_cuda("auto")
    gpus = max(reward.gpus_per_worker for reward in rewards) if cuda else 0.0
    workers = Workers(max(reward.workers for reward in rewards), gpus=gpus)
    search = (*sys.path, str(Path.cwd()))  # of this machine; workers run in other folders
    make = functools.partial(_make_transform, rewards, search)
    identity = {**scorer_inputs(rewards), "rewards": [r.model_dump(mode="json") for r in rewards]}
    job = PartJob(make, workers, fingerprint(identity))
    return part_work(stages, job, max_quarantined_fraction)


def scores_stage(folder: Folder, candidates: Table, rewards: tuple[RewardConfig, ...]) -> Stage:
    """What these scorers' scores of these candidates are made from."""
    return Stage(
        folder=folder,
        name=STAGE_NAME,
        table="scores",
        inputs={"candidates": candidates.fingerprint, **scorer_inputs(rewards)},
        settings={"scorers": [_scorer_settings(reward) for reward in rewards]},
        parts_of=("candidates",),
    )


def check_rewards(rewards: tuple[RewardConfig, ...]) -> None:
    """Hold the scorers against what they name, without a cluster.

    Raises:
        ConfigError: a function or a label is not there, or two scorers share a name.
        ModelError: a classifier is not there.
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
        if reward.function is not None:
            look_at(reward.function, reward.import_seconds)
        else:
            label_index(reward)


def make_judge(reward: RewardConfig, search: tuple[str, ...] = ()) -> Judge:
    """Load a scorer; a function is looked for in the folders `search` first."""
    if reward.function is not None:
        limits = reward.import_seconds, reward.max_memory_gib
        process = RewardProcess(reward.function, *limits, search, _environment())
        return functools.partial(judge_bounded, process, reward)
    return functools.partial(judge_with_classifier, load_classifier(reward))


def score_part(judges: dict[str, Judge], candidates: list[Row]) -> PartResult:
    """The scores of one part; `judges` by scorer."""
    prompts = [row["prompt"] for row in candidates]
    completions = [row["completion"] for row in candidates]
    judged = {scorer: judge(prompts, completions) for scorer, judge in judges.items()}
    rows: list[Row] = []
    refused: list[Row] = []
    for index, candidate in enumerate(candidates):
        values = {scorer: given.values[index] for scorer, given in judged.items()}
        reasons = [f"{s}: {v.reason}" for s, v in values.items() if isinstance(v, Refusal)]
        if reasons:
            refused.append(_quarantined(candidate, "; ".join(reasons)))
            if any(isinstance(v, Refusal) and v.ended_process for v in values.values()):
                tell(f"candidate {candidate_id(candidate)} is refused: {'; '.join(reasons)}")
        else:
            rows += [_score(candidate, scorer, value) for scorer, value in values.items()]
    counts = {f"truncated_for_{scorer}": given.truncated for scorer, given in judged.items()}
    return PartResult(rows, refused, {"scored": len(candidates) - len(refused), **counts})


def _make_transform(rewards: tuple[RewardConfig, ...], search: tuple[str, ...]) -> Transform:
    judges = {reward.scorer: make_judge(reward, search) for reward in rewards}
    return functools.partial(score_part, judges)


def _environment() -> tuple[tuple[str, str], ...]:
    """A function that asks Ray for something connects to the cluster that it works for."""
    if not ray.is_initialized():
        return ()
    return (("RAY_ADDRESS", ray.get_runtime_context().gcs_address),)


def scorer_inputs(rewards: tuple[RewardConfig, ...]) -> dict[str, str]:
    """Hashes of all that the scorers are made of, by what it is and whose.

    Raises:
        ConfigError: a function cannot be used, or a file that it depends on is not there.
        ModelError: a classifier is not there.
    """
    inputs = {
        f"{name or 'source'} of {scorer}": value
        for scorer, code in _codes(rewards).items()
        for name, value in code.hashes.items()
    }
    for reward in rewards:
        if reward.classifier is not None:
            model = ModelConfig(path=str(reward.classifier))
            inputs[f"weights of {reward.scorer}"] = weights_fingerprint(model)
            inputs[f"tokenizer of {reward.scorer}"] = tokenizer_fingerprint(model)
            changed = read_otherwise_before(model)
            inputs |= {f"{name} of {reward.scorer}": value for name, value in changed.items()}
    return inputs


def _codes(rewards: tuple[RewardConfig, ...]) -> dict[str, OwnCode]:
    """By scorer, the code of those that are functions."""
    return {
        reward.scorer: code_of(reward.function, reward.import_seconds, reward.depends_on)
        for reward in rewards
        if reward.function is not None
    }


def _scorer_settings(reward: RewardConfig) -> dict[str, Any]:
    """What the scores depend on beside the scorer's source or weights."""
    if reward.function is None:
        return {"name": reward.scorer, **content_of(reward)}
    content = content_of(reward, without=ClassifierReading)
    return {"name": reward.scorer, "function": reward.function, **content}


def _score(candidate: Row, scorer: str, value: float | Refusal) -> Row:
    return {
        "prompt_id": candidate["prompt_id"],
        "candidate": candidate["candidate"],
        "scorer": scorer,
        "value": value,
        "rationale": None,
    }


def _quarantined(candidate: Row, reason: str) -> Row:
    return {
        "stage": STAGE_NAME,
        "id": candidate_id(candidate),
        "reason": reason,
        "row": json.dumps(candidate, ensure_ascii=False),
    }
