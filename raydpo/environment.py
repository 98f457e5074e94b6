"""The environment of processes that compute on CPUs.

What comes in: nothing. What goes out: variables that must be there when a process starts.
"""

from __future__ import annotations

from typing import Final

#: Environment of CPU workers. glibc gives large blocks back to the kernel after each
#: step otherwise, and the page faults cost more than the arithmetic.
MALLOC_ENVIRONMENT: Final = (
    ("MALLOC_MMAP_MAX_", "0"),
    ("MALLOC_TRIM_THRESHOLD_", "68719476736"),
    ("MALLOC_TOP_PAD_", "134217728"),
)
