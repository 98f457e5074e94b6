"""What a finished stage of a run was made from, read from the run itself.

These are finished tables whose files are whole, and the models that each round started from.
Nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from raydpo.config.job import Config, ModelConfig, OnlineConfig
from raydpo.core.checked import damaged_files
from raydpo.core.errors import DataError, RunError
from raydpo.core.parts import Table
from raydpo.core.run import read_manifest, round_folder
from raydpo.core.storage import Folder
from raydpo.online.average import MODEL_FOLDER, REFERENCE_FOLDER
from raydpo.training.export import MODEL

_Section = TypeVar("_Section")


@dataclass(frozen=True)
class Again:
    """Where stages are made again.

    Attributes:
        config: the job of the run's last command.
        run: the run directory, which is read.
        scratch: where the stages go, in folders of the same names.
    """

    config: Config
    run: Folder
    scratch: Folder


def finished_table(folder: Folder) -> Table:
    """A table of the run, its files compared with their hashes.

    Raises:
        RunError: it is not finished.
        DataError: a file of it is missing or was changed.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(
            f"{folder.uri} is not there, or not finished",
            "a stage is made again from finished tables of the run",
            "give the command of the run again: it makes what is missing",
        )
    for damage in damaged_files(folder, manifest["files"]):
        raise DataError(
            f"{folder.uri}/{damage.name} was changed: found {damage.found}",
            f"{folder.uri}/manifest.json says {damage.expected}",
            "give the command of the run again: it makes damaged files again where it can",
        )
    return Table(folder, manifest)


def section(value: _Section | None, name: str, run: Folder) -> _Section:
    """A section of the run's job.

    Raises:
        RunError: the job has none.
    """
    if value is None:
        raise RunError(
            f"{run.uri}/config.yaml has no `{name}` section",
            "a stage is made again by the job of the last command that was given for this run",
            "give that command with a job that has the section, and then replay",
        )
    return value


def policy_after(config: Config, run: Folder, rounds_done: int) -> ModelConfig:
    """The policy after so many rounds; the job's own model after none."""
    if rounds_done == 0:
        return config.model
    return _moved(config.model, round_folder(run, rounds_done - 1).child("policy", MODEL))


def reference_of(config: Config, online: OnlineConfig, run: Folder, index: int) -> ModelConfig:
    """pi_ref of a round, as `online/rounds.py` chooses it."""
    updates = [number for number in range(1, index + 1) if online.updates_reference(number)]
    if not updates:
        return config.reference_model
    policy = policy_after(config, run, updates[-1])
    if online.reference_update_alpha == 1:
        return policy
    return _moved(policy, round_folder(run, updates[-1]).child(REFERENCE_FOLDER, MODEL_FOLDER))


def _moved(model: ModelConfig, folder: Folder) -> ModelConfig:
    return model.model_copy(update={"path": folder.uri, "revision": None})
