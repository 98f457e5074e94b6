"""The findings of `raydpo check`: facts to read, an example to look at, problems to fix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from raydpo.core.errors import RaydpoError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """What a check found: facts to read, an example to look at, problems to fix."""

    facts: tuple[str, ...]
    example: tuple[str, ...]
    problems: tuple[RaydpoError, ...]

    @property
    def lines(self) -> list[str]:
        """Everything but the problems, in the order in which it is read."""
        count = len(self.problems)
        verdict = f"{count} problem(s) found" if count else "no problems found"
        return [*self.facts, *self.example, verdict]


@dataclass
class Findings:
    """The findings so far. A problem that several checks find is listed once."""

    facts: list[str] = field(default_factory=list[str])
    example: list[str] = field(default_factory=list[str])
    problems: list[RaydpoError] = field(default_factory=list[RaydpoError])

    def attempt(self, check: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
        """The check's result, or None if it raised an error, which is then noted."""
        try:
            return check(*arguments, **named)
        except RaydpoError as error:
            self.note(error)
            return None

    def note(self, problem: RaydpoError) -> None:
        """Add a problem, unless it is listed already."""
        if str(problem) not in map(str, self.problems):
            self.problems.append(problem)
