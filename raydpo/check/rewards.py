"""Check reward functions and services on real prompts; see `job.py`.

For each of them, `Findings` gets what its scores depend on, and its rewards for two rows.
"""

from __future__ import annotations

from typing import Final, assert_never

from raydpo.check.findings import Findings
from raydpo.check.machine import is_remote
from raydpo.config.job import Config, RewardConfig
from raydpo.core.credentials import without_credentials
from raydpo.core.errors import RaydpoError
from raydpo.labeling.functions import code_of
from raydpo.labeling.scorers import scorer_of
from raydpo.labeling.trial import try_reward, try_service
from raydpo.models.loading import load_tokenizer
from raydpo.prompts.sources import location, source_rows
from raydpo.prompts.stage import prompt_parts

#: Rows of the prompts among which two that can be used are looked for.
_ROWS_LOOKED_AT: Final = 64


def check_rewards(config: Config, findings: Findings) -> None:
    """Say what each function and service depends on, and ask it for two rows."""
    sections = {
        "labeling.reward": config.labeling.reward if config.labeling else (),
        "evaluation.judge": config.evaluation.judge if config.evaluation else (),
    }
    tried: dict[tuple[str, str], tuple[str, RewardConfig]] = {}
    for name, rewards in sections.items():
        for reward in rewards:
            if findings.attempt(_cover, name, reward, findings):
                tried.setdefault((reward.kind, reward.source), (name, reward))
    _announce_training_rewards(config, findings)
    prompts = _two_prompts(config) if tried else []
    if prompts:
        for name, reward in tried.values():
            findings.attempt(_try, name, reward, prompts, is_remote(config), findings)


def _announce_training_rewards(config: Config, findings: Findings) -> None:
    """Note that the evaluation asks the training rewards again, and what it asks of services."""
    if not config.rewards_evaluated or config.evaluation is None:
        return
    asked = f"{2 * config.evaluation.samples_per_prompt} completions a held-out prompt"
    services = [reward.scorer for reward in config.rewards_evaluated if reward.http is not None]
    cost = f", also {', '.join(services)} over HTTP" if services else ""
    findings.facts.append(
        f"evaluation: labeling.reward scores {asked}, too{cost}; "
        "evaluation.training_rewards: false leaves this out"
    )


def _cover(name: str, reward: RewardConfig, findings: Findings) -> bool:
    """Note what the scores depend on; whether this is a reward that can be tried on two rows."""
    match reward.kind:
        case "function":
            _cover_function(name, reward, findings)
            return True
        case "http":
            covered = scorer_of(reward).stale_with()
            findings.facts.append(f"{name}: scores are made again when these change: {covered}")
            return True
        case "classifier" | "implicit":  # models, which check_models.py looks at
            return False
        case _:
            assert_never(reward.kind)


def _cover_function(name: str, reward: RewardConfig, findings: Findings) -> None:
    """Note what the function's hashes cover, and the files that it names without declaring them."""
    code = code_of(str(reward.function), reward.import_seconds, reward.depends_on)
    findings.facts.append(f"{name}: scores are made again when these change: {code.covered}")
    if code.undeclared:
        files = ", ".join(code.undeclared)
        findings.facts.append(
            f"note: {reward.function} names {files}: a change there leaves old scores in place, "
            f"unless {name}.depends_on lists it"
        )


def _two_prompts(config: Config) -> list[str]:
    """Two prompts as in a run; none if they cannot be read, which another check reports."""
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


def _try(
    name: str, reward: RewardConfig, prompts: list[str], remote: bool, findings: Findings
) -> None:
    """Note what the function or service gave on two rows.

    Raises:
        RaydpoError: it fails, and where it will be asked from is here.
    """
    try:
        if reward.http is not None:
            gave = try_service(reward.http, prompts)
            findings.facts.append(f"{name}: service {without_credentials(reward.source)} {gave}")
        else:
            gave = try_reward(reward.source, prompts)
            findings.facts.append(f"{name}: function {reward.source} {gave}")
    except RaydpoError as problem:
        if not remote:
            raise
        findings.facts.append(
            f"note: {name} fails on this machine, and may not on the cluster: {problem}"
        )
