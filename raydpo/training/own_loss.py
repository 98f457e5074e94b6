"""Call a user's own loss of pairs by the names in its signature.

The section is `{name: function, function: package.module:name, options: {...}}`. The module calls
the function and checks the loss of each pair. The framework weighs and sums the losses, and
computes the same metrics as for every other objective of pairs.

Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from raydpo.config.objectives import FunctionObjective
from raydpo.core.errors import ConfigError
from raydpo.core.own_functions import import_function, raised, taken_names

#: Parameters that a function may take by name: float32 tensors [P], and beta.
GIVEN: Final = ("chosen_logratios", "rejected_logratios", "probabilities", "beta")
OWED: Final = (
    "the loss of an objective is `def loss(chosen_logratios, rejected_logratios, ...)`: it may also "
    "take `probabilities` (that chosen wins), `beta` and its own options, and returns a tensor with "
    "one finite loss for each pair"
)
_WHAT: Final = "objective function"
_TRIED_PAIRS: Final = 5


@dataclass(frozen=True)
class OwnLoss:
    """A user's loss function with its arguments.

    Attributes:
        path: `package.module:name`, for messages.
        function: the function as the user wrote it.
        names: the names in `GIVEN` that it takes.
        beta: the section's beta.
        options: the section's options.
    """

    path: str
    function: Callable[..., Any]
    names: tuple[str, ...]
    beta: float
    options: dict[str, Any]

    def __call__(self, chosen: Tensor, rejected: Tensor, probabilities: Tensor) -> Tensor:
        """Compute losses [P] from log-ratios [P] in nats and the probability [P] that chosen wins.

        Raises:
            ConfigError: the function returns anything other than one loss per pair.
        """
        given = (chosen, rejected, probabilities, self.beta)
        values: dict[str, Any] = dict(zip(GIVEN, given, strict=True))
        losses = self.function(**{name: values[name] for name in self.names}, **self.options)
        if not isinstance(losses, Tensor) or losses.shape != chosen.shape:
            shape = f" of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else ""
            raise ConfigError(
                f"objective function {self.path!r} returned a {type(losses).__name__}{shape} for "
                f"{len(chosen)} pairs",
                OWED,
                "return the losses as they are, without a mean or a sum: the framework weighs them",
            )
        return losses


def load_loss(settings: FunctionObjective, search: Iterable[str] = ()) -> OwnLoss:
    """Import the function of a section and determine how to call it.

    Args:
        settings: the section.
        search: folders to search for its module after Python's own.

    Raises:
        ConfigError: there is no such function, or it needs a parameter that does not exist.
    """
    path = settings.function
    found = import_function(path, _WHAT, OWED, search)
    names = taken_names(found, path, _WHAT, OWED, GIVEN, settings.options)
    return OwnLoss(path, found, names, settings.beta, dict(settings.options))


def try_loss(loss: OwnLoss) -> None:
    """Call the function on a few pairs and check its result.

    Raises:
        ConfigError: the losses are not finite or have no gradient, or one depends on other pairs.
    """
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, _TRIED_PAIRS, generator=generator).unbind()
    chosen.requires_grad_()
    rejected.requires_grad_()
    sure = torch.ones(_TRIED_PAIRS)
    try:
        losses = loss(chosen, rejected, sure)
        alone = torch.cat(
            [loss(chosen[i : i + 1], rejected[i : i + 1], sure[:1]) for i in range(5)]
        )
    except ConfigError:
        raise
    except Exception as error:
        raise _unfit(loss, f"raised {raised(error)}") from error
    if not losses.is_floating_point() or not losses.isfinite().all():
        raise _unfit(loss, f"returned {losses.tolist()}, which are not all finite numbers")
    if not losses.requires_grad:
        raise _unfit(loss, "returned losses without a gradient: they do not read the log-ratios")
    if not torch.allclose(losses, alone, rtol=1e-4, atol=1e-6):
        raise _unfit(
            loss,
            f"gave {losses.tolist()} for {_TRIED_PAIRS} pairs together and {alone.tolist()} for each "
            "alone: a pair's loss may not read other pairs, since a step is cut into micro-batches",
        )


def _unfit(loss: OwnLoss, what: str) -> ConfigError:
    return ConfigError(
        f"objective function {loss.path!r}, tried on {_TRIED_PAIRS} pairs, {what}",
        OWED,
        "correct the function",
    )
