"""Cringe: raise the likelihood of good tokens, push bad tokens below an alternative;
reference-free.

For each completion token, the functions take the logit of the token and the k largest logits of the
others (`HeadRequest.top_k`). They return a loss per token and per pair.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sampled_alternatives(top_logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw each token's s* from the softmax over the top-k logits (arXiv:2211.05826 sec. 3).

    The draw inverts the cumulative distribution, so the same uniforms give the same alternatives
    whatever the batch. The gradient flows into the logit that was drawn and not through the draw.

    Args:
        top_logits: [N, k] float, the k largest logits of tokens other than the target.
        uniforms: [N] float in [0, 1).

    Returns:
        [N], one of the k logits of each token.
    """
    cumulative = top_logits.softmax(-1).cumsum(-1)
    drawn = (cumulative <= uniforms[:, None]).sum(-1, keepdim=True)
    # Rounding may leave the end of the cumulative distribution just below 1.
    drawn = drawn.clamp(max=top_logits.shape[-1] - 1)
    return top_logits.gather(-1, drawn).squeeze(-1)


def cringe_token_losses(target_logits: Tensor, alternative_logits: Tensor) -> Tensor:
    """Compute -log[e^s* / (e^s* + e^s_t)] for each token of a negative completion.

    arXiv:2211.05826 sec. 3. Sum it over a completion's tokens to get L_Cr.

    Args:
        target_logits: [N] float, s_t of the actual tokens.
        alternative_logits: [N] float, s*, from `sampled_alternatives`.

    Returns:
        [N]. log 2 if both are equally likely.
    """
    return -F.logsigmoid(alternative_logits - target_logits)


def binary_cringe_loss(positive_logps: Tensor, negative_cringe: Tensor, *, alpha: float) -> Tensor:
    """Compute CE(y+) + alpha L_Cr(y-), arXiv:2211.05826 sec. 3.

    Args:
        positive_logps: [P] float, log pi(y+|x), nats, sums over tokens.
        negative_cringe: [P] float, `cringe_token_losses` of y- summed over tokens.
        alpha: weight of the negative part, >= 0.

    Returns:
        [P].
    """
    return alpha * negative_cringe - positive_logps


def pairwise_cringe_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    rejected_cringe: Tensor,
    *,
    alpha: float,
    gate_bias: float,
    gate_temperature: float,
    gate_passes_gradient: bool,
) -> Tensor:
    """Gate the binary loss: sigmoid((b - M)/tau) [CE(y_w) + alpha L_Cr(y_l)].

    arXiv:2312.16682 sec. 3, M = log pi(y_w|x) - log pi(y_l|x). The gate is soft and closes once the
    margin M exceeds b.

    Args:
        chosen_logps: [P] float, log pi(y_w|x), nats, sums over tokens.
        rejected_logps: [P] float, the same of y_l.
        rejected_cringe: [P] float, `cringe_token_losses` of y_l summed over tokens.
        alpha: weight of the negative part, >= 0.
        gate_bias: b, nats: the margin at which the gate is half open.
        gate_temperature: tau, nats, > 0.
        gate_passes_gradient: whether to differentiate the gate too; if false it is only a weight.

    Returns:
        [P].
    """
    margins = chosen_logps - rejected_logps
    gated = margins if gate_passes_gradient else margins.detach()
    gate = torch.sigmoid((gate_bias - gated) / gate_temperature)
    return gate * binary_cringe_loss(chosen_logps, rejected_cringe, alpha=alpha)
