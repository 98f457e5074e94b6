"""Truncation: completions that meet the token limit, which have no end to learn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from raydpo.labeling.inspection.findings import (
    Finding,
    above,
    not_measured,
    number_of,
    percent,
    with_interval,
    worst,
)
from raydpo.labeling.inspection.groups import Batch, Keys
from raydpo.labeling.inspection.one_sided import COLUMNS, Flags, Properties, judged
from raydpo.labeling.inspection.shares import share_of

_TITLE: Final = "Truncation"
_LOOK: Final = 0.05
_BAD: Final = 0.20
_RULE: Final = (
    f"look above {percent(_LOOK)}, bad above {percent(_BAD)}: the share of completions at the token "
    "limit, by the lower end of its interval; and where one completion of a pair alone is there, the "
    "limits of formatting"
)
_AT_LIMIT: Final = "at the token limit"


@dataclass
class Truncation:
    """Counts completions of `limit` tokens or more; None where no limit is known."""

    limit: int | None
    _properties: Properties = field(default_factory=lambda: Properties([_AT_LIMIT]))
    _flags: list[Flags] = field(default_factory=list[Flags])
    _keys: list[Keys] = field(default_factory=list[Keys])

    def add(self, batch: Batch) -> None:
        """Take the completions of a batch."""
        if self.limit is None or not batch.in_tokens:
            return
        flags = batch.lengths >= self.limit
        self._flags.append(flags)
        self._keys.append(batch.prompt_keys[batch.group_of_text])
        self._properties.add(batch, flags[:, None])

    def finding(self) -> Finding:
        """Judge the completions."""
        if not self._flags:
            why = "Files of text have no token limit; a run has one."
            return not_measured("truncation", _TITLE, why)
        flags = np.concatenate(self._flags)
        share = share_of(flags, np.concatenate(self._keys))
        assert share is not None
        sides = self._properties.results()
        rows = [[one.name, *one.row()] for one in sides]
        return Finding(
            "truncation",
            _TITLE,
            worst(
                [
                    above(share.low if flags.any() else 0.0, _LOOK, _BAD),
                    judged(sides),
                ]
            ),
            f"{with_interval(share)} of the completions have {self.limit} tokens, the most there may be.",
            _RULE,
            [number_of("completions at the token limit", share)],
            [{"title": "On one side alone", "columns": COLUMNS, "rows": rows}],
            self._properties.examples.get(_AT_LIMIT, []),
            measured={"truncated": share.value},
        )
