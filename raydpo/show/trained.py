"""Find what a run trained, and what the run measured of it, for `raydpo publish`.

A run directory gives the model of one round, or that of supervised fine-tuning, with the counts of
the stages before it and the numbers of its report. Nothing is written. Everything that is read is
compared with the hashes of its manifest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final, Literal

from raydpo.config.content import content_of
from raydpo.config.job import Config, TrainerConfig
from raydpo.core.artifacts import held_bytes
from raydpo.core.checked import damaged_files
from raydpo.core.differences import changes
from raydpo.core.errors import DataError, RunError
from raydpo.core.run import read_manifest, round_folder
from raydpo.core.storage import Folder
from raydpo.evaluation.suites import SuiteResult, suite_results
from raydpo.online.summary import RECORD_FILE
from raydpo.pipeline.order import FOLDERS
from raydpo.pipeline.results import Run
from raydpo.show.evaluated import refuse_other_policy
from raydpo.training.export import ADAPTER, MODEL
from raydpo.training.metrics_log import read_metrics

Json = dict[str, Any]
Kind = Literal["policy", "adapter", "reward model", "fine-tuned model"]
#: What the run measured of the model: a whole evaluation, the training's report on held-out data,
#: the numbers of online rounds, or nothing.
Source = Literal["evaluation", "training report", "rounds", "nothing"]

#: Figures of all rounds, in the run directory.
_ROUND_FIGURES: Final = ("online", "rounds")
#: The stages of fine-tuning, and what the log calls them.
_SFT_STAGES: Final = {"examples": "examples", "policy": "training"}


@dataclass(frozen=True)
class Measured:
    """What a run measured of a model.

    Attributes:
        source: the kind of measurement.
        numbers: the content of metrics.json; of rounds, the comparison in online.json of this policy
            with the original model, which has the same keys.
        figures: PNG files by name.
    """

    source: Source
    numbers: Json = field(default_factory=dict[str, Any])
    figures: dict[str, bytes] = field(default_factory=dict[str, bytes])


@dataclass(frozen=True)
class TrainedModel:
    """A model that a run trained.

    Attributes:
        run: the run directory.
        config: the job of the run's last command.
        kind: what it is.
        round_index: the round that trained it; None for supervised fine-tuning.
        folder: of the training's stage.
        manifest: of that stage.
        adapter: whether the run left an adapter beside the merged model.
        stages: the manifests of the finished stages before it, by what the log calls them.
        steps: the metrics of each training step.
        measured: what the run measured of it.
        suites: numbers of standard suites, of these very weights.
    """

    run: Folder
    config: Config
    kind: Kind
    round_index: int | None
    folder: Folder
    manifest: Json
    adapter: bool
    stages: dict[str, Json]
    steps: list[Json]
    measured: Measured
    suites: list[SuiteResult]

    @property
    def section(self) -> TrainerConfig:
        """The section of the job that trained it."""
        return _section(self.config, self.round_index)

    @property
    def files(self) -> dict[str, str]:
        """Names of the model's files in the stage's folder, with their SHA-256."""
        return {
            file["name"]: file["sha256"]
            for file in self.manifest["files"]
            if file["name"].startswith((f"{MODEL}/", f"{ADAPTER}/"))
        }


def trained_model(run: Run, round_index: int | None = None, merged: bool = False) -> TrainedModel:
    """Find the model of a run.

    Args:
        run: the run.
        round_index: the round; without it the best one of online rounds, otherwise the last
            finished one, otherwise the model of supervised fine-tuning.
        merged: choose the merged model where an adapter was trained.

    Raises:
        RunError: no training is finished, or the job or the policy changed since.
        DataError: a file of the model was changed.
    """
    index = _round(run) if round_index is None else round_index
    parent = run.folder.child("sft") if index is None else round_folder(run.folder, index)
    folder = parent.child("policy")
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(
            f"{folder.uri} is not there, or not finished",
            "a model is published once its training is finished",
            "give the command of the run again, and wait for its end; `raydpo show` lists its stages",
        )
    _refuse_damaged(folder, manifest)
    _refuse_later_job(run, index, manifest)
    adapter = any(file["name"].startswith(f"{ADAPTER}/") for file in manifest["files"])
    return TrainedModel(
        run=run.folder,
        config=run.config,
        kind=_kind(run.config, index, adapter and not merged),
        round_index=index,
        folder=folder,
        manifest=manifest,
        adapter=adapter,
        stages=_stages(parent, index),
        steps=read_metrics(folder),
        measured=_measured(run.folder, parent, index, manifest),
        suites=suite_results(parent, manifest["fingerprint"]),
    )


def _round(run: Run) -> int | None:
    """Return the round whose policy is the run's result; None if there are no rounds."""
    if run.config.online is not None:
        best = _best_of_rounds(run)
        if best == 0:
            raise RunError(
                f"{run.folder.uri}/{RECORD_FILE}: the best policy is the original model",
                "a model is published that the run trained",
                "choose a round with --round, such as --round 0",
            )
        return best - 1
    policies = {index: round_folder(run.folder, index).child("policy") for index in run.rounds}
    done = [index for index, folder in policies.items() if folder.exists("manifest.json")]
    return max(done, default=None)


def _best_of_rounds(run: Run) -> int:
    """Return after how many rounds the best policy was trained."""
    if not run.folder.exists(RECORD_FILE):
        raise RunError(
            f"{run.folder.uri}/{RECORD_FILE} is not there: the rounds have not ended",
            "the best policy is known once all rounds have ended",
            "give `raydpo online` again, or choose a round with --round",
        )
    return run.folder.read_json(RECORD_FILE)["best"]["rounds_done"]


def _kind(config: Config, index: int | None, adapter: bool) -> Kind:
    if adapter:
        return "adapter"
    if index is None:
        return "fine-tuned model"
    assert config.training is not None
    return "reward model" if config.training.objective.scalar_head else "policy"


def _section(config: Config, index: int | None) -> TrainerConfig:
    section = config.sft if index is None else config.training
    assert section is not None  # `_refuse_later_job` has looked
    return section


def _refuse_damaged(folder: Folder, manifest: Json) -> None:
    for damage in damaged_files(folder, manifest["files"]):
        raise DataError(
            f"{folder.uri}/{damage.name} was changed: found {damage.found}",
            f"{folder.uri}/manifest.json says {damage.expected}",
            "give the command of the run again: it makes damaged files again where it can",
        )


def _refuse_later_job(run: Run, index: int | None, manifest: Json) -> None:
    """Raise if config.yaml is of a later command that trains otherwise."""
    section = run.config.sft if index is None else run.config.training
    wanted = content_of(section) if section is not None else {}
    differ = changes({name: manifest["settings"].get(name) for name in wanted}, wanted)
    if section is None or differ:
        raise RunError(
            f"{run.folder.uri}/config.yaml is of a later command than the model: "
            f"{', '.join(differ) or 'it has no section that trains'}",
            "the card of a model names the settings of the job that trained it",
            "give the command again whose job trained it; what is finished costs nothing",
        )


def _stages(parent: Folder, index: int | None) -> dict[str, Json]:
    """Return the manifests of the finished tables of a round, in the order of the pipeline."""
    of_round = {name: named.label for name, named in FOLDERS.items()}
    names = _SFT_STAGES if index is None else of_round
    found = {label: read_manifest(parent.child(name)) for name, label in names.items()}
    return {label: manifest for label, manifest in found.items() if manifest is not None}


def _measured(run: Folder, parent: Folder, index: int | None, policy: Json) -> Measured:
    """Return the numbers of the model, of which nothing may be older than the model itself."""
    evaluation, report = parent.child("evaluation"), parent.child("report")
    if index is not None and read_manifest(evaluation) is not None:
        refuse_other_policy(evaluation, online=False, policy=parent.child("policy"))
        return Measured("evaluation", _numbers(evaluation), figures=_figures(evaluation))
    made = read_manifest(report)
    if made is not None and made["inputs"]["policy"] == policy["fingerprint"]:
        return Measured("training report", _numbers(report), figures=_figures(report))
    if index is not None and run.exists(RECORD_FILE):
        return _of_rounds(run, index, policy)
    return Measured("nothing")


def _of_rounds(run: Folder, index: int, policy: Json) -> Measured:
    """Return the numbers of a policy against the original model; of the best one with the verdict.

    Raises:
        RunError: an earlier version wrote online.json, which has no such numbers.
    """
    record = run.read_json(RECORD_FILE)
    compared = record.get("against_original")
    if compared is None:
        raise RunError(
            f"{run.uri}/{RECORD_FILE} is of an earlier version of raydpo",
            "the card compares the policy with the original model, which newer versions do there",
            "give `raydpo online` again: it writes the file anew, and does no finished work again",
        )
    row = next((row for row in record["policies"] if row["rounds_done"] == index + 1), None)
    if row is None or row["policy_weights"] != policy["fingerprint"] or not compared:
        return Measured("nothing")
    numbers = compared[index + 1]
    if record["best"]["rounds_done"] == index + 1:
        numbers |= {name: record[name] for name in ("verdict", "speaks_against_it", "notes")}
    figures = {n: run.read_bytes(f"{n}.png") for n in _ROUND_FIGURES if run.exists(f"{n}.png")}
    return Measured("rounds", numbers, figures)


def _numbers(folder: Folder) -> Json:
    return json.loads(held_bytes(folder, "metrics.json"))


def _figures(folder: Folder) -> dict[str, bytes]:
    manifest = read_manifest(folder)
    assert manifest is not None
    names = sorted(f["name"] for f in manifest["files"] if f["name"].endswith(".png"))
    return {PurePosixPath(name).stem: held_bytes(folder, name) for name in names}
