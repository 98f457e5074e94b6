"""Render inspection.html and the lines for a terminal, and write the page with its JSON file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from raydpo.core.storage import Folder
from raydpo.evaluation import inspection_plots as plots
from raydpo.evaluation.page import render_page
from raydpo.evaluation.report import Figure, number, percent

Json = dict[str, Any]

PAGE_FILE: Final = "inspection.html"
JSON_FILE: Final = "inspection.json"

_GLOSSARY: Final = (
    ("[ ]", "95 % confidence interval. Prompts are the units, as pairs of one prompt are not independent. Intervals of words and of formatting are wider: all of a table hold together (Bonferroni)."),
    ("one side alone", "one completion of the pair has the property, and the other one lacks it. Only such pairs can tell chosen from rejected."),
    ("rule of lengths, rule of words", "what a model can learn from lengths or words alone: the rule is learned on a part of the prompts, and the others say how often it is right. 50 % is chance."),
    ("z", "the log-odds ratio of a term with an informative Dirichlet prior, in standard errors (Monroe, Colaresi and Quinn 2008)."),
    ("nearly", "an estimated resemblance of 0.8 or more: the Jaccard index of the runs of three words, by MinHash (Broder 1997)."),
    ("clean, look, bad", "whether a number is within its limits, which stand beside it. They are rules of thumb: `look` asks for a person's opinion, and no limit stops a run unless the job sets it in `inspect`."),
)  # fmt: skip
_FIGURES: Final[dict[str, tuple[Callable[[Json], bytes | None], str]]] = {
    "length": (plots.lengths_of_pairs, "Lengths of chosen and rejected completions, and how often the longer one is chosen; bars are 95 % intervals by pair."),
    "words": (plots.terms_of_sides, "The most certain signs of both sides; circles are signs of chosen, squares of rejected completions."),
    "formatting": (plots.sides_of_formats, "How often the completion that has a property alone is the chosen one."),
    "margins": (plots.margins_of_pairs, "Margins of the pairs; the end bins hold what lies outside."),
    "rewards": (plots.rewards_by_prompt, "Rewards of all completions, and their means by prompt."),
}  # fmt: skip


def write_inspection(folder: Folder, inspection: Json) -> None:
    """Write inspection.json and inspection.html into a folder."""
    folder.write_json(JSON_FILE, inspection)
    folder.write_bytes(PAGE_FILE, render_inspection(inspection).encode("utf-8", "replace"))


def render_inspection(inspection: Json) -> str:
    """Render the page as one HTML document."""
    return render_page(
        "inspection.html.j2",
        c=inspection,
        figures={item["name"]: _figure_of(item) for item in inspection["items"]},
        glossary=_GLOSSARY,
        shown=_shown,
    )


def inspection_text(inspection: Json) -> str:
    """Format the verdicts for a terminal; the headline comes last."""
    width = max(len(item["title"]) for item in inspection["items"])
    lines = [
        f"{item['verdict']:12}  {item['title']:{width}}  {item['says']}"
        for item in inspection["items"]
    ]
    of = f"{inspection['rows']:,} rows, {inspection['pairs']:,} pairs"
    notes = [f"note: {note}" for note in inspection["notes"]]
    return "\n".join([*lines, *notes, f"{inspection['name']} ({of}): {inspection['headline']}"])


def _figure_of(item: Json) -> Figure | None:
    """Draw the figure of an item; None where it has none, or nothing to draw."""
    if item["name"] not in _FIGURES or not item["plot"]:
        return None
    draw, caption = _FIGURES[item["name"]]
    png = draw(item["plot"])
    wide = item["name"] != "margins"
    return Figure(item["name"], png, caption, wide) if png is not None else None


def _shown(one: Json) -> tuple[str, str]:
    """Return a number of an item as text, and its interval."""
    show: Callable[[float | None], str] = percent if one["unit"] == "share" else number
    if one["unit"] in ("terms", "prompts"):
        return f"{int(one['value']):,}", ""
    value = show(one["value"])
    if one["unit"] not in ("share", "r", "alpha"):
        value = f"{value} {one['unit']}"
    interval = one["interval"]
    return value, "" if interval is None else f"[{show(interval[0])}, {show(interval[1])}]"
