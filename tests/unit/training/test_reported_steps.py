"""The steps of a training as callbacks get them, also after the driver was killed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydpo.core.callbacks import callbacks_of
from raydpo.core.storage import Folder, folder_of
from raydpo.training.metrics_log import METRICS_FILE
from raydpo.training.stage import REPORTED_FILE, reported_steps

MODULE = """
steps = []

def note(event):
    steps.append((event.step, event.metrics["loss"]))
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """A run directory; the module of the callback is in the working directory."""
    (tmp_path / "step_callbacks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder_of(str(tmp_path / "run"))
    sys.modules.pop("step_callbacks", None)


def steps() -> list[tuple[int, float]]:
    return sys.modules["step_callbacks"].steps


def rows(last: int) -> list[tuple[int, float]]:
    return [(step, step / 8) for step in range(1, last + 1)]


def write_rows(policy: Folder, last: int) -> None:
    lines = [json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in rows(last)]
    policy.write_bytes(METRICS_FILE, "".join(lines).encode())


def wait_for_steps(last: int) -> None:
    end = time.monotonic() + 120
    while steps() != rows(last):
        assert time.monotonic() < end, steps()
        time.sleep(0.01)


class Killed(BaseException):
    """Stands for the end of the driver."""


def train_until_the_driver_is_killed(policy: Folder) -> None:
    with reported_steps(policy):
        write_rows(policy, 2)
        wait_for_steps(2)
        raise Killed


def test_a_resumed_driver_reports_what_workers_wrote_after_the_first_was_killed(
    run: Folder,
) -> None:
    policy = run.child("round-000/policy")
    with callbacks_of(run, ["step_callbacks:note"]):
        with pytest.raises(Killed):
            train_until_the_driver_is_killed(policy)
        write_rows(policy, 4)
        with reported_steps(policy):
            write_rows(policy, 1)  # the resumed training starts at its last checkpoint
            write_rows(policy, 5)
    assert steps() == rows(5)
    assert not policy.exists(REPORTED_FILE)


def test_steps_before_the_callbacks_were_added_are_not_reported(run: Folder) -> None:
    policy = run.child("round-000/policy")
    write_rows(policy, 3)
    with callbacks_of(run, ["step_callbacks:note"]), reported_steps(policy):
        write_rows(policy, 5)
    assert steps() == rows(5)[3:]


def test_a_run_whose_callbacks_were_removed_keeps_no_file_of_them(run: Folder) -> None:
    policy = run.child("round-000/policy")
    with callbacks_of(run, ["step_callbacks:note"]), pytest.raises(Killed):
        train_until_the_driver_is_killed(policy)
    assert policy.exists(REPORTED_FILE)
    with callbacks_of(run, []), reported_steps(policy):
        write_rows(policy, 3)
    assert steps() == rows(2)
    assert not policy.exists(REPORTED_FILE)


def test_measurements_are_events_of_their_own_also_before_the_first_step(
    run: Folder, tmp_path: Path
) -> None:
    (tmp_path / "step_callbacks.py").write_text(
        "steps = []\n\ndef note(event):\n"
        "    steps.append((event.kind, event.step, event.metrics))\n"
    )
    policy = run.child("round-000/policy")
    rows = [
        {"step": 0, "heldout/loss": 3.0},
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0, "heldout/loss": 2.5},
    ]
    with callbacks_of(run, ["step_callbacks:note"]), reported_steps(policy):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        policy.write_bytes(METRICS_FILE, text.encode())
    assert sys.modules["step_callbacks"].steps == [
        ("heldout", 0, {"loss": 3.0}),
        ("step", 1, rows[1]),
        ("step", 2, rows[2]),
        ("heldout", 2, {"loss": 2.5}),
    ]
