"""Per-token log-probabilities of a frozen model, offline, on Ray Data actors.

What comes in: any table of preference groups and a model. What goes out: one list of
log-probs for each completion, in the groups' order. The forward pass is the one that
training uses, so policy and reference differ by their weights only.
"""

from __future__ import annotations

import functools
import random
from dataclasses import asdict
from typing import Final

import ray
import torch

from raydpo.agreement import Agreement, Tolerance, check_agreement
from raydpo.cluster import uses_cuda
from raydpo.config import ModelConfig, ReferenceConfig
from raydpo.config_base import ROUNDING_NATS
from raydpo.config_content import content_of
from raydpo.environment import worker_environment
from raydpo.errors import NumericsError, own_errors
from raydpo.models import load_causal_lm, tokenizer_fingerprint, weights_fingerprint
from raydpo.parts import (
    PartJob,
    PartStage,
    PartWork,
    Table,
    Target,
    Workers,
    kept_transform,
    part_work,
    run_work,
)
from raydpo.progress import logger
from raydpo.reference.sampled import compare_samples, witness_of
from raydpo.reference.scoring import score_groups
from raydpo.run import PartResult, Stage, commit_files, open_stage, part_entry
from raydpo.storage import Folder, fingerprint
from raydpo.tables import Row
from raydpo.training.groups import Group
from raydpo.training.sharing import token_module

STAGE_NAME: Final = "reference"


def score_reference(
    *,
    folder: Folder,
    groups: Table,
    model: ModelConfig,
    settings: ReferenceConfig,
    what: str,
    max_quarantined_fraction: float,
    samples: Table | None = None,
    tolerance: Tolerance | None = None,
) -> Table:
    """Score all completions of `groups` under `model`; a finished table is kept.

    The table is bound to the groups' token ids and to the model's weights, tokenizer,
    precision and attention, not to the model's name: a folder that was swapped is seen.

    Args:
        folder: of the stage.
        groups: a table with the columns of preferences; pairs are not needed.
        model: the model that scores.
        settings: workers and batches.
        what: stage and round, for the log.
        max_quarantined_fraction: see `parts.check_quarantine_budget`.
        samples: the candidates that the groups are made of, of the same parts: those that this
            model sampled are held against the sampler's log-probs.
        tolerance: how far both may lie apart.

    Raises:
        EngineError: they are further apart.
    """
    targets = [Target(folder, groups, what, samples)]
    work = reference_work(targets, model, settings, max_quarantined_fraction, tolerance)
    return run_work(work)[0]


def reference_work(
    targets: list[Target],
    model: ModelConfig,
    settings: ReferenceConfig,
    max_quarantined_fraction: float,
    tolerance: Tolerance | None = None,
) -> PartWork:
    """The work of `score_reference` on one or more tables: its workers load the model once."""
    stages = [
        PartStage(
            reference_stage(target.folder, target.source, model, settings),
            [target.source],
            target.what,
            witness_of(target.samples, model, tolerance) if target.samples and tolerance else None,
        )
        for target in targets
    ]
    return part_work(stages, _part_job(model, settings), max_quarantined_fraction)


def _part_job(model: ModelConfig, settings: ReferenceConfig) -> PartJob:
    """Scoring under a model, by workers that keep it."""
    identity = {
        "model": weights_fingerprint(model),
        "tokenizer": tokenizer_fingerprint(model),
        "tokens": settings.max_tokens_per_batch,
        **content_of(model),
    }
    make = functools.partial(Scorer, model, settings.max_tokens_per_batch)
    return PartJob(make, scoring_workers(settings), fingerprint(identity))


def reference_stage(
    folder: Folder, groups: Table, model: ModelConfig, settings: ReferenceConfig
) -> Stage:
    """What log-probs of these groups under this model are made from."""
    return Stage(
        folder=folder,
        name=STAGE_NAME,
        table="reference",
        inputs={
            "groups": groups.fingerprint,
            "model": weights_fingerprint(model),
            "tokenizer": tokenizer_fingerprint(model),
        },
        settings={**content_of(model), **content_of(settings)},
        parts_of=("groups",),
    )


def scoring_workers(settings: ReferenceConfig) -> Workers:
    """The workers that score, on CUDA where the cluster has it."""
    cuda = uses_cuda("auto")
    return Workers(
        count=settings.workers,
        cpus=settings.cpus_per_worker,
        gpus=settings.gpus_per_worker if cuda else 0.0,
        environment=worker_environment(cuda, settings.cpus_per_worker),
    )


def verify_reference(
    *,
    groups: Table,
    reference: Table,
    model: ModelConfig,
    settings: ReferenceConfig,
    seed: int,
    what: str,
) -> float:
    """Score a sample of groups again and hold it against the table.

    Returns:
        The largest difference of a per-token log-prob, in nats.

    Raises:
        NumericsError: it is above `reference.tolerance`.
    """
    filled = [i for i in range(groups.manifest["parts"]) if part_entry(groups.manifest, i)["rows"]]
    if not filled:
        return 0.0
    part = random.Random(seed).choice(filled)  # noqa: S311
    rows = groups.part(part)[: settings.verify_groups]
    stored = reference.part(part)[: settings.verify_groups]
    difference = _largest_difference(_score_remotely(model, settings, rows), stored)
    tolerance = settings.tolerance or ROUNDING_NATS[model.precision]
    if not difference <= tolerance:
        raise NumericsError(
            f"reference log-probs of part {part} differ by {difference:.3g} nats when scored again",
            f"they agree within reference.tolerance ({tolerance:g})",
            f"delete {reference.folder.uri} and run the same command again",
        )
    logger.info(
        "[%s] verified %d groups: largest difference %.2g nats", what, len(rows), difference
    )
    return difference


def verify_sampler(
    *,
    folder: Folder,
    samples: Table,
    model: ModelConfig,
    settings: ReferenceConfig,
    tolerance: Tolerance,
    seed: int,
    what: str,
) -> Agreement | None:
    """Score a few samples by the model that made them, where no reference table does it.

    Args:
        folder: of a stage of its own, which keeps what was found.
        samples: candidates.
        model: what sampled them.
        settings: workers, and `verify_groups`, the prompts whose samples are scored.
        tolerance: how far sampler and scorer may lie apart.
        seed: chooses the part.
        what: stage and round, for the log.

    Returns:
        None where there is nothing to score.

    Raises:
        EngineError: they are further apart.
    """
    inputs = {"samples": samples.fingerprint, "model": weights_fingerprint(model)}
    of = {"prompts": settings.verify_groups, "seed": seed, **content_of(model)}
    stage = Stage(folder, "sampler", None, inputs, of)
    if open_stage(stage) is None:
        groups, rows = _few_samples(samples, settings.verify_groups, seed)
        if not groups:
            return None
        found = compare_samples(rows, groups, _score_remotely(model, settings, groups))
        check_agreement(found, tolerance, f"the model {model.path!r}")
        commit_files(stage, fingerprint(found.as_json()), {"agreement": asdict(found)})
    found = sampler_agreement(folder)
    logger.info("[%s] the sampler and the trainer's forward pass agree: %s", what, found)
    return found


def sampler_agreement(folder: Folder) -> Agreement:
    """What a finished `verify_sampler` found."""
    return Agreement(**folder.read_json("manifest.json")["agreement"])


def _few_samples(samples: Table, prompts: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Groups of a few prompts' samples, and these samples; of a part that is drawn."""
    parts = range(samples.manifest["parts"])
    filled = [index for index in parts if part_entry(samples.manifest, index)["rows"]]
    if not filled:
        return [], []
    rows = samples.part(random.Random(seed).choice(filled))  # noqa: S311
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        if row["completion_ids"]:
            by_prompt.setdefault(row["prompt_id"], []).append(row)
    chosen = list(by_prompt.items())[:prompts]
    groups = [
        {
            "group_id": name,
            "prompt_id": name,
            "prompt_ids": own[0]["prompt_ids"],
            "completions": [row["completion_ids"] for row in own],
        }
        for name, own in chosen
    ]
    return groups, [row for _, own in chosen for row in own]


class Scorer:
    """Scores groups under one model, in batches under a token budget."""

    def __init__(self, model: ModelConfig, max_tokens_per_batch: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        module = token_module(load_causal_lm(model), model, self.device)
        self.module = module.to(self.device).eval()
        self.max_tokens_per_batch = max_tokens_per_batch

    def __call__(self, rows: list[Row]) -> PartResult:
        """One part of groups -> one part of the reference table."""
        groups = [_group(row) for row in rows]
        logps = score_groups(self.module, groups, self.max_tokens_per_batch, self.device)
        return PartResult(
            [
                {"group_id": group.group_id, "reference_token_logps": values}
                for group, values in zip(groups, logps, strict=True)
            ]
        )


def _group(row: Row) -> Group:
    return Group(row["group_id"], row["prompt_ids"], row["completions"], [], None)


def _score_remotely(model: ModelConfig, settings: ReferenceConfig, rows: list[Row]) -> list[Row]:
    job = _part_job(model, settings)
    with own_errors():
        return ray.get(ray.remote(_score_rows).options(**job.workers.resources()).remote(job, rows))


def _score_rows(job: PartJob, rows: list[Row]) -> list[Row]:
    assert job.identity is not None
    return kept_transform(STAGE_NAME, job.identity, job.make_transform)(rows).rows


def _largest_difference(scored: list[Row], stored: list[Row]) -> float:
    largest = 0.0
    for new, old in zip(scored, stored, strict=True):
        if new["group_id"] != old["group_id"]:
            return float("inf")
        pairs = zip(new["reference_token_logps"], old["reference_token_logps"], strict=True)
        largest = max([largest, *(abs(a - b) for x, y in pairs for a, b in zip(x, y, strict=True))])
    return largest
