"""Rehearse the report on invented numbers before any real ones exist.

A configuration that would fail after hours of sampling and training raises the same error here.
"""

from __future__ import annotations

from raydpo.config.file import config_to_yaml
from raydpo.config.job import Config, EvaluationConfig, RewardConfig
from raydpo.core.errors import ConfigError, RaydpoError
from raydpo.evaluation.flags import examine
from raydpo.evaluation.measure import measure
from raydpo.evaluation.report import ReportInputs, choose_samples, most_changed, render
from raydpo.evaluation.samples import Sample, ScoredCompletions
from raydpo.evaluation.training_rewards import training_reward

_PROMPTS = ("a", "b", "c")


def rehearse_report(config: Config, evaluation: EvaluationConfig) -> None:
    """Measure and render three invented prompts, without figures, which would take a second.

    Raises:
        ConfigError: the report would fail.
    """
    try:
        _render(config, evaluation)
    except RaydpoError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the report cannot be made: {type(error).__name__}: {error}",
            "the evaluation ends with an HTML page",
            "install raydpo with its dependencies again, or take `evaluation` out",
        ) from error


def _render(config: Config, evaluation: EvaluationConfig) -> str:
    reference, policy = (_samples(evaluation.judge, score) for score in (0.1, 0.2))
    rewarded = [_samples(config.rewards_evaluated, score) for score in (0.1, 0.2)]
    of_policy, of_reference = ([[value, value] for _ in _PROMPTS] for value in (-0.9, -1.0))
    logps = ScoredCompletions(list(_PROMPTS), of_policy, of_reference)
    metrics = {
        **measure(config, evaluation, reference, policy, logps, None),
        "training_reward": training_reward(config, rewarded[0], rewarded[1]),
    }
    regressions, gains = most_changed(reference, policy)
    return render(
        ReportInputs(
            title=config.name,
            metrics={**metrics, **examine(metrics, reference, policy, {})},
            figures=[],
            samples=choose_samples(reference, policy, evaluation.report_samples),
            regressions=regressions,
            gains=gains,
            counts={},
            refusals=[],
            facts=[],
            config_yaml=config_to_yaml(config),
        )
    )


def _samples(scorers: tuple[RewardConfig, ...], score: float) -> list[Sample]:
    values = {scorer.scorer: score for scorer in scorers}
    return [
        Sample(prompt, 0, prompt, "x y", (5, 6), "stop", score * number, values)
        for number, prompt in enumerate(_PROMPTS)
    ]
