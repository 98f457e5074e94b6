"""Check reward functions, services and judges on real prompts; see `job.py`.

For each of them, `Findings` gets what its scores depend on, and its rewards for two rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, assert_never

from raydpo.check.findings import Findings
from raydpo.check.machine import is_remote
from raydpo.config.job import Config, PairsConfig, PromptsConfig, RewardConfig
from raydpo.core.credentials import without_credentials
from raydpo.core.errors import ConfigError, RaydpoError
from raydpo.core.metadata import metadata_columns
from raydpo.core.run import round_folder, run_folder
from raydpo.core.tables import Row
from raydpo.labeling.judges.kept import answers_folder
from raydpo.labeling.judges.scorer import try_judge
from raydpo.labeling.reward_process import code_of
from raydpo.labeling.scorers import scorer_of
from raydpo.labeling.signature import MESSAGES
from raydpo.labeling.trial import try_reward, try_service
from raydpo.models.context import check_context
from raydpo.models.loading import load_tokenizer, model_config_values
from raydpo.prompts.mixing import passing_rows
from raydpo.prompts.reading import HEAD_ROWS
from raydpo.prompts.stage import prompt_parts

#: Rows of the prompts among which two that can be used are looked for.
_ROWS_LOOKED_AT: Final = 64


@dataclass(frozen=True)
class _Two:
    """Two prompts as in a run, with what rewards can read beside them.

    Attributes:
        prompts: texts; none if they cannot be read, which another check reports.
        more: the columns of the data, and the prompts' messages.
    """

    prompts: list[str]
    more: dict[str, list[Any]]


def check_rewards(config: Config, findings: Findings) -> None:
    """Say what each function, service and judge depends on, and try it."""
    labeling, evaluation = config.labeling, config.evaluation
    heldout = evaluation.prompts if evaluation is not None else None
    sections = (
        ("labeling.reward", labeling.reward if labeling is not None else (), config.prompts),
        ("evaluation.judge", evaluation.judge if evaluation is not None else (), heldout),
    )
    tried: list[RewardConfig] = []
    for name, rewards, prompts in sections:
        asked = [reward for reward in rewards if findings.attempt(_cover, name, reward, findings)]
        # Without prompts of the section's own, such as in self-play, those of the other will do.
        source = prompts or config.prompts or heldout
        if not asked or source is None:
            continue
        two = _two_prompts(config, source)
        for reward in asked:
            known = findings.attempt(_check_columns, name, reward, source, config)
            new = not any(_gives_the_same(reward, other) for other in tried)
            tried.append(reward)
            if known and new and two.prompts:
                findings.attempt(_try, name, reward, two, config, findings)
    if labeling is not None and labeling.pairs.builder == "data_chosen":
        findings.attempt(_check_chosen, config, labeling.pairs)
    if config.rewards_evaluated and heldout is not None:
        _announce_training_rewards(config, findings)
        for reward in config.rewards_evaluated:
            name = "evaluation.training_rewards"
            findings.attempt(_check_columns, name, reward, heldout, config)


def _gives_the_same(one: RewardConfig, other: RewardConfig) -> bool:
    """Return whether two rewards differ in nothing that a function, a service or a judge is given."""
    asked = [(r.kind, r.source, r.judge, r.options, r.columns) for r in (one, other)]
    return asked[0] == asked[1]


def _check_chosen(config: Config, pairs: PairsConfig) -> None:
    """Look for the data's chosen completions, and for room for the longest one in the model.

    Raises:
        ConfigError: the first prompts have no such column, or the model's context is too short.
    """
    if config.prompts is None:
        return
    check_context(
        "prompts.max_prompt_tokens + labeling.pairs.max_chosen_tokens",
        config.prompts.max_prompt_tokens + pairs.max_chosen_tokens,
        model_config_values(config.model),
    )
    rows = list(_readable(config, config.prompts, HEAD_ROWS))
    there = metadata_columns(row["metadata"] for row in rows)
    if rows and pairs.chosen_column not in there:
        raise ConfigError(
            f"labeling.pairs.builder 'data_chosen' with chosen_column {pairs.chosen_column!r}",
            f"the first {len(rows)} prompts of {config.prompts.where} bring "
            + (f"the columns {', '.join(there)}" if there else "no columns beside the prompt"),
            "set labeling.pairs.chosen_column to the column of the chosen completions, and let "
            "`metadata` of the prompts keep it",
        )


def _announce_training_rewards(config: Config, findings: Findings) -> None:
    """Note that the evaluation asks the training rewards again, and what it asks of services."""
    if not config.rewards_evaluated or config.evaluation is None:
        return
    asked = f"{2 * config.evaluation.samples_per_prompt} completions a held-out prompt"
    services = [r.scorer for r in config.rewards_evaluated if r.kind in ("http", "judge")]
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
        case "http" | "judge":
            scorer_of(reward).check()
            covered = scorer_of(reward).stale_with()
            findings.facts.append(f"{name}: scores are made again when these change: {covered}")
            return True
        case "classifier" | "implicit":  # models, which check_models.py looks at
            return False
        case _:
            assert_never(reward.kind)


def _cover_function(name: str, reward: RewardConfig, findings: Findings) -> None:
    """Note what the function's hashes cover, and the files that it names without declaring them."""
    code = code_of(reward)
    findings.facts.append(f"{name}: scores are made again when these change: {code.covered}")
    if code.undeclared:
        files = ", ".join(code.undeclared)
        findings.facts.append(
            f"note: {reward.function} names {files}: a change there leaves old scores in place, "
            f"unless {name}.depends_on lists it"
        )


def _check_columns(name: str, reward: RewardConfig, source: PromptsConfig, config: Config) -> bool:
    """Compare the columns that a reward cannot do without with those of its prompts.

    Raises:
        ConfigError: a column is not there.
    """
    wanted = scorer_of(reward).columns()
    if not wanted:
        return True
    rows = list(_readable(config, source, HEAD_ROWS))
    there = metadata_columns(row["metadata"] for row in rows)
    missing = [column for column in wanted if column not in there]
    if rows and missing:
        raise ConfigError(
            f"{name}: {reward.scorer} reads {', '.join(map(repr, missing))}",
            f"the first {len(rows)} prompts of {source.where} bring "
            + (f"the columns {', '.join(there)}" if there else "no columns for rewards"),
            "correct the name, or let the prompts bring the column: see `metadata` of their section"
            + ("; or set evaluation.training_rewards to false" if "training" in name else ""),
        )
    return True


def _two_prompts(config: Config, source: PromptsConfig) -> _Two:
    rows = list(_readable(config, source, _ROWS_LOOKED_AT))
    two = (rows * 2)[:2]
    columns = metadata_columns(row["metadata"] for row in two)
    messages = {MESSAGES: [row["messages"] for row in two]}
    return _Two([row["prompt"] for row in two], {**columns, **messages})


def _readable(config: Config, source: PromptsConfig, count: int) -> Iterator[Row]:
    """Yield the first prompts as in a run; none if they cannot be read."""
    try:
        tokenizer = load_tokenizer(config.model)
        for one, label in zip(source.each, source.labels, strict=True):
            rows = passing_rows(one, label, Counter(), -(-count // len(source.each)))
            for part in prompt_parts(one, rows, tokenizer, config.rows_per_part):
                yield from part.rows
    except RaydpoError:
        return


def _try(name: str, reward: RewardConfig, two: _Two, config: Config, findings: Findings) -> None:
    """Note what the function or service gave on two rows, or how a judge passed its self-test.

    Raises:
        RaydpoError: it fails, and where it will be asked from is here.
    """
    try:
        if reward.judge is not None:
            answers = answers_folder(round_folder(run_folder(config.output, config.name), 0))
            gave = try_judge(reward.judge, reward.scorer, answers)
            findings.facts.append(f"{name}: judge {reward.source} {gave}")
        elif reward.http is not None:
            gave = try_service(reward.http, two.prompts, two.more)
            findings.facts.append(f"{name}: service {without_credentials(reward.source)} {gave}")
        else:
            gave = try_reward(reward, two.prompts, two.more)
            findings.facts.append(f"{name}: function {reward.source} {gave}")
    except RaydpoError as problem:
        if not is_remote(config):
            raise
        findings.facts.append(
            f"note: {name} fails on this machine, and may not on the cluster: {problem}"
        )
