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
#: Share of the processor time below which a process is not named.
_FEWEST_SHARE: Final = 0.02


def page(
    results: Results,
    setting: Setting,
    tuning: Tuning,
    trials: list[Trial],
    where: dict[str, Any],
) -> str:
    """The whole page; both sides have run at least once."""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    after = measured_rounds(setting)
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
        "two runs of one repeat, which follow each other; repeats begin with the other side. "
        f"Fewer rounds than {setting.rounds} are the first ones of the same runs, and the "
        "command's end.",
        "",
        *wall_table([r for n in after if (r := summary.ratio(results, n))]),
        "",
        f"- {said_of(summary.noises(results))}.",
        f"- Processor time, theirs / ours: {_median_and_range(summary.cpu_ratio(results), 2)}. "
        "Other work beside the runs stretches it less than the wall time.",
        "",
        "## Whether it is the same work",
        "",
        *work_table(results),
        "",
        *[judged_line(found) for n in after if (found := summary.judged(results, n))],
        "",
        "## Where the time goes",
        "",
        *phase_table(results, setting.rounds),
        *process_table(results, setting.rounds),
        "## The search for their settings",
        "",
        *search_table(trials, tuning),
        "",
    ]
    return "\n".join(lines)


def measured_rounds(setting: Setting) -> list[int]:
    """After how many rounds both sides are compared."""
    return sorted({1, setting.rounds})


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


def work_table(results: Results) -> list[str]:
    """What both sides did, and the memory and processor time that it took."""
    lines = [
        "| side | completions | pairs | steps | peak memory (PSS), MB | processor time, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for side in summary.SIDES:
        counts = summary.counts(results, side)
        each = " | ".join(
            ", ".join(map(str, counts[name])) for name in ("completions", "pairs", "steps")
        )
        peak = (summary.peak_bytes(results, side) or 0) / 1e6
        lines.append(f"| {side} | {each} | {peak:.0f} | {summary.cpu_seconds(results, side):.0f} |")
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
    """Where the wall time goes on both sides, in two tables."""
    lines: list[str] = []
    for side in summary.SIDES:
        lines += _shares(f"{rounds} round(s), {side}", summary.phases(results, side))
    return lines


def process_table(results: Results, rounds: int) -> list[str]:
    """Where the processor time goes on both sides, by process, in two tables."""
    lines: list[str] = []
    for side in summary.SIDES:
        seconds = summary.processes(results, side)
        lines += _shares(f"processor time of {rounds} round(s), {side}", seconds, _FEWEST_SHARE)
    return lines


def _shares(title: str, seconds: dict[str, float], least: float = 0.0) -> list[str]:
    """A table of seconds and shares; what is below the least share is one row."""
    total = sum(seconds.values())
    shown = {name: s for name, s in seconds.items() if s >= least * total}
    if len(shown) < len(seconds):
        shown[f"{len(seconds) - len(shown)} others"] = total - sum(shown.values())
    lines = [f"| {title} | s, median | share |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {s:.1f} | {s / total:.0%} |" for name, s in shown.items()]
    return [*lines, ""]


def search_table(trials: list[Trial], tuning: Tuning) -> list[str]:
    """What was tried: the seconds that decide are those of `search.Trial`."""
    lines = ["| process | change | s | stays |", "| --- | --- | ---: | --- |"]
    for trial in trials:
        change = ", ".join(f"{k} {v}" for k, v in trial.change.items()) or "as it begins"
        stays = "yes" if trial.kept else "no"
        lines.append(f"| {trial.process} | {change} | {trial.seconds:.1f} | {stays} |")
    chosen = ", ".join(f"{name} {value}" for name, value in tuning.as_json().items())
    return [*lines, "", f"Chosen: {chosen}."]


def _median_and_range(values: list[float], digits: int) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
