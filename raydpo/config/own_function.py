"""Settings of functions of the user's own that run in a process of their own."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from raydpo.config.base import PositiveFloat, PositiveInt, Section
from raydpo.config.content import Placement
from raydpo.config.paths import LocalPath


def _one_path_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


#: Files and folders that a function reads.
OneOrMorePaths = Annotated[
    tuple[LocalPath, ...],
    BeforeValidator(_one_path_or_many, json_schema_input_type=str | tuple[str, ...]),
]
#: A time limit for calls says little about how long Python takes to start on busy cores.
LEAST_IMPORT_SECONDS: Final = 60.0


class FunctionLimits(Section):
    """Limits for a function's process; a reward of another kind ignores these fields."""

    timeout_seconds: Placement[PositiveFloat] = 600.0
    """Maximum time for one part; a function that takes longer is ended, and the rows that it hangs on are refused. The import may take as long, and at least a minute."""
    max_attempts: Placement[PositiveInt] = 2
    """How many times raydpo tries a part whose function ends its process or hangs, and then each of its rows alone."""
    max_memory_gib: Placement[PositiveFloat | None] = None
    """Maximum memory, in GiB, of the function's process and the processes that it starts; without it there is no limit."""

    @property
    def import_seconds(self) -> float:
        """Seconds that starting the process and importing the function may take; busy cores need a minimum."""
        return max(self.timeout_seconds, LEAST_IMPORT_SECONDS)
