"""CPUs and GPUs as Ray counts them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Shares of CPUs and GPUs are sums of fractions.
_ROUNDING: Final = 1e-9


@dataclass(frozen=True)
class Resources:
    """Ray CPUs and GPUs."""

    cpus: float
    gpus: float

    def hold(self, *others: Resources) -> bool:
        """Whether the others fit in together."""
        cpus, gpus = sum(o.cpus for o in others), sum(o.gpus for o in others)
        return cpus <= self.cpus + _ROUNDING and gpus <= self.gpus + _ROUNDING

    def places(self, needs: Resources) -> int:
        """How many of those that each need so much fit in; what needs nothing fits in once."""
        pairs = ((self.cpus, needs.cpus), (self.gpus, needs.gpus))
        return min((int(has / asked + _ROUNDING) for has, asked in pairs if asked), default=1)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"
