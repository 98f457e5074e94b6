"""Say in one line whether a training helped on held-out data, and what speaks against its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from raydpo.evaluation.report import number, percent
from raydpo.evaluation.verdict_words import BEYOND_CHANCE, TOO_FEW, against, judged, moved

Json = dict[str, Any]

#: Metric of which 50 % is chance.
ACCURACY: Final = "rewards/accuracies"


@dataclass(frozen=True)
class Verdict:
    """One line for people, and the reasons in it that speak against the model."""

    line: str
    objections: list[str]


def verdict(summary: Json) -> Verdict:
    """Judge a training by the summary of `evaluation/training_report.py`."""
    loss = summary["metrics"]["loss"]
    before, after = number(loss["before"]["mean"]), number(loss["exported"]["mean"])
    objections = _objections(summary)
    line = (
        f"{judged(-_z(loss), objections)}: the loss on {summary['groups']} held-out groups "
        f"{moved(loss['difference']['mean'])} from {before} to {after}{_errors(loss)}"
        f"{_accuracy(summary)}.{against(objections)}"
    )
    return Verdict(line, objections)


def _objections(summary: Json) -> list[str]:
    metrics = summary["metrics"]
    found = [*_against_the_loss(metrics["loss"]), *_against_the_accuracy(metrics)]
    found += _overfitted(summary)
    chosen = metrics.get("logps/chosen")
    if chosen is not None and _z(chosen) < -BEYOND_CHANCE:
        fell = number(-chosen["difference"]["mean"])
        found.append(f"the log-prob of chosen completions fell by {fell} nats")
    return found


def _against_the_loss(loss: Json) -> list[str]:
    if loss["difference"]["z"] is None and loss["difference"]["mean"]:
        return [TOO_FEW]
    if _z(loss) > BEYOND_CHANCE:
        return ["the model before training has the smaller loss"]
    if _z(loss) >= -BEYOND_CHANCE:
        return ["the loss changed by less than two standard errors"]
    return []


def _against_the_accuracy(metrics: Json) -> list[str]:
    accuracy = metrics.get(ACCURACY)
    if accuracy is None:
        return []
    interval = accuracy["exported"]["ci95"]
    unclear = interval is None or interval[0] <= 0.5
    return ["the accuracy is not beyond 50 %, which is chance"] if unclear else []


def _overfitted(summary: Json) -> list[str]:
    """Return that an earlier step was better on held-out data, if one was measured."""
    lowest, exported = summary["lowest_loss"], summary["metrics"]["loss"]["exported"]["mean"]
    if lowest is None or not lowest["loss"] < exported:
        return []
    return [
        f"after step {lowest['step']} the held-out loss was smaller ({number(lowest['loss'])}): "
        "train less, or export that step with early_stopping"
    ]


def _accuracy(summary: Json) -> str:
    accuracy = summary["metrics"].get(ACCURACY)
    if accuracy is None:
        return ""
    after = accuracy["exported"]
    interval = after["ci95"]
    ends = "" if interval is None else f" [{percent(interval[0])}, {percent(interval[1])}]"
    return f", and the accuracy is {percent(after['mean'])}{ends}"


def _errors(metric: Json) -> str:
    z = metric["difference"]["z"]
    return "" if z is None else f" ({abs(z):.1f} standard errors)"


def _z(metric: Json) -> float:
    z = metric["difference"]["z"]
    return 0.0 if z is None else z
