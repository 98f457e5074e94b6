"""One round of preference optimization, from prompts to a report.

What comes in: the configuration. What goes out: the run directory, one folder a stage.
Every stage is a function from finished tables to a finished table; one that is finished
already costs nothing, so the same command goes on wherever it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final

from raydpo.cluster import cluster_size, connected
from raydpo.config import Config, ModelConfig
from raydpo.config_file import config_to_yaml
from raydpo.errors import ConfigError
from raydpo.fit import check_config_fits, check_counts_fit
from raydpo.labeling.kept_votes import refuse_other_labels
from raydpo.lock import locked
from raydpo.parts import Table
from raydpo.plan import announce, engines_can_stay
from raydpo.progress import logger
from raydpo.prompts.examples import run_examples_stage
from raydpo.prompts.preferences import run_preferences_stage
from raydpo.prompts.stage import prompts_stage
from raydpo.reference.sequences import score_sequences, summarize
from raydpo.round import Round
from raydpo.run import look_at, read_manifest, round_folder, run_folder
from raydpo.sampling.pool import EnginePool, Engines
from raydpo.sampling.weights import share_engines
from raydpo.set_aside import set_aside
from raydpo.storage import Folder
from raydpo.training.stage import early_workers, train_sft
from raydpo.training.workers import EarlyWorkers

#: What `--redo` names, in order, and the folders that it takes away.
FOLDERS: Final = {
    "sample": ("candidates",),
    "score": ("scores", "score-groups", "score-policy", "score-reference"),
    "label": ("preferences",),
    "reference": ("reference",),
    "train": ("policy",),
    "evaluate": ("evaluation", "evaluation-prompts"),
}
#: The stages of a round, in order; each can be the last one that a command runs.
STAGES: Final = ("sample", "label", "reference", "train", "evaluate")


@dataclass(frozen=True)
class RoundResult:
    """What a round made: None for what it was not asked for."""

    folder: Folder
    preferences: Table | None = None
    policy: ModelConfig | None = None
    metrics: dict[str, Any] | None = None
    waits_for: str | None = None


def run_round(
    config: Config, until: str = "evaluate", round_index: int = 0, redo: Collection[str] = ()
) -> RoundResult:
    """Run a round up to and including the stage `until`.

    Args:
        config: the job.
        until: one of `STAGES`.
        round_index: the round.
        redo: stages that are done again though they are finished, people's work included.

    Raises:
        RaydpoError: with the value, the rule and the way out.
    """
    check_sections(config, until, redo)
    run = run_folder(config.output, config.name)
    with locked(run):
        folder = round_folder(run, round_index)
        refuse_to_replace_people(config, folder, until, redo)
        for stage in redo:
            logger.info("[%s] done again: --redo", stage)
            for name in FOLDERS[stage]:
                if folder.child(name).files(recursive=True):
                    set_aside(folder.child(name))
        run.write_bytes("config.yaml", config_to_yaml(config).encode())
        with connected(config):
            announce(config, cluster_size())
            with _engines(config) as pool:
                stages = Round(config, round_folder(run, round_index), round_index, pool)
                with _early_workers(stages, until) as workers:
                    return _run_stages(replace(stages, workers=workers), until)


def refuse_to_replace_people(
    config: Config, folder: Folder, until: str, redo: Collection[str] = ()
) -> None:
    """Stop before a command replaces what people made, as far as it can be known by now.

    Args:
        config: the job.
        folder: the round's.
        until: the command's last stage.
        redo: stages that may be replaced: somebody asked for it.

    Raises:
        RunError: preferences of people are there and the job labels otherwise, or candidates
            that people judge would be sampled anew.
    """
    labels = not waits_for_people(config) and STAGES.index(until) >= STAGES.index("label")
    if labels and "label" not in redo:
        refuse_other_labels(folder)
    if config.prompts is None or "sample" in redo:
        return
    stage = prompts_stage(config, config.prompts, folder.child("prompts"))
    manifest = read_manifest(stage.folder)
    if manifest is not None and look_at(stage)[0] == "done":
        Round(config, folder, 0).refuse_other_candidates(Table(stage.folder, manifest))


def waits_for_people(config: Config) -> bool:
    """Whether preferences come from votes that are imported."""
    return config.preferences is None and not (config.labeling and config.labeling.reward)


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
    if waits_for_people(config) or STAGES.index(until) < STAGES.index("train"):
        return nullcontext()
    return early_workers(config, stages.folder.child("policy"), f"round {stages.index}, train")


def _run_stages(stages: Round, until: str) -> RoundResult:
    last = STAGES.index(until)
    candidates = None
    if stages.config.preferences is not None:
        preferences = stages.existing_preferences()
    else:
        prompts = stages.prompts()
        if last >= STAGES.index("label"):
            stages.work_ahead(prompts, stages, to_reference=last >= STAGES.index("reference"))
        candidates = stages.sample(prompts)
        if last < STAGES.index("label"):
            return RoundResult(stages.folder)
        made = _labelled(stages, candidates)
        if made is None:
            return RoundResult(stages.folder, waits_for="people's votes")
        preferences = made
    check_counts_fit(stages.config, preferences.manifest["counts"])
    if last < STAGES.index("reference"):
        return RoundResult(stages.folder, preferences)
    reference = stages.reference(preferences, candidates)
    if candidates is not None:
        stages.check_sampler(candidates, reference)
    if last < STAGES.index("train"):
        return RoundResult(stages.folder, preferences)
    stages.verify(preferences, reference)
    policy = stages.train(preferences, reference)
    if last < STAGES.index("evaluate") or stages.config.evaluation is None:
        return RoundResult(stages.folder, preferences, policy)
    metrics = stages.evaluate(preferences, reference, policy)
    return RoundResult(stages.folder, preferences, policy, metrics)


def _labelled(stages: Round, candidates: Table) -> Table | None:
    """Preferences by rewards or people; None where people have not voted yet.

    Raises:
        ConfigError: nothing was said about who labels, and there are no votes.
    """
    if not waits_for_people(stages.config):
        return stages.label(candidates)
    preferences = stages.of_people(candidates)
    if preferences is None and stages.config.labeling is None:
        raise ConfigError(
            f"there is no `labeling` section, and no votes of people are in {stages.folder.uri}",
            "something tells a better completion from a worse one: a reward, or people",
            "add `labeling:` with a `reward`, or with `people: {}`",
        )
    return preferences


def check_sections(config: Config, until: str, redo: Collection[str] = ()) -> None:
    """Refuse, before anything starts, what cannot be carried to its end.

    Raises:
        ConfigError: a section is missing, or a stage is to be done again after the last one.
    """
    last = STAGES.index(until)
    made = list(FOLDERS)[: list(FOLDERS).index(until) + 1]
    for stage in redo:
        if stage not in made:
            raise ConfigError(
                f"--redo {stage}, and the last stage is {until!r}",
                "a stage that is taken away is done again by the same command",
                f"take a later command, or one of {', '.join(made)}",
            )
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
