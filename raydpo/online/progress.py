"""Collect what each round did beside its held-out numbers: steps, staleness, replay, rewards.

The finished tables and logs of the rounds' folders give a few numbers for each round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raydpo.config.job import Config, OnlineConfig
from raydpo.core.run import read_manifest, read_rows, round_folder
from raydpo.core.storage import Folder
from raydpo.evaluation import metrics
from raydpo.labeling.preferences import combined_rewards
from raydpo.online.record import RoundRecord
from raydpo.training.metrics_log import read_metrics

Json = dict[str, Any]


def rounds_progress(
    config: Config, online: OnlineConfig, run: Folder, records: Sequence[RoundRecord]
) -> list[Json]:
    """Return an entry for each round.

    `steps` is the number of optimizer updates. `updates_behind` says how many updates the policy
    had made since the one that sampled, at the round's first and last update; completions that are
    replayed from earlier rounds are older. `replay_share` is the share of groups that are replayed.
    `sampled_reward` is the mean of the combined rewards of the round's own completions, on training
    prompts and without z-scores; None if no reward labels.
    """
    indices = range(len(records) - 1)
    logs = [read_metrics(round_folder(run, index).child("policy")) for index in indices]
    steps = [max((row["step"] for row in log), default=0) for log in logs]
    return [
        {
            "steps": steps[index],
            "updates_behind": _updates_behind(steps, online.sampler_of(index), index),
            "replay_share": records[index + 1].replayed / max(1, records[index + 1].groups),
            "sampled_reward": _sampled_reward(config, round_folder(run, index).child("scores")),
        }
        for index in indices
    ]


def _updates_behind(steps: list[int], sampler: int, index: int) -> Json:
    before = sum(steps[sampler:index])
    return {"first": before, "last": before + max(0, steps[index] - 1)}


def _sampled_reward(config: Config, scores: Folder) -> Json | None:
    rewards = config.labeling.reward if config.labeling is not None else ()
    manifest = read_manifest(scores) if rewards else None
    if manifest is None:
        return None
    weights = {reward.scorer: reward.weight for reward in rewards}
    rows = list(read_rows(scores, manifest))
    found = combined_rewards(rows, weights, config.combine_evaluated)
    if not found:
        return None
    prompts = [prompt for prompt, _ in found]
    return metrics.clustered_mean(list(found.values()), prompts).as_json()
