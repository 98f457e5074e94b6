"""Format the result of `evaluate` as a table for the terminal, which a run prints at its end."""

from __future__ import annotations

from textwrap import wrap
from typing import Any, Final

Json = dict[str, Any]

#: Characters of a line of the verdict, without its indent.
_WIDTH: Final = 104
_HEADER = ("", "judge score", "KL (nats per completion)", "win rate", "length (tokens)")


def summary_table(metrics: Json) -> str:
    """Format pi_ref, pi_dpo and Best-of-N as rows, the difference, and the report's path.

    Metrics without a policy have a line on the judge in place of the difference and beta's effect.
    """
    alone = "policy" not in metrics
    rows = [_HEADER, _reference_row(metrics), *([] if alone else [_policy_row(metrics)])]
    rows += _best_of_rows(metrics)
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    table = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join(
        [table[0], rule, *table[1:], "", *(_lines_alone if alone else _lines)(metrics)]
    )


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    """Align the first column left and the numbers right."""
    first, *others = (cell for cell in row)
    return [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]


def _reference_row(metrics: Json) -> tuple[str, ...]:
    values = metrics["reference"]
    return (
        "pi_ref",
        _with_error(values["score"]),
        "0",
        "50.0 %",
        _with_error(values["completion_tokens"], 1),
    )


def _policy_row(metrics: Json) -> tuple[str, ...]:
    values = metrics["policy"]
    return (
        "pi_dpo",
        _with_error(values["score"]),
        _with_error(metrics["kl"]["nats_per_completion"], 2),
        _wins(metrics["win_rate"]),
        _with_error(values["completion_tokens"], 1),
    )


def _best_of_rows(metrics: Json) -> list[tuple[str, ...]]:
    """Return a row for each N and sampled model; the KL is from the model that was sampled."""
    return [
        (
            f"best of {row['n']}" + ("" if name == "reference" else ", pi_dpo"),
            _with_error(row["score"]),
            _with_error(row["kl_nats_per_completion"], 2),
            _wins(row["win_rate"]),
            _with_error(row["completion_tokens"], 1),
        )
        for name, rows in metrics.get("best_of", {}).get("models", {}).items()
        for row in rows
    ]


def _wins(wins: Json) -> str:
    error = "" if wins["standard_error"] is None else f" ± {100 * wins['standard_error']:.1f}"
    return f"{100 * wins['mean']:.1f}{error} %"


def _lines(metrics: Json) -> list[str]:
    difference = metrics["difference"]["score"]
    z = "" if difference["z"] is None else f", {difference['z']:+.1f} standard errors"
    lines = [
        *verdict_lines(metrics.get("verdict", "")),
        f"judge score: {metrics['judge']['unit']}, ± one standard error over "
        f"{difference['prompts']} held-out prompts",
        f"difference:  {difference['mean']:+.3f}{z} (paired by prompt)",
    ]
    kl = metrics["kl"]
    if kl["beta"] is not None:
        lines.append(
            f"beta:        {kl['beta']:g}, the price of a nat: KL "
            f"{kl['nats_per_completion']['mean']:.2f} costs {kl['beta_times_kl']:.2f} of reward; "
            "a larger beta keeps the policy nearer to pi_ref"
        )
    if kl["not_exact_because"]:
        lines.append(f"KL:          mean log-ratio, as {', '.join(kl['not_exact_because'])}")
    return [*lines, f"report:      {metrics['report']}"]


def _lines_alone(metrics: Json) -> list[str]:
    return [
        f"judge score: {metrics['judge']['unit']}, ± one standard error over "
        f"{metrics['reference']['score']['prompts']} held-out prompts",
        f"chosen by:   {', '.join(metrics['best_of']['chosen_by'])}",
        f"report:      {metrics['report']}",
    ]


def verdict_lines(verdict: str) -> list[str]:
    """Wrap a verdict for a terminal; a run of an earlier version has none."""
    lines = wrap(verdict, width=_WIDTH)
    return [f"{'' if number else 'verdict:':13}{line}" for number, line in enumerate(lines)]


def _with_error(estimate: Json, digits: int = 3) -> str:
    error = estimate["standard_error"]
    text = f"{estimate['mean']:.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"
