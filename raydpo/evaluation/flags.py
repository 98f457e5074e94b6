"""Say whether a policy's judge score rose, and what speaks against shipping it.

Samples of both models and the numbers of `evaluation/measure.py` give one verdict line and a list of
checks, flagged or not. A score alone would let a policy pass that repeats what its reward likes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from raydpo.core.cut_counts import cut_warnings
from raydpo.core.position_bias import position_lines
from raydpo.evaluation import metrics
from raydpo.evaluation.metrics import Estimate
from raydpo.evaluation.report import number, percent
from raydpo.evaluation.samples import Sample
from raydpo.evaluation.verdict_words import BEYOND_CHANCE, TOO_FEW, against, judged, moved

Json = dict[str, Any]

#: Repetition is flagged from this rise on, as a share of bigrams: a reader sees such loops.
REPETITION_RISE: Final = 0.1
#: It is also flagged if it grew by this factor, because a doubling of a small share is a trend.
REPETITION_GROWTH: Final = 1.5
#: Below this rise the growth does not count, because a share near 0 doubles by a few bigrams.
REPETITION_LEAST_RISE: Final = 0.02
#: Distinct-2 is flagged below this part of the reference's: a quarter of the variety is lost.
DISTINCT_2_LEFT: Final = 0.75
#: Entropy is flagged below this part of the reference's: at a half, a choice between 9 likely tokens
#: has become one between 3, so that sampling again gives the same texts.
ENTROPY_LEFT: Final = 0.5
#: Length is flagged above this growth: sampling costs as much more, and judges often like length.
LENGTH_GROWTH: Final = 1.2
#: The share at the token limit is flagged from this rise on: so many more texts have no end. It is
#: the share from which on the report says that a stage cut texts.
LIMIT_RISE: Final = 0.05
#: KL is flagged above so many nats a token: the policy's own text is then e^30 times less probable
#: under the reference over 100 tokens, so the reference says little about it.
KL_NATS_PER_TOKEN: Final = 0.3


@dataclass(frozen=True)
class Check:
    """One measurement that may speak against a policy.

    Args:
        name: what is measured.
        unit: of the values.
        reference: the reference's value; None if it has none.
        policy: the policy's value.
        difference: policy minus reference with its 95 % interval, in the format of metrics.json.
        flagged: whether it speaks against the policy.
        text: the finding in words, with values, difference and interval.
    """

    name: str
    unit: str
    reference: float | None
    policy: float | None
    difference: Json | None
    flagged: bool
    text: str


def examine(
    found: Json, reference: list[Sample], policy: list[Sample], counts: dict[str, dict[str, int]]
) -> Json:
    """Return what metrics.json says in addition to the numbers: `verdict`, and what is behind it.

    Args:
        found: the result of `measure` on the same samples.
        reference: completions of the reference.
        policy: completions of the policy.
        counts: counts of the stages.
    """
    checks = [check for check in _checks(found, reference, policy) if check is not None]
    objections = [check.text for check in checks if check.flagged]
    return {
        "verdict": _verdict(found["difference"]["score"], objections),
        "speaks_against_it": objections,
        "checks": [asdict(check) for check in checks],
        "notes": [*_notes(found), *_reward_notes(found), *_stage_notes(counts)],
    }


def _verdict(score: Json, objections: list[str]) -> str:
    z, change = score["z"], score["mean"]
    errors = "" if z is None else f", {abs(z):.1f} standard errors"
    by = f" by {number(abs(change))}{size_interval(score)}{errors}" if change else ""
    clear = "" if objections else " Nothing that was checked speaks against the policy."
    verb = moved(change) if change else "did not move"
    return (
        f"{judged(z or 0.0, objections)}: the judge score on {score['prompts']} held-out prompts "
        f"{verb}{by}.{against(objections)}{clear}"
    )


def _checks(found: Json, reference: list[Sample], policy: list[Sample]) -> tuple[Check | None, ...]:
    sides = _ids(policy), _prompts(policy), _ids(reference), _prompts(reference)
    return (
        _score(found),
        _judge(found["judge"]),
        _training_reward(found),
        _equal_length(found["win_rate"], found["length_controlled_win_rate"]),
        _slices(found.get("slices")),
        _repetition(found, metrics.repetition_difference(*sides)),
        _distinct_2(found, metrics.distinct_2_difference(*sides)),
        _entropy(found),
        _length(found),
        _at_limit(reference, policy),
        _kl(found["kl"]["nats_per_token"]),
    )


def _score(found: Json) -> Check:
    before, after = (found[side]["score"]["mean"] for side in ("reference", "policy"))
    difference = found["difference"]["score"]
    z, unit = difference["z"], found["judge"]["unit"]
    unknown = z is None and bool(difference["mean"])
    words = judged(z or 0.0, ())
    text = {
        "Training helped": "the judge score rose by more than two standard errors",
        "Training did harm": "the reference has the better judge score",
    }.get(words, TOO_FEW if unknown else "the judge score changed by less than two standard errors")
    return Check("judge score", unit, before, after, difference, words != "Training helped", text)


def _judge(judge: Json) -> Check:
    same = judge["made_the_labels"]
    text = (
        "the judge is also the reward that made the labels, so its score says how well training "
        "followed it, and not whether completions are better: take an independent judge for that"
        if same
        else "the judge is another one than the reward that made the labels"
    )
    return Check("independent judge", "", None, None, None, same, text)


def _training_reward(found: Json) -> Check | None:
    """Compare the rise of the reward that made the labels with that of the judge's score."""
    summed = found.get("training_reward", {}).get("sum")
    if summed is None:
        return None
    difference = summed["difference"]
    before, after = (summed[side]["mean"] for side in ("reference", "policy"))
    change = (
        f"{_from_to(before, after, number)} ({_signed(difference['mean'])}{_interval(difference)})"
    )
    words = _against_the_judge(difference["z"], found["difference"]["score"]["z"])
    same = found["judge"]["made_the_labels"]
    flagged = bool(words) and not same
    text = f"{words}: {change}" if flagged else f"the reward that made the labels went {change}"
    unit = summed["unit"]
    return Check("training reward", unit, before, after, difference, flagged, text)


def _against_the_judge(reward_z: float | None, judge_z: float | None) -> str:
    """Return in words what is odd about these two changes; empty if nothing is."""
    rose, judge_rose = ((z or 0.0) > BEYOND_CHANCE for z in (reward_z, judge_z))
    if rose and not judge_rose:
        return (
            "over-optimization: the reward that made the labels rose, and the judge score did not "
            "rise with it"
        )
    if judge_rose and not rose:
        return (
            "the judge score rose without the reward that made the labels, which training asked for"
        )
    if reward_z is None or rose:
        return ""
    return "training did not raise the reward that made the labels"


def _equal_length(wins: Json, controlled: Json) -> Check:
    """Flag wins that are beyond chance, but not where the completions are equally long."""
    ends, apart = controlled["ci95"], wins["ci95"]
    flagged = ends is not None and apart is not None and apart[0] > 0.5 >= ends[0]
    inside = "" if ends is None else f" [{percent(ends[0])}, {percent(ends[1])}]"
    words = "at equal length the wins are not beyond chance: " if flagged else ""
    text = (
        f"{words}win rate {percent(wins['mean'])}, and {percent(controlled['mean'])}{inside} at "
        "equal length"
    )
    name, unit = "win rate at equal length", "share of comparisons"
    return Check(name, unit, 0.5, controlled["mean"], None, flagged, text)


def _slices(found: Json | None) -> Check | None:
    """Flag slices in which the score fell beyond chance, for as many slices as were looked at."""
    if found is None or not found["slices"]:
        return None
    limit = found["z_beyond_chance"]
    fell = [one for one in found["slices"] if (one["difference"]["z"] or 0.0) < -limit]
    count = found["looked_at"]
    text = f"the judge score fell beyond chance in {len(fell)} of {count} slices"
    if fell:
        text += ": " + ", ".join(map(_slice, fell))
    return Check("slices", "", None, None, None, bool(fell), text)


def _slice(one: Json) -> str:
    change = one["difference"]
    return f"{one['by']} {one['slice']} ({_signed(change['mean'])}{_interval(change)})"


def _repetition(found: Json, difference: Estimate | None) -> Check | None:
    before, after = (found[side]["repetition_share"] for side in ("reference", "policy"))
    if difference is None or not before or not after:
        return None
    was, now, rise = before["mean"], after["mean"], difference.mean
    trend = rise > REPETITION_LEAST_RISE and now > REPETITION_GROWTH * was
    flagged = rise > REPETITION_RISE or (trend and _beyond_chance(difference.ci95))
    words = "the policy repeats itself: " if flagged else ""
    text = f"{words}repetition {_from_to(was, now, percent)}{_points(difference)}"
    name = "repetition"
    return Check(name, "share of bigrams", was, now, difference.as_json(), flagged, text)


def _distinct_2(found: Json, difference: Estimate | None) -> Check | None:
    was, now = found["reference"]["distinct_2"], found["policy"]["distinct_2"]
    if difference is None or was is None or now is None:
        return None
    flagged = now < DISTINCT_2_LEFT * was
    words = "the policy's completions resemble each other: " if flagged else ""
    text = f"{words}distinct-2 {_from_to(was, now, percent)}{_points(difference)}"
    return Check("distinct-2", "share of bigrams", was, now, difference.as_json(), flagged, text)


def _entropy(found: Json) -> Check | None:
    key = "entropy_nats_per_token"
    before, after = (found[side][key] for side in ("reference", "policy"))
    difference = found["difference"][key]
    if difference is None:
        return None
    was, now = before["mean"], after["mean"]
    ends = difference["ci95"]
    flagged = now < ENTROPY_LEFT * was and (ends is None or ends[1] < 0)
    words = "the policy is nearly certain of its tokens: " if flagged else ""
    text = (
        f"{words}entropy {_from_to(was, now, number)} nats per token "
        f"({_signed(difference['mean'])}{_interval(difference)})"
    )
    return Check("entropy", "nats per token", was, now, difference, flagged, text)


def _length(found: Json) -> Check:
    was, now = (found[side]["completion_tokens"]["mean"] for side in ("reference", "policy"))
    difference = found["difference"]["completion_tokens"]
    flagged = now > LENGTH_GROWTH * was and _beyond_chance(difference["ci95"])
    change = f", {100 * (now / was - 1):+.0f} %".replace("-", "−")
    words = "completions grew longer: " if flagged else ""
    text = (
        f"{words}length {_from_to(was, now, number)} tokens ({_signed(difference['mean'])}"
        f"{_interval(difference)}{change})"
    )
    return Check("completion length", "tokens", was, now, difference, flagged, text)


def _at_limit(reference: list[Sample], policy: list[Sample]) -> Check:
    sides = _cut(policy), _prompts(policy), _cut(reference), _prompts(reference)
    now, was = (metrics.clustered_mean(*side).mean for side in (sides[:2], sides[2:]))
    difference = metrics.paired_difference(*sides)
    flagged = difference.mean > LIMIT_RISE and _beyond_chance(difference.ci95)
    words = "more completions have no end: " if flagged else ""
    text = f"{words}share at the token limit {_from_to(was, now, percent)}{_points(difference)}"
    name = "share at the token limit"
    return Check(name, "share of completions", was, now, difference.as_json(), flagged, text)


def _kl(per_token: Json) -> Check:
    flagged = per_token["mean"] > KL_NATS_PER_TOKEN
    words = "the policy is far from the reference: " if flagged else ""
    text = f"{words}KL of {number(per_token['mean'])}{_interval(per_token)} nats per token"
    return Check("KL per token", "nats", 0.0, per_token["mean"], per_token, flagged, text)


def _notes(found: Json) -> list[str]:
    caveats = found["kl"]["not_exact_because"]
    if not caveats:
        return []
    return [
        f"Completions were sampled with {', '.join(caveats)}. The KL is therefore the mean "
        "log-ratio on those samples, not the exact KL of the policy's own distribution."
    ]


def _reward_notes(found: Json) -> list[str]:
    """Return the components of the training reward that fell, counted with their weights."""
    notes: list[str] = []
    for part in found.get("training_reward", {}).get("components", ()):
        difference, sign = part["difference"], 1 if part["weight"] > 0 else -1
        if sign * (difference["z"] or 0.0) < -BEYOND_CHANCE:
            against_it = "fell" if sign > 0 else "rose, and its weight is negative"
            change = f"{_signed(difference['mean'])}{_interval(difference)}"
            notes.append(f"Of the training reward, {part['name']} {against_it}: {change}.")
    return notes


def _stage_notes(counts: dict[str, dict[str, int]]) -> list[str]:
    """Return what a reader must know of stages: texts cut short, and judges' position bias."""
    return [
        f"{stage.replace('_', ' ').capitalize()}: {line}."
        for stage, values in counts.items()
        for line in (*cut_warnings(values), *position_lines(values))
    ]


def _beyond_chance(interval: Sequence[float] | None) -> bool:
    """Return whether a rise is beyond its interval; without an interval the limit alone decides."""
    return interval is None or interval[0] > 0


def _from_to(was: float, now: float, show: Callable[[float | None], str]) -> str:
    return f"{show(was)} → {show(now)}"


def _points(difference: Estimate) -> str:
    """Return a difference of shares in percentage points, in brackets, with its interval."""
    points = f"{100 * difference.mean:+.1f}"
    ends = difference.ci95
    inside = "" if ends is None else f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
    return f" ({points}{inside} points)".replace("-", "−")


def size_interval(difference: Json) -> str:
    """Return the interval of a difference that is told as a rise or a fall by a positive number.

    The text begins with a space; it is empty if the interval is unknown.
    """
    ends = difference["ci95"]
    if ends is None:
        return ""
    low, high = ends if difference["mean"] > 0 else (-ends[1], -ends[0])
    return f" [{number(low)}, {number(high)}]"


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def _interval(estimate: Json) -> str:
    ends = estimate["ci95"]
    return "" if ends is None else f" [{number(ends[0])}, {number(ends[1])}]"


def _ids(samples: list[Sample]) -> list[tuple[int, ...]]:
    return [sample.completion_ids for sample in samples]


def _prompts(samples: list[Sample]) -> list[str]:
    return [sample.prompt_id for sample in samples]


def _cut(samples: list[Sample]) -> list[float]:
    return [float(sample.finish_reason == "length") for sample in samples]
