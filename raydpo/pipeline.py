"""One round of preference optimization, from prompts to a report.

What comes in: the configuration. What goes out: the run directory, one folder a stage.
Every stage is a function from finished tables to a finished table; one that is finished
already costs nothing, so the same command goes on wherever it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final

from raydpo.cluster import cluster_size, connected
from raydpo.config import Config, ModelConfig
from raydpo.config_file import config_to_yaml
from raydpo.errors import ConfigError
from raydpo.fit import check_config_fits, check_counts_fit
from raydpo.lock import locked
from raydpo.parts import Table
from raydpo.plan import announce, engines_can_stay
from raydpo.progress import logger
from raydpo.prompts.examples import run_examples_stage
from raydpo.prompts.preferences import run_preferences_stage
from raydpo.reference.sequences import score_sequences, summarize
from raydpo.round import Round
from raydpo.run import round_folder, run_folder
from raydpo.sampling.pool import EnginePool, Engines
from raydpo.sampling.weights import share_engines
from raydpo.storage import Folder
from raydpo.training.stage import early_workers, train_sft
from raydpo.training.workers import EarlyWorkers

#: The stages of a round, in order; each can be the last one that a command runs.
STAGES: Final = ("sample", "label", "reference", "train", "evaluate")


@dataclass(frozen=True)
class RoundResult:
    """What a round made: None for what it was not asked for."""

    folder: Folder
    preferences: Table | None = None
    policy: ModelConfig | None = None
    metrics: dict[str, Any] | None = None


def run_round(config: Config, until: str = "evaluate", round_index: int = 0) -> RoundResult:
    """Run a round up to and including the stage `until`.

    Raises:
        RaydpoError: with the value, the rule and the way out.
    """
    _check_sections(config, until)
    run = run_folder(config.output, config.name)
    with locked(run):
        run.write_bytes("config.yaml", config_to_yaml(config).encode())
        with connected(config):
            announce(config, cluster_size())
            with _engines(config) as pool:
                stages = Round(config, round_folder(run, round_index), round_index, pool)
                with _early_workers(stages, until) as workers:
                    return _run_stages(replace(stages, workers=workers), until)


def run_sft(config: Config) -> ModelConfig:
    """Supervised fine-tuning: text in, a model out, in `<run>/sft/`."""
    if config.sft is None:
        raise ConfigError(
            "the configuration has no `sft` section",
            "`raydpo sft` needs one",
            "add `sft: {data: ...}`; jobs/sft_reviews.yaml is an example",
        )
    run = run_folder(config.output, config.name)
    with locked(run):
        run.write_bytes("config.yaml", config_to_yaml(config).encode())
        with connected(config):
            folder = run.child("sft")
            examples = run_examples_stage(config, folder.child("examples"))
            return train_sft(
                config=config, folder=folder.child("policy"), examples=examples, what="sft"
            )


def run_score(config: Config) -> tuple[dict[str, float], Table]:
    """Score existing preferences or examples under the model, in `<run>/score/`.

    Returns:
        The summary of `summarize`, and the table of logps.
    """
    if config.preferences is None and config.sft is None:
        raise _missing("preferences", "existing preferences, or examples in an `sft` section")
    run = run_folder(config.output, config.name)
    with locked(run):
        run.write_bytes("config.yaml", config_to_yaml(config).encode())
        with connected(config):
            folder = run.child("score")
            if config.preferences is not None:
                data = run_preferences_stage(config, folder.child("preferences"), "score")
            else:
                data = run_examples_stage(config, folder.child("examples"))
            scored = score_sequences(
                folder=folder.child("logps"),
                sequences=data,
                model=config.model,
                settings=config.reference,
                what="score",
                max_quarantined_fraction=config.max_quarantined_fraction,
            )
            return summarize(scored, data), scored


@contextmanager
def _engines(config: Config) -> Generator[Callable[[], EnginePool] | None]:
    """One pool for sampling and evaluation, where the stages between them find room beside it.

    None where they do not: then the engines start, and end, once for each of the two.
    """
    if not engines_can_stay(config, cluster_size()):
        logger.info("[plan] engines end with each stage: the others need what they hold")
        yield None
        return
    other = config.reference.model
    if config.evaluation and other and not share_engines([config.model, other], config.sampling):
        logger.info("[plan] engines end with each stage: the evaluation needs two kinds of them")
        yield None
        return
    sources = [config.prompts, config.evaluation and config.evaluation.prompts]
    longest = max((source.max_prompt_tokens for source in sources if source), default=0)
    with Engines(config.model, config.sampling, longest, "engines") as engines:
        yield engines.pool


def _early_workers(stages: Round, until: str) -> AbstractContextManager[EarlyWorkers | None]:
    """Train workers that start now, where the round trains and the stages before leave them room."""
    config = stages.config
    made = config.preferences is not None or config.labeling is not None  # people take their time
    if not made or STAGES.index(until) < STAGES.index("train"):
        return nullcontext()
    return early_workers(config, stages.folder.child("policy"), f"round {stages.index}, train")


def _run_stages(stages: Round, until: str) -> RoundResult:
    last = STAGES.index(until)
    if stages.config.preferences is not None:
        preferences = stages.existing_preferences()
    else:
        prompts = stages.prompts()
        if last >= STAGES.index("label"):
            stages.work_ahead(prompts, stages, to_reference=last >= STAGES.index("reference"))
        candidates = stages.sample(prompts)
        if last < STAGES.index("label"):
            return RoundResult(stages.folder)
        preferences = stages.label(candidates)
    check_counts_fit(stages.config, preferences.manifest["counts"])
    if last < STAGES.index("reference"):
        return RoundResult(stages.folder, preferences)
    reference = stages.reference(preferences)
    if last < STAGES.index("train"):
        return RoundResult(stages.folder, preferences)
    stages.verify(preferences, reference)
    policy = stages.train(preferences, reference)
    if last < STAGES.index("evaluate") or stages.config.evaluation is None:
        return RoundResult(stages.folder, preferences, policy)
    metrics = stages.evaluate(preferences, reference, policy)
    return RoundResult(stages.folder, preferences, policy, metrics)


def _check_sections(config: Config, until: str) -> None:
    """Refuse, before anything starts, what cannot be carried to its end."""
    last = STAGES.index(until)
    if config.preferences is None and config.prompts is None:
        raise _missing("prompts", "a source of prompts, or existing `preferences`")
    if config.preferences is not None and until == "sample":
        raise ConfigError(
            "`preferences` are given, so nothing is sampled",
            "`raydpo sample` needs `prompts`",
            "give `prompts` and `labeling` instead, or start with `raydpo reference`",
        )
    if config.training is None and last >= STAGES.index("train"):
        raise _missing("training", "an objective and its hyperparameters")
    check_config_fits(config)
    if config.evaluation is None and until == "evaluate":
        logger.info("no `evaluation` section: the run ends with the policy")


def _missing(section: str, what: str) -> ConfigError:
    return ConfigError(
        f"the configuration has no `{section}` section",
        f"this command needs {what}",
        f"add `{section}:`; jobs/ has examples",
    )
