"""The answers of judges that a run has paid for, and what they cost.

Both lie in `judge-answers/` of the run directory, outside the folders of stages, so that they
outlive a stage that is made again:

    answers/ab/abcdef....json   an answer, by the hash of its request; written when it arrives
    spent/NAME/....json         what one process has spent on one judge

Each process rewrites its own file of `spent/`, and reads those of the others now and then.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

from raydpo.config.judges import BudgetConfig, JudgeMember
from raydpo.core.checked import read_checked, write_checked
from raydpo.core.errors import BudgetError, ManifestError
from raydpo.core.storage import Folder

FOLDER: Final = "judge-answers"
_ROUND: Final = re.compile(r"/round-\d{3,}(?=/|$)")
#: How long a process may not know of what the others have spent.
_SECONDS_BETWEEN_LOOKS: Final = 5.0
#: Costs are sums of floats.
_ROUNDING: Final = 1e-9


def answers_folder(stage: Folder) -> Folder:
    """Return the folder of answers of the run that a stage lies in; without a run, beside it."""
    *_, found = (None, *_ROUND.finditer(stage.uri))
    run = stage.uri[: found.start()] if found else stage.uri.rpartition("/")[0]
    return Folder(run).child(FOLDER)


@dataclass(frozen=True)
class KeptAnswers:
    """Answers by the hash of their request; in memory alone where there is no folder.

    Attributes:
        folder: where they lie.
        writes: whether new ones are written.
    """

    folder: Folder | None
    writes: bool = True
    _known: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the answer to a request, or None if there is none or it is damaged."""
        if self.folder is None:
            return self._known.get(key)
        try:
            return read_checked(self._shard(self.folder, key), f"{key}.json")
        except (OSError, ManifestError):
            return None

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer."""
        if self.folder is None:
            self._known[key] = answer
        elif self.writes:
            write_checked(self._shard(self.folder, key), f"{key}.json", answer)

    @staticmethod
    def _shard(folder: Folder, key: str) -> Folder:
        return folder.child("answers", key[:2])


@dataclass
class Spent:
    """Requests, tokens and costs."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def plus(self, other: dict[str, Any]) -> Spent:
        """Return the sum of this and of what another process has written."""
        return Spent(**{name: value + other.get(name, 0) for name, value in vars(self).items()})


@dataclass
class Ledger:
    """What a judge has spent in a run, and the limit.

    Attributes:
        scorer: the judge's name.
        budget: the limits, if there are any.
        folder: where the processes write; None where nothing is written.
    """

    scorer: str
    budget: BudgetConfig | None
    folder: Folder | None
    own: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._name = f"{uuid.uuid4().hex}.json"
        self._others = Spent()
        self._looked = -_SECONDS_BETWEEN_LOOKS

    def reserve(self) -> None:
        """Count a request that is about to be sent.

        Raises:
            BudgetError: the budget is spent.
        """
        with self._lock:
            if self.budget is not None:
                self._refuse_to_exceed(self.budget)
            self.own.requests += 1

    def add(self, member: JudgeMember, prompt_tokens: int, completion_tokens: int) -> None:
        """Count the tokens of an answer."""
        with self._lock:
            self.own.prompt_tokens += prompt_tokens
            self.own.completion_tokens += completion_tokens
            self.own.cost += member.cost(prompt_tokens, completion_tokens)

    def write(self) -> None:
        """Write what this process has spent."""
        with self._lock:
            if self.folder is not None and self.own.requests:
                write_checked(self._spent(self.folder), self._name, dict(vars(self.own)))

    def total(self) -> Spent:
        """Return what all processes have spent, the others as of their last known state."""
        now = time.monotonic()
        if self.folder is not None and now - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            self._others = Spent()
            folder = self._spent(self.folder)
            for name in folder.files():
                if name.endswith(".json") and not name.startswith(".") and name != self._name:
                    self._others = self._others.plus(read_checked(folder, name))
        return self._others.plus(vars(self.own))

    def _refuse_to_exceed(self, budget: BudgetConfig) -> None:
        spent = self.total()
        tokens = spent.prompt_tokens + spent.completion_tokens
        for value, limit, name in (
            (spent.requests, budget.max_requests, "max_requests"),
            (tokens, budget.max_tokens, "max_tokens"),
            (spent.cost, budget.max_cost, "max_cost"),
        ):
            if limit is not None and value >= limit * (1 - _ROUNDING):
                cost = f", cost {spent.cost:.2f}" if spent.cost else ""
                raise BudgetError(
                    f"the judge {self.scorer} has spent its budget: {spent.requests:,} requests, "
                    f"{tokens:,} tokens{cost}",
                    f"budget.{name} is {limit:,}",
                    f"raise budget.{name} and run the same command: it goes on from here, and asks "
                    "for no answer a second time",
                )

    def _spent(self, folder: Folder) -> Folder:
        return folder.child("spent", re.sub(r"[^A-Za-z0-9._-]", "_", self.scorer))
