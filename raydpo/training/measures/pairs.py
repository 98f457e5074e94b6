"""Losses of pairs: on log-ratios, with or without the reference's KL, and reference-free.

The section of an objective that learns from pairs gives its `Measure`, which computes the loss of
each pair.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, assert_never

from torch import Tensor

from raydpo.config import objectives as sections
from raydpo.training.batch import MicroBatch
from raydpo.training.head import TokenOutputs
from raydpo.training.losses import dpo, f_divergence
from raydpo.training.losses.anchors import dpop_loss
from raydpo.training.losses.apo import apo_down_loss, apo_zero_loss
from raydpo.training.losses.contrastive import exo_loss, nca_loss
from raydpo.training.losses.discopop import discopop_loss
from raydpo.training.losses.hinge import hinge_loss
from raydpo.training.losses.ipo import ipo_loss, sppo_loss
from raydpo.training.losses.likelihood import preferred_sft_loss, unlikelihood_loss
from raydpo.training.losses.reference_free import orpo_loss, simpo_loss
from raydpo.training.losses.tdpo import tdpo1_loss, tdpo2_loss
from raydpo.training.measures.values import (
    Measure,
    Values,
    mean_logps,
    pair_logps,
    pair_metrics,
    pair_sums,
    token_logratios,
)
from raydpo.training.own_loss import load_loss

#: A loss: log-ratios [P] of chosen and rejected, and probability [P] that chosen wins -> [P].
PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

ReferenceFreeSection = sections.SimpoObjective | sections.OrpoObjective


def logratio_measure(settings: sections.LogratioObjective) -> Measure:
    """Build the measure of an objective on the log-ratios of pairs."""
    return partial(_measure_logratios, settings, pair_loss(settings))


def reference_free_measure(settings: ReferenceFreeSection) -> Measure:
    """Build the measure of an objective on mean log-probs."""
    if isinstance(settings, sections.SimpoObjective):
        loss = partial(simpo_loss, beta=settings.beta, gamma=settings.gamma)
        return partial(_measure_means, loss, settings.beta)
    loss = partial(orpo_loss, odds_weight=settings.odds_weight)
    return partial(_measure_means, loss, settings.odds_weight)


def likelihood_measure(settings: sections.LikelihoodObjective) -> Measure:
    """Build the measure of an objective on likelihoods alone."""
    match settings:
        case sections.UnlikelihoodObjective():
            loss = partial(unlikelihood_loss, alpha=settings.alpha)
            return partial(_measure_likelihoods, settings, loss)
        case _:
            return partial(_measure_likelihoods, settings, _of_chosen)


def _of_chosen(chosen: Tensor, rejected: Tensor) -> Tensor:
    return preferred_sft_loss(chosen)


def _measure_likelihoods(
    settings: sections.LikelihoodObjective,
    loss: Callable[[Tensor, Tensor], Tensor],
    outputs: TokenOutputs,
    batch: MicroBatch,
) -> Values:
    chosen, rejected = pair_sums(outputs.logps, batch, settings.length)
    metrics = pair_logps(outputs, batch)
    margins = metrics["logps/chosen"] - metrics["logps/rejected"]
    metrics |= {"logps/margins": margins, "logps/accuracies": (margins > 0).float()}
    return Values(loss(chosen, rejected), batch.pair_weights, batch.pairs[:, 0], metrics)


def tdpo_measure(settings: sections.TdpoObjective) -> Measure:
    """Build the measure of an objective on log-ratios and the KL along each completion."""
    if isinstance(settings, sections.Tdpo2Objective):
        loss = partial(tdpo2_loss, beta=settings.beta, alpha=settings.alpha)
    else:
        loss = partial(tdpo1_loss, beta=settings.beta)
    return partial(_measure_tdpo, loss, settings.beta)


def pair_loss(settings: sections.LogratioObjective) -> PairLoss:
    """Return the loss of a section, with its options applied."""
    match settings:
        case sections.IpoObjective():
            return _plain(ipo_loss, tau=settings.tau)
        case sections.SoftLabelObjective():
            return partial(dpo.soft_label_loss, beta=settings.beta)
        case sections.SppoObjective():
            return partial(_sppo, settings.win_rates, settings.beta)
        case sections.FDpoObjective():
            return _plain(partial(_f_dpo, scores_of(settings)), beta=settings.beta)
        case sections.FunctionObjective():
            return load_loss(settings)
        case sections.ScaledLogratioObjective():
            loss, options = _loss_and_options(settings)
            return _plain(loss, beta=settings.beta, **options)
        case _:
            raise AssertionError(f"{type(settings).__name__} has no loss of pairs")


def scores_of(settings: sections.FDpoObjective) -> Callable[[Tensor], Tensor]:
    """Return the function that turns log-ratios into a divergence's scores."""
    match settings.divergence:
        case "reverse_kl":
            return f_divergence.reverse_kl_scores
        case "forward_kl":
            return f_divergence.forward_kl_scores
        case "js":
            return f_divergence.js_scores
        case "alpha":
            assert settings.alpha is not None
            return partial(f_divergence.alpha_scores, alpha=settings.alpha)


def _loss_and_options(
    settings: sections.ScaledLogratioObjective,
) -> tuple[Callable[..., Tensor], dict[str, float]]:
    """Return the loss, which takes log-ratios and beta, and its other options."""
    match settings:
        case sections.DpoObjective():
            return dpo.sigmoid_loss, {}
        case sections.ConservativeDpoObjective():
            return dpo.conservative_loss, {"label_smoothing": settings.label_smoothing}
        case sections.RobustDpoObjective():
            return dpo.robust_loss, {"flip_rate": settings.flip_rate}
        case sections.OutlierMixtureObjective():
            return dpo.outlier_mixture_loss, {"outlier_rate": settings.outlier_rate}
        case sections.HingeObjective():
            return hinge_loss, {}
        case sections.DpopObjective():
            return dpop_loss, {"penalty": settings.penalty}
        case sections.ExoObjective():
            return exo_loss, {"label_smoothing": settings.label_smoothing}
        case sections.NcaObjective():
            return nca_loss, {}
        case sections.ApoZeroObjective():
            return apo_zero_loss, {}
        case sections.ApoDownObjective():
            return apo_down_loss, {}
        case sections.DiscoPopObjective():
            return discopop_loss, {"temperature": settings.temperature}
        case _:
            raise AssertionError(f"{type(settings).__name__} has no loss of pairs")


def _plain(loss: Callable[..., Tensor], **options: float) -> PairLoss:
    """Wrap a loss that does not read the probability that chosen wins."""
    return lambda chosen, rejected, _: loss(chosen, rejected, **options)


def _sppo(
    win_rates: Literal["hard", "soft"], beta: float, chosen: Tensor, rejected: Tensor, wins: Tensor
) -> Tensor:
    match win_rates:
        case "hard":
            rates = wins.new_ones(wins.shape)
        case "soft":
            rates = wins
        case _:
            assert_never(win_rates)
    return sppo_loss(chosen, rejected, rates, 1 - rates, beta=beta)


def _f_dpo(
    scores: Callable[[Tensor], Tensor], chosen: Tensor, rejected: Tensor, *, beta: float
) -> Tensor:
    return dpo.sigmoid_loss(scores(chosen), scores(rejected), beta=beta)


def _measure_logratios(
    settings: sections.LogratioObjective, loss: PairLoss, outputs: TokenOutputs, batch: MicroBatch
) -> Values:
    chosen, rejected = pair_sums(token_logratios(outputs, batch), batch, settings.length)
    losses = loss(chosen, rejected, batch.pair_probabilities)
    scale = settings.kl_beta or 1.0
    metrics = pair_metrics(scale * chosen, scale * rejected, outputs, batch)
    return Values(losses, batch.pair_weights, batch.pairs[:, 0], metrics)


def _measure_means(
    loss: Callable[[Tensor, Tensor], Tensor],
    scale: float,
    outputs: TokenOutputs,
    batch: MicroBatch,
) -> Values:
    means = mean_logps(outputs, batch)
    chosen, rejected = (means[side] for side in batch.pairs.unbind(1))
    metrics = pair_metrics(scale * chosen, scale * rejected, outputs, batch)
    return Values(loss(chosen, rejected), batch.pair_weights, batch.pairs[:, 0], metrics)


def _measure_tdpo(
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    beta: float,
    outputs: TokenOutputs,
    batch: MicroBatch,
) -> Values:
    assert outputs.reference_kl is not None
    chosen, rejected = pair_sums(token_logratios(outputs, batch), batch, "sum")
    chosen_kl, rejected_kl = pair_sums(outputs.reference_kl, batch, "sum")
    losses = loss(chosen, rejected, chosen_kl, rejected_kl)
    metrics = {
        **pair_metrics(beta * chosen, beta * rejected, outputs, batch),
        "kl/chosen": chosen_kl.detach(),
        "kl/rejected": rejected_kl.detach(),
    }
    return Values(losses, batch.pair_weights, batch.pairs[:, 0], metrics)
