"""Check losses, pair builders, callbacks and samplers that a user wrote, in separate processes.

Importing such a function may end its process or never return; the command reports that and goes
on. Problems go to `Findings`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, Literal

from raydpo.check.findings import Findings
from raydpo.config.job import Config
from raydpo.config.objectives import FunctionObjective, own_objectives
from raydpo.config.sampling import SamplerFunctionConfig
from raydpo.core.errors import ConfigError
from raydpo.core.own_functions import search_path
from raydpo.sampling.function import check_sampler_takes, code_of_sampler, look_at_sampler

#: torch alone takes a while to import on busy cores.
TRIAL_SECONDS: Final = 180.0


def check_own_functions(config: Config, findings: Findings) -> None:
    """Try each function that is an objective or builds pairs; import each callback."""
    if config.training is not None:
        for section in own_objectives(config.training.objective):
            findings.attempt(try_apart, section)
    if config.labeling is not None and (path := config.labeling.pairs.own_builder):
        findings.attempt(try_apart, path)
    for callback in config.callbacks:
        findings.attempt(try_apart, callback, kind="callback")
    if config.sampling.function is not None:
        findings.attempt(check_sampler, config, config.sampling.function, findings)


def try_apart(
    function: FunctionObjective | str,
    trial_seconds: float = TRIAL_SECONDS,
    kind: Literal["pairs", "callback"] = "pairs",
) -> None:
    """Import and call a function in a process of its own; a callback is imported only.

    Args:
        function: the section of an objective, or the path of a function.
        trial_seconds: how long that may take.
        kind: what the function of a path is.

    Raises:
        ConfigError: it cannot be used, or the process ended or did not come back.
    """
    loss = function.model_dump(mode="json") if isinstance(function, FunctionObjective) else None
    path = function if isinstance(function, str) else function.function
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        question = json.dumps({"loss": loss, "path": path, "kind": kind, "search": search_path()})
        try:
            done = subprocess.run(  # noqa: S603 - this Python, and a module of ours
                [sys.executable, "-m", __name__, str(answer)],
                input=question.encode(),
                capture_output=True,
                timeout=trial_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _failed(path, f"did not come back in {trial_seconds:g} s") from None
        if not answer.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise _failed(path, f"ended its process ({done.returncode}) {' '.join(said)}".strip())
        words: list[str] = json.loads(answer.read_text(encoding="utf-8"))
    if words:
        raise ConfigError(*words)


def _failed(path: str, how: str) -> ConfigError:
    return ConfigError(
        f"function {path!r}: importing or calling it {how}",
        "your function returns, and neither it nor what it imports ends the process",
        "correct its module",
    )


def _main() -> None:
    words: list[str] = []
    try:
        _try(json.load(sys.stdin))
    except ConfigError as error:
        words = [error.value, error.rule, error.way_out]
    Path(sys.argv[1]).write_text(json.dumps(words), encoding="utf-8")


def _try(question: dict[str, Any]) -> None:
    # Only what the function needs is imported: torch takes seconds.
    if question["kind"] == "callback":
        from raydpo.core.callbacks import load_callback

        load_callback(question["path"], question["search"])
    elif question["loss"] is None:
        from raydpo.labeling.own_pairs import load_pairs, try_pairs

        try_pairs(load_pairs(question["path"], question["search"]))
    else:
        from raydpo.training.own_loss import load_loss, try_loss

        section = FunctionObjective.model_validate(question["loss"])
        try_loss(load_loss(section, question["search"]))


if __name__ == "__main__":
    _main()


def check_sampler(config: Config, function: SamplerFunctionConfig, findings: Findings) -> None:
    """Look at a sampler's signature; it is not called, since it may load a model first.

    Raises:
        ConfigError: it cannot be imported or called, or the job needs more of it.
    """
    look = look_at_sampler(function)
    evaluation = config.evaluation
    if config.prompts is not None or config.online is not None:
        findings.attempt(check_sampler_takes, function, config.model, config.sampling)
    if evaluation is not None:
        settings = evaluation.sampling(config.sampling)
        findings.attempt(check_sampler_takes, function, config.model, settings, "evaluation")
    if "model" not in look.names:
        _refuse_other_policies(config, function)
    code = code_of_sampler(function)
    findings.facts.append(
        f"sampling: function {function.path}{look.call}; "
        f"samples are made again when these change: {code.covered}"
    )
    if code.undeclared:
        findings.facts.append(
            f"note: {function.path} names {', '.join(code.undeclared)}: a change there leaves old "
            "samples in place, unless sampling.function.depends_on lists it"
        )
    if "seeds" not in look.names:
        findings.facts.append(
            f"note: {function.path} takes no `seeds`: a part that is made again may differ"
        )


def _refuse_other_policies(config: Config, function: SamplerFunctionConfig) -> None:
    """Refuse sections that need samples of the trained policy, from a function without its folder."""
    sections = {"evaluation": config.evaluation, "online": config.online}
    for name in (name for name, section in sections.items() if section is not None):
        raise ConfigError(
            f"there is the section `{name}`, and sampler function {function.path!r} takes no `model`",
            f"`{name}` needs samples of the trained policy, whose folder is given as `model`",
            f"add the parameter `model` and sample from that folder, or take `{name}` out",
        )
