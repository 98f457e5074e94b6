"""The report of a training that samples nothing: its numbers on held-out data, and a verdict.

What the training left (measurements before and of what is exported, with the values of each held-out
group, and the rows of its log) gives metrics.json, plots/ and report.html. It needs no engine and no
judge, and runs on the driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from raydpo.config.file import config_to_yaml
from raydpo.config.job import Config
from raydpo.core.metric_names import heldout_values
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import Stage, commit_files, open_stage
from raydpo.core.storage import Folder, fingerprint
from raydpo.evaluation import metrics
from raydpo.evaluation.page import render_page
from raydpo.evaluation.publish import heldout_figures
from raydpo.evaluation.report import Cell, Figure, Line, count_lines, estimated, number, percent
from raydpo.evaluation.verdict import ACCURACY, verdict

Json = dict[str, Any]

#: What the page calls each metric, in its order.
_NAMES: Final = {
    "loss": "loss (nats)",
    ACCURACY: "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "reward of chosen",
    "rewards/rejected": "reward of rejected",
    "logps/chosen": "log-prob of chosen (nats)",
    "logps/rejected": "log-prob of rejected (nats)",
}
_GLOSSARY: Final = (
    ("held-out groups", "prompts with their completions that a hash kept out of training; an example of supervised fine-tuning is a group, too."),
    ("before, exported", "the model that training started from; the model that is in the folder, which early stopping may have taken from an earlier step than the last."),
    ("loss", "the training's own loss, as a mean over all held-out pairs (or rankings, judged completions, tokens)."),
    ("accuracy", "the share of held-out pairs with a margin above 0; a tie does not count, so a policy that equals its reference has 0 %."),
    ("margin, reward", "beta times the log-ratio of policy and reference, in nats times beta, and the difference between chosen and rejected; for a reward model, its own numbers, which have no unit; without a reference, what the objective compares."),
    ("perplexity", "the exponential of the loss per token, for supervised fine-tuning."),
    ("[ ]", "95 % confidence interval: 1.96 standard errors to each side; of shares Wilson's, which stays between 0 and 1. Prompts are the units, as groups of one prompt are not independent."),
    ("z", "the difference in standard errors, paired by group; beyond ±2 it is hardly chance."),
)  # fmt: skip


@dataclass(frozen=True)
class TrainingRecord:
    """What a finished training left.

    Attributes:
        folder: its folder.
        fingerprint: of the exported weights.
        what: the kind of model, such as `policy` or `reward model`.
        before: the measurement before training, as in heldout/before.json.
        exported: that of the exported model, as in heldout/exported.json.
        rows: rows of metrics.jsonl, with that of step 0.
        counts: the counts of the stages before training, by stage.
    """

    folder: Folder
    fingerprint: str
    what: str
    before: Json
    exported: Json
    rows: list[Json]
    counts: dict[str, dict[str, int]]


@dataclass(frozen=True)
class _Page:
    """What the template reads."""

    title: str
    metrics: Json
    figures: list[Figure]
    facts: list[tuple[str, str]]
    config_yaml: str


def report_training(config: Config, place: Place, record: TrainingRecord) -> Json:
    """Write the report unless it is there; return the content of metrics.json, and its path."""
    stage = training_report_stage(config, place, record)
    folder = place.folder
    if open_stage(stage) is None:
        found = _measure(record)
        figures = heldout_figures(record.rows, _marked(record))
        folder.write_json("metrics.json", found)
        for figure in figures:
            folder.write_bytes(f"plots/{figure.name}.png", figure.png)
        page = _render(config, record, found, figures)
        folder.write_bytes("report.html", page.encode("utf-8", "replace"))
        commit_files(stage, fingerprint(found))
        logger.info("[%s] %s", place.label, found["verdict"])
        logger.info("[%s] done: %s/report.html", place.label, folder.uri)
    else:
        logger.info("[%s] nothing to do: %s/report.html is there", place.label, folder.uri)
    return {**folder.read_json("metrics.json"), "report": f"{folder.uri}/report.html"}


def training_report_stage(config: Config, place: Place, record: TrainingRecord) -> Stage:
    """Describe what the report of a training is made from."""
    measured = fingerprint([record.before, record.exported, record.rows, record.counts])
    inputs = {"policy": record.fingerprint, "measurements": measured}
    return Stage(place, "training report", None, inputs, {"title": config.name})


def _measure(record: TrainingRecord) -> Json:
    before, after = record.before, record.exported
    found = {name: _metric(name, before, after) for name in _NAMES if name in after["sums"]}
    if "perplexity" in after["means"]:
        found["perplexity"] = {
            "before": {"mean": before["means"]["perplexity"]},
            "exported": {"mean": after["means"]["perplexity"]},
        }
    steps = {"exported_step": after["step"], **after["steps"]}
    summary = {
        "what": record.what,
        "groups": len(after["weights"]),
        "prompts": len(set(after["prompts"])),
        "steps": steps,
        "starts_with_ties": not any(before["sums"].get("rewards/margins", [1.0])),
        "lowest_loss": _lowest_loss(record.rows),
        "metrics": found,
    }
    words = verdict(summary)
    return {"verdict": words.line, "speaks_against_it": words.objections, **summary}


def _metric(name: str, before: Json, after: Json) -> Json:
    """Estimate a metric before and after, and their difference, paired by group."""
    weights, prompts = after["weights"], after["prompts"]
    ours, theirs = after["sums"][name], before["sums"][name]
    change = [a - b for a, b in zip(ours, theirs, strict=True)]
    difference = metrics.clustered_ratio(change, weights, prompts)
    estimates = [metrics.clustered_ratio(values, weights, prompts) for values in (theirs, ours)]
    if name == ACCURACY:
        estimates = [metrics.as_share(estimate) for estimate in estimates]
    return {
        "before": estimates[0].as_json(),
        "exported": estimates[1].as_json(),
        "difference": {**difference.as_json(), "z": difference.z},
    }


def _lowest_loss(rows: list[Json]) -> Json | None:
    """Return the step with the smallest held-out loss, and that loss; None if none was measured."""
    measured = [(heldout_values(row)["loss"], row["step"]) for row in rows if heldout_values(row)]
    lowest = min((one for one in measured if one[1] > 0), default=None)
    return None if lowest is None else {"step": lowest[1], "loss": lowest[0]}


def _marked(record: TrainingRecord) -> int | None:
    """Return the exported step if it is not the last one."""
    step: int = record.exported["step"]
    return step if step != record.exported["steps"]["done"] else None


def _render(config: Config, record: TrainingRecord, found: Json, figures: list[Figure]) -> str:
    inputs = _Page(config.name, found, figures, _facts(config, record), config_to_yaml(config))
    return render_page(
        "training.html.j2",
        inputs=inputs,
        lines=_lines(found),
        tiles=_tiles(found),
        glossary=_GLOSSARY,
        counts=count_lines(record.counts),
    )


def _lines(found: Json) -> list[Line]:
    lines: list[Line] = []
    for name, words in _NAMES.items():
        if name not in found["metrics"]:
            continue
        metric = found["metrics"][name]
        show = percent if name == ACCURACY else number
        before, after = (estimated(metric[side], show) for side in ("before", "exported"))
        change = estimated(metric["difference"], show, signed=True)
        z = metric["difference"]["z"]
        if z is not None:
            change = Cell(change.value, f"{change.detail} z = {z:.1f}".replace("-", "−"))
        if name == ACCURACY and found["starts_with_ties"]:
            before, change = Cell("–", "all margins are 0"), Cell()
        lines.append(Line(words, before, after, change, strong=name in ("loss", ACCURACY)))
    if "perplexity" in found["metrics"]:
        sides = found["metrics"]["perplexity"]
        before, after = (Cell(number(sides[side]["mean"])) for side in ("before", "exported"))
        lines.append(Line("perplexity", before, after))
    return lines


def _tiles(found: Json) -> list[tuple[str, str]]:
    loss = found["metrics"]["loss"]
    steps = found["steps"]
    tiles = [
        (
            f"{number(loss['before']['mean'])} → {number(loss['exported']['mean'])}",
            "held-out loss, before → exported",
        )
    ]
    if ACCURACY in found["metrics"]:
        accuracy = found["metrics"][ACCURACY]["exported"]["mean"]
        tiles.append((percent(accuracy), "held-out accuracy of the exported model"))
    tiles.append((str(found["groups"]), f"held-out groups, of {found['prompts']} prompts"))
    tiles.append((str(steps["exported_step"]), f"exported step, of {steps['planned']} planned"))
    return tiles


def _facts(config: Config, record: TrainingRecord) -> list[tuple[str, str]]:
    steps = record.exported["steps"]
    trainer = config.sft if record.what == "fine-tuned model" else config.training
    stopping = trainer and trainer.early_stopping
    facts = [
        ("starting model", config.model.path),
        (f"exported {record.what}", f"{record.folder.uri}/model (weights {record.fingerprint[:12]})"),
        ("steps", f"{steps['done']} of {steps['planned']} done, exported is {record.exported['step']}"),
        ("seed", str(config.seed)),
    ]  # fmt: skip
    if stopping:
        patience = "none" if stopping.patience is None else str(stopping.patience)
        rule = f"held-out {stopping.metric}, patience {patience}, min_delta {stopping.min_delta:g}"
        facts.insert(3, ("early stopping", rule))
    return facts
