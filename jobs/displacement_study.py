"""What becomes of chosen log-probs and lengths under DPO, and what cures it?

    python jobs/displacement_study.py --output runs/frontier

The study trains DPO and its cures on the same preferences, in the folder of the frontier study,
whose runs of DPO it takes over. It prints a table: log-ratios of held-out chosen and rejected
completions, the way of chosen log-probs over the training, lengths and repetition of fresh samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Final

from frontier.tables import with_interval
from grid.options import study_parser
from grid.points import BASE, REFERENCE, Point, Settings, offline
from grid.results import Row
from grid.runs import in_order, rows_of, run_all
from grid.settings import Setting, settings_of
from raydpo.core.progress import start_logging

_DPO: Final = {"name": "dpo", "beta": 0.1}


def contenders() -> list[Point]:
    """Return pi_ref, DPO, and what is said to keep chosen log-probs or lengths where they were."""
    return [
        REFERENCE,
        BASE,
        offline("dpo", "beta 0.1, lr 5e-5", _DPO, "training.learning_rate=5.0e-5"),
        offline("dpo + sft", "weight 1", {**_DPO, "sft_weight": 1.0}),
        offline("dpop", "penalty 5", {"name": "dpop", "beta": 0.1, "penalty": 5.0}),
        offline("dpo, length: mean", "beta 4", {"name": "dpo", "beta": 4.0, "length": "mean"}),
        offline("dpo, length: ld_alpha", "0.5", {**_DPO, "length": {"ld_alpha": 0.5}}),
        offline("simpo", "beta 2, gamma 1", {"name": "simpo"}),
    ]


def table(settings: Sequence[Setting]) -> list[str]:
    """Return Markdown lines, one for each contender; ranges are over seeds."""
    names = (
        "contender",
        "chosen (nats)",
        "rejected (nats)",
        "held-out accuracy",
        "chosen during training (nats)",
        "length (tokens)",
        "repetition",
        "at the limit",
        "KL (nats)",
        "judge score",
    )
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for setting in settings:
        cells = (
            f"`{setting.method}` {setting.strength}".strip(),
            _range(setting, lambda row: row.data["chosen"] if row.data else None, "+.2f"),
            _range(setting, lambda row: row.data["rejected"] if row.data else None, "+.2f"),
            _range(setting, lambda row: row.data["accuracy"] if row.data else None, ".2f"),
            _way(setting),
            with_interval(setting, "tokens", 1),
            _range(setting, lambda row: row.repetition, ".3f"),
            _range(setting, lambda row: row.token_limit_share, ".2f"),
            with_interval(setting, "kl", 2),
            with_interval(setting, "score", 3),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _range(setting: Setting, value: Callable[[Row], float | None], form: str) -> str:
    found = setting.average(value)
    if found is None:
        return ""
    mean, least, largest = (format(number, form) for number in found)
    return f"{mean} [{least}, {largest}]"


def _way(setting: Setting) -> str:
    """Return how far held-out chosen log-probs had moved at each measured step, over all seeds."""
    curves = [row.curve["logps/chosen"] for row in setting.rows if "logps/chosen" in row.curve]
    if not curves:
        return ""
    points = zip(*([value - curve[0] for value in curve] for curve in curves), strict=True)
    return " → ".join(f"{sum(values) / len(values):+.1f}" for values in points)


def main() -> None:
    """Read the options, run what is missing, print the table."""
    options = _parse()
    start_logging()
    settings = Settings(options.output.resolve(), tuple(options.overrides), options.quick)
    work = in_order(contenders(), options.seeds)
    rows = rows_of(settings, work) if options.tables else run_all(settings, work)
    print("\n".join(table(settings_of(rows))))


def _parse() -> argparse.Namespace:
    parser = study_parser(description="Displacement and length, and their cures.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
