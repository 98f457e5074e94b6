"""The tables of the win-rate study, as lines of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raydpo.evaluation.metrics import Estimate
from winrate.points import WinRow
from winrate.statistics import Setting, by_label, settings_of


def tables(rows: Sequence[WinRow]) -> Iterator[list[str]]:
    """Yield all tables, each with a heading."""
    found = settings_of(rows, "temperature")
    if found:
        methods = by_label(found)
        yield ["### Win rate against temperature, %", "", *_win_rates(methods)]
        yield ["### Ties, % of comparisons", "", *_ties(methods)]
        yield ["### Change of the win rate with temperature, points", "", *_changes(methods)]
    curve = settings_of(rows, "curve")
    if curve:
        yield ["### Best-of-N at temperature 1", "", *_curve(curve)]


def _win_rates(methods: dict[str, dict[float, Setting]]) -> list[str]:
    temperatures = _temperatures(methods)
    lines = _head("method", "seeds", *(f"T = {t:g}" for t in temperatures))
    for label, settings in methods.items():
        cells = [_percent(settings[t].mean("wins")) if t in settings else "" for t in temperatures]
        lines.append(_line(f"`{label}`", _seeds(settings), *cells))
    return lines


def _ties(methods: dict[str, dict[float, Setting]]) -> list[str]:
    temperatures = _temperatures(methods)
    lines = _head("method", *(f"T = {t:g}" for t in temperatures))
    for label, settings in methods.items():
        cells = [
            f"{100 * settings[t].mean('ties').mean:.2f}" if t in settings else ""
            for t in temperatures
        ]
        lines.append(_line(f"`{label}`", *cells))
    return lines


def _changes(methods: dict[str, dict[float, Setting]]) -> list[str]:
    """Return the changes from temperature 0, and how they differ from DPO's."""
    header = ("T = 1 minus T = 0", "T = 1.25 minus T = 0", "the last beside DPO's")
    lines = _head("method", *header)
    dpo = methods.get("DPO", {})
    for label, own in methods.items():
        cells = [
            _points(own[t].minus(own[0.0])) if {t, 0.0} <= own.keys() else "" for t in (1.0, 1.25)
        ]
        both = {0.0, 1.25} <= own.keys() & dpo.keys()
        beside = own[1.25].change_beside(own[0.0], dpo[1.25], dpo[0.0]) if both else None
        lines.append(_line(f"`{label}`", *cells, "" if label == "DPO" else _points(beside)))
    return lines


def _curve(settings: Sequence[Setting]) -> list[str]:
    lines = _head(
        "N", "seeds", "win rate, %", "ties, %", "judge score", "KL (nats)", "length (tokens)"
    )
    for setting in sorted(settings, key=lambda s: s.n):
        lines.append(
            _line(
                str(setting.n),
                str(len(setting.seeds)),
                _percent(setting.mean("wins")),
                f"{100 * setting.mean('ties').mean:.2f}",
                _number(setting.mean("scores"), 3),
                _number(setting.mean("kl"), 3),
                _number(setting.mean("tokens"), 1),
            )
        )
    return lines


def _temperatures(methods: dict[str, dict[float, Setting]]) -> list[float]:
    return sorted({t for settings in methods.values() for t in settings})


def _seeds(settings: dict[float, Setting]) -> str:
    counts = sorted({len(setting.seeds) for setting in settings.values()})
    return "–".join(map(str, counts))


def _percent(estimate: Estimate) -> str:
    ends = estimate.ci95
    inside = f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else ""
    return f"{100 * estimate.mean:.1f}{inside}"


def _points(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    ends = estimate.ci95
    inside = f" [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]" if ends else ""
    return f"{100 * estimate.mean:+.1f}{inside}"


def _number(estimate: Estimate, digits: int) -> str:
    ends = estimate.ci95
    inside = f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends else ""
    return f"{estimate.mean:.{digits}f}{inside}"


def _head(*names: str) -> list[str]:
    return [_line(*names), _line(*("---" for _ in names))]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
