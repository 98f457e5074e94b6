"""The process of one contender.

The contender is an argument. Commands arrive on the standard input, one JSON object per line.
Answers go likewise to the original standard output, and output of libraries to the standard
error.

    python -m benchmark.worker CONTENDER_JSON THREADS
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys

import torch

from .gate import EndOfScenario, Gate
from .spec import Contender, Scenario


def main() -> None:
    """Run scenarios until the parent closes the standard input."""
    contender = Contender(**json.loads(sys.argv[1]))
    torch.set_num_threads(int(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    while line := sys.stdin.readline():
        scenario = Scenario.from_json(json.loads(line))
        with contextlib.suppress(EndOfScenario):
            run(scenario, contender, Gate(sys.stdin, answers, scenario.device))
        gc.collect()


def run(scenario: Scenario, contender: Contender, gate: Gate) -> None:
    """Run one contender; imports are here because no machine has every contender."""
    if contender.kind == "raydpo":
        from . import ours

        ours.run(scenario, contender, gate)
    elif contender.kind == "trl":
        from . import trl_peer

        trl_peer.run(scenario, contender, gate)
    elif contender.kind == "score_trl":
        from . import trl_peer

        trl_peer.score(scenario, contender, gate)
    else:
        from . import scoring

        scoring.run(scenario, contender, gate)


if __name__ == "__main__":
    main()
