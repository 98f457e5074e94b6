"""The tables of the noise study: an objective a row, a rate a column."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from noise.contenders import Result, in_order
from noise.estimates import Values, gain, kl, mean, missing, right, score
from noise.labels import CORRUPTIONS
from raydpo.evaluation.metrics import Estimate

#: Settings -> what they are.
TITLES: Final = {
    "exact": "enumerable worlds, all labels there can be",
    "world": "enumerable worlds, one label for each pair",
    "model": "demo model, held-out pairs with clean labels",
}
#: What the others are compared with.
BASELINE: Final = "dpo"
#: From the results of one objective at one rate, and those of the baseline, to a cell.
_Cell = Callable[[Sequence[Result], Sequence[Result]], str]


def tables(results: Sequence[Result]) -> Iterator[list[str]]:
    """Lines of Markdown tables, for each setting and kind of corruption that has results."""
    for setting, title in TITLES.items():
        for corruption in CORRUPTIONS:
            mine = of_axis(results, setting, corruption)
            if not any(r.corruption == corruption for r in mine):
                continue
            seeds = len({r.seed for r in mine})
            head = f"{title}, {corruption}, {seeds} seeds"
            yield [f"{head}: accuracy, %, ± one standard error", "", *_table(mine, _accuracy)]
            if setting == "model":
                yield [f"{head}: judge score of samples, %", "", *_table(mine, _score)]
                yield [f"{head}: KL, nats per completion", "", *_table(mine, _kl)]


def of_axis(results: Sequence[Result], setting: str, corruption: str) -> list[Result]:
    """Results of a setting under one kind of corruption, and those without any."""
    return [r for r in results if r.setting == setting and r.corruption in (corruption, "none")]


def by_cell(results: Sequence[Result]) -> dict[tuple[str, float], list[Result]]:
    """Results of all seeds by objective and rate."""
    found: dict[tuple[str, float], list[Result]] = {}
    for result in sorted(results, key=lambda r: r.seed):
        found.setdefault((result.objective, result.rate), []).append(result)
    return found


def _table(results: Sequence[Result], cell: _Cell) -> list[str]:
    found = by_cell(results)
    rates = sorted({r.rate for r in results})
    lines = [
        "| corrupted | " + " | ".join(f"{rate:.0%}" for rate in rates) + " |",
        "| --- |" + " --- |" * len(rates),
    ]
    for name in in_order(results):
        columns = [(found.get((name, rate)), found.get((BASELINE, rate))) for rate in rates]
        cells = [cell(own, base or own) if own else "" for own, base in columns]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def _accuracy(results: Sequence[Result], baseline: Sequence[Result]) -> str:
    text = _percent(mean(results, right))
    if results[0].missing:
        return f"{text} (misses {mean(results, missing).mean:.2f})"
    return text + _gain(results, baseline, right)


def _score(results: Sequence[Result], baseline: Sequence[Result]) -> str:
    return _percent(mean(results, score)) + _gain(results, baseline, score)


def _kl(results: Sequence[Result], baseline: Sequence[Result]) -> str:
    found = mean(results, kl)
    return f"{found.mean:.2f} ± {found.standard_error or 0.0:.2f}"


def _gain(results: Sequence[Result], baseline: Sequence[Result], values: Values) -> str:
    if results is baseline or {r.seed for r in results} - {r.seed for r in baseline}:
        return ""
    return f" ({_percent(gain(results, baseline, values), '+')})"


def _percent(estimate: Estimate, sign: str = "") -> str:
    return f"{100 * estimate.mean:{sign}.1f} ± {100 * (estimate.standard_error or 0.0):.1f}"
