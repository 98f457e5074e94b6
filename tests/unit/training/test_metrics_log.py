"""The record of a training: one row per step, also after a resume, here and in the trackers."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raydpo.core.errors import ConfigError
from raydpo.core.storage import folder_of
from raydpo.training.metrics_log import MetricsLog, read_metrics


def train(path, steps: range, *trackers: str) -> None:
    """Log the steps, as a worker that starts at the first of them."""
    log = MetricsLog(folder_of(str(path)), steps.start - 1, 4, 1, trackers, "round 0, training")
    for step in steps:
        log.log(step, {"loss": 1.0 / step, "rewards/margins": 0.5 * step})
    log.close()


def train_interrupted(path, *trackers: str) -> None:
    """Steps 1 to 3, of which the last is lost with its worker; then 3 and 4."""
    train(path, range(1, 4), *trackers)
    train(path, range(3, 5), *trackers)


def test_steps_of_lost_work_stand_once(tmp_path) -> None:
    train_interrupted(tmp_path)
    rows = read_metrics(folder_of(str(tmp_path)))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["loss"] for row in rows] == [1.0, 0.5, 1 / 3, 0.25]


def test_tensorboard_shows_every_step_once(tmp_path) -> None:
    train_interrupted(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("rewards/margins")] == [0.5, 1.0, 1.5, 2.0]


def test_wandb_goes_on_with_the_run_that_it_knows(tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train_interrupted(tmp_path, "wandb")
    run_id = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/*.wandb"))) >= 1
    assert len({path.name for path in tmp_path.glob("wandb/*/*.wandb")}) == 1


def test_mlflow_goes_on_with_the_run_that_it_knows(tmp_path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    train_interrupted(tmp_path, "mlflow")
    run_id = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    history = mlflow.MlflowClient().get_metric_history(run_id, "rewards/margins")
    assert {event.step: event.value for event in history} == {1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0}


def test_a_tracker_that_cannot_start_is_an_error_that_names_it(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=r"tracker 'mlflow' .*does not start"):
        train(tmp_path, range(1, 2), "mlflow")
