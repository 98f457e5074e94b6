"""Seeds of prompts: they make sampling repeatable wherever it runs.

The run's seed, the round and a prompt's id determine the seed of that prompt's first completion.
vLLM draws completion k of a prompt with seed + k. So seeds of neighbouring prompts must not be
neighbours, and are hashes.
"""

from __future__ import annotations

import hashlib


def prompt_seed(seed: int, round_index: int, prompt_id: str) -> int:
    """Seed of a prompt's completion 0, from 0 to 2**62 - 1; completion k has this plus k.

    One bit less than an int64 holds, so that adding k never leaves the type.
    """
    text = f"{seed}\n{round_index}\n{prompt_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 2
