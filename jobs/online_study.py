"""Three online rounds against one offline round with the same number of samples.

    python jobs/online_study.py [--config jobs/online_dpo.yaml] [--set section.key=value ...]

The study runs an online job, and a second run `<name>-one-round`. The second samples as often and
trains as long, but does both before any policy is pushed. The study prints a table of both and
draws `online-rounds.png` beside the runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from raydpo.cli import main
from raydpo.config.file import load_config
from raydpo.config.job import Config
from raydpo.core.run import run_folder
from raydpo.evaluation.plots import rewards_by_round

Json = dict[str, Any]


def one_round(config: Config) -> list[str]:
    """Overrides that make one round of as many samples as the rounds of `config` together."""
    assert config.online is not None
    each = config.online.prompts_per_round
    if config.online.prompts != "cycle" or each is None:
        sys.exit("the study compares rounds of `prompts: cycle` with a `prompts_per_round`")
    values = {
        "name": f"{config.name}-one-round",
        "online.rounds": 1,
        "online.prompts_per_round": each * config.online.rounds,
    }
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def evaluations(output: str, name: str) -> tuple[list[Json], str]:
    """Held-out numbers of a finished run's policies, and the unit of the reward."""
    found = run_folder(output, name).read_json("online.json")
    return [policy["evaluation"] for policy in found["policies"]], found["reward_unit"]


def study(path: str, overrides: list[str]) -> None:
    """Run both, print both tables, draw both."""
    sets = [part for override in overrides for part in ("--set", override)]
    config = load_config(path, overrides)
    if main(["online", path, *sets]) or main(["online", path, *sets, *one_round(config)]):
        sys.exit(1)
    rounds, unit = evaluations(config.output, config.name)
    offline, _ = evaluations(config.output, f"{config.name}-one-round")
    image = rewards_by_round({"online rounds": rounds, "one offline round": offline}, unit)
    target = Path(config.output, "online-rounds.png")
    target.write_bytes(image)
    gain = rounds[-1]["reward"]["mean"] - offline[-1]["reward"]["mean"]
    print(f"after as many samples, online rounds are {gain:+.3f} above one offline round: {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Online rounds against one offline round.")
    parser.add_argument("--config", default="jobs/online_dpo.yaml", help="YAML file of the job")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    study(options.config, options.overrides)
