"""Summarise online rounds: `online.json`, a plot, and a table for a terminal.

The records of the rounds give files in the run directory, and text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from raydpo.config.job import Config
from raydpo.core.storage import Folder
from raydpo.evaluation.caveats import sampling_caveats
from raydpo.evaluation.measure import score_unit
from raydpo.evaluation.plots import rewards_by_round
from raydpo.online.record import RoundRecord, overhead_share, with_error

Json = dict[str, Any]

RECORD_FILE: Final = "online.json"
PLOT_FILE: Final = "online.png"
_HEADER: Final = (
    "",
    "held-out reward",
    "gain",
    "KL (nats)",
    "tokens",
    "samples",
    "seconds",
    "outside work",
)


def publish(
    config: Config,
    folder: Folder,
    records: Sequence[RoundRecord],
    stopped: str | None,
    best: RoundRecord,
) -> None:
    """Write `online.json`, and with an evaluation `online.png`, into the run directory."""
    value: Json = {
        "policies": [record.as_json() for record in records],
        "stopped": stopped,
        "best": {"rounds_done": best.rounds_done, "policy": best.policy},
    }
    if config.evaluation is not None:
        value["reward_unit"] = score_unit(config.evaluation.judge)
        value["kl_not_exact_because"] = sampling_caveats(config.evaluation, config.sampling)
        rows = [record.evaluation for record in records if record.evaluation is not None]
        folder.write_bytes(PLOT_FILE, rewards_by_round({"": rows}, value["reward_unit"]))
    folder.write_json(RECORD_FILE, value)


def online_table(folder: Folder, records: Sequence[RoundRecord]) -> str:
    """Format a row per policy: held-out reward, gain over the row before, KL, length, time."""
    rows = [_HEADER, *(_row(folder, record) for record in records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])


def _row(folder: Folder, record: RoundRecord) -> tuple[str, ...]:
    name = f"round {record.rounds_done - 1}" if record.rounds_done else "original"
    return (name, *_measured(record.evaluation), *_spent(folder, record))


def _measured(evaluation: Json | None) -> tuple[str, str, str, str]:
    if evaluation is None:
        return "", "", "", ""
    gain = evaluation["gain"]
    z = f" ({gain['z']:+.1f} SE)" if gain and gain["z"] is not None else ""
    return (
        with_error(evaluation["reward"], 3),
        f"{gain['mean']:+.3f}{z}" if gain else "",
        with_error(evaluation["kl_nats_per_completion"], 2),
        with_error(evaluation["completion_tokens"], 1),
    )


def _spent(folder: Folder, record: RoundRecord) -> tuple[str, str, str]:
    """Return the samples, and the seconds that the round's own folder records."""
    if record.rounds_done == 0:
        return "", "", ""
    seconds = folder.read_json(f"round-{record.rounds_done - 1:03d}/round.json")["seconds"]
    share = f"{100 * overhead_share(seconds):.0f} %"
    return str(record.samples), f"{seconds['total']:.1f}", share
