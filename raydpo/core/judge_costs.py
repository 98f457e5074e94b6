"""What the answers of judges cost, from the sums of a manifest."""

from __future__ import annotations

from typing import Any, Final

#: Beginning of a sum in a manifest; the judge's name follows.
COST: Final = "judge_cost_for_"


def cost_lines(manifest: dict[str, Any]) -> list[str]:
    """Return a line on the cost of each judge that has prices."""
    sums: dict[str, float] = manifest.get("sums", {})
    return [
        f"{name.removeprefix(COST)}: its answers cost {cost:,.2f} by the configured prices"
        for name, cost in sums.items()
        if name.startswith(COST)
    ]
