"""Rehearse the report on invented numbers before any real ones exist.

A configuration that would fail after hours of sampling and training raises the same error here.
"""

from __future__ import annotations

from typing import Any

from raydpo.config.file import config_to_yaml
from raydpo.config.job import Config, EvaluationConfig, RewardConfig
from raydpo.core.errors import ConfigError, RaydpoError
from raydpo.evaluation.best_of import measure_best_of
from raydpo.evaluation.best_of_page import ReferencePage, render_reference
from raydpo.evaluation.flags import examine
from raydpo.evaluation.measure import best_of_values, measure, measure_reference
from raydpo.evaluation.report import ReportInputs, choose_samples, most_changed, render
from raydpo.evaluation.samples import Sample, ScoredCompletions
from raydpo.evaluation.training_rewards import training_reward

Json = dict[str, Any]

_PROMPTS = ("a", "b", "c")


def rehearse_report(config: Config, evaluation: EvaluationConfig) -> None:
    """Measure and render three invented prompts, without figures, which would take a second.

    Raises:
        ConfigError: the report would fail.
    """
    try:
        if config.evaluates_reference_alone:
            _render_reference(config, evaluation)
        else:
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
        **_best_of(config, evaluation, reference),
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


def _render_reference(config: Config, evaluation: EvaluationConfig) -> str:
    reference = _samples(evaluation.judge, 0.1)
    metrics = measure_reference(config, evaluation, reference)
    return render_reference(
        ReferencePage(
            title=config.name,
            metrics={**metrics, **_best_of(config, evaluation, reference)},
            figures=[],
            counts={},
            refusals=[],
            facts=[],
            config_yaml=config_to_yaml(config),
        )
    )


def _best_of(config: Config, evaluation: EvaluationConfig, reference: list[Sample]) -> Json:
    if evaluation.best_of is None or config.labeling is None:
        return {}
    rewards = {(sample.prompt_id, 0): sample.score for sample in reference}
    rows = measure_best_of(reference, rewards, reference, [1], shares=False)
    models = {str(name): rows for name in evaluation.best_of.models}
    return {"best_of": best_of_values(config, evaluation, config.labeling.reward, models)}


def _samples(scorers: tuple[RewardConfig, ...], score: float) -> list[Sample]:
    values = {scorer.scorer: score for scorer in scorers}
    return [
        Sample(prompt, 0, prompt, "x y", (5, 6), "stop", score * number, values)
        for number, prompt in enumerate(_PROMPTS)
    ]
