"""Write the metrics of a training to the console, metrics.jsonl, and trackers.

Rank 0 gives one row of metrics per step. It becomes one line of JSON in the stage's folder, without
gaps or repeats even if a resumed run repeated steps. TensorBoard, wandb or mlflow get the same
numbers. Measurements on held-out data are in the rows of the steps after which they were made, and
in a row of step 0 without a loss.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Protocol

from raydpo.core.artifacts import held_bytes
from raydpo.core.errors import ConfigError, DataError
from raydpo.core.metric_names import heldout_values
from raydpo.core.progress import Progress
from raydpo.core.storage import Folder

METRICS_FILE: Final = "metrics.jsonl"
#: File with the newest line of progress, which the driver shows.
PROGRESS_FILE: Final = "progress.txt"
#: Names of this training in the trackers, under which a resumed training continues.
_TRACKED_FILE: Final = "trackers.json"
_SECONDS_BETWEEN_WRITES: Final = 10.0
_SHOWN: Final = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}


class Tracker(Protocol):
    """A service or file that metrics are sent to."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Send one step's metrics."""
        ...

    def close(self) -> None:
        """Send all remaining metrics."""
        ...


class MetricsLog:
    """Rank 0's record of a training that an earlier process may have begun.

    Args:
        folder: the stage's folder.
        start_step: number of steps done; rows after them belong to lost work and are dropped.
        total_steps: the total, for the progress line.
        every_steps: steps between console lines and tracker rows.
        trackers: the names of trackers.
        what: the stage and round.
    """

    def __init__(
        self,
        folder: Folder,
        start_step: int,
        total_steps: int,
        every_steps: int,
        trackers: tuple[str, ...],
        what: str,
    ) -> None:
        self._folder = folder
        # A training that starts anew measures step 0 again.
        self._rows = [row for row in read_rows(folder) if row["step"] <= start_step and start_step]
        self._measured = _shown_heldout(self._rows[-1]) if self._rows else ""
        self._every_steps = every_steps
        self._progress = Progress(
            what, "steps", total_steps, start_step, every_seconds=3.0, tell=self._show
        )
        self._trackers = [_tracker(name, folder, what, start_step) for name in trackers]
        self._written = time.monotonic()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a step, counted from 1, or those before the first step as step 0."""
        self._rows.append({"step": step, **metrics})
        measured = _shown_heldout(self._rows[-1])
        self._measured = measured or self._measured
        note = ", ".join(f"{s} {metrics[n]:.4f}" for n, s in _SHOWN.items() if n in metrics)
        if step > 0:
            self._progress.add(1, note + self._measured)
        if measured or step % self._every_steps == 0:
            for tracker in self._trackers:
                tracker.log(step, metrics)
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self.write()

    def _show(self, line: str) -> None:
        self._folder.write_bytes(PROGRESS_FILE, line.encode())

    def write(self) -> None:
        """Write the rows to metrics.jsonl."""
        lines = "".join(json.dumps(row) + "\n" for row in self._rows)
        self._folder.write_bytes(METRICS_FILE, lines.encode())
        self._written = time.monotonic()

    def close(self) -> None:
        """Write all remaining metrics, here and in the trackers."""
        self.write()
        for tracker in self._trackers:
            tracker.close()


def read_metrics(folder: Folder) -> list[dict[str, Any]]:
    """Return the rows of a training's steps from metrics.jsonl; an empty list if it does not exist.

    Raises:
        DataError: the file is damaged.
    """
    return [row for row in read_rows(folder) if row["step"] > 0]


def read_heldout(folder: Folder) -> list[dict[str, Any]]:
    """Return the measurements on held-out data in metrics.jsonl: `step` and values by their names.

    Raises:
        DataError: the file is damaged.
    """
    found = [(row["step"], heldout_values(row)) for row in read_rows(folder)]
    return [{"step": step, **values} for step, values in found if values]


def _shown_heldout(row: dict[str, Any]) -> str:
    """Return the end of a line of progress that shows a row's held-out metrics; else empty."""
    values = heldout_values(row)
    shown = ", ".join(f"{s} {values[n]:.4f}" for n, s in _SHOWN.items() if n in values)
    return f"; held-out after step {row['step']}: {shown}" if shown else ""


def read_rows(folder: Folder) -> list[dict[str, Any]]:
    """Return all rows of metrics.jsonl, with that of step 0; an empty list if it does not exist.

    Raises:
        DataError: the file is damaged.
    """
    if not folder.exists(METRICS_FILE):
        return []
    content = held_bytes(folder, METRICS_FILE)
    try:
        return [json.loads(line) for line in content.splitlines()]
    except ValueError as error:
        raise DataError(
            f"{folder.uri}/{METRICS_FILE} is damaged: {error}",
            "each line is the JSON of a step's metrics",
            "restore it; or delete it, and the training goes on without the rows of its past steps",
        ) from error


def _tracker(name: str, folder: Folder, what: str, start_step: int) -> Tracker:
    makers = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow}
    try:
        return makers[name](folder, what, start_step)
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
            raise  # an error of the disk, not of the tracker
        raise _does_not_start(name, error) from error
    except Exception as error:
        raise _does_not_start(name, error) from error


def _does_not_start(name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"tracker {name!r} (training.trackers) does not start: {error}",
        "a tracker's package is installed where the workers run, and knows where to write",
        "install raydpo[trackers]; give WANDB_API_KEY or WANDB_MODE=offline, or "
        "MLFLOW_TRACKING_URI, in the environment; or take it out of `trackers`",
    )


def _tracked_as(folder: Folder) -> dict[str, str]:
    return folder.read_json(_TRACKED_FILE) if folder.exists(_TRACKED_FILE) else {}


def _remember(folder: Folder, tracker: str, run_id: str) -> None:
    folder.write_json(_TRACKED_FILE, {**_tracked_as(folder), tracker: run_id})


class _TensorBoard:
    def __init__(self, folder: Folder, what: str, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._target = folder.child("tensorboard")
        self._local = (
            self._target.local_path() if folder.is_local else Path(tempfile.mkdtemp(prefix="tb-"))
        )
        # Steps of lost work, which are done again, appear only once; so does step 0.
        purged = start_step + 1 if start_step else 0
        self._writer = SummaryWriter(str(self._local), purge_step=purged)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
        if not self._target.is_local:
            self._target.upload(self._local)


class _Wandb:
    def __init__(self, folder: Folder, what: str, start_step: int) -> None:
        import wandb  # pyright: ignore[reportMissingImports]  (optional)

        self._run: Any = wandb.init(
            name=what,
            id=_tracked_as(folder).get("wandb"),
            resume="allow",
            config={"folder": folder.uri},
            dir=folder.uri if folder.is_local else None,
        )
        _remember(folder, "wandb", self._run.id)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, folder: Folder, what: str, start_step: int) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]  (optional)

        if "MLFLOW_TRACKING_URI" not in os.environ:  # else it writes to the worker's folder
            raise ValueError("MLFLOW_TRACKING_URI is not set")
        self._mlflow: Any = mlflow
        run = mlflow.start_run(
            run_id=_tracked_as(folder).get("mlflow"), run_name=what, tags={"folder": folder.uri}
        )
        _remember(folder, "mlflow", run.info.run_id)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._mlflow.log_metrics({k.replace("@", "_"): v for k, v in metrics.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()
