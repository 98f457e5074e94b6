"""Our attention inside transformers' models, through its `AttentionInterface`.

The name of a backend becomes an `attn_implementation` for any decoder that calls its attention
through that interface. It is not registered for masks, so transformers makes none. The
`PrefixLayout`, which arrives as a keyword argument, says what may attend to what.

Shapes: T tokens, Q query heads, K key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from raydpo.core.errors import ModelError
from raydpo.training.layout import PrefixLayout

#: Keyword argument of the model's forward pass that carries a `PrefixLayout`.
LAYOUT_ARGUMENT: Final = "prefix_layout"
#: Keyword argument that carries a list; every layer appends its sliding window to it.
WINDOWS_ARGUMENT: Final = "observed_windows"


@dataclass(frozen=True)
class Scores:
    """How products of queries and keys become attention scores.

    Attributes:
        scale: factor of the products.
        window: maximum number of keys that a query sees, including its own; None for all.
        softcap: c of c * tanh(score / c), or None.
        sinks: [Q], one score per head that takes part in the softmax and has no value.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


#: (queries [T, Q, D], keys [T, K, D], values [T, K, D'], layout, scores) -> [T, Q, D'].
Backend = Callable[[Tensor, Tensor, Tensor, PrefixLayout, Scores], Tensor]


def register(name: str, backend: Backend) -> str:
    """Register a backend with transformers, and return its `attn_implementation`."""
    implementation = f"raydpo_{name}"

    @torch.compiler.disable  # otherwise each layout of segments would compile its own graph
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **arguments: Any,
    ) -> tuple[Tensor, None]:
        return _attend(backend, module, query, key, value, arguments), None

    AttentionInterface.register(implementation, attention)
    return implementation


def set_attention(model: PreTrainedModel, implementation: str) -> None:
    """Let a model use an attention of ours or of transformers.

    Raises:
        ModelError: the model has an attention of its own that cannot be replaced.
    """
    if attention_of(model) == implementation:
        return
    model.set_attn_implementation(implementation)
    if attention_of(model) != implementation:
        raise refusal(model, "its attention cannot be replaced")


def attention_of(model: PreTrainedModel) -> str:
    """Return the `attn_implementation` that a model uses now."""
    implementation: str | None = getattr(model.config, "_attn_implementation", None)
    return implementation or "eager"


def refusal(module: nn.Module, reason: str) -> ModelError:
    """Build the error for a model that cannot share prompts."""
    return ModelError(
        f"{type(module).__name__} cannot share prompts: {reason}",
        "shared prompts need causal attention that transformers' AttentionInterface replaces",
        "set model.layout to `padded`",
    )


def _attend(
    backend: Backend,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    arguments: dict[str, Any],
) -> Tensor:
    """Serve the call from transformers: [1, Q, T, D] -> [1, T, Q, D]."""
    layout: PrefixLayout | None = arguments.get(LAYOUT_ARGUMENT)
    _refuse_what_is_not_causal_attention(module, layout, query, arguments)
    assert layout is not None
    scores = Scores(
        scale=arguments.get("scaling") or query.shape[-1] ** -0.5,
        window=arguments.get("sliding_window"),
        softcap=arguments.get("softcap"),
        sinks=arguments.get("s_aux"),
    )
    if WINDOWS_ARGUMENT in arguments:
        arguments[WINDOWS_ARGUMENT].append(scores.window)
    query, key, value = (_compute_dtype(x[0].transpose(0, 1)) for x in (query, key, value))
    return backend(query, key, value, layout, scores)[None]


def _compute_dtype(states: Tensor) -> Tensor:
    kind = states.device.type
    return states.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else states


def _refuse_what_is_not_causal_attention(
    module: nn.Module, layout: PrefixLayout | None, query: Tensor, arguments: dict[str, Any]
) -> None:
    reasons = {
        "it does not hand keyword arguments on to its attention": layout is None,
        "it attends in both directions": not arguments.get("is_causal", True)
        or not getattr(module, "is_causal", True),
        "it adds a bias to its attention scores": arguments.get("position_bias") is not None,
        "it has dropout in its attention": bool(arguments.get("dropout")),
        "it changes the shape of the flat sequence": layout is not None
        and tuple(query.shape[:3:2]) != (1, layout.tokens),
    }
    for reason, holds in reasons.items():
        if holds:
            raise refusal(module, reason)
