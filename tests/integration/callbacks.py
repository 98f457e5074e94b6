"""A callback that tests name by import path."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raydpo import Event


def note_event(event: Event) -> None:
    """Write an event as a line of JSON beside the run directory."""
    with open(f"{event.run}.events.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(event)) + "\n")


def noted_events(run: Path) -> list[dict[str, Any]]:
    """Return the events of a run directory in the order of their calls."""
    lines = Path(f"{run}.events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
