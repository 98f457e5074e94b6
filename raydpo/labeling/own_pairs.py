"""A user's own pair builder, which chooses which of a prompt's candidates to compare.

`labeling.pairs.builder: package.module:name` names it, and the module checks the matches that it
returns. The framework still decides which candidate of a match is chosen. It also handles margins,
ties, weights and noise.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raydpo.core.errors import ConfigError
from raydpo.core.own_functions import import_function, raised, taken_names
from raydpo.labeling.builders import Draws, Match, Scored

#: Parameters that a builder may take by name.
GIVEN: Final = ("rewards", "completion_ids", "uniform")
OWED: Final = (
    "a pair builder is `def pairs(rewards, ...)`: it may also take `completion_ids` (the token ids of "
    "each candidate) and `uniform` (called with words or numbers, it draws from [0, 1), the same for the "
    "same words), and returns a list of pairs of indices into `rewards`, such as [(0, 3), (1, 2)]"
)
_WHAT: Final = "pair builder"
_TRIED: Final = (0.3, -1.0, 2.0, 2.0)


@dataclass(frozen=True)
class OwnPairs:
    """A user's pair builder with its arguments.

    Attributes:
        path: `package.module:name`, for messages.
        function: the function as the user wrote it.
        names: the names in `GIVEN` that it takes.
    """

    path: str
    function: Callable[..., Any]
    names: tuple[str, ...]

    def __call__(self, scored: Sequence[Scored], draws: Draws) -> list[Match]:
        """Return the matches of one prompt, each with the lower candidate number first.

        Args:
            scored: the prompt's candidates, by their numbers.
            draws: the prompt's random numbers.

        Raises:
            ConfigError: the function returns anything other than pairs of two candidates.
        """
        values: dict[str, Any] = {
            "rewards": [one.reward for one in scored],
            "completion_ids": [list(one.completion_ids) for one in scored],
            "uniform": lambda *what: draws.uniform("own", *what),
        }
        found = self.function(**{name: values[name] for name in self.names})
        matches: dict[tuple[int, int], None] = {}
        for match in found if isinstance(found, Iterable) else [found]:
            pair = _pair_of(match, len(scored))
            if pair is None or pair in matches:
                why = "which stood before" if pair in matches else f"of {len(scored)} candidates"
                raise self.unfit(f"returned the match {match!r}, {why}")
            matches[pair] = None
        return [(scored[first], scored[second]) for first, second in matches]

    def unfit(self, what: str) -> ConfigError:
        """Build the error for a builder that did `what`."""
        return ConfigError(
            f"{_WHAT} {self.path!r} {what}",
            OWED,
            "return each match once, of two different indices",
        )


def load_pairs(path: str, search: Iterable[str] = ()) -> OwnPairs:
    """Import a builder and determine how to call it; `search` adds folders for its module.

    Raises:
        ConfigError: there is no such function, or it needs a parameter that does not exist.
    """
    found = import_function(path, _WHAT, OWED, search)
    return OwnPairs(path, found, taken_names(found, path, _WHAT, OWED, GIVEN))


def try_pairs(builder: OwnPairs) -> None:
    """Call the builder twice on four candidates.

    Raises:
        ConfigError: it raises, returns no matches, or returns different ones the second time.
    """
    scored = [Scored(n, (n, n + 1), reward) for n, reward in enumerate(_TRIED)]
    draws = Draws(0, 0, "a prompt")
    try:
        first, second = (builder(scored, draws) for _ in range(2))
    except ConfigError:
        raise
    except Exception as error:
        raise builder.unfit(f"raised {raised(error)}") from error
    if first != second:
        raise builder.unfit("gave other matches for the same candidates: draw by `uniform`")


def _pair_of(match: Any, count: int) -> tuple[int, int] | None:
    """Return two different indices below `count`, the lower first; None for anything else."""
    if not isinstance(match, Sequence) or len(match) != 2:
        return None
    if not all(not isinstance(i, bool) and isinstance(i, numbers.Integral) for i in match):
        return None
    first, second = sorted(int(index) for index in match)
    return (first, second) if 0 <= first < second < count else None
