"""The words of a verdict on a training, which all reports share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: Standard errors beyond which a difference is hardly chance.
BEYOND_CHANCE: Final = 2.0
#: What speaks against a difference without a standard error.
TOO_FEW: Final = "there are too few prompts to tell the difference from chance"


def judged(gain_z: float, objections: Sequence[str]) -> str:
    """Return whether a training helped, in two to four words.

    Args:
        gain_z: the gain in standard errors, positive if the model became better; 0 if unknown.
        objections: what speaks against the model.
    """
    if gain_z < -BEYOND_CHANCE:
        return "Training did harm"
    if gain_z <= BEYOND_CHANCE:
        return "Training showed no effect"
    return "Training helped, with reservations" if objections else "Training helped"


def against(objections: Sequence[str]) -> str:
    """Return the sentence that names all objections, with a space before it; empty without any."""
    return f" Against it: {'; '.join(objections)}." if objections else ""


def moved(difference: float) -> str:
    """Return the verb for a difference."""
    return "rose" if difference > 0 else "fell" if difference < 0 else "did not move:"
