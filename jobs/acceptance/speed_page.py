"""Write up the speed measurements: targets, a table of contenders, and where time went.

Results of tasks, as JSON has them, become Markdown. Contenders that did not compute the same
losses are not compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Results of tasks, by name.
Results = dict[str, dict[str, Any]]
#: How far the first losses of contenders may differ, relative: they compute in bfloat16.
LOSS_TOLERANCE = 2e-2
DRY_RUN = (
    "**This is a dry run with small shapes. It shows that the command works; "
    "none of its numbers says how fast a GPU is.**"
)
_SPEED_COLUMNS = (
    "scenario",
    "contender",
    "step s",
    "tokens/s",
    "groups/s",
    "pairs/s",
    "MFU",
    "peak GB",
    "its time / ours",
)


@dataclass(frozen=True)
class Aim:
    """A number that the project wants to reach.

    Attributes:
        says: what is wanted, for readers.
        least: the smallest number that reaches it.
        measured: the number, or None where it was not measured.
    """

    says: str
    least: float
    measured: Callable[[list[dict[str, Any]]], float | None]


def speed_rows(results: Results) -> list[dict[str, Any]]:
    """Values of all tasks that measured a contender."""
    found = (result.get("values", {}) for result in results.values())
    return [values for values in found if "scenario" in values]


def row_of(rows: list[dict[str, Any]], scenario: str, contender: str) -> dict[str, Any] | None:
    """The measurement of a contender on a scenario."""
    wanted = (scenario, contender)
    return next((r for r in rows if (r["scenario"], r["contender"]) == wanted), None)


def times_ours(rows: list[dict[str, Any]], row: dict[str, Any]) -> float | str | None:
    """A contender's time over that of our step, or why the two cannot be compared."""
    ours = next((r for r in rows if r["scenario"] == row["scenario"] and _is_ours(r)), None)
    if ours is None or "step_seconds" not in row or "step_seconds" not in ours:
        return None
    for a, b in zip(ours["losses"], row["losses"], strict=False):
        if not abs(a - b) <= LOSS_TOLERANCE * abs(a):
            return f"losses differ: {a:.4g}, {b:.4g}"
    return row["step_seconds"] / ours["step_seconds"]


def aims() -> list[Aim]:
    """All aims, in the order of the page."""
    found: list[Aim] = []
    for model in ("1B", "3B"):
        case = f"{model}, K = 2"
        found += [
            Aim(f"{case}: 2.5 times TRL as it comes", 2.5, _ratio(case, "trl_stock")),
            Aim(f"{case}: 1.5 times TRL's best setting", 1.5, _ratio(case, "trl_best")),
            Aim(f"{case}: 40 % MFU", 0.4, _number(case, "raydpo", "mfu")),
        ]
    lora = "8B LoRA, K = 2"
    found.append(Aim(f"{lora}: 40 % MFU", 0.4, _number(lora, "raydpo_lora", "mfu")))
    longest = "8B LoRA, groups of 16,384 tokens"
    fits = _number(longest, "raydpo_lora", "fits")
    return [*found, Aim(f"{longest}: they fit into 80 GB (1 is yes)", 1.0, fits)]


def aims_table(rows: list[dict[str, Any]], dry_run: bool) -> list[str]:
    """A line for each aim: met, missed, or not measured; a dry run measures none."""
    lines = ["| aim | measured | |", "| --- | ---: | --- |"]
    for aim in aims():
        value = None if dry_run else aim.measured(rows)
        if value is None:
            lines.append(f"| {aim.says} | | not measured |")
        else:
            verdict = "met" if value >= aim.least else "missed"
            lines.append(f"| {aim.says} | {value:.2f} | {verdict} |")
    return lines


def speed_table(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each contender on each scenario; scenarios stand together."""
    names = list(dict.fromkeys(row["scenario"] for row in rows))
    lines = [_line(_SPEED_COLUMNS), _line(["---"] * 2 + ["---:"] * (len(_SPEED_COLUMNS) - 2))]
    for row in sorted(rows, key=lambda row: names.index(row["scenario"])):
        ratio = times_ours(rows, row)
        mfu = row.get("mfu")
        cells = [row["scenario"], f"`{row['contender']}`"]
        cells += [_cell(row.get(name)) for name in ("step_seconds", "tokens_per_second")]
        cells += [_cell(row.get(name)) for name in ("groups_per_second", "pairs_per_second")]
        cells.append("" if mfu is None else f"{100 * mfu:.1f} %")
        cells.append(_cell(row.get("peak_gigabytes")))
        cells.append(ratio if isinstance(ratio, str) else _cell(ratio))
        lines.append(_line(cells))
    return lines


def kernel_table(rows: list[dict[str, Any]]) -> list[str]:
    """Fractions of a profiled step by family of kernels; nothing where none was profiled."""
    profiled = [row for row in rows if "kernels" in row]
    if not profiled:
        return []
    families = list(profiled[0]["kernels"])
    lines = [_line(["scenario", *families]), _line(["---"] + ["---:"] * len(families))]
    for row in profiled:
        shares = [f"{100 * row['kernels'][family]:.0f} %" for family in families]
        lines.append(_line([f"{row['scenario']} `{row['contender']}`", *shares]))
    return lines


def speed_section(results: Results, dry_run: bool) -> list[str]:
    """Everything about speed, for the page.

    Args:
        results: of this card, these versions and this source.
        dry_run: the shapes were small ones.
    """
    rows = speed_rows(results)
    lines = ["## Speed and memory", "", *aims_table(rows, dry_run), ""]
    if not rows:
        return lines
    products = [row["product_teraflops"] for row in rows if "product_teraflops" in row]
    best = f"{max(products):.3g} TFLOP/s" if products else "not measured"
    lines += [
        "MFU is useful operations a second over those of a bfloat16 matrix product, which is "
        f"measured beside each contender (the best: {best}). Useful is what no step can do "
        "without: each prompt once, each completion once, nothing recomputed. Tokens are counted "
        "likewise. A step is the contender's whole loop.",
        "",
        *speed_table(rows),
        "",
        *(f"- `{name}`: {says}." for name, says in _contenders(rows).items()),
        "",
    ]
    if kernels := kernel_table(rows):
        lines += ["Shares of one profiled step, on the device:", "", *kernels, ""]
    return lines


def summary(values: dict[str, Any]) -> str:
    """One measurement in one line, for the console."""
    names = ("step_seconds", "tokens_per_second", "mfu", "peak_gigabytes")
    return "; ".join(f"{name} {_cell(values[name])}" for name in names if name in values)


def _ratio(scenario: str, contender: str) -> Callable[[list[dict[str, Any]]], float | None]:
    def measured(rows: list[dict[str, Any]]) -> float | None:
        row = row_of(rows, scenario, contender)
        ratio = None if row is None else times_ours(rows, row)
        return ratio if isinstance(ratio, float) else None

    return measured


def _number(
    scenario: str, contender: str, name: str
) -> Callable[[list[dict[str, Any]]], float | None]:
    def measured(rows: list[dict[str, Any]]) -> float | None:
        row = row_of(rows, scenario, contender)
        value = None if row is None else row.get(name)
        return None if value is None else float(value)

    return measured


def _is_ours(row: dict[str, Any]) -> bool:
    return row["contender"] in ("raydpo", "raydpo_lora", "score_raydpo")


def _contenders(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["contender"]: row["says"] for row in rows if "says" in row}


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
