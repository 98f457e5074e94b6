"""Low-rank adapters (arXiv:2106.09685) by `peft`: add, save, merge.

The linear layers of a transformers model get an additional `alpha / rank * B A x`, of which only A
and B are trained. B starts at 0, so a new adapter does not change the model. A reward model's head is
new: it is trained whole, and the adapter folder holds it. At the end, the module writes an adapter folder that `peft` loads, and the base model with the adapter merged into its
weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raydpo.config.job import LoraSettings
from raydpo.core.errors import ConfigError

if TYPE_CHECKING:
    from peft import LoraConfig

_PREFIX = "base_model.model."  # prefix of names in a PeftModel
_HEAD = "score"  # transformers' name of a decoder's head for sequence classification
_SAVED = "modules_to_save.default."  # what peft puts into the names of layers that it trains whole


def add_adapter(model: PreTrainedModel, settings: LoraSettings, seed: int) -> None:
    """Put a new adapter into a model, in place, and freeze all other parameters but a reward's head.

    Args:
        model: if its parameters are on `meta`, then so are the adapter's.
        settings: rank, scale and target layers.
        seed: the seed of A, with which every worker makes the same adapter.

    Raises:
        ConfigError: no layer has a name that the settings ask for, or such a layer shares its
            weights.
    """
    from peft import inject_adapter_in_model  # an optional dependency, and slow to import

    config, head = _peft_config(settings, model), _scalar_head(model)
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model, low_cpu_mem_usage=on_meta)
        except ValueError as error:
            raise ConfigError(
                f"lora.target_modules {settings.target_modules!r}: {error}",
                "they are names of linear layers of the model, or all-linear",
                f"{type(model).__name__} has {_linear_names(model)}",
            ) from error
    _refuse_tied(model, settings)
    if head is not None:
        head.requires_grad_(True)


def save_adapter(
    base: PreTrainedModel,
    settings: LoraSettings,
    parameters: dict[str, Tensor],
    name: str,
    folder: Path,
) -> PreTrainedModel:
    """Write the adapter folder, and return the model with the adapter merged into it.

    Args:
        base: the model that training started from; it is modified.
        settings: those of the training.
        parameters: the value that `full_parameters` returned.
        name: name of the base model, for the adapter's configuration.
        folder: where adapter_config.json and adapter_model.safetensors go.
    """
    from peft import PeftModel, get_peft_model

    config = _peft_config(settings, base)
    if _scalar_head(base) is not None:
        config.modules_to_save = [_HEAD]
    adapted = get_peft_model(base, config)
    assert isinstance(adapted, PeftModel)
    adapted.peft_config["default"].base_model_name_or_path = name
    named = {_PREFIX + _name_in_peft(key): value for key, value in parameters.items()}
    unexpected = adapted.load_state_dict(named, strict=False).unexpected_keys
    assert not unexpected, unexpected
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    merged = adapted.merge_and_unload()  # pyright: ignore[reportCallIssue] (peft forwards it)
    assert isinstance(merged, PreTrainedModel)
    return merged


def _refuse_tied(model: PreTrainedModel, settings: LoraSettings) -> None:
    """Refuse tied layers: merging an adapter of one would change the other, trained without it."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    if None in ends or ends[0].weight is not ends[1].weight:
        return
    if any(hasattr(layer, "base_layer") for layer in ends):
        raise ConfigError(
            f"lora.target_modules {settings.target_modules!r} adapts one of two tied layers",
            f"{type(model).__name__} has one weight for input embedding and output layer, and an "
            "adapter that is merged into it would change both",
            "leave these two out of lora.target_modules",
        )


def _name_in_peft(name: str) -> str:
    layer, dot, rest = name.partition(".")
    return f"{layer}.{_SAVED}{rest}" if dot and layer == _HEAD else name


def _scalar_head(model: PreTrainedModel) -> nn.Module | None:
    """Return the head of a reward model; None for a policy."""
    head = getattr(model, _HEAD, None)
    return head if isinstance(head, nn.Module) else None


def _peft_config(settings: LoraSettings, model: PreTrainedModel) -> LoraConfig:
    from peft import LoraConfig

    wanted = settings.target_modules
    is_reward_model = _scalar_head(model) is not None
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] (a fraction works too)
        lora_dropout=settings.dropout,
        target_modules=wanted if isinstance(wanted, str) else list(wanted),
        bias="none",
        task_type="SEQ_CLS" if is_reward_model else "CAUSAL_LM",
        exclude_modules=[_HEAD] if is_reward_model else None,
    )


def _linear_names(model: PreTrainedModel) -> str:
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), torch.Tensor) and module.weight.ndim == 2
    }
    return ", ".join(sorted(names))
