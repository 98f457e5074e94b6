"""Import large libraries in three quarters of the time.

A block that imports or loads runs with Python's garbage collector switched off. torch,
transformers and vLLM create millions of long-lived objects, and every collection scans all of
them again (docs/sampling.md has the numbers).
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Generator[None]:
    """Switch the garbage collector off inside the block; leave it off if it was off before."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
