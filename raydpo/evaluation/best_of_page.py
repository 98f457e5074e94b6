"""Render the report of Best-of-N of a reference, for a job that trains nothing.

The numbers, figures and counts give one HTML page, which loads nothing from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from raydpo.evaluation.page import render_page
from raydpo.evaluation.report import Figure, best_of_lines, count_lines, number, percent

Json = dict[str, Any]

#: What the figure of Best-of-N shows.
BEST_OF_CAPTION: Final = (
    "Best of N of the reference's completions by reward, judged, against its KL; numbers are N, "
    "bars are 95 % confidence intervals."
)
_GLOSSARY: Final = (
    ("reference", "the model that is sampled (pi_ref); nothing was trained."),
    ("best of N", "of N completions for a prompt, the one with the highest reward of `labeling`."),
    ("judge score", "what the judge gives a completion; it is not the reward that chooses unless the configuration names the same model twice."),
    ("win rate", "how often the chosen completion scores above another sample of the reference for the same prompt, drawn with other seeds; a tie counts half."),
    ("KL", "how far Best-of-N's distribution is from the model's, in nats per completion."),
    ("[ ]", "95 % confidence interval: 1.96 standard errors to each side; of shares and probabilities Wilson's, which stays between 0 and 1. Prompts are the units."),
)  # fmt: skip


@dataclass(frozen=True)
class ReferencePage:
    """Everything that the page shows; see `ReportInputs`."""

    title: str
    metrics: Json
    figures: list[Figure]
    counts: dict[str, dict[str, int]]
    refusals: list[tuple[str, str, int]]
    facts: list[tuple[str, str]]
    config_yaml: str


def render_reference(inputs: ReferencePage) -> str:
    """Render the page as one HTML document."""
    return render_page(
        "reference.html.j2",
        inputs=inputs,
        headline=_headline(inputs.metrics),
        best_of=best_of_lines(inputs.metrics),
        glossary=_GLOSSARY,
        counts=count_lines(inputs.counts),
    )


def _headline(metrics: Json) -> str:
    reference, last = metrics["reference"]["score"], metrics["best_of"]["models"]["reference"][-1]
    return (
        f"On {reference['prompts']} held-out prompts the reference's completions have a judge "
        f"score of {number(reference['mean'])}, and the best of {last['n']} by reward "
        f"{number(last['score']['mean'])}, at a KL of "
        f"{number(last['kl_nats_per_completion']['mean'])} nats per completion; it wins "
        f"{percent(last['win_rate']['mean'])} of its comparisons with the reference."
    )
