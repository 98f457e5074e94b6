"""Report the steps of a training to the callbacks.

Rank 0 writes metrics.jsonl, and the driver calls the callbacks once for each row of it, even if it
is killed and started again.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from raydpo.core.callbacks import has_callbacks, notify
from raydpo.core.metric_names import heldout_values
from raydpo.core.periodic import periodically
from raydpo.core.storage import Folder
from raydpo.training.metrics_log import METRICS_FILE, read_rows

#: File with the last step that was reported; it exists while a training is not done.
REPORTED_FILE: Final = "callbacks.json"
_SECONDS_BETWEEN_LOOKS: Final = 1.0


@contextmanager
def reported_steps(folder: Folder) -> Generator[None]:
    """Report each step and measurement of a training while the block runs, and the rest at its end.

    Workers may go on for a while after their driver was killed, so metrics.jsonl does not show which
    steps it reported: a file does.
    """
    if not has_callbacks(folder):
        folder.delete(REPORTED_FILE)
        yield
        return
    if not folder.exists(REPORTED_FILE):
        done_before = max((row["step"] for row in read_rows(folder)), default=-1)
        folder.write_json(REPORTED_FILE, {"step": done_before})
    reported: int = folder.read_json(REPORTED_FILE)["step"]
    size_before = 0

    def report() -> None:
        nonlocal reported, size_before
        size = folder.files().get(METRICS_FILE, 0)
        if size == size_before:
            return
        for row in read_rows(folder):
            if row["step"] > reported:
                reported = row["step"]
                if reported > 0:
                    notify("step", folder, row, reported)
                if values := heldout_values(row):
                    notify("heldout", folder, values, reported)
                folder.write_json(REPORTED_FILE, {"step": reported})
        size_before = size

    with periodically("raydpo-steps", report, _SECONDS_BETWEEN_LOOKS):
        yield
    report()
    folder.delete(REPORTED_FILE)
