"""Rehearse the end of each stage; see `job.py`.

A training ends with a saved model, an evaluation with a report. The check tries both without
weights and numbers, in another working directory, since workers have one of their own. Facts and
problems go to `Findings`.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from raydpo.check.findings import Findings
from raydpo.check.machine import is_remote, nearest_folder
from raydpo.config.job import Config, ModelConfig, TrainerConfig, TrainingConfig
from raydpo.core.errors import ConfigError
from raydpo.core.run import run_folder
from raydpo.core.set_aside import is_set_aside
from raydpo.core.storage import Folder
from raydpo.models.loading import parameter_count

_GIB: Final = 1 << 30
#: Bytes of a trained parameter in a checkpoint: the float32 weight and AdamW's two moments.
_CHECKPOINT_BYTES: Final = 12
#: Bytes of a parameter of the exported model.
_MODEL_BYTES: Final = {"float32": 4, "bfloat16": 2}


def check_exports(config: Config, findings: Findings) -> None:
    """Try the end of each stage, and compare the space on disks with what training leaves."""
    findings.attempt(_say_untied, config.model, findings)
    sections = [section for section in (config.training, config.sft) if section is not None]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for section in sections:
            findings.attempt(_rehearse, config.model, section, Path(folder))
        if config.evaluation is not None:
            from raydpo.evaluation.rehearsal import rehearse_report

            findings.attempt(rehearse_report, config, config.evaluation)
    if sections:
        findings.attempt(_check_space, config, sections, findings)


def _say_untied(model: ModelConfig, findings: Findings) -> None:
    """Report models that differ from their config.json."""
    from raydpo.models.loading import unties_embeddings

    if unties_embeddings(model):
        findings.facts.append(
            f"note: config.json of {model.path} says tie_word_embeddings, and its files hold an "
            "lm_head of its own: both are used, and an export says false"
        )


def _rehearse(model: ModelConfig, section: TrainerConfig, folder: Path) -> None:
    """Save and read back what a training will save, but for the weights.

    Raises:
        ModelError: the model's settings are not saved, or come back otherwise.
        ConfigError: the adapter does not fit the model.
    """
    from raydpo.models.loading import meta_causal_lm, meta_scalar_head
    from raydpo.models.settings import check_settings, save_settings

    scalar_head = isinstance(section, TrainingConfig) and section.objective.scalar_head
    make = meta_scalar_head if scalar_head else meta_causal_lm
    empty = make(model)
    save_settings(model, empty, folder / "model", state_dict={})
    check_settings(model, empty, folder / "model")
    if section.lora is not None:
        from raydpo.training.lora import add_adapter

        add_adapter(empty, section.lora, seed=0)


def _check_space(config: Config, sections: Sequence[TrainerConfig], findings: Findings) -> None:
    """Compare what trainings write with the free space of this machine's disks.

    Raises:
        ConfigError: there is less.
    """
    run = run_folder(config.output, config.name)
    if is_remote(config) or not run.is_local:
        return
    parameters = parameter_count(config.model)
    model = parameters * _MODEL_BYTES[config.model.precision]
    rounds = config.online.rounds if config.online else 1
    checkpoint = kept = 0
    for section in sections:
        # Of an adapter it is little; one is written before another one is deleted.
        own = 0 if section.lora else parameters * _CHECKPOINT_BYTES
        times = rounds if isinstance(section, TrainingConfig) else 1
        checkpoint = max(checkpoint, own)
        kept += times * (model + own * (section.keep_checkpoints + 1))
    files = run.files(recursive=True)
    there = sum(n for name, n in files.items() if "policy/" in name and not is_set_aside(name))
    aside = sum(n for name, n in files.items() if is_set_aside(name))
    places = {"output": (nearest_folder(run.local_path()), max(0, kept - there))}
    places["the temporary folder"] = (Path(tempfile.gettempdir()), max(model, checkpoint))
    free = {name: shutil.disk_usage(path).free for name, (path, _) in places.items()}
    findings.facts.append(
        f"disk: models and checkpoints take up to {kept / _GIB:.2f} GiB in {run.uri}, "
        f"{free['output'] / _GIB:.1f} GiB are free"
        + (f"; {aside / _GIB:.2f} GiB are set aside there, which {_freed_by(run)}" if aside else "")
    )
    for name, (path, needed) in places.items():
        if needed > free[name]:
            frees = (
                f"{_freed_by(run)} {aside / _GIB:.2f} GiB; else "
                if aside and name == "output"
                else ""
            )
            raise ConfigError(
                f"training writes up to {needed / _GIB:.1f} GiB to {path} ({name})",
                f"{free[name] / _GIB:.1f} GiB are free there",
                f"{frees}make room, set `output` (or TMPDIR) to another disk, or keep fewer checkpoints "
                f"(keep_checkpoints): each has {checkpoint / _GIB:.1f} GiB",
            )


def _freed_by(run: Folder) -> str:
    return f"`raydpo clean {run.uri}` frees"
