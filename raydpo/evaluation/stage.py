"""The evaluation: policy against reference on held-out prompts and held-out pairs.

What comes in: a prompts table, two models, held-out preference groups. What goes out:
metrics.json, plots and report.html, and in sub-folders the tables behind them. Each
sub-folder is a stage of its own, so an interrupted evaluation goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from raydpo.agreement import Agreement, agreement_in, sampler_tolerance
from raydpo.config import Config, EvaluationConfig, ModelConfig, RewardConfig
from raydpo.config_content import content_of
from raydpo.errors import ConfigError
from raydpo.evaluation.heldout import sample_heldout
from raydpo.evaluation.publish import Tables, write_report
from raydpo.evaluation.samples import groups_of_samples
from raydpo.labeling.stage import scorer_inputs, scoring_work
from raydpo.models import tokenizer_fingerprint, weights_fingerprint
from raydpo.parts import Table, Target, run_work
from raydpo.progress import logger
from raydpo.reference.stage import reference_work
from raydpo.run import Stage, commit_files, open_stage
from raydpo.sampling.pool import EnginePool, Engines
from raydpo.sampling.weights import share_engines
from raydpo.storage import Folder, fingerprint

Json = dict[str, Any]


def evaluate(
    *,
    config: Config,
    folder: Folder,
    prompts: Table,
    policy: ModelConfig,
    reference_model: ModelConfig,
    heldout: Table | None,
    what: str,
    inputs: dict[str, str],
    training_log: list[Json] | None = None,
    stage_counts: dict[str, dict[str, int]] | None = None,
    agreement: Agreement | None = None,
    pool: Callable[[], EnginePool] | None = None,
) -> Json:
    """Compare the policy with the reference and write the report into `folder`.

    Args:
        config: the job; its `evaluation` section is required.
        folder: of the stage.
        prompts: held-out prompts (PROMPTS).
        policy: the trained model.
        reference_model: pi_ref.
        heldout: preference groups kept out of training (PREFERENCES); may have no rows.
        what: the stage and round, for the log.
        inputs: fingerprints of what else the result depends on.
        training_log: rows of the training's metrics, for the curves.
        stage_counts: counts of the stages before this one, for the report.
        agreement: of the training data's sampler with the reference, for the report.
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
    stage = evaluation_stage(config, folder, prompts, models, heldout, inputs)
    if open_stage(stage, keep_folders=True) is None:
        steps = _Steps(config, evaluation, folder, what)
        tables = _make_tables(steps, prompts, policy, reference_model, heldout, pool)
        metrics = write_report(
            config, evaluation, folder, tables, models, log, stage_counts or {}, agreement
        )
        commit_files(stage, fingerprint(metrics))
        logger.info("[%s] done: %s/report.html", what, folder.uri)
    else:
        logger.info("[%s] nothing to do: %s/report.html is there", what, folder.uri)
    return {**folder.read_json("metrics.json"), "report": f"{folder.uri}/report.html"}


def evaluation_stage(
    config: Config,
    folder: Folder,
    prompts: Table,
    models: dict[str, ModelConfig],
    heldout: Table | None,
    inputs: dict[str, str],
) -> Stage:
    """What the report on these models, `policy` and `reference`, is made from."""
    evaluation = _section(config)
    own = _own_inputs(prompts, models, heldout) | scorer_inputs(evaluation.judge)
    settings = _settings(config, evaluation, models)
    return Stage(folder, "evaluation", None, {**inputs, **own}, settings)


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
    """What the numbers and the page depend on, beside the inputs."""
    return {
        **content_of(config.reference),
        "judges": [_judge_settings(judge) for judge in evaluation.judge],
        "evaluation": content_of(evaluation),
        "max_prompt_tokens": evaluation.prompts.max_prompt_tokens,
        "sampling": content_of(config.sampling),
        "sampling_dtype": config.sampling.engines.dtype,
        "labels_by": [
            [reward.function, reward.classifier and reward.scorer]
            for reward in (config.labeling.reward if config.labeling else ())
        ],
        "beta": config.training.objective.kl_beta if config.training else None,
        "seed": config.seed,
        "share_intervals": "wilson",  # version 0.1 wrote normal ones into metrics.json
        **{name: content_of(model) for name, model in models.items()},
    }


def _judge_settings(judge: RewardConfig) -> Json:
    # Where a judge lies is none of it: the page has its name, and its weights are an input.
    named = {"name": judge.scorer, "function": judge.function, "weight": judge.weight}
    return {**named, **content_of(judge)}


def _make_tables(
    steps: _Steps,
    prompts: Table,
    policy: ModelConfig,
    reference_model: ModelConfig,
    heldout: Table | None,
    pool: Callable[[], EnginePool] | None,
) -> Tables:
    """Samples of both models, their scores, and log-probs of what is compared."""
    with steps.engines([policy, reference_model], pool) as shared:
        reference_samples = steps.sample("reference_samples", reference_model, prompts, shared)
        policy_samples = steps.sample("policy_samples", policy, prompts, shared)
    reference_scores, policy_scores = steps.judge(reference_samples, policy_samples)
    groups = groups_of_samples(steps.folder.child("policy_groups"), policy_samples)
    pairs = heldout if heldout is not None and heldout.manifest["counts"]["output"] else None
    of_policy = steps.logps("policy", policy, groups, pairs, policy_samples)
    steps.say_agreement(of_policy["kl"])
    of_reference = steps.logps("reference", reference_model, groups, pairs)
    return Tables(
        reference_samples,
        policy_samples,
        reference_scores,
        policy_scores,
        groups,
        kl_policy=of_policy["kl"],
        kl_reference=of_reference["kl"],
        heldout=pairs,
        heldout_policy=of_policy.get("heldout"),
        heldout_reference=of_reference.get("heldout"),
    )


@dataclass(frozen=True)
class _Steps:
    """The three kinds of sub-stages, with what all of them share."""

    config: Config
    evaluation: EvaluationConfig
    folder: Folder
    what: str

    @contextmanager
    def engines(
        self, models: list[ModelConfig], pool: Callable[[], EnginePool] | None
    ) -> Generator[Callable[[], EnginePool] | None]:
        """One pool for all models, into which one after the other is pushed.

        None where they cannot share engines: then each sub-stage starts its own.
        """
        base, sampling = self.config.model, self.config.sampling
        if not share_engines([base, *models], sampling):
            yield None
        elif pool is not None:
            yield pool
        else:
            longest = self.evaluation.prompts.max_prompt_tokens
            with Engines(base, sampling, longest, self.what) as engines:
                yield engines.pool

    def sample(
        self,
        name: str,
        model: ModelConfig,
        prompts: Table,
        pool: Callable[[], EnginePool] | None,
    ) -> Table:
        """Completions of every prompt."""
        folder = self.folder.child(name)
        return sample_heldout(self.config, folder, prompts, model, pool, self._what(name))

    def judge(self, reference_samples: Table, policy_samples: Table) -> list[Table]:
        """Every judge's value of every completion, of the reference's and of the policy's."""
        samples = {"reference_scores": reference_samples, "policy_scores": policy_samples}
        targets = [self._target(name, table) for name, table in samples.items()]
        budget = self.config.max_quarantined_fraction
        return run_work(scoring_work(targets, self.evaluation.judge, budget))

    def logps(
        self,
        role: str,
        model: ModelConfig,
        groups: Table,
        pairs: Table | None,
        samples: Table | None = None,
    ) -> dict[str, Table]:
        """Per-token log-probs under a model: `kl` of samples in groups, `heldout` of held-out pairs.

        With `samples`, those of the groups that this model made, the engines' own log-probs of
        them are held against the trainer's forward pass.

        Raises:
            EngineError: they differ by more than `sampling.engines.probe_tolerance` allows.
        """
        sources = {"kl": groups} | ({"heldout": pairs} if pairs else {})
        targets = [
            replace(
                self._target(f"{kind}_{role}", table), samples=samples if kind == "kl" else None
            )
            for kind, table in sources.items()
        ]
        config = self.config
        tolerance = sampler_tolerance(model, config.sampling.engines)
        budget = config.max_quarantined_fraction
        work = reference_work(targets, model, config.reference, budget, tolerance)
        return dict(zip(sources, run_work(work), strict=True))

    def say_agreement(self, logps: Table) -> None:
        """Log how far the engines are from the trainer's forward pass."""
        if (found := agreement_in(logps.manifest)) is not None:
            logger.info("[%s] engine and trainer agree: %s", self.what, found)

    def _target(self, name: str, source: Table) -> Target:
        return Target(self.folder.child(name), source, self._what(name))

    def _what(self, name: str) -> str:
        return f"{self.what}, {name.replace('_', ' ')}"
