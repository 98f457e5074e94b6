"""Hold some of the data out of training, as a function of the prompt's id and the seed."""

from __future__ import annotations

import hashlib


def source_of_example(example_id: str) -> str:
    """Return what all turns, pieces and repetitions of one row of SFT data have in common.

    The id of an example is the hash of its row; `-2` follows in a repetition, and `:turn-0` or
    `:0` in a turn or a piece.
    """
    return example_id.partition(":")[0].partition("-")[0]


def is_heldout(prompt_id: str, fraction: float, seed: int) -> bool:
    """Return whether a prompt's groups are kept for evaluation.

    All groups of a prompt are on the same side, whatever else the table contains.

    Args:
        prompt_id: the id of the prompt, or for SFT what `source_of_example` returns.
        fraction: expected share of prompts that are held out, 0 to 1.
        seed: the run's seed.
    """
    digest = hashlib.sha256(f"heldout/{seed}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
