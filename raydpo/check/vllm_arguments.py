"""Ask vLLM whether it takes the further arguments of `sampling.extra` and `sampling.engines.extra`.

vLLM is imported in a process of its own, because that takes seconds and changes the process. A job
without further arguments starts none.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

from raydpo.config.job import SamplingConfig
from raydpo.core.errors import ConfigError, said_by
from raydpo.sampling.arguments import engine_environment, sampling_parameters

_SECONDS = 180.0
_OWED = "they are arguments that the installed vLLM takes"


def check_extra(sampling: SamplingConfig) -> None:
    """Refuse further arguments that the installed vLLM does not take.

    Raises:
        ConfigError: it has no such argument, or refuses its value.
    """
    if not sampling.extra and not sampling.engines.extra:
        return
    try:
        done = subprocess.run(  # noqa: S603 - this Python, and a module of ours
            [sys.executable, "-m", __name__],
            input=sampling.model_dump_json().encode(),
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            env={**os.environ, **engine_environment(sampling, cuda=False)},
        )
    except subprocess.TimeoutExpired:
        raise _refused(f"vLLM was not imported in {_SECONDS:g} s") from None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode:
        raise _refused(said[-1] if said else f"the process ended with {done.returncode}")


def _refused(what: str) -> ConfigError:
    return ConfigError(
        f"sampling.extra and sampling.engines.extra: {what}",
        _OWED,
        "correct the name or the value that the message has",
    )


def _look(sampling: SamplingConfig) -> str | None:
    """Return what vLLM does not take, or None."""
    from vllm import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    if unknown := sorted(sampling.engines.extra.keys() - known):
        return f"vLLM's EngineArgs have no {', '.join(map(repr, unknown))}"
    try:
        sampling_parameters(sampling, 0)
    except ConfigError as error:
        return said_by(error)
    return None


if __name__ == "__main__":
    problem = _look(SamplingConfig.model_validate_json(sys.stdin.buffer.read()))
    if problem is not None:
        sys.exit(" ".join(problem.split()))
