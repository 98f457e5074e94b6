"""Evaluate policy against reference on held-out prompts and held-out pairs.

A prompts table, two models and held-out preference groups give metrics.json, plots and
report.html, and in sub-folders the tables behind them. Each sub-folder is a stage, so an
interrupted evaluation resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from raydpo.config.content import content_of
from raydpo.config.job import Config, EvaluationConfig, ModelConfig, RewardConfig
from raydpo.core.errors import ConfigError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import Stage, commit_files, open_stage
from raydpo.core.storage import fingerprint
from raydpo.evaluation.publish import Tables, write_reference_report, write_report
from raydpo.evaluation.samples import groups_of_samples
from raydpo.evaluation.slices import prompt_columns
from raydpo.evaluation.steps import Steps
from raydpo.evaluation.training_rewards import read_label_rewards
from raydpo.labeling.scorers import scorer_of
from raydpo.labeling.stage import scorer_inputs
from raydpo.models.loading import tokenizer_fingerprint, weights_fingerprint
from raydpo.reference.agreement import Agreement
from raydpo.sampling.function import sampler_inputs, sampler_settings
from raydpo.sampling.pool import EnginePool

Json = dict[str, Any]

#: What metrics.json has since version 0.2: reports without it are written again.
_FURTHER_NUMBERS: Final = ["length_controlled_win_rate", "entropy_nats_per_token", "slices"]


def evaluate(
    config: Config,
    place: Place,
    *,
    prompts: Table,
    policy: ModelConfig,
    reference_model: ModelConfig,
    heldout: Table | None,
    inputs: dict[str, str],
    preferences: Table | None = None,
    training_log: list[Json] | None = None,
    stage_counts: dict[str, dict[str, int]] | None = None,
    agreement: Agreement | None = None,
    pool: Callable[[], EnginePool] | None = None,
) -> Json:
    """Compare the policy with the reference and write the report.

    Args:
        config: the job; its `evaluation` section is required.
        place: where the report and the tables behind it go.
        prompts: held-out prompts (PROMPTS).
        policy: the trained model.
        reference_model: the model pi_ref.
        heldout: preference groups kept out of training (PREFERENCES); it may have no rows.
        inputs: fingerprints of everything else that the result depends on.
        preferences: what was trained on and `heldout` (PREFERENCES), for the rewards of the labels.
        training_log: rows of the training's metrics, for the curves.
        stage_counts: counts of the stages before this one, for the report.
        agreement: that of the training data's sampler with the reference, for the report.
        pool: gives engines of `config.model` that outlive the evaluation, if samples are missing.

    Returns the content of metrics.json, and `report`, the path of report.html.

    Raises:
        ConfigError: the configuration has no `evaluation` section.
        DataError: nothing is left to compare.
    """
    evaluation = _section(config)
    models = {"policy": policy, "reference": reference_model}
    log = training_log or []
    inputs = {**inputs, "training_log": fingerprint(log)}
    if preferences is not None:
        inputs["preferences"] = preferences.fingerprint
    folder = place.folder
    stage = evaluation_stage(config, place, prompts, models, heldout, inputs)
    if open_stage(stage, keep_folders=True) is None:
        steps = Steps(config, evaluation, place)
        tables = _make_tables(steps, prompts, policy, reference_model, heldout, pool)
        metrics = write_report(
            config, evaluation, folder, tables, models, log, stage_counts or {}, agreement,
            preferences and read_label_rewards(preferences), prompt_columns(prompts),
        )  # fmt: skip
        commit_files(stage, fingerprint(metrics))
        logger.info("[%s] done: %s/report.html", place.label, folder.uri)
    else:
        logger.info("[%s] nothing to do: %s/report.html is there", place.label, folder.uri)
    return {**folder.read_json("metrics.json"), "report": f"{folder.uri}/report.html"}


def evaluate_reference(
    config: Config,
    place: Place,
    *,
    prompts: Table,
    reference_model: ModelConfig,
    pool: Callable[[], EnginePool] | None = None,
) -> Json:
    """Measure Best-of-N of the reference alone, for a job that trains nothing; write the report.

    Args:
        config: the job; its `evaluation` section has `best_of`.
        place: where the report and the tables behind it go.
        prompts: held-out prompts (PROMPTS).
        reference_model: the model pi_ref.
        pool: as of `evaluate`.

    Returns the content of metrics.json, and `report`, the path of report.html.

    Raises:
        ConfigError: the configuration has no `evaluation` section.
        DataError: nothing is left to compare.
    """
    evaluation, folder = _section(config), place.folder
    models = {"reference": reference_model}
    stage = reference_evaluation_stage(config, place, prompts, reference_model)
    if open_stage(stage, keep_folders=True) is None:
        steps = Steps(config, evaluation, place)
        with steps.engines([reference_model], pool) as shared:
            samples = steps.sample("reference_samples", reference_model, prompts, shared)
            chosen_from = steps.sample_best_of(models, prompts, shared)
        named = {f"best_of_{name}_scores": table for name, table in chosen_from.items()}
        scores = steps.judge({"reference_scores": samples, **named})
        tables = steps.best_of(chosen_from, scores)
        metrics = write_reference_report(
            config, evaluation, folder, (samples, scores["reference_scores"]), tables, models
        )
        commit_files(stage, fingerprint(metrics))
        logger.info("[%s] done: %s/report.html", place.label, folder.uri)
    else:
        logger.info("[%s] nothing to do: %s/report.html is there", place.label, folder.uri)
    return {**folder.read_json("metrics.json"), "report": f"{folder.uri}/report.html"}


def reference_evaluation_stage(
    config: Config, place: Place, prompts: Table, reference_model: ModelConfig
) -> Stage:
    """Describe what the report on Best-of-N of the reference alone is made from."""
    return evaluation_stage(config, place, prompts, {"reference": reference_model}, None, {})


def evaluation_stage(
    config: Config,
    place: Place,
    prompts: Table,
    models: dict[str, ModelConfig],
    heldout: Table | None,
    inputs: dict[str, str],
) -> Stage:
    """Describe what the report on these models, `policy` and `reference`, is made from."""
    evaluation = _section(config)
    own = _own_inputs(prompts, models, heldout) | scorer_inputs(evaluation.judge)
    own |= sampler_inputs(config.sampling)
    trained_on = scorer_inputs(config.rewards_evaluated).items()
    own |= {f"training reward, {name}": value for name, value in trained_on}
    if evaluation.best_of is not None and config.labeling is not None:
        own |= {f"reward, {k}": v for k, v in scorer_inputs(config.labeling.reward).items()}
    settings = _settings(config, evaluation, models) | sampler_settings(config.sampling)
    return Stage(place, "evaluation", None, {**inputs, **own}, settings)


def _section(config: Config) -> EvaluationConfig:
    if config.evaluation is None:
        raise ConfigError(
            "the configuration has no `evaluation` section",
            "an evaluation needs held-out prompts and a judge",
            "add `evaluation: {prompts: heldout.jsonl, judge: {classifier: FOLDER}}`",
        )
    return config.evaluation


def _own_inputs(
    prompts: Table, models: dict[str, ModelConfig], heldout: Table | None
) -> dict[str, str]:
    return {
        "heldout_prompts": prompts.fingerprint,
        "heldout_groups": heldout.fingerprint if heldout is not None else "",
        **{f"{name}_weights": weights_fingerprint(model) for name, model in models.items()},
        **{f"{name}_tokenizer": tokenizer_fingerprint(model) for name, model in models.items()},
    }


def _settings(config: Config, evaluation: EvaluationConfig, models: dict[str, ModelConfig]) -> Json:
    """Return what the numbers and the page depend on, in addition to the inputs."""
    return {
        **content_of(config.reference),
        "judges": [_judge_settings(judge) for judge in evaluation.judge],
        "training_rewards": [_judge_settings(reward) for reward in config.rewards_evaluated],
        "evaluation": content_of(evaluation),
        **_combine_settings(config, evaluation),
        **_best_of_settings(config, evaluation),
        "max_prompt_tokens": evaluation.prompts.max_prompt_tokens,
        "sampling": content_of(config.sampling) | config.sampling.later_content,
        "sampling_dtype": config.sampling.engines.dtype,
        "labels_by": [
            [reward.function, reward.classifier and reward.scorer, *_service(reward).values()]
            for reward in (config.labeling.reward if config.labeling else ())
        ],
        "beta": config.training.objective.kl_beta if config.training else None,
        "seed": config.seed,
        "share_intervals": "wilson",  # version 0.1 wrote normal ones into metrics.json
        "further_numbers": _FURTHER_NUMBERS,
        **{name: content_of(model) for name, model in models.items()},
    }


def _best_of_settings(config: Config, evaluation: EvaluationConfig) -> Json:
    """Return what Best-of-N depends on; nothing without it, so that older evaluations stay."""
    if evaluation.best_of is None or config.labeling is None:
        return {}
    chosen_by = [_judge_settings(reward) for reward in config.labeling.reward]
    return {"best_of": {**content_of(evaluation.best_of), "chosen_by": chosen_by}}


def _combine_settings(config: Config, evaluation: EvaluationConfig) -> Json:
    """Return how rewards are combined where any are asked; nothing for the plain sum."""
    asked = config.rewards_evaluated or evaluation.best_of is not None
    return config.labeling.combine_content if asked and config.labeling is not None else {}


def _judge_settings(judge: RewardConfig) -> Json:
    # A judge's location does not count: the page shows its name, and its weights are an input.
    named = {"name": judge.scorer, "function": judge.function, "weight": judge.weight}
    return {**named, **_service(judge), **_arguments(judge), **content_of(judge)}


def _arguments(reward: RewardConfig) -> Json:
    """Return what a function is called with beside the texts; nothing without any."""
    given = {
        "as_messages": reward.as_messages,
        "options": reward.options,
        "columns": reward.columns,
    }
    return {name: value for name, value in given.items() if value}


def _service(reward: RewardConfig) -> Json:
    """Return the part of a service or judge that counts; nothing for other rewards."""
    if reward.judge is not None:
        return {"judge": scorer_of(reward).settings(), **scorer_of(reward).inputs()}
    return {"http": content_of(reward.http)} if reward.http is not None else {}


def _make_tables(
    steps: Steps,
    prompts: Table,
    policy: ModelConfig,
    reference_model: ModelConfig,
    heldout: Table | None,
    pool: Callable[[], EnginePool] | None,
) -> Tables:
    """Make samples of both models, their scores, and log-probs of everything that is compared."""
    with steps.engines([policy, reference_model], pool) as shared:
        reference_samples = steps.sample("reference_samples", reference_model, prompts, shared)
        policy_samples = steps.sample("policy_samples", policy, prompts, shared)
        models = {"policy": policy, "reference": reference_model}
        best_of_samples = steps.sample_best_of(models, prompts, shared)
    reference_rewards, policy_rewards = steps.reward(reference_samples, policy_samples)
    scores = steps.judge(
        {
            "reference_scores": reference_samples,
            "policy_scores": policy_samples,
            **{f"best_of_{name}_scores": table for name, table in best_of_samples.items()},
        }
    )
    groups = groups_of_samples(steps.place.inside("policy_groups"), policy_samples)
    pairs = heldout if heldout is not None and heldout.manifest["counts"]["output"] else None
    of_policy = steps.logps("policy", policy, groups, pairs, policy_samples)
    steps.say_agreement(of_policy["kl"])
    of_reference = steps.logps("reference", reference_model, groups, pairs)
    return Tables(
        reference_samples,
        policy_samples,
        scores["reference_scores"],
        scores["policy_scores"],
        reference_rewards,
        policy_rewards,
        groups,
        kl_policy=of_policy["kl"],
        kl_reference=of_reference["kl"],
        heldout=pairs,
        heldout_policy=of_policy.get("heldout"),
        heldout_reference=of_reference.get("heldout"),
        best_of=steps.best_of(best_of_samples, scores),
    )
