"""Seeds of prompts: what makes sampling repeatable whatever runs where.

What comes in: the run's seed, the round and a prompt's id. What goes out: the seed of
that prompt's first completion. vLLM draws completion k of a prompt with seed + k, so
seeds of neighbouring prompts must not be neighbours: they are hashes.
"""

from __future__ import annotations

import hashlib


def prompt_seed(seed: int, round_index: int, prompt_id: str) -> int:
    """Seed of a prompt's completion 0, from 0 to 2**62 - 1; completion k has this plus k.

    One bit less than an int64 holds, so that adding k never leaves the type.
    """
    text = f"{seed}\n{round_index}\n{prompt_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 2
