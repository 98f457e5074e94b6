"""Compute per-token log-probabilities of a frozen model offline, on Ray Data actors.

From any table of preference groups and a model, the stage makes one list of log-probs for each
completion, in the groups' order. It uses the forward pass of training, so policy and reference
differ only in their weights.
"""

from __future__ import annotations

import functools
import random
from dataclasses import asdict
from typing import Final

import torch

from raydpo.config.base import ROUNDING_NATS
from raydpo.config.content import content_of
from raydpo.config.job import ModelConfig, ReferenceConfig
from raydpo.config.sampling import EnginesConfig
from raydpo.core.cluster import uses_cuda
from raydpo.core.environment import worker_environment
from raydpo.core.errors import NumericsError
from raydpo.core.parts import (
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
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import PartResult, Stage, commit_files, open_stage, part_entry
from raydpo.core.storage import Folder, fingerprint
from raydpo.core.tables import Row
from raydpo.core.tasks import run_task
from raydpo.models.loading import (
    adapter_base,
    load_causal_lm,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from raydpo.reference.agreement import (
    Agreement,
    Tolerance,
    agreement_in,
    check_agreement,
    comparable,
    compare_samples,
    sampler_tolerance,
    witness_of,
)
from raydpo.reference.scoring import score_groups
from raydpo.training.groups import Group
from raydpo.training.sharing import token_module

STAGE_NAME: Final = "reference"


def score_reference(
    place: Place,
    groups: Table,
    model: ModelConfig,
    settings: ReferenceConfig,
    samples: Table | None = None,
    tolerance: Tolerance | None = None,
) -> Table:
    """Score all completions of `groups` under `model`; a finished table is kept.

    The table is bound to the groups' token ids and to the model's weights, tokenizer, precision and
    attention, not to the model's name. So a replaced folder is noticed.

    Args:
        place: where the table goes.
        groups: a table with the columns of preferences; pairs are not needed.
        model: the model that scores.
        settings: workers and batches.
        samples: the candidates that the groups are made of, in the same parts. If this model
            sampled a candidate, its log-probs are compared with the sampler's.
        tolerance: the allowed difference between the two.

    Raises:
        EngineError: the difference is larger.
    """
    targets = [Target(place, groups, samples)]
    return run_work(reference_work(targets, model, settings, tolerance))[0]


def reference_work(
    targets: list[Target],
    model: ModelConfig,
    settings: ReferenceConfig,
    tolerance: Tolerance | None = None,
) -> PartWork:
    """Define the work of `score_reference` on one or more tables; workers load the model once."""
    stages = [
        PartStage(
            reference_stage(target.place, target.source, model, settings),
            [target.source],
            witness_of(target.samples, model, tolerance) if target.samples and tolerance else None,
        )
        for target in targets
    ]
    return part_work(stages, _part_job(model, settings))


def _part_job(model: ModelConfig, settings: ReferenceConfig) -> PartJob:
    """Define scoring under a model, by workers that keep it loaded."""
    identity = {
        "model": weights_fingerprint(model),
        "tokenizer": tokenizer_fingerprint(model),
        "tokens": settings.max_tokens_per_batch,
        **content_of(model),
    }
    make = functools.partial(Scorer, model, settings.max_tokens_per_batch)
    return PartJob(make, scoring_workers(settings), fingerprint(identity))


def reference_stage(
    place: Place, groups: Table, model: ModelConfig, settings: ReferenceConfig
) -> Stage:
    """Describe what log-probs of these groups under this model are made from."""
    return Stage(
        place=place,
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
    """Define the workers that score, on CUDA if the cluster has it."""
    cuda = uses_cuda("auto")
    return Workers(
        count=settings.workers,
        cpus=settings.cpus_per_worker,
        gpus=settings.gpus_per_worker if cuda else 0.0,
        environment=worker_environment(cuda, settings.cpus_per_worker),
        answer_within_seconds=settings.answer_within_seconds,
        answer_setting="reference.answer_within_seconds",
    )


def verify_reference(
    place: Place, groups: Table, reference: Table, model: ModelConfig, settings: ReferenceConfig
) -> float:
    """Score a sample of groups again and compare it with the table at `place`.

    Returns:
        The largest difference of a per-token log-prob, in nats.

    Raises:
        NumericsError: the difference is above `reference.tolerance`.
    """
    filled = [i for i in range(groups.manifest["parts"]) if part_entry(groups.manifest, i)["rows"]]
    if not filled:
        return 0.0
    part = random.Random(place.seed).choice(filled)  # noqa: S311
    rows = groups.part(part)[: settings.verify_groups]
    stored = reference.part(part)[: settings.verify_groups]
    scored = _score_remotely(model, settings, rows, place)
    difference = _largest_difference(scored, stored)
    tolerance = settings.tolerance or ROUNDING_NATS[model.precision]
    if not difference <= tolerance:
        raise NumericsError(
            f"reference log-probs of part {part} differ by {difference:.3g} nats when scored again",
            f"they agree within reference.tolerance ({tolerance:g})",
            f"delete {reference.folder.uri} and run the same command again",
        )
    logger.info(
        "[%s] verified %d groups: largest difference %.2g nats", place.label, len(rows), difference
    )
    return difference


def verify_sampler(
    place: Place,
    samples: Table,
    model: ModelConfig,
    settings: ReferenceConfig,
    tolerance: Tolerance,
) -> Agreement | None:
    """Score a few samples with the model that made them, if no reference table covers them.

    Args:
        place: of a separate stage, which keeps the result; its seed chooses the part.
        samples: the candidates.
        model: the model that sampled them.
        settings: the workers, and `verify_groups`, the number of prompts whose samples are scored.
        tolerance: the allowed difference between sampler and scorer.

    Returns:
        None if there is nothing to compare: no samples of this model, or none with log-probs.

    Raises:
        EngineError: the difference is larger.
    """
    inputs = {"samples": samples.fingerprint, "model": weights_fingerprint(model)}
    of = {"prompts": settings.verify_groups, "seed": place.seed, **content_of(model)}
    stage = Stage(place, "sampler", None, inputs, of)
    if open_stage(stage) is None:
        few = settings.verify_groups, place.seed, inputs["model"]
        groups, rows = _few_samples(samples, *few)
        if not groups:
            return None
        scored = _score_remotely(model, settings, groups, place)
        found = compare_samples(rows, groups, scored)
        check_agreement(found, tolerance, f"the model {model.path!r}")
        commit_files(stage, fingerprint(found.as_json()), {"agreement": asdict(found)})
    found = sampler_agreement(place.folder)
    logger.info("[%s] the sampler and the trainer's forward pass agree: %s", place.label, found)
    return found


def check_sampler(
    place: Place,
    samples: Table,
    reference: Table | None,
    model: ModelConfig,
    settings: ReferenceConfig,
    engines: EnginesConfig,
    again: bool,
) -> None:
    """Check that the sampler computes what training computes; log what was compared.

    Args:
        place: of the stage that keeps the result of `verify_sampler`.
        samples: the candidates.
        reference: the reference's log-probs of them; if they were compared with the sampler's,
            nothing else is scored.
        model: the model that sampled.
        settings: as of `verify_sampler`.
        engines: their tolerance.
        again: whether a few samples are scored if there is no such table; not after the training.

    Raises:
        EngineError: the sampler computes something else.
    """
    not_compared = "[%s] not compared with the trainer's forward pass: %s"
    found = reference and agreement_in(reference.manifest)
    if found:
        logger.info("[%s] sampler and reference agree: %s", place.label, found)
    elif not settings.verify_groups:
        logger.info(not_compared, place.label, "reference.verify_groups is 0")
    elif adapter_base(model) is not None:
        logger.info(not_compared, place.label, "an adapter samples")
    elif again:
        tolerance = sampler_tolerance(model, engines)
        if verify_sampler(place, samples, model, settings, tolerance) is None:
            logger.info(not_compared, place.label, "no sample has log-probs of the model")


def sampler_agreement(folder: Folder) -> Agreement:
    """Return what a finished `verify_sampler` found."""
    return Agreement(**folder.read_json("manifest.json")["agreement"])


def _few_samples(
    samples: Table, prompts: int, seed: int, weights: str
) -> tuple[list[Row], list[Row]]:
    """Return groups of a few prompts' samples, and these samples, from a randomly chosen part."""
    parts = range(samples.manifest["parts"])
    filled = [index for index in parts if part_entry(samples.manifest, index)["rows"]]
    if not filled:
        return [], []
    rows = samples.part(random.Random(seed).choice(filled))  # noqa: S311
    by_prompt: dict[str, list[Row]] = {}
    for row in comparable(rows, weights):
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
    """Scores groups under one model, in batches within a token budget."""

    def __init__(self, model: ModelConfig, max_tokens_per_batch: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        module = token_module(load_causal_lm(model), model, self.device)
        self.module = module.to(self.device).eval()
        self.max_tokens_per_batch = max_tokens_per_batch

    def __call__(self, rows: list[Row]) -> PartResult:
        """Convert one part of groups to one part of the reference table."""
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


def _score_remotely(
    model: ModelConfig, settings: ReferenceConfig, rows: list[Row], place: Place
) -> list[Row]:
    """Score a few rows in one task; its signs of life go to the place's folder."""
    job = _part_job(model, settings)
    return run_task(
        _score_rows,
        job,
        rows,
        worker=job.workers,
        folder=place.folder,
        what=place.label,
        makes="the check's log-probs",
    )


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
