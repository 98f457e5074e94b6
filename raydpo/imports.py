"""Imports of large libraries, in three quarters of the time.

What comes in: a block that imports or loads. What goes out: the same, while Python's garbage
collector rests. torch, transformers and vLLM make millions of objects that stay, and every
collection among them looks at all of them again (docs/sampling.md has the numbers).
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Generator[None]:
    """No garbage is collected inside the block; a collector that was off before stays off."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
