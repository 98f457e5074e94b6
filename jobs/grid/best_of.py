"""Measure Best-of-N from a finished run of jobs/best_of_n.yaml: a row of results for one N."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grid.points import Point
from grid.results import Row
from raydpo.config.file import config_of
from raydpo.core.parts import Table
from raydpo.core.run import read_manifest, round_folder
from raydpo.core.storage import Folder, folder_of
from raydpo.evaluation.best_of import Pool, best_of_kl, best_of_weights, pools_of
from raydpo.evaluation.samples import collect_samples


def best_of_row(
    point: Point, seed: int, run: Path, overrides: Sequence[str], seconds: float
) -> Row:
    """Return the row of the point's N: means under Best-of-N's weights count as one completion.

    Its KL is that of the ranks of rewards; see `raydpo.evaluation.best_of`.

    Raises:
        ValueError: a prompt has fewer than N samples.
    """
    assert point.best_of is not None
    pools = sorted(_pools(run), key=lambda pool: pool.prompt_id)
    n, fewest = point.best_of, min(len(pool.rewards) for pool in pools)
    if fewest < n:
        raise ValueError(f"{run}: a prompt has {fewest} samples, and the best of {n} takes {n}")
    weights = [best_of_weights(pool.rewards, n) for pool in pools]
    rewards = [np.array(pool.rewards) for pool in pools]
    columns = {
        "score": [pool.scores for pool in pools],
        "reward": rewards,
        "reward_share": [1 / (1 + np.exp(-some)) for some in rewards],
        "tokens": [pool.lengths for pool in pools],
    }
    sums = {
        name: [float(w @ v) for w, v in zip(weights, values, strict=True)]
        for name, values in columns.items()
    }
    return Row(
        method=point.method,
        strength=point.strength,
        seed=seed,
        run=str(run),
        overrides=list(overrides),
        prompts=[pool.prompt_id for pool in pools],
        completions=[1] * len(pools),
        sums={**sums, "kl": [best_of_kl(pool.rewards, n) for pool in pools]},
        seconds=seconds,
    )


def _pools(run: Path) -> list[Pool]:
    """Return what each prompt's best is chosen from, as the product's evaluation has it."""
    folder = folder_of(str(run))
    config = config_of(folder)
    assert config.evaluation is not None
    assert config.labeling is not None
    judges, rewards = config.evaluation.judge, config.labeling.reward
    evaluation = round_folder(folder, 0).child("evaluation")
    samples = _table(evaluation, "best_of_reference_samples")
    chosen_by = {
        (sample.prompt_id, sample.candidate): sample.score
        for sample in collect_samples(
            samples, _table(evaluation, "best_of_reference_rewards"), rewards
        )
    }
    reference = collect_samples(
        _table(evaluation, "reference_samples"), _table(evaluation, "reference_scores"), judges
    )
    judged = collect_samples(samples, _table(evaluation, "best_of_reference_scores"), judges)
    return pools_of(judged, chosen_by, reference)


def _table(evaluation: Folder, name: str) -> Table:
    manifest = read_manifest(evaluation.child(name))
    assert manifest is not None, f"{evaluation.uri}/{name} is not finished"
    return Table(evaluation.child(name), manifest)
