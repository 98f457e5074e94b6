"""Determine before training whether a model can share prompts.

For a loaded model and its configuration, the module returns the wrapper that training and
reference scoring run, in a layout that gives correct results. It compares the model's log-probs
on a few tokens with the model's own forward pass on single sequences, and its sliding windows
with its config.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from raydpo.config.job import ModelConfig
from raydpo.core.errors import ModelError
from raydpo.core.progress import logger
from raydpo.training.attention.backends import choose_backend, self_test
from raydpo.training.attention.interface import (
    LAYOUT_ARGUMENT,
    WINDOWS_ARGUMENT,
    attention_of,
    refusal,
    set_attention,
)
from raydpo.training.batch import build_micro_batch
from raydpo.training.groups import Group
from raydpo.training.logps import TokenLogps, decoder_of, token_logps

#: Largest difference of a log-prob, in nats, between this forward pass and the model's own.
TOLERANCE_NATS = 1e-4


def token_module(model: PreTrainedModel, settings: ModelConfig, device: torch.device) -> TokenLogps:
    """Build the module for a model, in the layout that the configuration asks for.

    Args:
        model: a model with float32 parameters, on any device.
        settings: with `layout: auto`, prompts are shared if the model can; otherwise a log line
            says why.
        device: where the module will run.

    Raises:
        ModelError: the model cannot share prompts and `layout` is `shared`, or its forward pass is
            not its decoder with an output layer on top.
    """
    use_faithful_attention(model, settings)
    backend = choose_backend(settings, device, model.config)
    if backend is None:
        return checked_padded(model, settings.precision)
    self_test(backend, settings.precision, device)
    plain = attention_of(model)
    try:
        check_sharing(model)
    except ModelError as error:
        if settings.layout == "shared":
            raise
        logger.warning("prompts are not shared, each completion computes its own: %s", error.value)
        set_attention(model, plain)
        return checked_padded(model, settings.precision)
    return TokenLogps(model, settings.precision, backend)


def use_faithful_attention(model: PreTrainedModel, settings: ModelConfig) -> None:
    """Keep a model with soft-capped scores from SDPA, where transformers drops the cap.

    Raises:
        ModelError: the configuration asks for SDPA by name.
    """
    cap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if cap is None or attention_of(model) != "sdpa":
        return
    if settings.attention == "sdpa":
        raise ModelError(
            f"model.attention `sdpa` with {type(model).__name__}",
            f"its attention scores are capped at {cap:g}, and transformers' `sdpa` drops that",
            "set model.attention to `auto` or to `eager`",
        )
    set_attention(model, "eager")


def checked_padded(model: PreTrainedModel, precision: str) -> TokenLogps:
    """Build the module in the padded layout.

    Raises:
        ModelError: the module differs from the model's own forward pass.
    """
    module = TokenLogps(model)
    check_forward(module)
    module.precision = precision
    return module


def check_sharing(model: PreTrainedModel) -> None:
    """Try the shared layout on a few tokens; this leaves the model with a shared attention.

    Raises:
        ModelError: the model cannot share prompts; the error says why.
    """
    groups = _groups(model)
    with torch.no_grad():
        expected = own_logps(model, groups)
    windows = _windows_by_config(model)
    module = TokenLogps(model, attention="segments" if model.device.type == "cpu" else "mask")
    batch = build_micro_batch(groups, shared=True).to(model.device)
    assert batch.layout is not None
    observed: list[int | None] = []
    arguments: dict[str, Any] = {LAYOUT_ARGUMENT: batch.layout, WINDOWS_ARGUMENT: observed}
    positions = batch.layout.position_ids
    try:
        with torch.no_grad():
            decoder_of(model)(
                input_ids=batch.input_ids, position_ids=positions, use_cache=False, **arguments
            )
            got = token_logps(module, batch)
    except TypeError as error:
        raise refusal(
            model, f"its forward pass does not take what sharing needs ({error})"
        ) from error
    if observed != windows:
        raise refusal(
            model, f"its layers attend with windows {observed}, its config says {windows}"
        )
    difference = (expected - got).abs().max().item()
    if not difference < TOLERANCE_NATS:
        raise refusal(model, f"log-probs of a few tokens differ by {difference:.2g} nats")


def check_forward(module: TokenLogps) -> None:
    """Compare the padded forward pass with the model's own logits on a few tokens.

    Raises:
        ModelError: they differ, because something unknown follows the output layer.
    """
    groups = _groups(module.model)
    with torch.no_grad():
        got = token_logps(module, build_micro_batch(groups).to(module.model.device))
        expected = own_logps(module.model, groups)
    difference = (expected - got).abs().max().item()
    if not difference < TOLERANCE_NATS:
        raise ModelError(
            f"{type(module.model).__name__}: its logits differ from hidden states times output "
            f"layer by {difference:.2g} nats",
            "raydpo runs the output layer on completion positions only, so nothing unknown may "
            "follow it",
            "use a model without changes to its logits",
        )


def _groups(model: PreTrainedModel) -> list[Group]:
    """Build two groups with one and with three completions, each of a few tokens."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(1, 40).remainder(vocabulary).tolist()
    return [
        Group("a", ids[:5], [ids[5:9], ids[9:10], ids[10:13]], [], None),
        Group("b", ids[20:21], [ids[21:28]], [], None),
    ]


def own_logps(model: PreTrainedModel, groups: list[Group]) -> Tensor:
    """Compute completion log-probs by transformers alone, sequence by sequence: [N] float32."""
    values: list[Tensor] = []
    for group in groups:
        for completion in group.completions:
            ids = torch.tensor([group.prompt_ids + completion], device=model.device)
            logps = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
            start = len(group.prompt_ids)
            values.append(logps[start - 1 : -1].gather(-1, ids[0, start:, None])[:, 0])
    return torch.cat(values)


def _windows_by_config(model: PreTrainedModel) -> list[int | None]:
    """Return the sliding window of each layer's attention, as the model's config states it."""
    config = model.config.get_text_config()
    used = getattr(config, "use_sliding_window", True)
    window: int | None = getattr(config, "sliding_window", None) if used else None
    types: list[str] | None = getattr(config, "layer_types", None)
    if types is None:
        return [window] * config.num_hidden_layers
    known = {"full_attention": None, "sliding_attention": window}
    if unknown := sorted(set(types) - known.keys()):
        raise refusal(model, f"it has layers of type {', '.join(unknown)}")
    return [known[kind] for kind in types]
