"""The page of the benchmark of rounds, in Markdown, from what is measured so far."""

from __future__ import annotations

import statistics
from typing import Any, Final

from benchmark.machine import said_of

from . import summary
from .search import Trial
from .setting import Setting, Tuning
from .summary import Judged, Ratio, Results

#: What the ratio of wall times shall reach, by rounds.
TARGETS: Final = {1: 1.5, 3: 3.0}


def page(
    results: Results,
    setting: Setting,
    tuning: Tuning,
    trials: list[Trial],
    rounds: tuple[int, ...],
    where: dict[str, Any],
) -> str:
    """The whole page."""
    measured = [n for n in rounds if summary.repeats_of(results, n)]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines = [
        "# Online rounds against the loop that people write",
        "",
        f"Written by `{where['command']}` on {where['date']}; do not edit.",
        "",
        f"- {where['processor']}, {where['cpus']} CPUs; Python {where['python']}, {versions}.",
        f"- Work: {setting.prompts_per_round} prompts a round, K = {setting.candidates}, all pairs "
        f"whose rewards differ by more than {setting.min_margin:g}, DPO with beta "
        f"{setting.beta:g}, {setting.epochs} epochs of {setting.groups_per_step} prompts a step, "
        f"AdamW at {setting.learning_rate:g} with a cosine, float32.",
        f"- Ours: `raydpo online`, {where['workers']} train worker(s).",
        "- Theirs: vLLM's offline `LLM`, a transformers pipeline, TRL's `DPOTrainer`, a process "
        "each, in each round; settings of the search below.",
        "- Both: from the command to the finished policy, without evaluation. A ratio is of the "
        "two runs of one repeat, which follow each other; repeats begin with the other side.",
        "",
        *wall_table([r for n in measured if (r := summary.ratio(results, n))]),
        "",
        *[f"- {n} round(s): {said_of(summary.noises(results, n))}." for n in measured],
        "",
        "## Whether it is the same work",
        "",
        *work_table(results, measured),
        "",
        *[judged_line(found) for n in measured if (found := summary.judged(results, n))],
        "",
        "## Where the time goes",
        "",
        *[line for n in measured for line in phase_table(results, n)],
        "## The search for their settings",
        "",
        *search_table(trials, tuning),
        "",
    ]
    return "\n".join(lines)


def wall_table(ratios: list[Ratio]) -> list[str]:
    """Wall times of both sides."""
    lines = [
        "| rounds | repeats | ours, s | theirs, s | theirs / ours, median (range) | target |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in ratios:
        ours, theirs = (_median_and_range(values, 0) for values in (one.ours, one.theirs))
        target = TARGETS.get(one.rounds)
        lines.append(
            f"| {one.rounds} | {len(one.each)} | {ours} | {theirs} | "
            f"{_median_and_range(one.each, 2)} | {target if target else ''} |"
        )
    return lines


def work_table(results: Results, rounds: list[int]) -> list[str]:
    """What both sides did, and the memory that it took."""
    lines = [
        "| rounds | side | completions | pairs | steps | peak memory (PSS), MB |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for n in rounds:
        for side in summary.SIDES:
            counts = summary.counts(results, n, side)
            each = " | ".join(
                ", ".join(map(str, counts[name])) for name in ("completions", "pairs", "steps")
            )
            peak = summary.peak_bytes(results, n, side)
            lines.append(f"| {n} | {side} | {each} | {peak / 1e6 if peak else 0:.0f} |")
    return lines


def judged_line(found: Judged) -> str:
    """Whether both sides learned the same."""
    verdict = "the same within the error" if found.same else "NOT the same: ratios do not count"
    return (
        f"- After {found.rounds} round(s) the judge gives {found.ours:.3f} (ours) and "
        f"{found.theirs:.3f} (theirs), {found.original:.3f} before: {found.difference:+.3f} ± "
        f"{found.standard_error:.3f} over {found.repeats} repeat(s), {verdict}."
    )


def phase_table(results: Results, rounds: int) -> list[str]:
    """Where the time goes on both sides, in two tables."""
    lines: list[str] = []
    for side in summary.SIDES:
        seconds = summary.phases(results, rounds, side)
        total = sum(seconds.values())
        lines += [f"| {rounds} round(s), {side} | s, median | share |", "| --- | ---: | ---: |"]
        lines += [f"| {name} | {s:.1f} | {s / total:.0%} |" for name, s in seconds.items()]
        lines.append("")
    return lines


def search_table(trials: list[Trial], tuning: Tuning) -> list[str]:
    """What was tried."""
    lines = ["| process of round 0, one epoch | change | s | stays |", "| --- | --- | ---: | --- |"]
    for trial in trials:
        change = ", ".join(f"{k} {v}" for k, v in trial.change.items()) or "as it begins"
        stays = "yes" if trial.kept else "no"
        lines.append(f"| {trial.process} | {change} | {trial.seconds:.1f} | {stays} |")
    chosen = ", ".join(f"{name} {value}" for name, value in tuning.as_json().items())
    return [*lines, "", f"Chosen: {chosen}."]


def _median_and_range(values: list[float], digits: int) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
