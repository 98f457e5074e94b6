"""Evaluate policy against reference on held-out prompts and held-out pairs.

A prompts table, two models and held-out preference groups give metrics.json, plots and
report.html, and in sub-folders the tables behind them. Each sub-folder is a stage, so an
interrupted evaluation resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from raydpo.config.content import content_of
from raydpo.config.job import Config, EvaluationConfig, ModelConfig, RewardConfig
from raydpo.core.errors import ConfigError
from raydpo.core.parts import Table, Target, run_work
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import Stage, commit_files, open_stage
from raydpo.core.storage import fingerprint
from raydpo.evaluation.heldout import sample_heldout
from raydpo.evaluation.publish import Tables, write_report
from raydpo.evaluation.samples import groups_of_samples
from raydpo.evaluation.training_rewards import read_label_rewards
from raydpo.labeling.stage import all_judge, scorer_inputs, scoring_work
from raydpo.models.loading import tokenizer_fingerprint, weights_fingerprint
from raydpo.reference.agreement import Agreement, agreement_in, sampler_tolerance
from raydpo.reference.stage import reference_work
from raydpo.sampling.function import sampler_inputs, sampler_settings
from raydpo.sampling.pool import EnginePool, Engines
from raydpo.sampling.weights import share_engines

Json = dict[str, Any]

#: What metrics.json has since version 0.2: reports without it are written again.
_FURTHER_NUMBERS: Final = ["length_controlled_win_rate"]


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
        steps = _Steps(config, evaluation, place)
        tables = _make_tables(steps, prompts, policy, reference_model, heldout, pool)
        metrics = write_report(
            config, evaluation, folder, tables, models, log, stage_counts or {}, agreement,
            preferences and read_label_rewards(preferences),
        )  # fmt: skip
        commit_files(stage, fingerprint(metrics))
        logger.info("[%s] done: %s/report.html", place.label, folder.uri)
    else:
        logger.info("[%s] nothing to do: %s/report.html is there", place.label, folder.uri)
    return {**folder.read_json("metrics.json"), "report": f"{folder.uri}/report.html"}


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
        "max_prompt_tokens": evaluation.prompts.max_prompt_tokens,
        "sampling": content_of(config.sampling),
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


def _judge_settings(judge: RewardConfig) -> Json:
    # A judge's location does not count: the page shows its name, and its weights are an input.
    named = {"name": judge.scorer, "function": judge.function, "weight": judge.weight}
    return {**named, **_service(judge), **content_of(judge)}


def _service(reward: RewardConfig) -> Json:
    """Return the part of a service that counts; nothing for other rewards."""
    return {"http": content_of(reward.http)} if reward.http is not None else {}


def _make_tables(
    steps: _Steps,
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
    reference_scores, policy_scores = steps.judge(reference_samples, policy_samples)
    reference_rewards, policy_rewards = steps.reward(reference_samples, policy_samples)
    groups = groups_of_samples(steps.place.inside("policy_groups"), policy_samples)
    pairs = heldout if heldout is not None and heldout.manifest["counts"]["output"] else None
    of_policy = steps.logps("policy", policy, groups, pairs, policy_samples)
    steps.say_agreement(of_policy["kl"])
    of_reference = steps.logps("reference", reference_model, groups, pairs)
    return Tables(
        reference_samples,
        policy_samples,
        reference_scores,
        policy_scores,
        reference_rewards,
        policy_rewards,
        groups,
        kl_policy=of_policy["kl"],
        kl_reference=of_reference["kl"],
        heldout=pairs,
        heldout_policy=of_policy.get("heldout"),
        heldout_reference=of_reference.get("heldout"),
    )


@dataclass(frozen=True)
class _Steps:
    """The four kinds of sub-stages, with what they share."""

    config: Config
    evaluation: EvaluationConfig
    place: Place

    @contextmanager
    def engines(
        self, models: list[ModelConfig], pool: Callable[[], EnginePool] | None
    ) -> Generator[Callable[[], EnginePool] | None]:
        """Yield one pool for all models, which receives the weights of one model after another.

        Yield None if they cannot share engines; each sub-stage then starts its own.
        """
        base, sampling = self.config.model, self.config.sampling
        if not share_engines([base, *models], sampling):
            yield None
        elif pool is not None:
            yield pool
        else:
            longest = self.evaluation.prompts.max_prompt_tokens
            with Engines(base, sampling, longest, self.place.label) as engines:
                yield engines.pool

    def sample(
        self,
        name: str,
        model: ModelConfig,
        prompts: Table,
        pool: Callable[[], EnginePool] | None,
    ) -> Table:
        """Sample completions of every prompt."""
        return sample_heldout(self.config, self.place.inside(name), prompts, model, pool)

    def judge(self, reference_samples: Table, policy_samples: Table) -> list[Table]:
        """Return every judge's value of every completion, for the reference and for the policy."""
        samples = {"reference_scores": reference_samples, "policy_scores": policy_samples}
        return self._score(samples, self.evaluation.judge)

    def reward(self, reference_samples: Table, policy_samples: Table) -> list[Table | None]:
        """Return the same of the rewards that made the labels; None if they have no tables here."""
        rewards = self.config.rewards_evaluated
        if not rewards or all_judge(rewards, self.evaluation.judge):
            return [None, None]
        samples = {"reference_rewards": reference_samples, "policy_rewards": policy_samples}
        return [*self._score(samples, rewards)]

    def _score(self, samples: dict[str, Table], scorers: tuple[RewardConfig, ...]) -> list[Table]:
        targets = [Target(self.place.inside(name), table) for name, table in samples.items()]
        return run_work(scoring_work(targets, scorers))

    def logps(
        self,
        role: str,
        model: ModelConfig,
        groups: Table,
        pairs: Table | None,
        samples: Table | None = None,
    ) -> dict[str, Table]:
        """Compute log-probs per token: of samples in groups (`kl`) or held-out pairs (`heldout`).

        `samples` are those of the groups that this model made. With them, the engines' own
        log-probs are compared with the trainer's forward pass.

        Raises:
            EngineError: they differ by more than `sampling.engines.probe_tolerance` allows.
        """
        sources = {"kl": groups} | ({"heldout": pairs} if pairs else {})
        targets = [
            Target(self.place.inside(f"{kind}_{role}"), table, samples if kind == "kl" else None)
            for kind, table in sources.items()
        ]
        config = self.config
        tolerance = sampler_tolerance(model, config.sampling.engines)
        work = reference_work(targets, model, config.reference, tolerance)
        return dict(zip(sources, run_work(work), strict=True))

    def say_agreement(self, logps: Table) -> None:
        """Log how much the engines differ from the trainer's forward pass."""
        if (found := agreement_in(logps.manifest)) is not None:
            logger.info("[%s] engine and trainer agree: %s", self.place.label, found)
