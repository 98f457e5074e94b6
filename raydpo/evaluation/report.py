"""Render report.html: one file for people, which loads nothing from anywhere else.

The metrics, the figures as PNG bytes, samples and counts give the HTML as text. Everything that a
model or a person wrote is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Final

from raydpo.core.storage import fingerprint
from raydpo.evaluation.page import render_page
from raydpo.evaluation.samples import Sample, samples_by_prompt

Json = dict[str, Any]
Show = Callable[[float | None], str]

#: Prompts in each of the two lists of changes.
_PROMPTS_SHOWN: Final = 5
#: Completions of each model that a prompt of these lists shows.
_COMPLETIONS_SHOWN: Final = 3
_GLOSSARY: Final = (
    ("policy, reference", "the trained model; the frozen model (pi_ref) that training started from."),
    ("judge score", "what the judge gives a completion; it is not the reward that made the labels unless the configuration names the same model twice."),
    ("training reward", "what the rewards that made the labels give the same completions; if it rises and the judge score does not, training has found what its reward likes and nobody else does (over-optimization)."),
    ("KL", "how far the policy has moved from the reference: the mean over the policy's own completions of the sum over tokens of log policy − log reference, in nats; 0 means the same distribution."),
    ("beta", "the price of that distance: DPO maximizes reward − beta × KL, so a larger beta keeps the policy nearer to the reference."),
    ("win rate", "how often a completion of the policy scores above one of the reference for the same prompt; every sample against every sample, a tie counts half; 50 % means no difference."),
    ("win rate at equal length", "the win rate that a logistic regression on the length difference gives where that difference is 0 (the length-controlled win rate of AlpacaEval 2); its interval is a bootstrap over prompts."),
    ("± and [ ]", "standard error; 95 % confidence interval: 1.96 standard errors to each side; of shares and probabilities Wilson's, which stays between 0 and 1. Prompts are the units, as completions of one prompt are not independent."),
    ("z", "the difference in standard errors, paired by prompt; beyond ±2 it is hardly chance."),
    ("held-out pairs", "preference pairs kept out of training; accuracy is the share whose chosen completion gained more probability than the rejected one, relative to the reference."),
    ("told apart", "in unpaired data: how often a held-out desirable completion gained more probability, relative to the reference, than an undesirable one; 50 % is chance."),
    ("distinct-2", "different bigrams of tokens over all bigrams of all completions; it collapses when all completions sound alike."),
    ("entropy", "how open the next token is: the mean over tokens of −log of the probability that the model gave to what it sampled, in nats; it falls when a model becomes certain of the same texts."),
    ("repetition", "share of a completion's bigrams that stood in it before; it rises when text loops."),
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A figure of the report: PNG content, what it shows, and the caption below it."""

    name: str
    png: bytes
    caption: str
    wide: bool = False

    @property
    def data_uri(self) -> str:
        """The PNG as a `data:` URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the report shows.

    Args:
        title: the run's name.
        metrics: the content of metrics.json, with its verdict.
        figures: in the order of the page.
        samples: completions to show, side by side.
        regressions: the prompts whose mean judge score fell most, the worst first.
        gains: the prompts whose mean judge score rose most, the largest first.
        counts: the counts of each stage, in the order of the pipeline.
        refusals: (stage, reason, rows) of all refused rows.
        facts: (name, value) lines about models and seeds.
        config_yaml: the resolved configuration.
    """

    title: str
    metrics: Json
    figures: list[Figure]
    samples: list[SamplePair]
    regressions: list[PromptChange]
    gains: list[PromptChange]
    counts: dict[str, dict[str, int]]
    refusals: list[tuple[str, str, int]]
    facts: list[tuple[str, str]]
    config_yaml: str


@dataclass(frozen=True)
class SamplePair:
    """The first completion of each model for one prompt."""

    prompt: str
    reference: Sample
    policy: Sample


@dataclass(frozen=True)
class PromptChange:
    """A prompt with the mean judge score of each model, and its first few completions of each."""

    prompt: str
    reference_mean: float
    policy_mean: float
    reference: list[Sample]
    policy: list[Sample]

    @property
    def change(self) -> float:
        """How much the mean judge score rose."""
        return self.policy_mean - self.reference_mean


@dataclass(frozen=True)
class Cell:
    """A value with its confidence interval in smaller type."""

    value: str = ""
    detail: str = ""


@dataclass(frozen=True)
class BestOfLine:
    """One N of Best-of-N, in a table of one sampled model."""

    n: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Line:
    """One line of the report's table of numbers."""

    name: str
    reference: Cell
    policy: Cell
    difference: Cell = Cell()
    strong: bool = False


def choose_samples(reference: list[Sample], policy: list[Sample], count: int) -> list[SamplePair]:
    """Return the first completions of `count` prompts, chosen by a hash of the prompt's id.

    So nobody selects them, and two runs on the same prompts show the same ones.
    """
    theirs = {s.prompt_id: s for s in reversed(reference)}
    ours = {s.prompt_id: s for s in reversed(policy)}
    shared = sorted(theirs.keys() & ours.keys(), key=fingerprint)
    return [SamplePair(theirs[p].prompt, theirs[p], ours[p]) for p in shared[:count]]


def most_changed(
    reference: list[Sample], policy: list[Sample]
) -> tuple[list[PromptChange], list[PromptChange]]:
    """Return the prompts whose mean judge score fell most, and those where it rose most.

    Each list starts with the largest change, and has no prompt that changed the other way. Only
    prompts with completions of both models count.
    """
    theirs, ours = samples_by_prompt(reference), samples_by_prompt(policy)
    changes = [_change(theirs[p], ours[p]) for p in sorted(theirs.keys() & ours.keys())]
    fell = sorted((c for c in changes if c.change < 0), key=lambda c: c.change)
    rose = sorted((c for c in changes if c.change > 0), key=lambda c: -c.change)
    return fell[:_PROMPTS_SHOWN], rose[:_PROMPTS_SHOWN]


def _change(reference: list[Sample], policy: list[Sample]) -> PromptChange:
    return PromptChange(
        reference[0].prompt,
        fmean(sample.score for sample in reference),
        fmean(sample.score for sample in policy),
        _first_few(reference),
        _first_few(policy),
    )


def _first_few(samples: list[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: sample.candidate)[:_COMPLETIONS_SHOWN]


def headline(metrics: Json) -> str:
    """Summarise the result in one sentence."""
    reference, policy = metrics["reference"]["score"], metrics["policy"]["score"]
    return (
        f"On {metrics['difference']['score']['prompts']} held-out prompts the judge score "
        f"{_verb(metrics['difference']['score'])} from {number(reference['mean'])} "
        f"to {number(policy['mean'])}{_in_errors(metrics['difference']['score'])}, at a KL of "
        f"{number(metrics['kl']['nats_per_completion']['mean'])} nats per completion; the policy "
        f"wins {percent(metrics['win_rate']['mean'])} of its comparisons with the reference."
    )


def render(inputs: ReportInputs) -> str:
    """Render the report as one HTML document."""
    return render_page(
        "report.html.j2",
        inputs=inputs,
        headline=headline(inputs.metrics),
        lines=number_lines(inputs.metrics),
        slices=slice_lines(inputs.metrics),
        price=price(inputs.metrics["kl"]),
        best_of=best_of_lines(inputs.metrics),
        glossary=_GLOSSARY,
        counts=count_lines(inputs.counts),
        number=number,
    )


def number_lines(metrics: Json) -> list[Line]:
    """Return the lines of the table of numbers."""
    return [*_score_lines(metrics), *_distance_lines(metrics), *_text_lines(metrics),
            *_heldout_lines(metrics["heldout"]), *_judged_lines(metrics["heldout_judged"])]  # fmt: skip


def best_of_lines(metrics: Json) -> dict[str, list[BestOfLine]]:
    """Return the lines of Best-of-N by sampled model; empty if it was not measured."""
    models: dict[str, list[Json]] = metrics.get("best_of", {}).get("models", {})
    return {name: [_best_of_line(row) for row in rows] for name, rows in models.items()}


def _best_of_line(row: Json) -> BestOfLine:
    return BestOfLine(
        f"{row['n']}",
        (
            estimated(row["score"]),
            estimated(row["win_rate"], percent),
            estimated(row["tied_share"], percent),
            estimated(row["kl_nats_per_completion"]),
            Cell(number(row["kl_bound_nats"])),
            estimated(row["reward"]),
            estimated(row["completion_tokens"]),
        ),
    )


def slice_lines(metrics: Json) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    """Return the lines of the table of slices: what they are by, and of each slice its cells."""
    found: dict[str, list[tuple[str, list[Cell]]]] = {}
    for one in metrics.get("slices", {}).get("slices", ()):
        cells = [
            Cell(str(one["prompts"])),
            estimated(one["reference_score"]),
            estimated(one["policy_score"]),
            _difference(one["difference"]),
            estimated(one["win_rate"], percent),
            estimated(one["kl_nats_per_completion"]),
        ]
        found.setdefault(one["by"], []).append((one["slice"], cells))
    return list(found.items())


def price(kl: Json) -> str:
    """Describe the effect of beta in a sentence; empty if the configuration has no training."""
    if kl["beta"] is None:
        return ""
    return (
        f"DPO trades reward for distance from the reference at the price beta = {kl['beta']:g}: "
        f"the KL of {number(kl['nats_per_completion']['mean'])} nats costs "
        f"{number(kl['beta_times_kl'])} of reward. A larger beta keeps the policy nearer to the "
        "reference."
    )


def number(value: float | None) -> str:
    """Format a number with three significant digits and no exponent; a dash if unknown."""
    if value is None:
        return "–"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    # It is rounded first, so that -0.0001 is not shown as -0.000.
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """Format a share as a percentage."""
    return "–" if value is None else f"{100 * value:.1f} %"


def estimated(estimate: Json | None, show: Show = number, signed: bool = False) -> Cell:
    """Format an estimate with its 95 % interval."""
    if estimate is None:
        return Cell("–")
    value = ("+" if signed and estimate["mean"] > 0 else "") + show(estimate["mean"])
    value = value.replace("-", "−")
    if estimate["ci95"] is None:
        return Cell(value)
    low, high = (show(end).removesuffix(" %").replace("-", "−") for end in estimate["ci95"])
    return Cell(value, f"[{low}, {high}]")


def _score_lines(metrics: Json) -> list[Line]:
    reference, policy, judge = metrics["reference"], metrics["policy"], metrics["judge"]
    lines = [
        Line(
            f"judge score ({judge['unit']})",
            estimated(reference["score"]),
            estimated(policy["score"]),
            _difference(metrics["difference"]["score"]),
            strong=True,
        )
    ]
    if len(judge["scorers"]) > 1:
        lines += [
            Line(
                f"of which {name}",
                estimated(reference["score_by_judge"][name]),
                estimated(policy["score_by_judge"][name]),
            )
            for name in judge["scorers"]
        ]
    lines += _reward_lines(metrics.get("training_reward"))
    wins = estimated(metrics["win_rate"], percent)
    lines.append(Line("win rate against the reference", Cell("50 %"), wins, strong=True))
    equal = estimated(metrics["length_controlled_win_rate"], percent)
    return [*lines, Line("win rate at equal length", Cell("50 %"), equal)]


def _reward_lines(found: Json | None) -> list[Line]:
    """Return the lines of the rewards that made the labels: the sum, and each where it differs."""
    if found is None:
        return []
    if found["sum"] is None:
        return [Line("training reward", Cell("–", found["missing_because"]), Cell())]
    parts = found["components"]
    lines = [_compared_line(f"training reward ({found['sum']['unit']})", found["sum"])]
    if len(parts) != 1 or parts[0]["weight"] != 1:
        lines += [
            _compared_line(f"of which {p['weight']:g} × {p['name']} ({p['unit']})", p)
            for p in parts
        ]
    return lines


def _compared_line(name: str, found: Json) -> Line:
    sides = estimated(found["reference"]), estimated(found["policy"])
    return Line(name, *sides, _difference(found["difference"]))


def _difference(estimate: Json) -> Cell:
    cell = estimated(estimate, signed=True)
    z = estimate["z"]
    return cell if z is None else Cell(cell.value, f"{cell.detail} z = {z:.1f}".replace("-", "−"))


def _distance_lines(metrics: Json) -> list[Line]:
    completion, token = metrics["kl"]["nats_per_completion"], metrics["kl"]["nats_per_token"]
    return [
        Line("KL (nats per completion)", Cell("0"), estimated(completion), strong=True),
        Line("KL (nats per token)", Cell("0"), estimated(token)),
    ]


def _text_lines(metrics: Json) -> list[Line]:
    reference, policy = metrics["reference"], metrics["policy"]

    def line(name: str, key: str, show: Show, difference: Cell = Cell()) -> Line:
        return Line(name, estimated(reference[key], show), estimated(policy[key], show), difference)

    longer = _difference(metrics["difference"]["completion_tokens"])
    different = Cell(percent(reference["distinct_2"])), Cell(percent(policy["distinct_2"]))
    checks = {check["name"]: check for check in metrics.get("checks", ())}
    return [
        line("completion length (tokens)", "completion_tokens", number, longer),
        line("ended before the token limit", "finished_share", percent),
        *_limit_line(checks.get("share at the token limit")),
        line("repetition", "repetition_share", percent, _points(checks.get("repetition"))),
        Line("distinct-2", *different, _points(checks.get("distinct-2"))),
        *_entropy_line(metrics),
    ]


def _entropy_line(metrics: Json) -> list[Line]:
    """Return the line of the entropy, if the samplers gave log-probs."""
    key = "entropy_nats_per_token"
    difference = metrics["difference"][key]
    if difference is None:
        return []
    before, after = (estimated(metrics[side][key]) for side in ("reference", "policy"))
    return [Line("entropy (nats per token)", before, after, _difference(difference))]


def _limit_line(check: Json | None) -> list[Line]:
    """Return the line of the completions that met the token limit, if they were counted."""
    if check is None:
        return []
    values = Cell(percent(check["reference"])), Cell(percent(check["policy"]))
    return [Line("share at the token limit", *values, _points(check))]


def _points(check: Json | None) -> Cell:
    """Format the difference of two shares in percentage points; empty without the check."""
    if check is None:
        return Cell()
    cell = estimated(check["difference"], percent, signed=True)
    return replace(cell, value=cell.value.replace(" %", " points"))


def _heldout_lines(heldout: Json | None) -> list[Line]:
    if heldout is None:
        return []
    pairs = heldout["accuracy"]["observations"]
    margin, reward = heldout["logratio_margin_nats"], heldout["reward_margin"]
    lines = [
        Line(
            f"accuracy on {pairs} held-out pairs",
            Cell("50 %"),
            estimated(heldout["accuracy"], percent),
        ),
        Line("log-ratio margin on them (nats)", Cell("0"), estimated(margin)),
    ]
    if reward:
        lines.append(Line("implicit reward margin (beta × nats)", Cell("0"), estimated(reward)))
    return lines


def _judged_lines(judged: Json | None) -> list[Line]:
    if judged is None:
        return []
    counts = f"{judged['desirable']} desirable, {judged['undesirable']} undesirable"
    lines = [
        Line(
            f"held-out completions told apart ({counts})",
            Cell("50 %"),
            estimated(judged["separation"], percent),
        ),
        Line(
            "log-ratio, desirable minus undesirable (nats)",
            Cell("0"),
            estimated(judged["logratio_difference_nats"]),
        ),
    ]
    if judged["reward_difference"]:
        reward = estimated(judged["reward_difference"])
        lines.append(Line("implicit reward, the same (beta × nats)", Cell("0"), reward))
    return lines


def _verb(difference: Json) -> str:
    if difference["z"] is None or abs(difference["z"]) < 2:
        return "did not change measurably:" if difference["mean"] else "stayed the same:"
    return "rose" if difference["mean"] > 0 else "fell"


def _in_errors(difference: Json) -> str:
    if difference["z"] is None:
        return ""
    sign = "+" if difference["mean"] > 0 else ""
    return f" ({sign}{number(difference['mean'])}, {abs(difference['z']):.1f} standard errors)"


def count_lines(counts: dict[str, dict[str, int]]) -> list[tuple[str, list[str], str]]:
    """Return for each stage its name, the counts common to all stages, and the others in words."""
    main = ("input", "output", "quarantined")
    return [
        (
            stage.replace("_", " "),
            [str(values.get(name, "")) for name in main],
            ", ".join(
                f"{name.replace('_', ' ')} {count}"
                for name, count in values.items()
                if name not in main
            ),
        )
        for stage, values in counts.items()
    ]
