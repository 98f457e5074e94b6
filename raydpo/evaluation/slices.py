"""Measure the evaluation within slices of the held-out prompts.

A mean over all prompts can hide that some kind of prompt became worse. Samples and log-probs of both
models, and what is known of each prompt, give the score, the difference, the win rate and the KL of
each slice. A slicing gives each prompt a label that does not depend on the policy; a column of the
prompts is one more slicing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any, Final

import numpy as np

from raydpo.core.metadata import metadata_columns
from raydpo.core.parts import Table
from raydpo.core.run import read_part
from raydpo.evaluation import metrics
from raydpo.evaluation.measure import mean_score
from raydpo.evaluation.samples import Sample, ScoredCompletions, samples_by_prompt

Json = dict[str, Any]

#: A number is cut into so many slices of about equally many prompts.
_BUCKETS: Final = 3
#: Labels with fewer prompts are joined, as an interval of so few prompts says little.
LEAST_PROMPTS: Final = 5
#: A column with more labels than these does not say what kind of prompt it is.
MOST_LABELS: Final = 12
#: The slice of joined labels.
OTHERS: Final = "all others"


@dataclass(frozen=True)
class Slicing:
    """A way to cut the prompts into slices.

    Args:
        by: what it cuts by.
        labels: the label of each prompt; prompts without one are in no slice.
        order: the labels in the order of the page.
    """

    by: str
    labels: Mapping[str, str]
    order: Sequence[str]


def prompt_columns(prompts: Table) -> dict[str, dict[str, str]]:
    """Return labels of the prompts to slice by, by what they are and by prompt.

    They are the number of messages of a conversation, and each column of the metadata with at most
    `MOST_LABELS` different texts, whole numbers or booleans. A column with more, such as an answer,
    names prompts and no kinds of prompts.
    """
    rows = [
        row
        for index in range(prompts.manifest["parts"])
        for row in read_part(prompts.folder, prompts.manifest, index)
        .select(["prompt_id", "messages", "metadata"])
        .to_pylist()
    ]
    names = [row["prompt_id"] for row in rows]
    counts = [len(row["messages"] or ()) for row in rows]
    messages = [None if not n else "1 message" if n == 1 else f"{n} messages" for n in counts]
    columns = metadata_columns(row["metadata"] for row in rows)
    found = {"messages of the prompt": _labels(names, messages)}
    found |= {name: _labels(names, values) for name, values in columns.items()}
    return {name: labels for name, labels in found.items() if labels}


def _labels(prompts: list[str], values: list[Any]) -> dict[str, str]:
    """Return the label of each prompt that has one; none at all if these are no labels."""
    known = [(p, value) for p, value in zip(prompts, values, strict=True) if value is not None]
    if any(not isinstance(value, str | int) for _, value in known):
        return {}
    labels = {prompt: str(value) for prompt, value in known}
    return labels if len(set(labels.values())) <= MOST_LABELS else {}


def slicings(reference: list[Sample], columns: Mapping[str, Mapping[str, str]]) -> list[Slicing]:
    """Return all ways to cut the prompts that give at least two slices.

    Args:
        reference: completions of the reference, for the lengths of prompts and of its completions.
        columns: further labels by what they are and by prompt.
    """
    by_prompt = samples_by_prompt(reference)
    asked = {p: some[0].prompt_tokens for p, some in by_prompt.items()}
    known = {p: float(tokens) for p, tokens in asked.items() if tokens is not None}
    answered = {p: fmean(len(s.completion_ids) for s in some) for p, some in by_prompt.items()}
    found = [
        _cut("prompt length", known),
        _cut("length of the reference's completions", answered),
        *(_joined(by, {p: labels[p] for p in by_prompt if p in labels}) for by, labels in columns.items()),
    ]  # fmt: skip
    return [slicing for slicing in found if len(slicing.order) > 1]


def measure_slices(
    reference: list[Sample],
    policy: list[Sample],
    logps: ScoredCompletions,
    columns: Mapping[str, Mapping[str, str]],
    shares: bool,
) -> Json:
    """Measure every slice.

    Args:
        reference: completions of the reference.
        policy: completions of the policy.
        logps: log-probs of the policy's completions under both models.
        columns: as for `slicings`.
        shares: whether scores lie in [0, 1].

    Returns:
        A JSON value: `looked_at`, the number of slices; `z_beyond_chance`, how many standard errors
        a difference in one of so many slices must have to be beyond chance at 5 % (Bonferroni), or
        None without slices; `slices`, one entry each.
    """
    nats = metrics.sequence_logratios(logps.policy, logps.reference)
    shared = {s.prompt_id for s in reference} & {s.prompt_id for s in policy} & set(logps.prompts)
    found: list[Json] = []
    for slicing in slicings(reference, columns):
        for label in slicing.order:
            kept = {p for p in shared if slicing.labels.get(p) == label}
            if kept:
                ours, theirs = _of(policy, kept), _of(reference, kept)
                kl = [(n, p) for n, p in zip(nats, logps.prompts, strict=True) if p in kept]
                values = _measure(theirs, ours, kl, shares)
                found.append({"by": slicing.by, "slice": label, **values})
    count = len(found)
    limit = NormalDist().inv_cdf(1 - 0.025 / count) if count else None
    return {"looked_at": count, "z_beyond_chance": limit, "slices": found}


def _measure(
    reference: list[Sample], policy: list[Sample], kl: list[tuple[float, str]], shares: bool
) -> Json:
    ours, theirs = _scores(policy), _scores(reference)
    difference = metrics.paired_difference(*ours, *theirs)
    return {
        "prompts": difference.prompts,
        "reference_score": mean_score(*theirs, shares).as_json(),
        "policy_score": mean_score(*ours, shares).as_json(),
        "difference": {**difference.as_json(), "z": difference.z},
        "win_rate": metrics.win_rate(*ours, *theirs).as_json(),
        "kl_nats_per_completion": metrics.clustered_mean(
            [nats for nats, _ in kl], [prompt for _, prompt in kl]
        ).as_json(),
    }


def _cut(by: str, values: Mapping[str, float]) -> Slicing:
    """Cut prompts by a number of tokens; equal numbers are in the same slice."""
    if not values:
        return Slicing(by, {}, [])
    ordered = np.array(sorted(values.values()))
    edges = np.quantile(ordered, [n / _BUCKETS for n in range(1, _BUCKETS)], method="lower")
    places = {p: int(np.searchsorted(edges, value, "left")) for p, value in values.items()}
    names: dict[int, str] = {}
    for place in sorted(set(places.values())):
        inside = [values[p] for p, at in places.items() if at == place]
        low, high = (f"{end:.3g}" for end in (min(inside), max(inside)))
        names[place] = f"{low} tokens" if low == high else f"{low} to {high} tokens"
    return Slicing(by, {p: names[at] for p, at in places.items()}, list(names.values()))


def _joined(by: str, labels: Mapping[str, str]) -> Slicing:
    """Keep labels with enough prompts, the largest first, and join all others."""
    counts = Counter(labels.values())
    kept = [label for label, count in counts.most_common() if count >= LEAST_PROMPTS]
    rest = [OTHERS] if len(kept) < len(counts) else []
    found = {p: label if label in kept else OTHERS for p, label in labels.items()}
    return Slicing(by, found, [*kept, *rest])


def _of(samples: list[Sample], kept: set[str]) -> list[Sample]:
    return [sample for sample in samples if sample.prompt_id in kept]


def _scores(samples: list[Sample]) -> tuple[list[float], list[str]]:
    return [sample.score for sample in samples], [sample.prompt_id for sample in samples]
