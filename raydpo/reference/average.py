"""A reference that follows the policy: pi_ref <- alpha * policy + (1 - alpha) * pi_ref.

What comes in: two models of one architecture. What goes out: a third one as a Hugging
Face folder, a stage of its own. TR-DPO's soft update (arXiv:2404.09656, eq. 4).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

import ray
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from raydpo.config import ModelConfig
from raydpo.environment import worker_environment
from raydpo.errors import ModelError, own_errors
from raydpo.models import (
    inner_prefix,
    local_folder,
    ties_embeddings,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from raydpo.progress import logger
from raydpo.run import Stage, commit_files, open_stage
from raydpo.storage import Folder
from raydpo.training.probe import PROBE_FILE

MODEL_FOLDER: Final = "model"


def averaged_reference(
    *, folder: Folder, policy: ModelConfig, reference: ModelConfig, alpha: float, what: str
) -> ModelConfig:
    """The weighted average of policy and reference, in `folder`; one that is there is kept.

    Args:
        folder: of the stage.
        policy: its tokenizer and settings are kept.
        reference: a model with tensors of the same names and shapes.
        alpha: the policy's weight, in (0, 1].
        what: the stage and round, for the log.

    Raises:
        ModelError: the two models have other tensors.
    """
    stage = Stage(
        folder=folder,
        name="average",
        table=None,
        inputs={
            "policy": weights_fingerprint(policy),
            "reference": weights_fingerprint(reference),
            "tokenizer": tokenizer_fingerprint(policy),
        },
        settings={"alpha": alpha},
    )
    target = folder.child(MODEL_FOLDER)
    averaged = policy.model_copy(update={"path": target.uri, "revision": None})
    if open_stage(stage) is None:
        # As workers that score under a model are started: one of theirs may be there, with torch.
        environment = {"env_vars": dict(worker_environment(cuda=False, cpus=1))}
        task = ray.remote(write_average).options(num_cpus=1, runtime_env=environment)
        with own_errors():
            ray.get(task.remote(target, policy, reference, alpha))
        commit_files(stage, weights_fingerprint(averaged))
        logger.info("[%s] the reference is %g policy and %g reference", what, alpha, 1 - alpha)
    return averaged


def write_average(
    target: Folder, policy: ModelConfig, reference: ModelConfig, alpha: float
) -> None:
    """Write alpha * policy + (1 - alpha) * reference as a Hugging Face folder, file by file.

    Raises:
        ModelError: the two models have other tensors.
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
    """Names of tensors are the policy's: of a tied one, the reference's output layer would be lost."""
    if ties_embeddings(policy) != ties_embeddings(reference):
        both = (policy, reference)
        tied, untied = both if ties_embeddings(policy) else both[::-1]
        raise ModelError(
            f"{untied.path} has an output layer of its own, {tied.path} has tied embeddings",
            "policy and reference are averaged tensor by tensor",
            "take online.reference 'original' or 'previous', or a reference.model like the policy",
        )


def _averaged_file(file: Path, other: Path, alpha: float, prefix: str) -> dict[str, torch.Tensor]:
    """The averages of one file's tensors, in float32 arithmetic and the policy's dtype."""
    averages: dict[str, torch.Tensor] = {}
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it is no mapping
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
