"""Names of metrics on held-out data, in the rows of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Beginning of the names of metrics on held-out data; the rest is the name in training.
HELDOUT: Final = "heldout/"


def heldout_values(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the held-out metrics of a row by name, without the beginning that marks them."""
    return {n.removeprefix(HELDOUT): v for n, v in row.items() if n.startswith(HELDOUT)}
