"""Check that a job samples and scores what a policy gradient learns from.

Its loss reads the rewards of all completions, and the log-probs of the very distribution that they
were drawn from. Log-probs that came from another one would make the gradient wrong in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from raydpo.config.job import Config, LabelingConfig, SamplingConfig, TrainingConfig
from raydpo.config.objectives import PolicyGradientObjective
from raydpo.core.errors import ConfigError, DataError

#: Settings under which the model itself is what samples.
_PLAIN: Final = {
    "temperature": 1.0,
    "temperatures": (),
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_completion_tokens": 0,
    "extra": {},
}


def check_samples_fit(config: Config) -> None:
    """Refuse a job whose completions a policy gradient cannot learn from.

    Raises:
        ConfigError: nothing is sampled or scored, the sampler's log-probs are not those of the
            distribution that it samples from, settings change only pairs, or `beta` has no effect.
    """
    assert config.training is not None
    objective = config.training.objective
    assert isinstance(objective, PolicyGradientObjective)
    _check_source(config)
    _check_sampling(config.sampling, objective)
    assert config.labeling is not None
    _check_labels(config.labeling)
    if objective.kl == "reward" and objective.beta:
        _check_reference(config)


def _check_reference(config: Config) -> None:
    """Refuse a reference that is the sampler itself: the KL in the reward would always be 0."""
    online, reference = config.online, config.reference.model
    if online is None:
        same = reference is None or reference == config.model
        what = "one round, whose sampler is the reference"
    else:
        every = online.reference_every_rounds or 1
        same = online.reference == "previous" and every == 1
        what = "online.reference 'previous', so that each round's sampler is its reference"
    if same:
        raise ConfigError(
            f"objective 'policy_gradient' with kl 'reward' and {what}",
            "kl 'reward' takes the KL of the sampler from the reference, which is 0 here: beta would "
            "have no effect",
            "set `kl: weighted_loss`, another reference, or beta to 0",
        )


def check_rewards_differ(training: TrainingConfig, counts: Mapping[str, int]) -> None:
    """Refuse a table of samples in which no completion has an advantage over another.

    Args:
        training: the section with the objective.
        counts: the counts in the manifest of the table of preferences.

    Raises:
        DataError: the objective compares within a prompt, where all rewards are equal.
    """
    objective, groups = training.objective, counts.get("output", 0)
    equal = counts.get("groups_with_equal_rewards", 0)
    within = isinstance(objective, PolicyGradientObjective) and objective.advantages != "batch_mean"
    if within and 0 < groups <= equal:
        raise DataError(
            f"all samples of each of the {groups} prompts have the same reward",
            "a policy gradient learns from how the rewards of a prompt's samples differ",
            "take another reward, or more sampling.candidates",
        )


def _check_source(config: Config) -> None:
    for holds, what in _unfit_sources(config):
        if holds:
            raise ConfigError(
                f"objective 'policy_gradient' with {what}",
                "policy_gradient learns from completions that the run samples, with their rewards "
                "and the sampler's log-probs of every token",
                "give `prompts`, and `labeling` with a `reward`; data that exists already has no "
                "log-probs of a sampler: use `dpo` for it",
            )


def _unfit_sources(config: Config) -> Iterator[tuple[bool, str]]:
    labeling, online = config.labeling, config.online
    yield config.preferences is not None, "existing `preferences`"
    yield online is not None and online.pairs == "self_play", "online.pairs 'self_play'"
    yield config.prompts is None, "no `prompts`"
    yield labeling is None or not labeling.reward, "no reward in `labeling`: people give none"


def _check_sampling(sampling: SamplingConfig, objective: PolicyGradientObjective) -> None:
    for name, plain in _PLAIN.items():
        if (value := getattr(sampling, name)) != plain:
            raise ConfigError(
                f"objective 'policy_gradient' with sampling.{name} {value!r}",
                "the sampler's log-probs are those of the model itself, so the model itself must "
                "be what samples",
                f"leave sampling.{name} at {plain!r}",
            )
    if sampling.candidates < 2 and objective.advantages != "batch_mean":
        raise ConfigError(
            f"objective 'policy_gradient' with sampling.candidates {sampling.candidates}",
            f"advantages {objective.advantages!r} compare a completion with others of its prompt",
            "raise sampling.candidates, or set `advantages: batch_mean`",
        )
    if sampling.function is not None and not sampling.function.returns_logprobs:
        raise ConfigError(
            f"objective 'policy_gradient' with the sampler function {sampling.function.path!r}",
            "policy_gradient learns from the sampler's log-probs of every token",
            "return `logprobs` with the `token_ids` of each completion, and set "
            "sampling.function.returns_logprobs to true",
        )


def _check_labels(labeling: LabelingConfig) -> None:
    noise = {"flip_rate": labeling.pairs.flip_rate > 0, "labels": labeling.pairs.labels != "argmax"}
    for name in (name for name, holds in noise.items() if holds):
        raise ConfigError(
            f"objective 'policy_gradient' with labeling.pairs.{name} "
            f"{getattr(labeling.pairs, name)!r}",
            "policy_gradient learns from rewards, which noise in the labels of pairs does not reach",
            f"take labeling.pairs.{name} out",
        )
