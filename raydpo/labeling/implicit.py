"""Implicit rewards: the run's own model judges, by how much likelier it makes a completion.

What comes in: candidates as groups, with log-probs of all tokens under the policy and under
the reference. What goes out: the table of scores, part i for part i. The reward is

    h(y) = log pi(y|x) - log pi_ref(y|x)     in nats, summed over the completion's tokens,

DPO's implicit reward (arXiv:2305.18290, section 5) without beta, which is the scorer's
`weight`. A policy that was trained on preferences so labels its own samples
(arXiv:2406.09760).
"""

from __future__ import annotations

import math
from typing import Final

from raydpo.config import ClassifierReading, ModelConfig, RewardConfig
from raydpo.config_content import content_of
from raydpo.errors import ConfigError
from raydpo.models import weights_fingerprint
from raydpo.parts import Table, describe_counts
from raydpo.progress import logger
from raydpo.run import PartResult, Stage, commit, finished_parts, open_stage, write_part
from raydpo.storage import Folder
from raydpo.tables import Row

STAGE_NAME: Final = "scores"


def implicit_scores(
    *,
    folder: Folder,
    candidates: Table,
    policy_logps: Table,
    reference_logps: Table,
    reward: RewardConfig,
    what: str,
) -> Table:
    """The log-ratio of every candidate, in nats.

    Args:
        folder: where the scores table goes.
        candidates: the completions.
        policy_logps: their log-probs under the policy, a row a prompt, of the same parts.
        reference_logps: the same under the reference.
        reward: the scorer; its weight is not applied here.
        what: the stage and round, for the log.
    """
    stage = implicit_stage(folder, candidates, policy_logps, reference_logps, reward)
    manifest = open_stage(stage)
    if manifest is None:
        finished = finished_parts(stage)
        for index in range(candidates.manifest["parts"]):
            if index not in finished:
                rows = candidates.part(index)
                scores = score_rows(
                    rows, policy_logps.part(index), reference_logps.part(index), reward.scorer
                )
                write_part(stage, index, PartResult(scores, counts={"input": len(rows)}))
        manifest = commit(stage, {})
        logger.info("[%s] done: %s", what, describe_counts(manifest))
    return Table(folder, manifest)


def implicit_stage(
    folder: Folder,
    candidates: Table,
    policy_logps: Table,
    reference_logps: Table,
    reward: RewardConfig,
) -> Stage:
    """What implicit rewards are made from; arguments as of `implicit_scores`."""
    inputs = {
        "candidates": candidates.fingerprint,
        "policy_logps": policy_logps.fingerprint,
        "reference_logps": reference_logps.fingerprint,
    }
    settings = {"implicit": reward.scorer, **content_of(reward, without=ClassifierReading)}
    return Stage(folder, STAGE_NAME, "scores", inputs, settings)


def score_rows(
    candidates: list[Row], policy: list[Row], reference: list[Row], scorer: str
) -> list[Row]:
    """Scores of one part; the K log-prob lists of a prompt stand in its candidates' order."""
    logratios: dict[str, list[float]] = {}
    for ours, theirs in zip(policy, reference, strict=True):
        lists = zip(ours["reference_token_logps"], theirs["reference_token_logps"], strict=True)
        logratios[ours["group_id"]] = [
            math.fsum(p - r for p, r in zip(one, other, strict=True)) for one, other in lists
        ]
    rows: list[Row] = []
    for row in candidates:
        value = logratios[row["prompt_id"]].pop(0)
        rows.append(
            {
                "prompt_id": row["prompt_id"],
                "candidate": row["candidate"],
                "scorer": scorer,
                "value": value,
                "rationale": None,
            }
        )
    return rows


def refuse_equal_models(policy: ModelConfig, reference: ModelConfig) -> None:
    """Stop where an implicit reward would be 0 for every completion.

    Raises:
        ConfigError: policy and reference have the same weights.
    """
    if weights_fingerprint(policy) == weights_fingerprint(reference):
        raise ConfigError(
            "labeling.reward is `implicit`, and model and reference have the same weights",
            "an implicit reward is the log-ratio of a trained policy to its reference: here it is 0",
            "set `model` to a policy that was trained on preferences, and `reference.model` to the "
            "model that it was trained from",
        )
