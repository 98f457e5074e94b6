"""Read what a training that was measured on held-out data left, for its report."""

from __future__ import annotations

import json

from raydpo.config.job import Config
from raydpo.core.artifacts import held_bytes
from raydpo.core.run import read_manifest
from raydpo.core.storage import Folder
from raydpo.evaluation.training_report import TrainingRecord
from raydpo.training.heldout_files import BEFORE_FILE, EXPORTED_FILE
from raydpo.training.metrics_log import read_rows


def policy_record(
    config: Config, folder: Folder, counts: dict[str, dict[str, int]]
) -> TrainingRecord | None:
    """Return what a round's training left; None if it was not measured.

    Args:
        config: the job.
        folder: the folder of the round.
        counts: the counts of the stages before the training.
    """
    assert config.training is not None
    what = "reward model" if config.training.objective.scalar_head else "policy"
    return _record(folder.child("policy"), what, counts)


def sft_record(run: Folder) -> TrainingRecord | None:
    """Return what the supervised fine-tuning of a run left; None if it was not measured."""
    examples = read_manifest(run.child("sft", "examples"))
    counts = {"examples": examples["counts"]} if examples else {}
    return _record(run.child("sft", "policy"), "fine-tuned model", counts)


def _record(folder: Folder, what: str, counts: dict[str, dict[str, int]]) -> TrainingRecord | None:
    manifest = read_manifest(folder)
    if manifest is None or not folder.exists(EXPORTED_FILE):
        return None
    before, exported = (json.loads(held_bytes(folder, n)) for n in (BEFORE_FILE, EXPORTED_FILE))
    rows = read_rows(folder)
    return TrainingRecord(folder, manifest["fingerprint"], what, before, exported, rows, counts)
