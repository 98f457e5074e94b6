"""What a train step minimises: from token outputs to a loss sum and metric sums.

What comes in: `TokenOutputs` of the policy for a micro-batch. What goes out: sums over it, not
means: the loop divides by the normalizer of the whole global batch, so that neither
micro-batches nor workers weigh in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raydpo.config import DpoObjective
from raydpo.training.batch import MicroBatch
from raydpo.training.groups import GroupSizes
from raydpo.training.head import HeadRequest, TokenOutputs
from raydpo.training.losses.dpo import dpo_loss


class Objective(Protocol):
    """A loss over micro-batches."""

    @property
    def head(self) -> HeadRequest:
        """What it needs of each completion token beyond the log-prob."""
        ...

    def normalizer(self, groups: list[int], sizes: GroupSizes) -> float:
        """What the loss sum of these groups (the global batch) is divided by."""
        ...

    def sums(self, outputs: TokenOutputs, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss summed over the micro-batch, and metrics summed over it (detached)."""
        ...


@dataclass(frozen=True)
class PreferenceObjective:
    """DPO on preference groups: the weighted mean over all pairs of the global batch."""

    settings: DpoObjective

    @property
    def head(self) -> HeadRequest:
        """Log-probs are enough."""
        return HeadRequest()

    def normalizer(self, groups: list[int], sizes: GroupSizes) -> float:
        """Sum of the weights of the groups' pairs."""
        return float(sizes.pair_weight[groups].sum())

    def sums(self, outputs: TokenOutputs, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss sum, and TRL's metrics of it."""
        token_logps = outputs.logps
        assert batch.reference_token_logps is not None
        logratios = batch.sequence_sums(token_logps - batch.reference_token_logps)
        chosen, rejected = batch.pairs.unbind(1)
        losses = dpo_loss(
            logratios[chosen],
            logratios[rejected],
            self.settings.beta,
            self.settings.label_smoothing,
        )
        with torch.no_grad():
            metrics = self._metrics(token_logps, logratios, batch)
        return (batch.pair_weights * losses).sum(), metrics

    def _metrics(
        self, token_logps: Tensor, logratios: Tensor, batch: MicroBatch
    ) -> dict[str, Tensor]:
        chosen, rejected = batch.pairs.unbind(1)
        rewards, logps = self.settings.beta * logratios, batch.sequence_sums(token_logps)
        margins = rewards[chosen] - rewards[rejected]
        values = {
            "rewards/chosen": rewards[chosen],
            "rewards/rejected": rewards[rejected],
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
            "logps/chosen": logps[chosen],
            "logps/rejected": logps[rejected],
        }
        return {name: (batch.pair_weights * value).sum() for name, value in values.items()}


@dataclass(frozen=True)
class SftObjective:
    """Next-token cross-entropy: the mean over all target tokens of the global batch."""

    @property
    def head(self) -> HeadRequest:
        """Log-probs are enough."""
        return HeadRequest()

    def normalizer(self, groups: list[int], sizes: GroupSizes) -> float:
        """Number of target tokens."""
        return float(sizes.targets[groups].sum())

    def sums(self, outputs: TokenOutputs, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed negative log-likelihood; there are no further metrics."""
        return -outputs.logps.sum(), {}
