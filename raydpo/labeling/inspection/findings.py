"""What an inspection found: numbers with intervals, a verdict by stated limits, and examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from raydpo.labeling.inspection.shares import Share

Json = dict[str, Any]
Verdict = Literal["clean", "look", "bad", "not measured"]

#: The worst one first.
VERDICTS: Final[tuple[Verdict, ...]] = ("bad", "look", "clean", "not measured")


@dataclass(frozen=True)
class Number:
    """One number of an item.

    Attributes:
        name: what it is.
        value: a share in [0, 1] if `interval` is of a share, otherwise a number.
        interval: both ends of its interval; None where it is a count.
        unit: `share`, or the unit of the number.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    unit: str = "share"

    def as_json(self) -> Json:
        """Return a JSON value."""
        interval = list(self.interval) if self.interval else None
        return {"name": self.name, "value": self.value, "interval": interval, "unit": self.unit}


@dataclass(frozen=True)
class Finding:
    """What was found about one item.

    Attributes:
        name: of the item, as the JSON file calls it.
        title: as people read it.
        verdict: clean, look, bad or not measured.
        says: what was found, in a sentence or two.
        rule: the limits behind the verdict.
        numbers: what was measured.
        tables: further tables: a title, the names of columns, and rows.
        examples: pairs or texts, each part of it by its name.
        measured: values by name that `inspect` limits are compared with.
        plot: what the page draws, by the names of its figure's arguments.
    """

    name: str
    title: str
    verdict: Verdict
    says: str
    rule: str = ""
    numbers: Sequence[Number] = ()
    tables: Sequence[Json] = ()
    examples: Sequence[Json] = ()
    measured: dict[str, float] = field(default_factory=dict[str, float])
    plot: Json = field(default_factory=dict[str, Any])

    def as_json(self) -> Json:
        """Return a JSON value."""
        return {
            "name": self.name,
            "title": self.title,
            "verdict": self.verdict,
            "says": self.says,
            "rule": self.rule,
            "numbers": [number.as_json() for number in self.numbers],
            "tables": list(self.tables),
            "examples": list(self.examples),
            "measured": self.measured,
            "plot": self.plot,
        }


def not_measured(name: str, title: str, why: str) -> Finding:
    """Return the finding of an item that this data cannot answer."""
    return Finding(name, title, "not measured", why)


def above(low: float, look: float, bad: float) -> Verdict:
    """Judge a value whose lower end of the interval is `low`: more is worse."""
    return "bad" if low > bad else "look" if low > look else "clean"


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the worst of some verdicts; clean without any."""
    found: Verdict = "clean"
    for verdict in verdicts:
        found = verdict if VERDICTS.index(verdict) < VERDICTS.index(found) else found
    return found


def number_of(name: str, share: Share) -> Number:
    """Return a share as a number."""
    return Number(name, share.value, (share.low, share.high))


def percent(value: float) -> str:
    """Format a share for a sentence."""
    text = f"{100 * value:.1f}"
    return "0.0 %" if text == "-0.0" else f"{text} %"


def with_interval(share: Share) -> str:
    """Format a share and its interval for a sentence."""
    return f"{percent(share.value)} [{percent(share.low)}, {percent(share.high)}]"
