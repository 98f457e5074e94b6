"""What runs must have in common to be compared, and what is said of the rest.

Runs whose scores mean different things are refused. All other differences in how the runs were
evaluated are named, one by one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from raydpo.core.errors import DataError, RunError
from raydpo.evaluation.samples import Sample

Json = dict[str, Any]

#: The fields whose difference is named, and what cannot be concluded where they differ.
_MEANINGS: Final = {
    "reference weights": "KL is measured from different models: it is not compared, nor is who dominates whom",
    "prompts": "the evaluations have different prompts: only those that all runs have are compared",
    "tokenizer": "lengths and repetition are counted in different tokens",
    "samples_per_prompt": "intervals differ in width for that reason too",
    "temperature": "samples differ by how they were drawn, not only by the policy",
    "max_completion_tokens": "lengths and the share at the token limit are not comparable",
}
_DRAWN: Final = "samples differ by how they were drawn, not only by the policy"
_REFERENCE: Final = "reference weights"


@dataclass(frozen=True)
class EvaluatedRun:
    """A run whose policy was evaluated, as `raydpo compare` reads it.

    Attributes:
        label: its name in the comparison; no two runs share it.
        run: path or URI of the run directory.
        round_index: the round whose policy this is.
        online: whether online rounds made it.
        policy: the policy's samples.
        reference: samples of the model that the run started from.
        kl_prompts: [n], the prompt of each of the policy's completions that has log-probs.
        kl_nats: [n], log policy - log reference of each of those completions, in nats.
        kl_not_exact_because: sampling settings that keep the mean of `kl_nats` from being the KL.
        judge: everything that a score depends on: scorers, their content, their weights.
        evaluated_with: everything else that the samples and the KL depend on, by name.
        shares: whether scores lie in [0, 1].
        unit: the meaning of a score.
        beta: of the objective; None if it has none.
        settings: the job, by dotted key.
        training: the metrics of each training step.
    """

    label: str
    run: str
    round_index: int
    online: bool
    policy: list[Sample]
    reference: list[Sample]
    kl_prompts: list[str]
    kl_nats: list[float]
    kl_not_exact_because: list[str]
    judge: Json
    evaluated_with: Json
    shares: bool
    unit: str
    beta: float | None
    settings: Json
    training: list[Json]

    @property
    def prompts(self) -> set[str]:
        """The prompts with scored samples of the policy, log-probs, and samples of the reference."""
        ours, theirs = ({s.prompt_id for s in side} for side in (self.policy, self.reference))
        return ours & theirs & set(self.kl_prompts)


def shared_prompts(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return the prompts that all runs have, sorted, after the judges were compared.

    Raises:
        RunError: the runs have different judges, or no prompt in common.
        DataError: two runs have different texts under one prompt id.
    """
    for run in runs[1:]:
        _refuse_another_judge(runs[0], run)
    shared = sorted(set[str].intersection(*(run.prompts for run in runs)))
    if not shared:
        counts = ", ".join(f"{run.label} {len(run.prompts)}" for run in runs)
        raise RunError(
            f"no prompt was evaluated in all {len(runs)} runs (prompts of each: {counts})",
            "runs are paired by prompt_id, and a prompt counts if all of them have samples, scores "
            "and log-probs of it",
            "evaluate the runs with the same `evaluation.prompts`",
        )
    for run in runs[1:]:
        _refuse_other_texts(runs[0], run, set(shared))
    return shared


def kl_is_comparable(runs: Sequence[EvaluatedRun]) -> bool:
    """Return whether all runs measured KL from the same model."""
    return len({run.evaluated_with[_REFERENCE] for run in runs}) == 1


def notes(runs: Sequence[EvaluatedRun]) -> list[Json]:
    """Return what differs between the evaluations: field, its value in each run, what it means."""
    names = {name: None for run in runs for name in run.evaluated_with}
    found: list[Json] = []
    for name in names:
        values = {run.label: run.evaluated_with.get(name) for run in runs}
        if len({_text(value) for value in values.values()}) > 1:
            meaning = _MEANINGS.get(name, _DRAWN)
            found.append({"field": name, "values": values, "meaning": meaning})
    inexact = {run.label: run.kl_not_exact_because for run in runs}
    if any(inexact.values()):
        meaning = "where a setting is named, the KL is the mean log-ratio of those samples"
        found.append({"field": "KL is not exact", "values": inexact, "meaning": meaning})
    return found


def _refuse_another_judge(first: EvaluatedRun, other: EvaluatedRun) -> None:
    names = sorted(first.judge.keys() | other.judge.keys())
    one, two = ({n: _text(run.judge.get(n)) for n in names} for run in (first, other))
    differ = [f"{name}: {one[name]} and {two[name]}" for name in names if one[name] != two[name]]
    if differ:
        raise RunError(
            f"{first.label} and {other.label} were scored by different judges: {'; '.join(differ)}",
            "scores are compared where one judge gave them, with the same scale and weights",
            f"evaluate one of them again with the `evaluation.judge` of the other: {first.run}, "
            f"{other.run}",
        )


def _refuse_other_texts(first: EvaluatedRun, other: EvaluatedRun, shared: set[str]) -> None:
    texts = {sample.prompt_id: sample.prompt for sample in first.policy}
    for sample in other.policy:
        if sample.prompt_id in shared and sample.prompt != texts[sample.prompt_id]:
            raise DataError(
                f"prompt {sample.prompt_id!r} is {texts[sample.prompt_id][:60]!r} in {first.label} "
                f"and {sample.prompt[:60]!r} in {other.label}",
                "runs are paired by prompt_id, so one id stands for one text in all of them",
                "compare runs that were evaluated on the same file with the same chat template; "
                "other files need other ids",
            )


def _text(value: Any) -> str:

    return json.dumps(value, sort_keys=True, ensure_ascii=False)
