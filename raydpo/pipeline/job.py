"""Run one round of preference optimization, from prompts to a report.

The configuration gives the run directory, one folder per stage. Every stage is a function from
finished tables to a finished table. A finished stage does not run again, so the same command
resumes wherever it stopped.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from raydpo.config.file import config_to_yaml
from raydpo.config.fit import check_config_fits
from raydpo.config.job import Config, ModelConfig
from raydpo.core.callbacks import callbacks_of, notify
from raydpo.core.cluster import cluster_size, connected
from raydpo.core.errors import ConfigError
from raydpo.core.lock import locked
from raydpo.core.parts import Table
from raydpo.core.progress import logger
from raydpo.core.run import look_at, read_manifest, round_folder, run_folder
from raydpo.core.set_aside import set_aside
from raydpo.core.stages import REDO, STAGES, refuse_other_stages
from raydpo.core.storage import Folder
from raydpo.core.walk import Making
from raydpo.evaluation.training_report import report_training
from raydpo.labeling.kept_votes import refuse_other_labels
from raydpo.pipeline.measured import sft_record
from raydpo.pipeline.order import RoundTables, redone_folders, run_stages
from raydpo.pipeline.replan import may_start_engines, replanning
from raydpo.pipeline.round import Round, place_in
from raydpo.plan import announce, engines_can_stay
from raydpo.prompts.examples import run_examples_stage
from raydpo.prompts.preferences import run_preferences_stage
from raydpo.reference.sequences import score_sequences, summarize
from raydpo.sampling.pool import Engines
from raydpo.sampling.weights import share_engines
from raydpo.training.stage import early_workers, train_sft
from raydpo.training.workers import EarlyWorkers


@dataclass(frozen=True)
class RoundResult:
    """The results of a round; None for those that were not requested.

    `metrics` are those of the evaluation, and `report` is the content of the report of a training
    that was measured on held-out data and not evaluated.
    """

    folder: Folder
    preferences: Table | None = None
    policy: ModelConfig | None = None
    metrics: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    waits_for: str | None = None


def run_round(
    config: Config,
    until: str = "evaluation",
    round_index: int = 0,
    redo: Collection[str] = (),
    engines: Engines | None = None,
) -> RoundResult:
    """Run a round up to and including the stage `until`.

    Args:
        config: the job.
        until: one of `STAGES`.
        round_index: the round.
        redo: finished stages that run again, even if they contain people's work.
        engines: those of a caller with several runs of one architecture and one `sampling`, which
            live on; without them the run starts its own.

    Raises:
        RaydpoError: with the value, the rule and the way out.
    """
    check_sections(config, until, redo)
    run = run_folder(config.output, config.name)
    with locked(run), callbacks_of(run, config.callbacks):
        folder = round_folder(run, round_index)
        refuse_to_replace_people(config, folder, until, redo)
        for stage in redo:
            logger.info("[%s] done again: --redo", stage)
            for name in redone_folders(stage):
                if folder.child(name).files(recursive=True):
                    set_aside(folder.child(name))
        run.write_bytes("config.yaml", config_to_yaml(config).encode())
        with connected(config.ray_address):
            announce(config, cluster_size())
            with _engines(config, engines) as engines:
                pool = engines.pool if engines else None
                stages = Round(config, round_folder(run, round_index), round_index, pool)
                with (
                    _early_workers(stages, until) as workers,
                    replanning(config, engines, lambda: workers),
                ):
                    stages = replace(stages, workers=workers)
                    sampled = engines.idle if engines else lambda: None
                    made = run_stages(stages, until, Making(), sampled)
                    result = _result(stages, made)
            if until == STAGES[-1] and result.waits_for is None:
                notify("round", folder, result.metrics or result.report or {})
            return result


def refuse_to_replace_people(
    config: Config, folder: Folder, until: str, redo: Collection[str] = ()
) -> None:
    """Refuse to replace what people made, as far as this is known in advance.

    Args:
        config: the job.
        folder: the folder of the round.
        until: the command's last stage.
        redo: stages that may be replaced because somebody asked for it.

    Raises:
        RunError: preferences of people exist and the job labels in another way, or candidates that
            people judge would be sampled again.
    """
    labels = not config.waits_for_people and STAGES.index(until) >= STAGES.index("labeling")
    if labels and "labeling" not in redo:
        refuse_other_labels(folder)
    if config.prompts is None or "sampling" in redo:
        return
    stages = Round(config, folder, 0)
    stage = stages.prompts().describe()
    assert stage is not None
    manifest = read_manifest(stage.folder)
    if manifest is not None and look_at(stage)[0] == "done":
        stages.refuse_other_candidates(Table(stage.folder, manifest))


def _result(stages: Round, made: RoundTables) -> RoundResult:
    """Return what a round gives to its caller, with the content of its report."""
    metrics = report = None
    if made.report is not None and made.report.manifest:
        folder = made.report.folder
        content = {**folder.read_json("metrics.json"), "report": f"{folder.uri}/report.html"}
        evaluated = stages.config.evaluation is not None
        metrics, report = (content, None) if evaluated else (None, content)
    policy = stages.policy if made.policy is not None else None
    return RoundResult(stages.folder, made.preferences, policy, metrics, report, made.waits_for)


def run_sft(config: Config) -> tuple[ModelConfig, dict[str, Any] | None]:
    """Run supervised fine-tuning from text to a model in `<run>/sft/`.

    Returns:
        The model, and the content of its report; None if nothing was held out.
    """
    if config.sft is None:
        raise ConfigError(
            "the configuration has no `sft` section",
            "`raydpo sft` needs one",
            "add `sft: {data: ...}`; jobs/sft_reviews.yaml is an example",
        )
    run = run_folder(config.output, config.name)
    with locked(run), callbacks_of(run, config.callbacks):
        run.write_bytes("config.yaml", config_to_yaml(config).encode())
        with connected(config.ray_address):
            examples = run_examples_stage(config, place_in(config, run, "sft/examples"))
            model = train_sft(config, place_in(config, run, "sft/policy"), examples)
            record = sft_record(run)
            place = place_in(config, run, "sft/report")
            return model, record and report_training(config, place, record)


def run_score(config: Config) -> tuple[dict[str, float], Table]:
    """Score existing preferences or examples under the model, in `<run>/score/`.

    Returns:
        The summary of `summarize`, and the table of logps.
    """
    if config.preferences is None and config.sft is None:
        raise _missing("preferences", "existing preferences, or examples in an `sft` section")
    run = run_folder(config.output, config.name)
    with locked(run), callbacks_of(run, config.callbacks):
        run.write_bytes("config.yaml", config_to_yaml(config).encode())
        with connected(config.ray_address):
            if config.preferences is not None:
                data = run_preferences_stage(config, place_in(config, run, "score/preferences"))
            else:
                data = run_examples_stage(config, place_in(config, run, "score/examples"))
            place = place_in(config, run, "score/logps")
            scored = score_sequences(place, data, config.model, config.reference)
            return summarize(scored, data), scored


@contextmanager
def _engines(config: Config, given: Engines | None) -> Generator[Engines | None]:
    """Yield one pool for sampling and evaluation if the stages between them find room beside it.

    Yield None if they do not; the engines then start and end once for each of the two. Engines that
    were given end in this case, and start again when they are next asked for.
    """
    if config.sampling.function is not None:
        yield None
        return
    if not engines_can_stay(config, cluster_size()):
        logger.info("[plan] engines end with each stage: the others need what they hold")
        if given is not None:
            given.close()
        yield None
        return
    if given is not None:
        yield given
        return
    other = config.reference.model
    if config.evaluation and other and not share_engines([config.model, other], config.sampling):
        logger.info("[plan] engines end with each stage: the evaluation needs two kinds of them")
        yield None
        return
    sources = [config.prompts, config.evaluation and config.evaluation.prompts]
    longest = max((source.max_prompt_tokens for source in sources if source), default=0)
    may_start = may_start_engines(config)
    with Engines(config.model, config.sampling, longest, "engines", may_start) as engines:
        yield engines


def _early_workers(stages: Round, until: str) -> AbstractContextManager[EarlyWorkers | None]:
    """Start train workers now if the round trains and the stages before leave them room."""
    config = stages.config
    trains = STAGES.index(until) >= STAGES.index("training") and config.training is not None
    if config.waits_for_people or not trains:
        return nullcontext()
    return early_workers(config, stages.place("policy"))


def check_sections(config: Config, until: str, redo: Collection[str] = ()) -> None:
    """Refuse, before anything starts, a job that cannot be completed.

    Raises:
        ConfigError: a section is missing, or a stage to run again comes after the last one.
    """
    refuse_other_stages(until, tuple(redo))
    last = STAGES.index(until)
    made = REDO[: REDO.index(until) + 1]
    for stage in redo:
        if stage not in made:
            raise ConfigError(
                f"--redo {stage}, and the last stage is {until!r}",
                "a stage that is taken away is done again by the same command",
                f"take a later command, or one of {', '.join(made)}",
            )
    if config.evaluates_reference_alone and until == "evaluation":
        _refuse_redo_of_others(redo)
        logger.info("no `training` section: the run measures Best-of-N of the reference alone")
        return
    if config.preferences is None and config.prompts is None:
        raise _missing("prompts", "a source of prompts, or existing `preferences`")
    if config.preferences is not None and until == "sampling":
        raise ConfigError(
            "`preferences` are given, so nothing is sampled",
            "`raydpo sampling` needs `prompts`",
            "give `prompts` and `labeling` instead, or start with `raydpo reference`",
        )
    if config.training is None and last >= STAGES.index("training"):
        what = "an objective and its hyperparameters; only `evaluation.best_of` needs none"
        raise _missing("training", what)
    check_config_fits(config)
    if config.evaluation is None and until == "evaluation":
        measured = config.training is not None and config.training.evaluates_heldout
        end = "a report on held-out data" if measured else "the policy"
        hint = "" if measured else "; training.heldout_fraction adds a report"
        logger.info("no `evaluation` section: the run ends with %s%s", end, hint)


def _refuse_redo_of_others(redo: Collection[str]) -> None:
    if others := [stage for stage in redo if stage != "evaluation"]:
        raise ConfigError(
            f"--redo {others[0]}, and the job has no `training` section",
            "a run without training has the stage `evaluation` alone",
            "take --redo out, or write --redo evaluation",
        )


def _missing(section: str, what: str) -> ConfigError:
    return ConfigError(
        f"the configuration has no `{section}` section",
        f"this command needs {what}",
        f"add `{section}:`; jobs/ has examples",
    )
