"""The tables of the frontier study, as lines of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from grid.results import Quantity, Row
from grid.settings import Meeting, Setting, last_policies, meetings, score_at_kl

_KLS: Final = (1.0, 2.0, 4.0, 8.0)
#: What the slides that this project started from say of the three models: reward, KL.
_SLIDES: Final = {"pi_ref": "0.625, 0", "pi_ppo": "0.86, 1.7", "pi_dpo": "0.99, -26.6"}
#: The order of the Pairwise Cringe paper (arXiv:2312.16682) on AlpacaFarm, the best last.
_PAPER_ORDER: Final = ("binary_cringe", "policy_gradient", "dpo", "pairwise_cringe")


def tables(settings: Sequence[Setting]) -> Iterator[list[str]]:
    """Yield all tables, each with a heading; of rounds, the first and third have the last alone."""
    last = last_policies(settings)
    yield ["### All policies", "", *policies(last)]
    met = meetings(last)
    yield ["### Judge score at equal KL", "", *at_equal_kl(settings)]
    yield ["### Who dominates whom", "", *who_dominates(last, met)]
    yield ["### The slides' small table", "", *slides(last)]
    yield ["### The order of the Pairwise Cringe paper", "", *paper_order(last, met)]


def policies(settings: Sequence[Setting]) -> list[str]:
    """Return a line for each policy: KL, judge score, reward, and how its texts look."""
    header = (
        "method",
        "strength",
        "seeds",
        "KL (nats)",
        "judge score",
        "reward (log-odds)",
        "reward as probability",
        "length (tokens)",
        "repetition",
        "distinct-2",
        "at the limit",
        "train (s)",
    )
    lines = _head(header)
    for s in settings:
        lines.append(
            _line(
                f"`{s.method}`",
                s.strength,
                str(len(s.rows)),
                with_interval(s, "kl", 2),
                with_interval(s, "score", 3),
                with_interval(s, "reward", 2),
                with_interval(s, "reward_share", 3),
                with_interval(s, "tokens", 1),
                _mean(s, lambda row: row.repetition, 3),
                _mean(s, lambda row: row.distinct_2, 3),
                _mean(s, lambda row: row.token_limit_share, 2),
                _mean(s, lambda row: row.train_seconds, 0),
            )
        )
    return lines


def at_equal_kl(settings: Sequence[Setting]) -> list[str]:
    """Return a line for each method with settings on both sides of a KL: its judge score there."""
    lines = _head(("method", "KL (nats)", *(f"at {kl:g} nats" for kl in _KLS)))
    for method in dict.fromkeys(s.method for s in settings):
        own = [s for s in settings if s.method == method]
        found = score_at_kl(own, _KLS)
        cells = [
            f"{at.mean:.3f} [{at.ci95[0]:.3f}, {at.ci95[1]:.3f}]" if at else "" for at in found
        ]
        if any(cells):
            nats = [s.mean("kl") for s in own]
            lines.append(_line(f"`{method}`", f"{min(nats):.1f} to {max(nats):.1f}", *cells))
    return lines


def who_dominates(settings: Sequence[Setting], met: Sequence[Meeting]) -> list[str]:
    """Return a line for each setting: those that it dominates and that dominate it.

    Those where a difference is within chance, or of another sign in a seed, are only counted.
    """
    lines = _head(("policy", "dominates", "is dominated by"))
    for setting in settings:
        wins, losses = ([m for m in met if _role(m, setting.label) == role] for role in (1, -1))
        lines.append(
            _line(
                setting.label if losses else f"**{setting.label}**",
                _others(wins, setting.label),
                _others(losses, setting.label),
            )
        )
    return lines


def _role(meeting: Meeting, label: str) -> int:
    """Return 1 if the setting dominates in a meeting, -1 if it is dominated, otherwise 0."""
    if meeting.dominates is None or label not in (meeting.first, meeting.second):
        return 0
    return 1 if meeting.dominates == label else -1


def _others(met: Sequence[Meeting], label: str) -> str:
    clear = [m.second if m.first == label else m.first for m in met if m.beyond_chance]
    unclear = len(met) - len(clear)
    return "; ".join([*clear, *([f"{unclear} within chance"] if unclear else [])])


def slides(settings: Sequence[Setting]) -> list[str]:
    """Return reward and KL of pi_ref, pi_ppo and pi_dpo beside the slides' numbers."""
    lines = _head(
        (
            "policy",
            "judge score",
            "KL (nats)",
            "mean log-ratio on held-out preferences (nats)",
            "slides: reward, KL",
        )
    )
    wanted = {
        "pi_ref": ("pi_ref", ""),
        "pi_ppo": ("policy_gradient", "beta 0.3"),
        "pi_ppo, learned reward": ("policy_gradient, learned reward", "beta 0.3"),
        "pi_dpo": ("dpo", "beta 0.1"),
    }
    for name, (method, strength) in wanted.items():
        for s in settings:
            if (s.method, s.rows[0].strength) == (method, strength):
                on_data = _mean(s, lambda row: row.data["all"] if row.data else None, 2)
                cells = with_interval(s, "score", 3), with_interval(s, "kl", 2)
                lines.append(_line(name, *cells, on_data, _SLIDES.get(name, "")))
    return lines


def paper_order(settings: Sequence[Setting], met: Sequence[Meeting]) -> list[str]:
    """Return the best policy of each method that the paper orders, and the test with the next."""
    lines = _head(("method", "best strength", "judge score", "KL (nats)", "over the line above"))
    above: Setting | None = None
    for method in _PAPER_ORDER:
        own = [s for s in settings if s.method == method]
        if not own:
            continue
        best = max(own, key=lambda s: s.mean("score"))
        lines.append(
            _line(
                f"`{method}`",
                best.strength,
                with_interval(best, "score", 3),
                with_interval(best, "kl", 2),
                _gain(best, above, met) if above else "",
            )
        )
        above = best
    return lines


def _gain(setting: Setting, above: Setting, met: Sequence[Meeting]) -> str:
    labels = {setting.label, above.label}
    found = next(m for m in met if {m.first, m.second} == labels)
    sign = 1 if found.first == setting.label else -1
    low, high = sorted(sign * end for end in found.score["ci95"])
    return f"{sign * found.score['mean']:+.3f} [{low:+.3f}, {high:+.3f}], p = {found.p_holm:.2g}"


def with_interval(setting: Setting, quantity: Quantity, digits: int) -> str:
    """Return a mean over seeds with half the width of its 95 % interval."""
    half = setting.half_width(quantity)
    text = f"{setting.mean(quantity):.{digits}f}"
    return text if not half else f"{text} ± {half:.{digits}f}"


def _mean(setting: Setting, value: Callable[[Row], float | None], digits: int) -> str:
    found = setting.average(value)
    return f"{found[0]:.{digits}f}" if found else ""


def _head(names: Sequence[str]) -> list[str]:
    return [_line(*names), "|" + " --- |" * len(names)]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
