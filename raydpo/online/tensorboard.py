"""Write all rounds of a run as one TensorBoard run, whose steps go on from round to round.

Each round's training has a TensorBoard run of its own, with steps from 1. Rows of `metrics.jsonl`,
held-out numbers and texts of all rounds give one more in the run directory. A step is an optimizer
update since the original model; held-out numbers and texts are at the last update of their round.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from raydpo.config.job import Config
from raydpo.core.progress import logger
from raydpo.core.run import round_folder
from raydpo.core.storage import Folder
from raydpo.online.page import RoundSamples
from raydpo.online.record import RoundRecord
from raydpo.training.metrics_log import read_metrics

FOLDER: Final = "tensorboard"
_MEASURED: Final = ("reward", "kl_nats_per_completion", "completion_tokens", "finished_share")

Scalar = tuple[str, float, int]


def write_tensorboard(
    config: Config, run: Folder, records: Sequence[RoundRecord], samples: Sequence[RoundSamples]
) -> None:
    """Write `tensorboard/` in the run directory if the training has this tracker.

    What an earlier command wrote there is replaced. Where TensorBoard is not installed, the log says
    so: only the workers of a training need it.
    """
    if config.training is None or "tensorboard" not in config.training.trackers:
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        logger.warning("[rounds] no TensorBoard run of all rounds: %s", error)
        return
    target = run.child(FOLDER)
    target.delete()
    with tempfile.TemporaryDirectory(prefix="tb-") as temporary:
        local = target.local_path() if target.is_local else Path(temporary)
        writer: Any = SummaryWriter(str(local))
        for name, value, step in scalars(run, records):
            writer.add_scalar(name, value, step)
        ends = _ends(run, len(records) - 1)
        for number, shown in enumerate(samples):
            for step, (_, sample) in zip(ends, shown.completions, strict=True):
                text = f"{shown.prompt} **→** {sample.completion}"
                writer.add_text(f"heldout_prompts/{number}", text, step)
        writer.close()
        if not target.is_local:
            target.upload(local)


def scalars(run: Folder, records: Sequence[RoundRecord]) -> Iterator[Scalar]:
    """Yield name, value and step of all numbers, those of the trainings first."""
    ends = _ends(run, len(records) - 1)
    for index, before in enumerate(ends[:-1]):
        for row in read_metrics(round_folder(run, index).child("policy")):
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float) and row["step"] > 0:
                    yield name, float(value), before + row["step"]
    for record, step in zip(records, ends, strict=True):
        if record.evaluation is None:
            continue
        for name in _MEASURED:
            value = record.evaluation[name]
            mean = value["mean"] if isinstance(value, dict) else value
            yield f"heldout_prompts/{name}", float(mean), step


def _ends(run: Folder, rounds: int) -> list[int]:
    """Return how many updates were done before round 0 and after each round: [rounds + 1]."""
    ends = [0]
    for index in range(rounds):
        rows = read_metrics(round_folder(run, index).child("policy"))
        ends.append(ends[-1] + max((row["step"] for row in rows), default=0))
    return ends
