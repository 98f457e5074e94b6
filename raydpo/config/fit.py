"""Check, as early as possible, that an objective and the data fit together.

The check uses the configuration, or the counts of a preferences table. Its error says what the
objective learns from and which setting or data would provide that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from raydpo.config.job import Config, TrainingConfig
from raydpo.config.objectives import (
    SingleObjective,
    SoftLabelObjective,
    SppoObjective,
    single_objectives,
)
from raydpo.config.samples import check_rewards_differ, check_samples_fit
from raydpo.core.errors import ConfigError

#: Maps what data may offer to its description and the way to get it.
_KINDS: Final = {
    "pairs": (
        "pairs of a chosen and a rejected completion",
        "use `kto` for single judged completions, or data with pairs",
    ),
    "rankings": (
        "rankings of a prompt's completions",
        "give `labeling` a reward, or preferences of the layout `ranked`; where rewards are "
        "often equal, set `ranking_ties: by_candidate`",
    ),
    "completions": (
        "single completions that were judged good or bad",
        "give preferences of the layout `unpaired` (prompt, completion, label), or use `dpo` for pairs",
    ),
    "samples": (
        "sampled completions with their rewards and the sampler's log-probs",
        "give `prompts` and `labeling` by a reward, so that the run samples and scores; data that "
        "exists already has no log-probs of a sampler: use `dpo` for it",
    ),
    "soft labels": (
        "pairs with the probability that chosen wins",
        "give `labeling` a reward, people's votes, or preferences of the layout `ranked`; or use "
        "`cdpo`, which takes one rate for all labels",
    ),
}


def check_config_fits(config: Config) -> None:
    """Compare the needs of the objective with what the configured data can offer at best.

    Raises:
        ConfigError: the data offers nothing that the objective learns from.
    """
    if config.training is None:
        return
    _check_reward_model(config, config.training)
    _check_builder(config, config.training)
    if config.trains_on_samples:
        check_samples_fit(config)
    elif config.preferences is not None:
        for one in config.preferences.each:
            layout = one.layout
            if layout != "auto":  # with `auto`, it is known only after the first row is read
                _check(config.training, _of_layout(layout), f"preferences.layout {layout!r}")
    elif config.prompts is not None and config.labeling is not None and config.labeling.reward:
        of_data = config.labeling.pairs.builder == "data_chosen"
        offered = {"pairs"} if of_data else {"pairs", "rankings", "soft labels"}
        what = " with pairs.builder 'data_chosen'" if of_data else ""
        _check(config.training, offered, f"`labeling` by rewards{what}")
    elif config.prompts is not None:
        _check(config.training, {"pairs", "soft labels"}, "people's votes")
    elif config.online is not None and config.online.pairs == "self_play":
        _check(config.training, {"pairs", "soft labels"}, "online.pairs 'self_play'")


def _check_reward_model(config: Config, training: TrainingConfig) -> None:
    sections = {"evaluation": config.evaluation, "online": config.online}
    given = [name for name, section in sections.items() if section is not None]
    if training.objective.scalar_head and given:
        raise ConfigError(
            f"objective {training.objective.name!r} with the section(s) {', '.join(given)}",
            "a reward model writes no text: nothing can be sampled from it",
            f"remove {', '.join(given)}; use the trained folder as `labeling.reward.classifier`",
        )


def _check_builder(config: Config, training: TrainingConfig) -> None:
    """Refuse a way to build pairs that the objective does not read, or that builds nothing else."""
    if config.labeling is None:
        return
    pairs = config.labeling.pairs
    learns_from = {one.unit: one.name for one in single_objectives(training.objective)}
    if "pairs" not in learns_from and (what := pairs.only_for_pairs) is not None:
        unit, name = next(iter(learns_from.items()))
        raise ConfigError(
            f"objective {name!r} with labeling.pairs.{what}",
            f"{name} learns from {_KINDS[unit][0]}, which this setting of pairs does not reach",
            f"take labeling.pairs.{what.split()[0]} out, or use an objective on pairs such as `dpo`",
        )
    if pairs.builder == "rejection_sampling" and config.sampling.candidates <= pairs.accepted:
        raise ConfigError(
            f"labeling.pairs.builder 'rejection_sampling' accepts {pairs.accepted} candidates "
            f"(accepted) of sampling.candidates {config.sampling.candidates}",
            "rejection sampling accepts fewer candidates than there are; of so few, it accepts all",
            "raise sampling.candidates, for example to eight times `accepted` as in the paper, or "
            "lower labeling.pairs.accepted",
        )


def check_counts_fit(config: Config, counts: Mapping[str, int], *, is_whole: bool = True) -> None:
    """Compare the needs of the objective with a preferences table.

    Args:
        config: the job.
        counts: the counts in the table's manifest.
        is_whole: whether the counts cover the whole table, and not only its first rows.

    Raises:
        ConfigError: the table has nothing that the objective learns from, or only one kind of
            label.
        DataError: all samples of each prompt have the same reward.
    """
    check_config_fits(config)
    if config.training is None:
        return
    offered = {
        "pairs": counts.get("pairs", 0),
        "rankings": counts.get("rankings", 0),
        "completions": counts.get("desirable", 0) + counts.get("undesirable", 0),
        "soft labels": counts.get("soft_labels", 0),
        "samples": counts.get("samples", 0),
    }
    _check(config.training, {kind for kind, count in offered.items() if count}, "the preferences")
    if is_whole:
        _check_both_judgements(config.training, counts)
        check_rewards_differ(config.training, counts)


def _check_both_judgements(training: TrainingConfig, counts: Mapping[str, int]) -> None:
    judged = {name: counts.get(name, 0) for name in ("desirable", "undesirable")}
    missing = next((name for name, count in judged.items() if not count), None)
    if missing is None or not sum(judged.values()):
        return
    for objective in single_objectives(training.objective):
        if objective.unit == "completions":
            raise ConfigError(
                f"objective {objective.name!r} with {sum(judged.values())} judged completions, "
                f"none of them {missing}",
                f"{objective.name} learns from the difference of desirable and undesirable ones: of "
                "one kind alone it raises, or lowers, the likelihood of all",
                f"add {missing} completions (`label`); good ones alone are data for `raydpo sft`",
            )


def _of_layout(layout: str) -> set[str]:
    if layout == "unpaired":
        return {"completions"}
    return {"pairs", "rankings", "soft labels"} if layout == "ranked" else {"pairs", "rankings"}


def _check(training: TrainingConfig, offered: set[str], source: str) -> None:
    for objective in single_objectives(training.objective):
        for needed in sorted(_needs(objective) - offered):
            words, way_out = _KINDS[needed]
            there = ", ".join(_KINDS[kind][0] for kind in sorted(offered)) or "nothing"
            raise ConfigError(
                f"objective {objective.name!r} with {source}: what is there is {there}",
                f"{objective.name} learns from {words}",
                way_out,
            )


def _needs(objective: SingleObjective) -> set[str]:
    soft = isinstance(objective, SoftLabelObjective)
    soft |= isinstance(objective, SppoObjective) and objective.win_rates == "soft"
    return {objective.unit, "soft labels"} if soft else {objective.unit}
