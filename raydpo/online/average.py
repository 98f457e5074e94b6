"""Average a reference that follows the policy: pi_ref <- alpha * policy + (1 - alpha) * pi_ref.

From two models of one architecture, the stage makes a third one as a Hugging Face folder. This is
TR-DPO's soft update (arXiv:2404.09656, eq. 4).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from raydpo.config.job import ModelConfig
from raydpo.core.environment import worker_environment
from raydpo.core.errors import ModelError
from raydpo.core.parts import Workers
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import Stage, commit_files, open_stage
from raydpo.core.storage import Folder
from raydpo.core.tasks import run_task
from raydpo.models.loading import (
    inner_prefix,
    local_folder,
    ties_embeddings,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from raydpo.training.probe import PROBE_FILE

MODEL_FOLDER: Final = "model"
#: The folder of a round's averaged reference.
REFERENCE_FOLDER: Final = "reference-model"


def averaged_reference(
    place: Place, policy: ModelConfig, reference: ModelConfig, alpha: float
) -> ModelConfig:
    """Make the weighted average of policy and reference; keep an existing one.

    Args:
        place: where the average goes.
        policy: the policy, whose tokenizer and settings are kept.
        reference: a model with tensors of the same names and shapes.
        alpha: the weight of the policy, in (0, 1].

    Raises:
        ModelError: the tensors of the two models do not match.
    """
    stage = average_stage(place, policy, reference, alpha)
    target = place.folder.child(MODEL_FOLDER)
    averaged = policy.model_copy(update={"path": target.uri, "revision": None})
    if open_stage(stage) is None:
        # It starts like workers that score, because one of them may already run with torch loaded.
        run_task(
            write_average,
            target,
            policy,
            reference,
            alpha,
            worker=Workers(1, environment=worker_environment(cuda=False, cpus=1)),
            folder=place.folder,
            what=place.label,
            makes="the average of policy and reference",
        )
        commit_files(stage, weights_fingerprint(averaged))
        text = "[%s] the reference is %g policy and %g reference"
        logger.info(text, place.label, alpha, 1 - alpha)
    return averaged


def average_stage(place: Place, policy: ModelConfig, reference: ModelConfig, alpha: float) -> Stage:
    """Describe what the average is made from; arguments as of `averaged_reference`."""
    return Stage(
        place=place,
        name="average",
        table=None,
        inputs={
            "policy": weights_fingerprint(policy),
            "reference": weights_fingerprint(reference),
            "tokenizer": tokenizer_fingerprint(policy),
        },
        settings={"alpha": alpha},
    )


def write_average(
    target: Folder, policy: ModelConfig, reference: ModelConfig, alpha: float
) -> None:
    """Write alpha * policy + (1 - alpha) * reference as a Hugging Face folder, file by file.

    Raises:
        ModelError: the tensors of the two models do not match.
    """
    source, other = local_folder(policy), local_folder(reference)
    _check_ties(policy, reference)
    with tempfile.TemporaryDirectory() as partial:
        for file in source.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and file.name != PROBE_FILE:
                shutil.copy(file, partial)
        for file in sorted(source.glob("*.safetensors")):
            averages = _averaged_file(file, other, alpha, inner_prefix(policy))
            save_file(averages, Path(partial, file.name), {"format": "pt"})
        target.upload(Path(partial))


def _check_ties(policy: ModelConfig, reference: ModelConfig) -> None:
    """Refuse different ties; with the policy's names, an output layer of the reference is lost."""
    if ties_embeddings(policy) != ties_embeddings(reference):
        both = (policy, reference)
        tied, untied = both if ties_embeddings(policy) else both[::-1]
        raise ModelError(
            f"{untied.path} has an output layer of its own, {tied.path} has tied embeddings",
            "policy and reference are averaged tensor by tensor",
            "take online.reference 'original' or 'previous', or a reference.model like the policy",
        )


def _averaged_file(file: Path, other: Path, alpha: float, prefix: str) -> dict[str, torch.Tensor]:
    """Average one file's tensors in float32 arithmetic, in the policy's dtype."""
    averages: dict[str, torch.Tensor] = {}
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it is not a mapping
            ours, theirs = tensors.get_tensor(name), _tensor(other, name, prefix)
            if ours.shape != theirs.shape:
                raise _different(name, str(other))
            mixed = torch.lerp(theirs.float(), ours.float(), alpha)
            averages[name] = mixed.to(ours.dtype)
    return averages


def _tensor(folder: Path, name: str, prefix: str) -> torch.Tensor:
    names = {name, name.removeprefix(prefix), prefix + name}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for there in names.intersection(tensors.keys()):
                return tensors.get_tensor(there)
    raise _different(name, str(folder))


def _different(name: str, folder: str) -> ModelError:
    return ModelError(
        f"{folder} has no tensor {name!r} of the policy's shape",
        "a reference that is averaged with the policy has the same architecture",
        "take online.reference 'original' or 'previous', or a reference.model like the policy",
    )
