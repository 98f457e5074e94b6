"""Choose the attention backend from the names in the configuration and each backend's needs.

For the model's configuration and the device, the module returns the name of a backend that it has
tried on that device, and the `attn_implementation` behind it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from transformers import PretrainedConfig

from raydpo.config.job import ModelConfig
from raydpo.core.errors import ModelError
from raydpo.training.attention import cuda, mask, segments
from raydpo.training.attention.interface import Backend, Scores, register
from raydpo.training.layout import PrefixLayout, prefix_layout

#: Backends for the shared layout, by their names in `model.attention`.
BACKENDS: Final[dict[str, Backend]] = {
    "segments": segments.attend,
    "varlen": cuda.attend_varlen,
    "flex": cuda.attend_flex,
    "mask": mask.attend,
}
_NEEDS: Final = {"segments": "cpu", "varlen": "cuda", "flex": "cuda"}
#: The names that transformers knows these backends by.
IMPLEMENTATIONS: Final = {name: register(name, backend) for name, backend in BACKENDS.items()}
#: Largest error of a backend's output relative to the oracle's, by its dtype.
_TOLERANCES: Final = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def choose_backend(
    settings: ModelConfig, device: torch.device, model: PretrainedConfig
) -> str | None:
    """Return the backend for the shared layout, or None for the padded one.

    Args:
        settings: with `auto`, flash attention on CUDA in bfloat16 if it can run the model.
        device: where attention runs.
        model: the configuration of the transformers model.

    Raises:
        ModelError: the backend does not run on this device.
    """
    name = settings.attention
    if settings.layout == "padded" or name not in ("auto", *BACKENDS):
        return None
    if name == "auto":
        name = "segments" if device.type == "cpu" else _for_cuda(settings.precision, model)
    if _NEEDS.get(name, device.type) != device.type:
        raise ModelError(
            f"model.attention `{name}` on {device.type}",
            f"it runs on {_NEEDS[name]} only",
            "set model.attention to `auto`",
        )
    return name


def _for_cuda(precision: str, model: PretrainedConfig) -> str:
    """Choose flash attention unless it has no kernel that can run the model."""
    config = model.get_text_config()
    heads: int = getattr(config, "num_attention_heads", 1)
    size: int = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // heads
    cannot = (
        precision == "float32"
        or getattr(config, "attn_logit_softcapping", None) is not None
        or config.model_type == "gpt_oss"  # attention sinks, which the config does not mention
        or getattr(config, "v_head_dim", None) is not None  # the values are narrower than the keys
        or not cuda.varlen_takes(size)
    )
    return "flex" if cannot else "varlen"


def self_test(name: str, precision: str, device: torch.device) -> None:
    """Compare a backend with the explicit mask on random states, forward and backward.

    Raises:
        ModelError: they differ, because this version of PyTorch aligns or masks in another way.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    layout = prefix_layout([3, 1, 40], [[2, 5], [7], [1, 33, 20]]).to(device)
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(layout.tokens, heads, 32, generator=generator).to(device, dtype)
        for heads in (4, 2, 2, 4)
    ]
    for window in (None, 8):
        scores = Scores(scale=32**-0.5, window=window)
        pairs = zip(
            _with_gradients(BACKENDS[name], states, layout, scores),
            _with_gradients(mask.attend, [x.float() for x in states], layout, scores),
            strict=True,
        )
        error = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
        if not error < _TOLERANCES[dtype]:
            raise ModelError(
                f"model.attention `{name}` differs from the explicit mask by {error:.2g} (relative)",
                f"it is within {_TOLERANCES[dtype]:g} on {device}, else this PyTorch masks otherwise",
                "set model.attention to another backend, or to `mask`",
            )


def _with_gradients(
    backend: Backend, states: list[Tensor], layout: PrefixLayout, scores: Scores
) -> list[Tensor]:
    query, key, value, output_gradient = (x.detach().requires_grad_() for x in states)
    out = backend(query, key, value, layout, scores)
    return [out, *torch.autograd.grad(out, (query, key, value), output_gradient.detach())]
