"""A reward function called on two rows, in a process of its own.

What comes in: the function's import path and two prompts. What goes out: what it gave, or the
error that a run would end with. Its process ends with the call: what it prints, loads or
breaks stays there. `python -m raydpo.labeling.trial` is that process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import raydpo
from raydpo import errors
from raydpo.errors import DataError, RaydpoError
from raydpo.labeling.rewards import Refusal, judge_with_function, resolve_function
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
    question = {
        "path": path,
        "prompts": prompts,
        "completions": completions,
        "search": sys.path,
        "limit_seconds": LIMIT_SECONDS,
    }
    beside = str(Path(str(raydpo.__file__)).parents[1])
    search = os.pathsep.join(filter(None, [beside, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "raydpo.labeling.trial"],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": search},
            timeout=_IMPORT_SECONDS + LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"was not imported in {_IMPORT_SECONDS} s"
    if done.returncode == -signal.SIGALRM:
        return f"did not answer in {LIMIT_SECONDS} s on two rows: nothing is known of its results"
    return _said(path, done)


def _said(path: str, done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode != 0 or not done.stdout:
        code = done.returncode
        how = f"status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        last = done.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
        raise DataError(
            f"reward function {path!r} ended its process with {how} on two rows: {last[0][:200]}",
            OWED,
            "mend the function: neither it nor what it calls may end the process",
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        raise getattr(errors, answer["error"])(*answer["arguments"])
    values, refusals = answer["values"], answer["refusals"]
    if all(refusal.endswith("not a number") and "None" not in refusal for refusal in refusals):
        raise DataError(
            f"reward function {path!r} on two rows: {refusals[0]}",
            OWED,
            "let it return a list of numbers, in the order of the completions",
        )
    told = [
        f"no reward ({refusal})" if refusal else value
        for value, refusal in zip(values, refusals, strict=True)
    ]
    return f"gave {' and '.join(told)} on two rows"


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    """What the function gave, as JSON."""
    sys.path[:] = question["search"]
    try:
        function = resolve_function(question["path"])
        signal.alarm(question["limit_seconds"])  # ends this process, whatever the function is doing
        judged = judge_with_function(
            function, question["path"], question["prompts"], question["completions"]
        )
        signal.alarm(0)
    except RaydpoError as error:
        return {"error": type(error).__name__, "arguments": error.args}
    return {
        "values": ["" if isinstance(v, Refusal) else f"{v:.6g}" for v in judged.values],
        "refusals": [v.reason if isinstance(v, Refusal) else "" for v in judged.values],
    }


def _main() -> None:
    question = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what the function prints is no answer
        json.dump(_answer(question), answers)


if __name__ == "__main__":
    _main()
