"""Render comparison.html and the comparison's table for a terminal.

The page is one file that loads nothing from elsewhere. Everything that a model or a person wrote
is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from raydpo.evaluation import plots
from raydpo.evaluation.comparable import EvaluatedRun
from raydpo.evaluation.page import render_page
from raydpo.evaluation.report import Cell, Figure, estimated, number, percent

Json = dict[str, Any]

_HASH: Final = re.compile(r"[0-9a-f]{40,}")
#: Name of a line of the table of runs, key in comparison.json, whether it is a share.
_LINES: Final = (
    ("judge score", "score", False),
    ("judge score of its reference", "reference_score", False),
    ("win rate against its reference", "win_rate_against_reference", True),
    ("the same at equal length", "length_controlled_win_rate_against_reference", True),
    ("KL (nats per completion)", "kl_nats_per_completion", False),
    ("completion length (tokens)", "completion_tokens", False),
    ("share at the token limit", "token_limit_share", True),
    ("repetition", "repetition_share", True),
)


def headline(comparison: Json) -> str:
    """Say in a sentence or two which run scores best, and by how much."""
    runs = sorted(comparison["runs"], key=lambda run: -run["score"]["mean"])
    best, second = runs[0], runs[1]
    pair = _pair(comparison, best["label"], second["label"])
    ends = ", ".join(number(end) for end in sorted(pair["ends"]))
    first = (
        f"On {comparison['prompts']['in_all_runs']} prompts {best['label']} has the highest judge "
        f"score, {number(best['score']['mean'])}; {second['label']} follows with "
        f"{number(second['score']['mean'])} (difference {number(pair['mean'])} [{ends}], "
        f"p = {p_value(pair['p_holm'])} after Holm)."
    )
    return f"{first} {_not_dominated(comparison)}"


def number_lines(comparison: Json) -> list[tuple[str, list[Cell]]]:
    """Return the lines of the table of runs: a name, and a cell for each run."""
    lines = [
        (name, [estimated(run[key], percent if share else number) for run in comparison["runs"]])
        for name, key, share in _LINES
    ]
    distinct = [Cell(percent(run["distinct_2"])) for run in comparison["runs"]]
    betas = [Cell("–" if run["beta"] is None else f"{run['beta']:g}") for run in comparison["runs"]]
    return [*lines, ("distinct-2", distinct), ("beta", betas)]


def pair_lines(comparison: Json) -> list[tuple[str, list[Cell]]]:
    """Return the lines of the table of pairs: the two runs, and a cell for each column."""
    found: list[tuple[str, list[Cell]]] = []
    for pair in comparison["pairs"]:
        score = pair["score_difference"]
        p = Cell(p_value(score["p"]), f"Holm {p_value(score['p_holm'])}")
        cells = [
            estimated(score, signed=True),
            p,
            estimated(pair["win_rate"], percent),
            estimated(pair["length_controlled_win_rate"], percent),
            estimated(pair["kl_nats_per_completion_difference"], signed=True),
            estimated(pair["completion_tokens_difference"], signed=True),
            Cell(*_dominance(pair)),
        ]
        found.append((f"{pair['first']} − {pair['second']}", cells))
    return found


def note_lines(comparison: Json) -> list[str]:
    """Return what a reader must know before trusting the comparison, in sentences."""
    total = comparison["prompts"]["in_all_runs"]
    dropped = {label: n for label, n in comparison["prompts"]["dropped"].items() if n}
    lost = ", ".join(f"{n} of {label}" for label, n in dropped.items())
    first = [f"{total} prompts are in all runs; not compared are {lost}."] if dropped else []
    few = (
        "With fewer than 20 prompts the intervals are too narrow; the p-values hold."
        if total < 20
        else ""
    )
    others = [
        f"{note['field']}: "
        + ", ".join(f"{label} has {shown(value)}" for label, value in note["values"].items())
        + f". {note['meaning'][0].upper()}{note['meaning'][1:]}."
        for note in comparison["notes"]
    ]
    return [*first, *([few] if few else []), *others]


def p_value(value: float) -> str:
    """Format a p-value; small ones by their bound."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def shown(value: Any) -> str:
    """Format a setting: text as it is, hashes by their beginning, everything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _HASH.sub(lambda found: found.group()[:12], text)


def draw_comparison(comparison: Json, runs: Sequence[EvaluatedRun]) -> list[Figure]:
    """Draw the figures, in the order of the page."""
    unit, comparable = comparison["judge"]["unit"], comparison["not_dominated"] is not None
    places = {r["label"]: (r["score"], r["kl_nats_per_completion"]) for r in comparison["runs"]}
    gaps = {f"{p['first']} − {p['second']}": p["score_difference"] for p in comparison["pairs"]}
    scores = {run.label: [s.score for s in run.policy] for run in runs}
    lengths = {run.label: [float(len(s.completion_ids)) for s in run.policy] for run in runs}
    curves = plots.curves_of_runs(comparison["curves"])
    training = (
        [
            Figure(
                "training",
                curves,
                "Training, step by step; steps of online rounds go on counting.",
                wide=True,
            )
        ]
        if curves
        else []
    )
    return [
        Figure("score_against_kl", plots.scores_against_kl(places, unit, comparable), "What each run gained, against how far its policy moved; bars are 95 % confidence intervals."),
        Figure("differences", plots.differences(gaps, unit), "Differences of judge scores, paired by prompt; bars are 95 % bootstrap intervals."),
        Figure("scores", plots.distributions(scores, f"judge score ({unit})"), "Judge scores of all completions; thin lines mark the means."),
        Figure("lengths", plots.distributions(lengths, "completion length (tokens)"), "Lengths of all completions, EOS included; thin lines mark the means."),
        *training,
    ]  # fmt: skip


def render_comparison(comparison: Json, figures: list[Figure]) -> str:
    """Render the page as one HTML document."""
    return render_page(
        "comparison.html.j2",
        c=comparison,
        headline=headline(comparison),
        notes=note_lines(comparison),
        lines=number_lines(comparison),
        pairs=pair_lines(comparison),
        figures=figures,
        samples=[_shown_samples(prompt) for prompt in comparison["samples"]],
        number=number,
        shown=shown,
    )


def comparison_text(comparison: Json) -> str:
    """Format the tables of runs and pairs, and the notes, for a terminal."""
    labels = [run["label"] for run in comparison["runs"]]
    runs = [["", *labels], *([n, *map(_flat, cells)] for n, cells in number_lines(comparison))]
    head = ["first − second", "judge score", "p", "win rate", "at equal length", "KL (nats)", "length (tokens)", "dominates"]  # fmt: skip
    pairs = [head, *([n, *map(_flat, cells)] for n, cells in pair_lines(comparison))]
    of_policies = [
        f"{run['label']}: {run['run']}, the policy of round {run['round']}"
        for run in comparison["runs"]
    ]
    resampling = comparison["resampling"]
    about = (
        f"{comparison['prompts']['in_all_runs']} prompts in all runs; judge score: "
        f"{comparison['judge']['unit']}; [95 % intervals] by prompt, of pairs from "
        f"{resampling['resamples']} bootstrap resamples with seed {resampling['seed']}"
    )
    notes = [f"note: {note}" for note in note_lines(comparison)]
    return "\n".join(
        [
            *of_policies,
            "",
            *_aligned(runs),
            "",
            *_aligned(pairs),
            "",
            about,
            *notes,
            headline(comparison),
        ]
    )


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def _flat(cell: Cell) -> str:
    return f"{cell.value} {cell.detail}".strip()


def _pair(comparison: Json, first: str, second: str) -> Json:
    """Return the difference of scores of two runs in the given order."""
    for pair in comparison["pairs"]:
        if {pair["first"], pair["second"]} == {first, second}:
            found, sign = pair["score_difference"], 1 if pair["first"] == first else -1
            ends = [sign * end for end in found["ci95"]]
            return {"mean": sign * found["mean"], "ends": ends, "p_holm": found["p_holm"]}
    raise AssertionError(f"{first} and {second} are compared")


def _not_dominated(comparison: Json) -> str:
    left = comparison["not_dominated"]
    if left is None:
        return "KL is measured from different models, so nobody dominates anybody."
    return f"No run has both a higher score and a smaller KL than {' or '.join(left)}."


def _dominance(pair: Json) -> tuple[str, str]:
    if pair["dominates"] is None:
        known = pair["kl_nats_per_completion_difference"] is not None
        return ("neither", "") if known else ("–", "")
    return pair["dominates"], "beyond chance" if pair["beyond_chance"] else "by the means only"


def _shown_samples(prompt: Json) -> Json:
    """Return a prompt with one sample of each run: the one nearest to the run's mean score on it."""
    chosen = {
        label: min(of["samples"], key=lambda s: abs(s["score"] - of["mean_score"]))
        for label, of in prompt["runs"].items()
    }
    return {**prompt, "chosen": chosen}
