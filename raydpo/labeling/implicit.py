"""Compute implicit rewards: how much likelier the run's own model makes a completion.

From groups of candidates, with log-probs of all tokens under the policy and under the reference,
the stage makes the table of scores, part i from part i. The reward is

    h(y) = log pi(y|x) - log pi_ref(y|x)     in nats, summed over the completion's tokens,

DPO's implicit reward (arXiv:2305.18290, section 5) without beta, which is the scorer's `weight`.
A policy that was trained on preferences thus labels its own samples (arXiv:2406.09760).
"""

from __future__ import annotations

import math
from typing import Final

from raydpo.config.content import content_of
from raydpo.config.job import ModelConfig, RewardConfig
from raydpo.config.labeling import ClassifierReading
from raydpo.core.errors import ConfigError, DataError
from raydpo.core.on_driver import map_on_driver
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage
from raydpo.core.tables import Row
from raydpo.models.loading import weights_fingerprint

STAGE_NAME: Final = "scores"


def implicit_scores(
    place: Place,
    candidates: Table,
    policy_logps: Table,
    reference_logps: Table,
    reward: RewardConfig,
) -> Table:
    """Compute the log-ratio of every candidate, in nats.

    Args:
        place: where the scores table goes.
        candidates: the completions.
        policy_logps: their log-probs under the policy, one row per prompt, in the same parts.
        reference_logps: the same under the reference.
        reward: the scorer; its weight is not applied here.
    """
    stage = implicit_stage(place, candidates, policy_logps, reference_logps, reward)

    def part(rows: list[Row], policy: list[Row], reference: list[Row]) -> PartResult:
        return PartResult(score_rows(rows, policy, reference, reward.scorer))

    return map_on_driver(stage, part, candidates, policy_logps, reference_logps)


def implicit_stage(
    place: Place,
    candidates: Table,
    policy_logps: Table,
    reference_logps: Table,
    reward: RewardConfig,
) -> Stage:
    """Describe what implicit rewards are made from; arguments as of `implicit_scores`."""
    inputs = {
        "candidates": candidates.fingerprint,
        "policy_logps": policy_logps.fingerprint,
        "reference_logps": reference_logps.fingerprint,
    }
    settings = {"implicit": reward.scorer, **content_of(reward, without=ClassifierReading)}
    return Stage(place, STAGE_NAME, "scores", inputs, settings)


def score_rows(
    candidates: list[Row], policy: list[Row], reference: list[Row], scorer: str
) -> list[Row]:
    """Score one part; the K log-prob lists of a prompt are in its candidates' order."""
    logratios: dict[str, list[float]] = {}
    for ours, theirs in zip(policy, reference, strict=True):
        lists = zip(ours["reference_token_logps"], theirs["reference_token_logps"], strict=True)
        logratios[ours["group_id"]] = [
            math.fsum(p - r for p, r in zip(one, other, strict=True)) for one, other in lists
        ]
    rows: list[Row] = []
    if unscored := {row["prompt_id"] for row in candidates} - logratios.keys():
        raise DataError(
            f"a part of the candidates has the prompt {min(unscored)!r}, and its part of the "
            "log-probs has not",
            "these tables are cut into parts at the same rows; one of them was made again since "
            "rows_per_part was changed",
            "add `--redo scores` once: the log-probs are made again in the candidates' parts",
        )
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
    """Refuse models for which an implicit reward would be 0 for every completion.

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
