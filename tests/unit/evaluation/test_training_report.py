"""The page of a training that samples nothing, and its verdict."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.file import config_from_values
from raydpo.config.job import Config
from raydpo.core.place import Place
from raydpo.core.storage import folder_of
from raydpo.evaluation import plots
from raydpo.evaluation.training_report import TrainingRecord, report_training

Json = dict[str, Any]
GROUPS = 60


def job(**sections: Any) -> Config:
    values = {"name": "pairs <b>", "model": "m", "preferences": {"path": "pairs.jsonl"}}
    values |= {"training": {"heldout_fraction": 0.1}, **sections}
    return config_from_values({**values, "name": "pairs"}, "a test")


def measurement(step: int, margin: float, **more: Any) -> Json:
    """DPO's metrics of GROUPS groups whose margins are spread around `margin`; 0 gives ties."""
    draw = random.Random(1)
    margins = [margin and draw.gauss(margin, 1.0) for _ in range(GROUPS)]
    sums = {
        "loss": [math.log1p(math.exp(-m)) for m in margins],
        "rewards/margins": margins,
        "rewards/accuracies": [float(m > 0) for m in margins],
        "rewards/chosen": [m / 2 for m in margins],
        "rewards/rejected": [-m / 2 for m in margins],
        "logps/chosen": [-40.0 + draw.gauss(m, 0.1) for m in margins],
        "logps/rejected": [-42.0 - m for m in margins],
    }
    return {
        "step": step,
        "means": {name: math.fsum(values) / GROUPS for name, values in sums.items()},
        "sums": sums,
        "weights": [1.0] * GROUPS,
        "prompts": [f"prompt {n // 2}" for n in range(GROUPS)],
        "steps": {},
        **more,
    }


def rows_of(losses: dict[int, float]) -> list[Json]:
    rows: list[Json] = [{"step": 0, "heldout/loss": losses.get(0, 0.69)}]
    for step in range(1, 21):
        row: Json = {"step": step, "loss": 0.69 - 0.01 * step, "rewards/margins": 0.1 * step}
        measured = {"heldout/loss": losses[step]} if step in losses else {}
        rows.append({**row, **measured})
    return rows


def record(
    folder: Path, exported: Json, losses: dict[int, float], what: str = "policy"
) -> TrainingRecord:
    after = {**exported, "steps": {"done": 20, "planned": 20}}
    counts = {"preferences": {"input": 600, "output": 600, "quarantined": 0, "pairs": 600}}
    before = measurement(0, 0.0)
    if "perplexity" in after["means"]:
        before = {**before, "means": {**before["means"], "perplexity": 9.0}}
    rows = rows_of(losses)
    return TrainingRecord(folder_of(str(folder)), "f" * 32, what, before, after, rows, counts)


def report(tmp_path: Path, config: Config, found: TrainingRecord) -> tuple[Json, str]:
    place = Place(folder_of(str(tmp_path / "report")), "round 0, report")
    metrics = report_training(config, place, found)
    return metrics, (tmp_path / "report/report.html").read_text(encoding="utf-8")


def test_a_better_model_is_said_to_be_better_and_by_how_much(tmp_path) -> None:
    found = record(tmp_path / "policy", measurement(20, 1.0), {10: 0.5, 20: 0.4})
    metrics, page = report(tmp_path, job(), found)
    loss = metrics["metrics"]["loss"]
    assert loss["before"]["mean"] == pytest.approx(math.log(2))
    assert loss["difference"]["mean"] == pytest.approx(
        loss["exported"]["mean"] - loss["before"]["mean"]
    )
    assert loss["difference"]["prompts"] == GROUPS / 2
    assert metrics["verdict"].startswith("Training helped: the loss on 60 held-out groups fell ")
    assert metrics["speaks_against_it"] == []
    assert metrics["verdict"] in page
    assert "all margins are 0" in page
    assert f"{100 * metrics['metrics']['rewards/accuracies']['exported']['mean']:.1f} %" in page
    assert metrics["report"].endswith("report/report.html")
    assert "<script" not in page
    assert "http" not in page.split("Configuration")[0].replace("http-equiv", "")


@pytest.mark.parametrize(
    ("margin", "losses", "words", "objections"),
    [
        (-1.0, {20: 1.2}, "Training did harm", ["the model before training", "beyond 50 %"]),
        (0.02, {20: 0.7}, "Training showed no effect", ["two standard errors", "beyond 50 %"]),
        (
            1.0,
            {10: 0.1, 20: 0.4},
            "Training helped, with reservations",
            ["after step 10 the held-out loss was smaller (0.100)"],
        ),
    ],
)
def test_what_speaks_against_a_model_is_in_the_verdict(
    tmp_path, margin: float, losses: dict[int, float], words: str, objections: list[str]
) -> None:
    found = record(tmp_path / "policy", measurement(20, margin), losses)
    metrics, page = report(tmp_path, job(), found)
    assert metrics["verdict"].startswith(words)
    for objection in objections:
        assert objection in metrics["verdict"]
        assert any(objection in one for one in metrics["speaks_against_it"])
    assert all(one in page for one in metrics["speaks_against_it"])


def test_a_fall_of_the_chosen_log_prob_is_an_objection(tmp_path) -> None:
    after = measurement(20, 1.0)
    after["sums"]["logps/chosen"] = [value - 9.0 for value in after["sums"]["logps/chosen"]]
    metrics, _ = report(tmp_path, job(), record(tmp_path / "policy", after, {20: 0.4}))
    [objection] = metrics["speaks_against_it"]
    assert objection.startswith("the log-prob of chosen completions fell by 7.")


def test_the_exported_step_and_the_rule_are_on_the_page(tmp_path) -> None:
    training = {
        "heldout_fraction": 0.1,
        "evaluate_every_steps": 5,
        "early_stopping": {"patience": 2},
    }
    found = record(tmp_path / "policy", measurement(10, 1.0), {5: 0.5, 10: 0.4, 20: 0.6})
    metrics, page = report(tmp_path, job(training=training), found)
    assert metrics["steps"] == {"exported_step": 10, "done": 20, "planned": 20}
    assert "20 of 20 done, exported is 10" in page
    assert "held-out loss, patience 2, min_delta 0" in page


def test_fine_tuning_has_a_perplexity_and_no_accuracy(tmp_path) -> None:
    after = measurement(20, 1.0)
    after["sums"] = {"loss": after["sums"]["loss"]}
    after["means"] = {"loss": after["means"]["loss"], "perplexity": 4.25}
    config = job(sft={"data": "x.jsonl", "heldout_fraction": 0.1})
    found = record(tmp_path / "policy", after, {20: 0.4}, "fine-tuned model")
    metrics, page = report(tmp_path, config, found)
    assert set(metrics["metrics"]) == {"loss", "perplexity"}
    assert "accuracy is" not in metrics["verdict"]
    assert "4.25" in page


def test_it_is_written_once_and_again_when_the_training_was(tmp_path, caplog) -> None:
    found = record(tmp_path / "policy", measurement(20, 1.0), {20: 0.4})
    first, _ = report(tmp_path, job(), found)
    file = tmp_path / "report/metrics.json"
    assert json.loads(file.read_text()) == {k: v for k, v in first.items() if k != "report"}
    written = file.stat().st_mtime_ns
    assert report(tmp_path, job(), found)[0] == first
    assert file.stat().st_mtime_ns == written
    other = record(tmp_path / "policy", measurement(20, 2.0), {20: 0.3})
    assert report(tmp_path, job(), other)[0] != first
    shutil.rmtree(tmp_path / "report")


def test_curves_show_held_out_data_beside_training_batches() -> None:
    rows = rows_of({0: 0.69, 10: 0.6, 20: 0.65})
    drawn = plots.heldout_curves(rows)
    assert drawn is not None
    assert drawn != plots.heldout_curves(rows, exported=10)
    assert plots.heldout_curves([row for row in rows if "heldout/loss" not in row]) is None
