"""The numbers of a model card: what a run measured of its model, one line each.

`raydpo/show/card.py` makes the table of the card and its model-index of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from raydpo.evaluation.suites import SuiteResult
from raydpo.show.public_config import is_private, public_name
from raydpo.show.trained import TrainedModel

Json = dict[str, Any]

#: Metrics of a training's report: slug, name, and unit.
_TRAINING: Final = {
    "loss": ("heldout_loss", "held-out loss", "nats"),
    "rewards/accuracies": ("heldout_accuracy", "held-out accuracy", "share of pairs"),
    "rewards/margins": ("heldout_margin", "held-out margin", "implicit reward"),
    "perplexity": ("heldout_perplexity", "held-out perplexity", ""),
}


@dataclass(frozen=True)
class DataName:
    """The data that a number was measured on.

    Attributes:
        name: for people.
        type: the name on the hub, or the file's name.
        split: of a data set of the hub.
    """

    name: str
    type: str
    split: str | None = None


@dataclass(frozen=True)
class Number:
    """A number that was measured of the model.

    Attributes:
        type: a slug.
        name: for people, with the unit.
        value: of the model.
        interval: its 95 % confidence interval.
        before: the same of the reference, or of the model before training.
        data: what it was measured on.
        program: that measured it, if it was not raydpo.
    """

    type: str
    name: str
    value: float
    interval: tuple[float, float] | None
    before: float | None
    data: DataName
    program: str | None = None


def numbers_of(model: TrainedModel) -> list[Number]:
    """Return what was measured of a model, in the order of the card: by the run, then by suites."""
    return [*_of_run(model), *map(_of_suite, model.suites)]


def _of_run(model: TrainedModel) -> Iterator[Number]:
    numbers, source = model.measured.numbers, model.measured.source
    if source in ("evaluation", "rounds"):
        yield from _of_evaluation(model, numbers)
    elif source == "training report":
        yield from _of_training(model, numbers)


def _of_suite(found: SuiteResult) -> Number:
    """Return a number of a suite, whose settings stand in its name."""
    settings = f", {found.settings}" if found.settings else ""
    return Number(
        type=found.metric.partition(" ")[0],
        name=f"{found.metric}{settings}",
        value=found.value,
        interval=found.interval,
        before=None,
        data=DataName(found.task, found.task),
        program=found.program,
    )


def data_name(path: str, split: str) -> DataName:
    """Return how a card names data: by its name on the hub, or by the file's last name."""
    name = public_name(path)
    return DataName(name, name, None if is_private(path) else split)


def _of_evaluation(model: TrainedModel, found: Json) -> Iterator[Number]:
    prompts, groups = _prompts(model), _groups(model)
    ours, theirs = found["policy"], found["reference"]
    score = f"judge score ({found['judge']['unit']})"
    yield _number("judge_score", score, ours["score"], theirs["score"], prompts)
    yield _number("win_rate", "win rate against the reference", found["win_rate"], 0.5, prompts)
    if (equal := found.get("length_controlled_win_rate")) is not None:
        name = "win rate at equal length"
        yield _number("length_controlled_win_rate", name, equal, 0.5, prompts)
    kl = found["kl"]["nats_per_completion"]
    yield _number("kl", "KL to the reference (nats per completion)", kl, 0.0, prompts)
    lengths = ours["completion_tokens"], theirs["completion_tokens"]
    yield _number("completion_tokens", "completion length (tokens)", *lengths, prompts)
    if found["heldout"] is not None:
        accuracy = found["heldout"]["accuracy"]
        yield _number("heldout_accuracy", "accuracy on held-out pairs", accuracy, None, groups)


def _of_training(model: TrainedModel, found: Json) -> Iterator[Number]:
    for metric, (slug, name, unit) in _TRAINING.items():
        values = found["metrics"].get(metric)
        if values is None:
            continue
        # All margins are 0 before a training that starts at the reference: ties are no accuracy.
        ties = metric == "rewards/accuracies" and found["starts_with_ties"]
        before = None if ties else values["before"]["mean"]
        words = f"{name} ({unit})" if unit else name
        yield _number(slug, words, values["exported"], before, _groups(model))


def _number(
    slug: str, name: str, found: Json, before: Json | float | None, data: DataName
) -> Number:
    ends = found.get("ci95")
    return Number(
        type=slug,
        name=name,
        value=found["mean"],
        interval=None if ends is None else (ends[0], ends[1]),
        before=before["mean"] if isinstance(before, dict) else before,
        data=data,
    )


def _prompts(model: TrainedModel) -> DataName:
    assert model.config.evaluation is not None
    prompts = model.config.evaluation.prompts
    return data_name(prompts.where, prompts.split)


def _groups(model: TrainedModel) -> DataName:
    """Return the data of which a share was kept out of training."""
    config = model.config
    if model.round_index is None:
        assert config.sft is not None
        found = data_name(config.sft.data, config.sft.split)
    else:
        source = config.preferences or config.prompts
        assert source is not None
        found = data_name(source.where, source.split)
    return DataName(f"held-out groups of {found.name}", found.type, found.split)
