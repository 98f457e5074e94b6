"""Run lm-evaluation-harness on a model folder, in a process of its own.

The harness (https://github.com/EleutherAI/lm-evaluation-harness) is no dependency: it may be
installed in another environment. Its results file gives the numbers of the tasks that were asked for.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from raydpo.core.errors import ConfigError, RunError
from raydpo.core.storage import Folder
from raydpo.evaluation.suites import SuiteResult

Json = dict[str, Any]
Backend = Literal["hf", "vllm"]

#: The program's name in results.
PROGRAM: Final = "lm-evaluation-harness"
RESULTS_FILE: Final = "results.json"
#: Options of the harness that raydpo sets itself.
_OWN: Final = ("model", "model_args", "tasks", "output_path", "include_path")
#: Options of the harness that say where the work runs and what is shown, and change no number by
#: more than rounding.
_PLACEMENT: Final = (
    "batch_size",
    "max_batch_size",
    "device",
    "use_cache",
    "cache_requests",
    "verbosity",
    "write_out",
    "show_config",
)
_VERSION: Final = "import importlib.metadata as m; print(m.version('lm_eval'))"
_SECONDS_FOR_VERSION: Final = 60


@dataclass(frozen=True)
class Harness:
    """How the harness is called.

    Attributes:
        python: the interpreter that has it.
        tasks: names of tasks or groups.
        backend: what generates and scores, transformers or vLLM.
        model_args: further arguments of the backend, such as `dtype`.
        options: further options of the harness by name; None for one without a value.
        include_path: a folder with tasks of one's own.
    """

    python: str
    tasks: tuple[str, ...]
    backend: Backend = "hf"
    model_args: Mapping[str, str] = field(default_factory=dict[str, str])
    options: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    include_path: str | None = None

    def command(self, model: str, output: str) -> list[str]:
        """Return the command for a model's folder and a folder for the results."""
        arguments = {"pretrained": model, **self.model_args}
        command = [
            *(self.python, "-m", "lm_eval", "--model", self.backend),
            *("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())),
            *("--tasks", ",".join(self.tasks), "--output_path", output),
        ]
        if self.include_path is not None:
            command += ["--include_path", self.include_path]
        for name, value in self.options.items():
            command += [f"--{name}"] if value is None else [f"--{name}", value]
        return command

    @property
    def content(self) -> Json:
        """What the results depend on besides the model, for the stage's key."""
        options = {name: value for name, value in self.options.items() if name not in _PLACEMENT}
        return {
            "tasks": list(self.tasks),
            "backend": self.backend,
            "model_args": dict(self.model_args),
            "options": options,
        }


def refuse_own_options(options: Mapping[str, str | None]) -> None:
    """Refuse options that raydpo sets itself.

    Raises:
        ConfigError: one of them is among these.
    """
    for name in options:
        if name.replace("-", "_") in _OWN:
            raise ConfigError(
                f"--option {name}",
                f"raydpo sets {', '.join(_OWN)} itself",
                "use --tasks, --backend, --model-arg or --include-path, or leave it out",
            )


def harness_version(python: str) -> str:
    """Return the version of lm-evaluation-harness that an interpreter has.

    Raises:
        ConfigError: it has none, or there is no such interpreter.
    """
    command = [python, "-c", _VERSION]
    try:
        done = subprocess.run(  # noqa: S603 - the user's own interpreter
            command, capture_output=True, text=True, timeout=_SECONDS_FOR_VERSION, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _not_installed(python, str(error)) from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no answer"]
        raise _not_installed(python, lines[-1])
    return done.stdout.strip().splitlines()[-1]


def _not_installed(python: str, why: str) -> ConfigError:
    return ConfigError(
        f"{python} has no {PROGRAM}: {why}",
        "the suite runs with the program of its authors, which raydpo does not install",
        "`pip install lm-eval[hf]` (or `lm-eval[vllm]`) in an environment of its own, and give its "
        "interpreter with --python",
    )


def run_harness(harness: Harness, version: str, model: Path, folder: Folder) -> list[SuiteResult]:
    """Run the harness on a model, keep its files in a folder, and return the numbers.

    Its output goes to this process's own. The model is given by a link, so that no file of the
    results has its path.

    Raises:
        RunError: the harness failed, or left no results.
    """
    with tempfile.TemporaryDirectory(prefix="raydpo-lm-eval-") as scratch:
        link, output = Path(scratch, "policy"), Path(scratch, "output")
        link.symlink_to(model, target_is_directory=True)
        done = subprocess.run(harness.command(str(link), str(output)), check=False)  # noqa: S603
        found = sorted(output.rglob("results_*.json"))
        if done.returncode != 0 or not found:
            raise RunError(
                f"{PROGRAM} {version} ended with status {done.returncode}"
                + ("" if found else " and left no results"),
                "its last lines above say why",
                "look at the names of the tasks, their data and the memory, and give the command again",
            )
        results = json.loads(found[-1].read_text(encoding="utf-8"))
        folder.write_json(RESULTS_FILE, results)
        for file in sorted(output.rglob("samples_*.jsonl")):
            with open(file, "rb") as stream:
                folder.write_bytes(f"samples/{file.name}", stream.read())
        shutil.rmtree(output)
    return numbers_of(results, harness, version)


def numbers_of(results: Json, harness: Harness, version: str) -> list[SuiteResult]:
    """Return the numbers of the tasks that were asked for; of all tasks where names are patterns."""
    tasks: Json = {**results.get("results", {}), **results.get("groups", {})}
    asked = [name for name in tasks if name in harness.tasks] or list(tasks)
    return [
        number for name in asked for number in _task(name, tasks[name], results, harness, version)
    ]


def _task(
    name: str, values: Json, results: Json, harness: Harness, version: str
) -> Sequence[SuiteResult]:
    """Return the numbers of a task, whose keys are `metric,filter` and `metric_stderr,filter`."""
    counts = results.get("n-samples", {}).get(name, {})
    found: list[SuiteResult] = []
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if metric.endswith("_stderr") or isinstance(value, bool | str) or not chosen:
            continue
        error = values.get(f"{metric}_stderr,{chosen}")
        found.append(
            SuiteResult(
                program=f"{PROGRAM} {version}",
                task=name,
                metric=metric if chosen == "none" else f"{metric} ({chosen})",
                value=float(value),
                standard_error=float(error) if isinstance(error, int | float) else None,
                samples=counts.get("effective"),
                settings=_settings(name, results, harness),
            )
        )
    return found


def _settings(task: str, results: Json, harness: Harness) -> str:
    """Return in words what a number depends on besides task and model: shots, and what was asked."""
    shots = results.get("n-shot", {}).get(task)
    content = harness.content
    asked = {**content["model_args"], **content["options"]}
    asked = {k: v for k, v in asked.items() if k not in ("num_fewshot", "log_samples")}
    words = [k if value is None else f"{k} {_without_folders(value)}" for k, value in asked.items()]
    return ", ".join([*([f"{shots}-shot"] if isinstance(shots, int) else []), *words])


def _without_folders(value: str) -> str:
    """Return a value as it may be published: of a path or URI the last name."""
    is_path = value.startswith(("/", "~")) or "://" in value
    return value.rstrip("/").rpartition("/")[2] if is_path else value
