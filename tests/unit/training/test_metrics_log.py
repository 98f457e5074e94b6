"""The record of a training: one row per step, also after a resume, here and in the trackers."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raydpo.core.errors import ConfigError
from raydpo.core.storage import folder_of
from raydpo.training.metrics_log import MetricsLog, read_heldout, read_metrics


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


def measure_interrupted(path, *trackers: str) -> None:
    """Measurements at 0, 2 and 4; of the first process only the work up to step 2 is kept."""
    folder = folder_of(str(path))
    for steps in (range(4), range(3, 5)):
        log = MetricsLog(folder, max(steps.start - 1, 0), 4, 3, trackers, "round 0, train")
        for step in steps:
            own = {"loss": 1.0 / step} if step else {}
            measured = {"heldout/loss": 2.0 + step} if step % 2 == 0 else {}
            log.log(step, {**own, **measured})
        log.close()


def test_measurements_are_in_the_rows_of_their_steps_and_in_a_row_before_them(tmp_path) -> None:
    measure_interrupted(tmp_path)
    folder = folder_of(str(tmp_path))
    assert [row["step"] for row in read_metrics(folder)] == [1, 2, 3, 4]
    assert read_heldout(folder) == [
        {"step": 0, "loss": 2.0},
        {"step": 2, "loss": 4.0},
        {"step": 4, "loss": 6.0},
    ]


def test_a_training_that_starts_anew_has_one_row_before_the_first_step(tmp_path) -> None:
    for value in (2.0, 3.0):
        log = MetricsLog(folder_of(str(tmp_path)), 0, 4, 1, ("tensorboard",), "round 0, train")
        log.log(0, {"heldout/loss": value})
        log.close()
    assert read_heldout(folder_of(str(tmp_path))) == [{"step": 0, "loss": 3.0}]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("heldout/loss")] == [3.0]


def test_trackers_get_each_measurement_whatever_log_every_steps(tmp_path) -> None:
    measure_interrupted(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("heldout/loss")] == [(0, 2), (2, 4), (4, 6)]
    assert [event.step for event in events.Scalars("loss")] == [2, 3, 4]


def test_progress_shows_the_newest_measurement_also_after_a_resume(tmp_path) -> None:
    measure_interrupted(tmp_path)
    folder = folder_of(str(tmp_path))
    assert (
        "loss 0.2500; held-out after step 4: loss 6.0000"
        in folder.read_bytes("progress.txt").decode()
    )
    log = MetricsLog(folder, 2, 3, 1, (), "round 0, train")
    log.log(3, {"loss": 0.5})
    assert "held-out after step 2: loss 4.0000" in folder.read_bytes("progress.txt").decode()


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
