"""`raydpo suite`: standard suites of other projects on the model of a finished run.

lm-evaluation-harness runs on the exported model. For AlpacaEval and Arena-Hard, the completions of
the evaluation are written in the suite's format. Each is a stage in `suites/` of the round, with
what it was made from: a second call with the same model and settings does nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from raydpo.core.errors import RunError
from raydpo.core.lock import locked
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import Stage, commit_files, open_stage, read_manifest, round_folder
from raydpo.core.storage import Folder, fingerprint, sha256
from raydpo.evaluation.lm_eval import (
    Harness,
    harness_version,
    refuse_own_options,
    run_harness,
)
from raydpo.evaluation.suite_files import alpaca_rows, arena_rows
from raydpo.evaluation.suites import RESULTS, SUITES, SuiteResult, results_in
from raydpo.models.loading import local_folder
from raydpo.pipeline.results import Run, open_run
from raydpo.show.inputs import finished_table
from raydpo.show.trained import TrainedModel, trained_model
from raydpo.training.export import MODEL

Json = dict[str, Any]
#: Whose completions a file has.
Side = Literal["policy", "reference"]
Suite = Literal["alpaca-eval", "arena-hard"]

#: Each suite's file, and what makes its rows.
FILES: Final[dict[Suite, tuple[str, Callable[[Table, Table, str], list[Json]]]]] = {
    "alpaca-eval": ("model_outputs.json", alpaca_rows),
    "arena-hard": ("model_answer.jsonl", arena_rows),
}
_LONGEST_NAME: Final = 80


@dataclass(frozen=True)
class SuiteRun:
    """What a suite left in a run.

    Attributes:
        folder: the stage's folder.
        results: its numbers; none of a suite that is only prepared.
        file: the file for the suite's own program, if that is what was written.
    """

    folder: Folder
    results: list[SuiteResult]
    file: str | None = None


def run_lm_eval(path: str, harness: Harness, round_index: int | None = None) -> SuiteRun:
    """Run lm-evaluation-harness on a run's model, unless its results are there.

    Args:
        path: the run directory.
        harness: how it is called.
        round_index: the round, as in `trained_model`.

    Raises:
        ConfigError: the harness is not installed, or an option is one that raydpo sets.
        RunError: there is no such model, or the harness failed.
    """
    refuse_own_options(harness.options)
    run = open_run(path)
    model = trained_model(run, round_index, merged=True)
    if model.kind == "reward model":
        raise RunError(
            f"{model.folder.uri} is a reward model",
            "the suite's tasks are for language models",
            "evaluate a policy or a fine-tuned model",
        )
    version = harness_version(harness.python)
    stage = _lm_eval_stage(model, harness, version)
    with locked(run.folder):
        if (manifest := open_stage(stage)) is not None:
            logger.info("[%s] nothing to do: the results are there", stage.place.label)
            return SuiteRun(stage.folder, results_in(manifest))
        place = {"path": model.folder.child(MODEL).uri, "revision": None}
        logger.info("[%s] running %s", stage.place.label, ", ".join(harness.tasks))
        folder = local_folder(run.config.model.model_copy(update=place))
        results = run_harness(harness, version, folder, stage.folder)
        numbers = [result.as_json() for result in results]
        commit_files(stage, fingerprint(numbers), {RESULTS: numbers})
    return SuiteRun(stage.folder, results)


def _lm_eval_stage(model: TrainedModel, harness: Harness, version: str) -> Stage:
    """Describe what results of the harness depend on: model, tasks, options, and its version."""
    name = re.sub(r"[^\w.+-]", "_", "+".join(harness.tasks))[:_LONGEST_NAME]
    inputs = {"policy": model.manifest["fingerprint"]}
    if harness.include_path is not None:
        inputs["own tasks"] = _content_of(Path(harness.include_path))
    place = _place(model, f"lm-eval/{name}", "lm-evaluation-harness")
    return Stage(place, "suite", None, inputs, {"version": version, **harness.content})


def _content_of(folder: Path) -> str:
    """Return a hash of the files of a folder with tasks."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return fingerprint({str(f.relative_to(folder)): sha256(f.read_bytes()) for f in files})


def write_suite_file(
    path: str,
    suite: Suite,
    of: Side = "policy",
    name: str | None = None,
    round_index: int | None = None,
) -> SuiteRun:
    """Write a suite's file from the completions of a run's evaluation, unless it is there.

    Args:
        path: the run directory.
        suite: whose format.
        of: whose completions.
        name: of the model in the file; without it the run's name.
        round_index: the round, as in `trained_model`.

    Raises:
        RunError: the run has no such completions.
        DataError: a prompt is no single text.
    """
    run = open_run(path)
    model = trained_model(run, round_index, merged=True)
    prompts, samples = _evaluated_tables(run, model, of)
    file, rows_of = FILES[suite]
    called = name or (run.config.name if of == "policy" else f"{run.config.name}-reference")
    inputs = {"prompts": prompts.fingerprint, "samples": samples.fingerprint}
    place = _place(model, f"{suite}/{of}", suite)
    stage = Stage(place, "suite", None, inputs, {"name": called, "of": of})
    with locked(run.folder):
        if open_stage(stage) is None:
            rows = rows_of(prompts, samples, called)
            content = _file_content(file, rows)
            stage.folder.write_bytes(file, content)
            counts = {"input": prompts.manifest["counts"]["output"], "output": len(rows)}
            commit_files(stage, sha256(content), {"counts": counts})
    return SuiteRun(stage.folder, [], f"{stage.folder.uri}/{file}")


def _file_content(name: str, rows: list[Json]) -> bytes:
    """Return rows as a JSON list, or as a line each."""
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    return (json.dumps(rows, ensure_ascii=False, indent=1) + "\n").encode()


def _evaluated_tables(run: Run, model: TrainedModel, of: Side) -> tuple[Table, Table]:
    """Return the held-out prompts and the completions of one side."""
    index = model.round_index
    if index is None:
        raise RunError(
            f"{model.folder.uri} is of supervised fine-tuning, which samples nothing",
            "the file has the completions of a run's evaluation",
            "give a run of `raydpo run` or `raydpo online` with an `evaluation` section",
        )
    parent = round_folder(run.folder, index)
    evaluation = parent.child("evaluation")
    if read_manifest(evaluation) is not None:
        prompts = parent.child("evaluation-prompts")
        return finished_table(prompts), finished_table(evaluation.child(f"{of}_samples"))
    measured = evaluation if of == "policy" else run.folder.child("original")
    return finished_table(run.folder.child("heldout")), finished_table(measured.child("samples"))


def _place(model: TrainedModel, name: str, label: str) -> Place:
    """Return the place of a suite beside the model's training."""
    parent = Folder(model.folder.uri.rpartition("/")[0])
    return Place(parent.child(SUITES, name), label)
