"""The trained model as a Hugging Face folder, and whether it is what was trained.

What comes in: whole parameters and what the trainer's own forward pass says of a few
completions. What goes out: a folder that was loaded from disk again and gave the same values;
its config, tokenizer, padding token and chat template are those that were meant. It needs no
Ray.
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

from raydpo.config import LoraSettings, ModelConfig
from raydpo.config_base import ROUNDING_NATS
from raydpo.errors import ModelError
from raydpo.model_settings import check_settings, save_settings
from raydpo.models import load_causal_lm, load_scalar_head, meta_causal_lm, meta_scalar_head
from raydpo.training.groups import Group
from raydpo.training.logps import TokenLogps, completion_logps
from raydpo.training.lora import save_adapter
from raydpo.training.probe import LOGPS, PROBE_FILE, REWARDS
from raydpo.training.reward import TokenRewards
from raydpo.training.sharing import use_faithful_attention

#: Folders inside the stage's folder.
MODEL: Final = "model"
ADAPTER: Final = "adapter"
#: Completions of a probe's group that an export is held against: the pass is on the CPU.
_COMPLETIONS: Final = 2
#: Leading tokens of each that are compared; those after them change nothing about these.
_TOKENS: Final = 256


@dataclass(frozen=True)
class Trained:
    """What a training made of a model.

    Attributes:
        source: what the training started from.
        lora: the adapter's settings, where one was trained.
        scalar_head: whether it is a reward model.
        parameters: whole and float32, by name, of all that was trained.
        probe: what `probe` returned.
    """

    source: ModelConfig
    lora: LoraSettings | None
    scalar_head: bool
    parameters: dict[str, Tensor]
    probe: list[dict[str, Any]]


@dataclass(frozen=True)
class Held:
    """How an exported model was held against the trainer.

    Attributes:
        largest_difference: of a token's log-prob in nats, or of a reward by its size above 1.
        tolerance: that it is within.
        values: how many were compared.
        seconds: that loading and comparing took.
    """

    largest_difference: float
    tolerance: float
    values: int
    seconds: float


def export(trained: Trained, folder: Path) -> Held:
    """Write the model, and the adapter beside it, and hold both against what was trained.

    The parameters are taken over and let go of: of the model that was written and of the one
    that is read back, there is one in memory at a time.

    Args:
        trained: its parameters are empty afterwards.
        folder: for the folders `model` and `adapter`.

    Raises:
        ModelError: the folder cannot be written or read, or is another model.
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
    """Load an exported model and hold it against the probe in its folder.

    Each completion goes through the model alone, on the CPU.

    Raises:
        ModelError: it cannot be loaded, or says something else than the trainer.
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
    """Of a completion's tokens, or of its reward; infinite where one is not finite."""
    reward = isinstance(expected, float)
    shown = completion if reward else completion[:_TOKENS]
    group = Group("probe", prompt_ids, [shown], [], None)
    ((found,),) = completion_logps(module, [group], False, torch.device("cpu"))
    ours = [sum(found)] if reward else found
    theirs: list[float] = [expected] if reward else expected[:_TOKENS]
    differences = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    if reward:  # it has no scale of its own
        differences = [differences[0] / max(1.0, abs(expected))]
    return [value if math.isfinite(value) else math.inf for value in differences]


def _loaded(source: ModelConfig, scalar_head: bool, folder: Path) -> TokenLogps:
    """The exported model in the padded layout, as anybody loads it who is given the folder."""
    # A named attention may be one of GPUs only.
    model = ModelConfig(path=str(folder), precision=source.precision)
    if scalar_head:
        return TokenRewards(load_scalar_head(model), model.precision)
    loaded = load_causal_lm(model)
    use_faithful_attention(loaded, model)
    return TokenLogps(loaded, model.precision)


def _final_model(trained: Trained, adapter: Path) -> PreTrainedModel:
    source, parameters = trained.source, trained.parameters
    if trained.lora is not None:
        return save_adapter(load_causal_lm(source), trained.lora, parameters, source.path, adapter)
    # Takes the parameters over, without a second copy.
    model = (meta_scalar_head if trained.scalar_head else meta_causal_lm)(source)
    model.load_state_dict(parameters, assign=True)
    model.tie_weights()
    return model
