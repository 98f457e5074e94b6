"""Hold some preference groups out of training, as a function of the prompt's id and the seed."""

from __future__ import annotations

import hashlib


def is_heldout(prompt_id: str, fraction: float, seed: int) -> bool:
    """Return whether a prompt's groups are kept for evaluation.

    All groups of a prompt are on the same side, whatever else the table contains.

    Args:
        prompt_id: the id of the prompt.
        fraction: expected share of prompts that are held out, 0 to 1.
        seed: the run's seed.
    """
    digest = hashlib.sha256(f"heldout/{seed}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
