"""A reward function called on two rows, in a process of its own.

What comes in: the function's import path and two prompts. What goes out: what it gave, or the
error that a run would end with. Its process ends with the call: what it prints, loads or
breaks stays there.
"""

from __future__ import annotations

import tempfile
from typing import Final

from raydpo.errors import DataError
from raydpo.labeling.reward_process import Ended, RewardProcess
from raydpo.labeling.rewards import Judged, Refusal
from raydpo.labeling.signature import OWED

#: How long the function may take to answer; what it imports is not counted.
LIMIT_SECONDS: Final = 10
_IMPORT_SECONDS: Final = 110
#: What stands in for completions: none is sampled yet.
_COMPLETIONS: Final = (" A first completion.", " Another one, which is longer: 2 + 2 = 4.")


def try_reward(path: str, prompts: list[str]) -> str:
    """Call a reward function on one completion of each prompt; what it gave, in words.

    One that does not answer in time is no error: it may wait for a service.

    Raises:
        ConfigError, DataError: what a run would end with.
    """
    completions = [_COMPLETIONS[index % len(_COMPLETIONS)] for index in range(len(prompts))]
    with tempfile.TemporaryFile() as printed:
        process = RewardProcess(path, _IMPORT_SECONDS, output=printed)
        try:
            look = process.look()
            if isinstance(look, Ended) and look.too_slow:
                return f"was not imported in {_IMPORT_SECONDS} s"
            answer = process.judge(prompts, completions, LIMIT_SECONDS)
        finally:
            process.close()
        printed.seek(0)
        lines = printed.read().decode(errors="replace").strip().splitlines()
    if isinstance(answer, Judged):
        return _told(path, answer)
    if answer.too_slow:
        how = answer.how
        return f"{how} on two rows: nothing is known of its results"
    raise DataError(
        f"reward function {path!r} {answer.how}, on two rows"
        + (f": {lines[-1][:200]}" if lines else ""),
        OWED,
        "mend the function: neither it nor what it calls may end the process",
    )


def _told(path: str, judged: Judged) -> str:
    refusals = [v.reason if isinstance(v, Refusal) else "" for v in judged.values]
    if all(refusal.endswith("not a number") and "None" not in refusal for refusal in refusals):
        raise DataError(
            f"reward function {path!r} on two rows: {refusals[0]}",
            OWED,
            "let it return a list of numbers, in the order of the completions",
        )
    told = [
        f"no reward ({value.reason})" if isinstance(value, Refusal) else f"{value:.6g}"
        for value in judged.values
    ]
    return f"gave {' and '.join(told)} on two rows"
