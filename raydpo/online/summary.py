"""Summarise online rounds: `online.json`, a page, and a table for a terminal.

The records of the rounds give files in the run directory, and text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from raydpo.config.file import config_to_yaml
from raydpo.config.job import Config, OnlineConfig
from raydpo.core.storage import Folder
from raydpo.evaluation.caveats import sampling_caveats
from raydpo.evaluation.measure import score_unit
from raydpo.evaluation.plots import curves_by_round, rewards_by_round
from raydpo.evaluation.report import Figure
from raydpo.evaluation.training_rewards import reward_unit
from raydpo.online.measure import PolicyMeasures
from raydpo.online.page import (
    RoundSamples,
    RoundsInputs,
    choose_round_samples,
    policy_name,
    render_rounds,
)
from raydpo.online.progress import rounds_progress
from raydpo.online.record import RoundRecord, overhead_share, with_error
from raydpo.online.tensorboard import write_tensorboard
from raydpo.online.verdict import Verdict, against_original, rounds_verdict

Json = dict[str, Any]

RECORD_FILE: Final = "online.json"
PLOT_FILE: Final = "online.png"
PAGE_FILE: Final = "online.html"
_REWARD_CAPTION: Final = "Held-out reward and KL by round; bars are 95 % confidence intervals."
_ROUNDS_CAPTION: Final = (
    "What else changed from round to round. Bars are 95 % confidence intervals, where there is one."
)
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
    measures: Sequence[PolicyMeasures],
    stopped: str | None,
    best: RoundRecord,
) -> Verdict:
    """Write `online.json`, `online.html` and what is drawn for it, and return the verdict.

    Args:
        config: the job; its `online` section is required.
        folder: the run directory.
        records: one for the original model and one for each round.
        measures: the held-out samples of each policy, or none at all.
        stopped: why the rounds ended early, or None.
        best: the record of the best policy.
    """
    online = config.online
    assert online is not None
    compared = against_original(config, measures)
    verdict = rounds_verdict(records, measures, compared, stopped, best, online.stopping)
    progress = rounds_progress(config, online, folder, records)
    value: Json = {
        "verdict": verdict.line,
        "speaks_against_it": verdict.objections,
        "notes": verdict.notes,
        "policies": [record.as_json() for record in records],
        "against_original": compared,
        "rounds": progress,
        "stopped": stopped,
        "best": {"rounds_done": best.rounds_done, "policy": best.policy},
    }
    if config.evaluation is not None:
        value["reward_unit"] = score_unit(config.evaluation.judge)
        value["kl_not_exact_because"] = sampling_caveats(config.evaluation, config.sampling)
    figures = _figures(config, records, compared, progress)
    for figure in figures:
        folder.write_bytes(f"{figure.name}.png", figure.png)
    inputs = RoundsInputs(
        title=config.name,
        verdict=verdict,
        records=records,
        compared=compared,
        progress=progress,
        seconds=[_seconds(folder, index) for index in range(len(records) - 1)],
        best=best.rounds_done,
        figures=figures,
        samples=_samples(config, measures),
        facts=_facts(config, records, online),
        config_yaml=config_to_yaml(config),
    )
    folder.write_bytes(PAGE_FILE, render_rounds(inputs).encode("utf-8", "replace"))
    write_tensorboard(config, folder, records, inputs.samples)
    folder.write_json(RECORD_FILE, value)
    return verdict


def _samples(config: Config, measures: Sequence[PolicyMeasures]) -> list[RoundSamples]:
    if config.evaluation is None:
        return []
    count = config.evaluation.report_samples
    return choose_round_samples([of.samples for of in measures], count)


def _figures(
    config: Config,
    records: Sequence[RoundRecord],
    compared: Sequence[Json | None],
    progress: Sequence[Json],
) -> list[Figure]:
    """Draw what changes from round to round; the reward of the original model is at 0 rounds."""
    figures: list[Figure] = []
    rows = [record.evaluation for record in records if record.evaluation is not None]
    panels: list[tuple[str, str, list[Json | None]]] = []
    if config.evaluation is not None:
        png = rewards_by_round({"": rows}, score_unit(config.evaluation.judge))
        figures.append(Figure(Path(PLOT_FILE).stem, png, _REWARD_CAPTION, wide=True))
        panels.append(("length", "tokens", [row["completion_tokens"] for row in rows]))
        panels.append(_training_reward_panel(config, compared))
        panels.append(("entropy", "nats per token", _entropies(compared)))
    sampled = [None, *(of["sampled_reward"] for of in progress)]
    falls = [_exact(record.displacement_nats) for record in records]
    panels.append(("reward of the round's samples", "training prompts", sampled))
    panels.append(("fall of chosen log-probs", "nats", falls))
    ages = [None, *(_exact(of["updates_behind"]["last"]) for of in progress)]
    panels.append(("staleness at the last update", "updates behind", ages))
    replays = any(of["replay_share"] for of in progress)
    shares = [None, *(_exact(100 * of["replay_share"]) for of in progress if replays)]
    panels.append(("replayed groups", "%", shares))
    drawn = [panel for panel in panels if any(value is not None for value in panel[2])]
    if drawn:
        figures.append(Figure("rounds", curves_by_round(drawn), _ROUNDS_CAPTION, wide=True))
    return figures


def _training_reward_panel(
    config: Config, compared: Sequence[Json | None]
) -> tuple[str, str, list[Json | None]]:
    """Return the training reward of the held-out samples; the original's is in each comparison."""
    sums = [found and found["training_reward"]["sum"] for found in compared]
    known = [of for of in sums if of is not None]
    original = known[0]["reference"] if known else None
    values = [original, *(of and of["policy"] for of in sums[1:])]
    rewards = config.rewards_evaluated
    unit = reward_unit(rewards, config.combine_evaluated) if known else ""
    return "training reward, held-out prompts", unit, values


def _entropies(compared: Sequence[Json | None]) -> list[Json | None]:
    """Return the entropy of each policy; the original model's is in each comparison."""
    key = "entropy_nats_per_token"
    known = [found for found in compared if found is not None]
    original = known[0]["reference"][key] if known else None
    return [original, *(found and found["policy"][key] for found in compared[1:])]


def _exact(value: float | None) -> Json | None:
    """Return a number without an interval in the form of an estimate."""
    return None if value is None else {"mean": value, "ci95": None}


def _facts(
    config: Config, records: Sequence[RoundRecord], online: OnlineConfig
) -> list[tuple[str, str]]:
    facts = [
        (policy_name(record.rounds_done), f"{record.policy} (weights {record.policy_weights[:12]})")
        for record in records
    ]
    facts.append(("rounds asked for", str(online.rounds)))
    evaluation = config.evaluation
    if evaluation is not None:
        facts.append(("judge", ", ".join(judge.source for judge in evaluation.judge)))
        facts.append(("held-out prompts", evaluation.prompts.where))
        text = f"{evaluation.samples_per_prompt} a prompt, temperature {evaluation.temperature:g}"
        facts.append(("held-out completions", f"{text}, the same seeds for all policies"))
    return [*facts, ("seed", str(config.seed))]


def _seconds(folder: Folder, index: int) -> dict[str, float]:
    return folder.read_json(f"round-{index:03d}/round.json")["seconds"]


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
    seconds = _seconds(folder, record.rounds_done - 1)
    share = f"{100 * overhead_share(seconds):.0f} %"
    return str(record.samples), f"{seconds['total']:.1f}", share
