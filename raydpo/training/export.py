"""Export the trained model as a Hugging Face folder, and check that it is what was trained.

The caller gives whole parameters, and the values that the trainer's own forward pass computes for a
few completions. The exported folder, loaded again from disk, must give the same values. Its config,
tokenizer, padding token and chat template must be the intended ones. The module needs no Ray.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from raydpo.config.base import ROUNDING_NATS
from raydpo.config.job import LoraSettings, ModelConfig
from raydpo.core.errors import ModelError
from raydpo.models.loading import load_causal_lm, load_scalar_head, meta_causal_lm, meta_scalar_head
from raydpo.models.settings import check_settings, save_settings
from raydpo.training.groups import Group
from raydpo.training.logps import TokenLogps, completion_logps
from raydpo.training.lora import save_adapter
from raydpo.training.probe import LOGPS, PROBE_FILE, REWARDS
from raydpo.training.reward import TokenRewards
from raydpo.training.sharing import use_faithful_attention

#: Folders inside the stage's folder.
MODEL: Final = "model"
ADAPTER: Final = "adapter"
#: Number of completions per probe group to compare with; this pass runs on the CPU.
_COMPLETIONS: Final = 2
#: Number of leading tokens to compare; later tokens do not affect them.
_TOKENS: Final = 256


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        source: the model that the training started from.
        lora: the adapter's settings, if one was trained.
        scalar_head: whether the model is a reward model.
        parameters: all trained parameters by name, whole and in float32.
        probe: the value that `probe` returned.
    """

    source: ModelConfig
    lora: LoraSettings | None
    scalar_head: bool
    parameters: dict[str, Tensor]
    probe: list[dict[str, Any]]


@dataclass(frozen=True)
class Held:
    """How an exported model compared with the trainer.

    Attributes:
        largest_difference: for a token's log-prob, in nats; for a reward, relative to its size
            above 1.
        tolerance: the limit that the difference is within.
        values: how many values were compared.
        seconds: how long loading and comparing took.
    """

    largest_difference: float
    tolerance: float
    values: int
    seconds: float


def export(trained: Trained, folder: Path) -> Held:
    """Write the model, and any adapter beside it, and compare both with what was trained.

    The function takes over the parameters and releases them, so memory holds only one of two models
        at a time: the one being written or the one being read back.

    Args:
        trained: the training's result; its parameters are empty afterwards.
        folder: where the folders `model` and `adapter` go.

    Raises:
        ModelError: the folder cannot be written or read, or contains another model.
    """
    target, source = folder / MODEL, trained.source
    model = _final_model(trained, folder / ADAPTER)
    if source.precision == "bfloat16":
        model.bfloat16()
    save_settings(source, model, target)
    check_settings(source, model, target)
    (target / PROBE_FILE).write_text(json.dumps(trained.probe), encoding="utf-8")
    trained.parameters.clear()
    del model
    return check_weights(source, trained.scalar_head, target)


def check_weights(source: ModelConfig, scalar_head: bool, folder: Path) -> Held:
    """Load an exported model and compare it with the probe in its folder.

    Each completion goes through the model alone, on the CPU.

    Raises:
        ModelError: the model cannot be loaded, or its values differ from the trainer's.
    """
    started = time.perf_counter()
    module = _loaded(source, scalar_head, folder)
    tolerance = ROUNDING_NATS[source.precision]
    differences: list[float] = []
    for row in json.loads((folder / PROBE_FILE).read_text(encoding="utf-8")):
        known: list[Any] = row[REWARDS if scalar_head else LOGPS]
        pairs = list(zip(row["completions"], known, strict=True))[:_COMPLETIONS]
        for completion, expected in pairs:
            differences += _differences(module, row["prompt_ids"], completion, expected)
    largest = max(differences, default=0.0)
    if not largest <= tolerance:
        what = "a reward" if scalar_head else "a token's log-prob"
        raise ModelError(
            f"the exported model, loaded again, differs from the trained one: {what} by "
            f"{largest:.3g}{'' if scalar_head else ' nats'}",
            f"they agree within {tolerance:g} in {source.precision}",
            f"nothing is lost: the last checkpoint is kept. Save {source.path} by "
            "`save_pretrained` with this transformers, look at what changed, and report it",
        )
    return Held(largest, tolerance, len(differences), time.perf_counter() - started)


@torch.no_grad()
def _differences(
    module: TokenLogps, prompt_ids: list[int], completion: list[int], expected: Any
) -> list[float]:
    """Return the differences of a completion's tokens or reward; infinite if not finite."""
    reward = isinstance(expected, float)
    shown = completion if reward else completion[:_TOKENS]
    group = Group("probe", prompt_ids, [shown], [], None)
    ((found,),) = completion_logps(module, [group], False, torch.device("cpu"))
    ours = [sum(found)] if reward else found
    theirs: list[float] = [expected] if reward else expected[:_TOKENS]
    differences = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    if reward:  # a reward has no scale of its own
        differences = [differences[0] / max(1.0, abs(expected))]
    return [value if math.isfinite(value) else math.inf for value in differences]


def _loaded(source: ModelConfig, scalar_head: bool, folder: Path) -> TokenLogps:
    """Load the exported model in the padded layout, as anybody who has the folder would."""
    # The configured attention may be one that runs only on GPUs.
    model = ModelConfig(path=str(folder), precision=source.precision)
    if scalar_head:
        return TokenRewards(load_scalar_head(model), model.precision)
    loaded = load_causal_lm(model)
    use_faithful_attention(loaded, model)
    return TokenLogps(loaded, model.precision)


def _final_model(trained: Trained, adapter: Path) -> PreTrainedModel:
    source, parameters = trained.source, trained.parameters
    if trained.lora is not None:
        base = (load_scalar_head if trained.scalar_head else load_causal_lm)(source)
        return save_adapter(base, trained.lora, parameters, source.path, adapter)
    # This takes over the parameters without a second copy.
    model = (meta_scalar_head if trained.scalar_head else meta_causal_lm)(source)
    model.load_state_dict(parameters, assign=True)
    model.tie_weights()
    return model
