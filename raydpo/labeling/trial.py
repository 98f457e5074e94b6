"""Try a reward function or service on two rows.

The trial returns the rewards, or the error that a run would end with. A function's process ends
with the call, so whatever the function prints, loads or breaks stays there.
"""

from __future__ import annotations

import tempfile
from typing import Final

from raydpo.config.http import HttpConfig
from raydpo.config.job import RewardConfig
from raydpo.core.errors import DataError
from raydpo.core.own_process import Ended
from raydpo.labeling.over_http import probe, rows_of
from raydpo.labeling.reward_process import RewardProcess, as_asked, columns_as_named
from raydpo.labeling.rewards import Judged, Refusal
from raydpo.labeling.service import OWED_BY_SERVICES
from raydpo.labeling.signature import (
    CANDIDATE_IDS,
    COMPLETION_IDS,
    FINISH_REASONS,
    NO_LISTS,
    OWED,
    Lists,
)

#: How long the function may take to answer; the time for its imports does not count.
LIMIT_SECONDS: Final = 10
_IMPORT_SECONDS: Final = 110
#: Number of attempts with a service, since one that fails for a moment is no problem.
_ATTEMPTS: Final = 3
#: Text that stands in for completions, because none is sampled yet.
_COMPLETIONS: Final = (" A first completion.", " Another one, which is longer: 2 + 2 = 4.")


def try_reward(reward: RewardConfig, prompts: list[str], more: Lists = NO_LISTS) -> str:
    """Call a reward function on one completion of each prompt; return its result in words.

    A function that does not answer in time is no error, because it may wait for a service.

    Args:
        reward: the reward with the function.
        prompts: texts.
        more: lists of that length by name: columns of the data, and the prompts' messages.

    Raises:
        ConfigError, DataError: the errors that a run would end with.
    """
    path, completions = str(reward.function), _completions(prompts)
    made_up = {
        COMPLETION_IDS: [list(range(len(completion.split()))) for completion in completions],
        FINISH_REASONS: ["stop"] * len(completions),
        CANDIDATE_IDS: [f"trial/{index}" for index in range(len(completions))],
    }
    asked = as_asked(reward, prompts, completions, more)
    with tempfile.TemporaryFile() as printed:
        options = tuple(reward.options)
        process = RewardProcess(path, _IMPORT_SECONDS, output=printed, options=options)
        try:
            look = process.look()
            if isinstance(look, Ended) and look.too_slow:
                return f"was not imported in {_IMPORT_SECONDS} s"
            named = columns_as_named(reward, {**more, **made_up})
            answer = process.judge(*asked, LIMIT_SECONDS, more=named, given=reward.options)
        finally:
            process.close()
        printed.seek(0)
        lines = printed.read().decode(errors="replace").strip().splitlines()
    if isinstance(answer, Judged):
        return _told(f"reward function {path!r}", answer, OWED)
    if answer.too_slow:
        how = answer.how
        return f"{how} on two rows: nothing is known of its results"
    raise DataError(
        f"reward function {path!r} {answer.how}, on two rows"
        + (f": {lines[-1][:200]}" if lines else ""),
        OWED,
        "fix the function: neither it nor what it calls may end the process",
    )


def try_service(http: HttpConfig, prompts: list[str], more: Lists = NO_LISTS) -> str:
    """Ask a service to score a completion of each prompt in one request; return that in words.

    Raises:
        ConfigError, ServiceError, DataError: the errors that a run would end with.
    """
    rows = rows_of(http, prompts, _completions(prompts), more)
    judged = Judged(probe(http, rows, _ATTEMPTS))
    return _told(f"reward service {http.url}", judged, OWED_BY_SERVICES)


def _completions(prompts: list[str]) -> list[str]:
    return [_COMPLETIONS[index % len(_COMPLETIONS)] for index in range(len(prompts))]


def _told(what: str, judged: Judged, owed: str) -> str:
    refusals = [v.reason if isinstance(v, Refusal) else "" for v in judged.values]
    if all(r.endswith("not a number") and "None" not in r and "null" not in r for r in refusals):
        raise DataError(
            f"{what} on two rows: {refusals[0]}",
            owed,
            "let it return a list of numbers, in the order of the completions",
        )
    told = [
        f"no reward ({value.reason})" if isinstance(value, Refusal) else f"{value:.6g}"
        for value in judged.values
    ]
    return f"gave {' and '.join(told)} on two rows"
