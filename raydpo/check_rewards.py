"""Checks of reward functions on real prompts; see `check.py`.

What comes in: the configuration. What goes out: for each function what it depends on and what
it gave on two rows, in `Findings`.
"""

from __future__ import annotations

from typing import Final

from raydpo.check import Findings
from raydpo.check_resources import is_remote
from raydpo.config import Config, RewardConfig
from raydpo.errors import RaydpoError
from raydpo.labeling.functions import code_of
from raydpo.labeling.trial import try_reward
from raydpo.models import load_tokenizer
from raydpo.prompts.sources import location, source_rows
from raydpo.prompts.stage import prompt_parts

#: Rows of the prompts among which two that can be used are looked for.
_ROWS_LOOKED_AT: Final = 64


def check_rewards(config: Config, findings: Findings) -> None:
    """Say what each reward function depends on, and call it on two rows."""
    sections = {
        "labeling.reward": config.labeling.reward if config.labeling else (),
        "evaluation.judge": config.evaluation.judge if config.evaluation else (),
    }
    named: dict[str, str] = {}
    for name, rewards in sections.items():
        for reward in rewards:
            if reward.function is not None and findings.attempt(_cover, name, reward, findings):
                named.setdefault(reward.function, name)
    prompts = _two_prompts(config) if named else []
    if prompts:
        for function, name in named.items():
            findings.attempt(_try, name, function, prompts, is_remote(config), findings)


def _cover(name: str, reward: RewardConfig, findings: Findings) -> bool:
    """Note what the function's hashes cover, and the files that it names without declaring them."""
    code = code_of(str(reward.function), reward.import_seconds, reward.depends_on)
    findings.facts.append(f"{name}: scores are made again when these change: {code.covered}")
    if code.undeclared:
        files = ", ".join(code.undeclared)
        findings.facts.append(
            f"note: {reward.function} names {files}: a change there leaves old scores in place, "
            f"unless {name}.depends_on lists it"
        )
    return True


def _two_prompts(config: Config) -> list[str]:
    """Two prompts as a run would have them; none where they cannot be read, which is told elsewhere."""
    section = config.prompts or (config.evaluation and config.evaluation.prompts)
    if section is None:
        return []
    try:
        rows = source_rows(*location(section), _ROWS_LOOKED_AT)
        parts = prompt_parts(section, rows, load_tokenizer(config.model), config.rows_per_part)
        prompts = [row["prompt"] for part in parts for row in part.rows]
    except RaydpoError:
        return []
    return (prompts * 2)[:2]


def _try(name: str, function: str, prompts: list[str], remote: bool, findings: Findings) -> None:
    """Note what the function gave on two rows.

    Raises:
        ConfigError, DataError: it fails, and where it will run is here.
    """
    try:
        findings.facts.append(f"{name}: function {function} {try_reward(function, prompts)}")
    except RaydpoError as problem:
        if not remote:
            raise
        findings.facts.append(
            f"note: {name} fails on this machine, and may not on the cluster: {problem}"
        )
