"""Turn a rubric, a Jinja template, into the question that a judge is asked.

A template of a pointwise judge names `completion`, one of a pairwise judge `first` and `second`,
and both name `prompt` or `messages`. Any other name is a column of the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from raydpo.config.judges import SHIPPED_RUBRICS, JudgeConfig
from raydpo.core.errors import ConfigError, DataError, said_by
from raydpo.core.storage import folder_of

SHIPPED: Final = Path(__file__).parent / "rubrics"
#: The names that a template has to contain, and those that raydpo fills beside them.
_REQUIRED: Final = {"pointwise": ("completion",), "pairwise": ("first", "second")}
_FILLED: Final = {"pointwise": ("lowest", "highest"), "pairwise": ("ties",)}
_ASKED: Final = ("prompt", "messages")


@dataclass(frozen=True)
class Rubric:
    """A rubric that was read and checked.

    Attributes:
        template: the compiled template.
        sha256: hash of its text.
        columns: columns of the data that it names.
        filled: values that are the same in all questions.
    """

    template: jinja2.Template
    sha256: str
    columns: tuple[str, ...]
    filled: dict[str, Any]

    def question(
        self, prompt: str, messages: Any, texts: Mapping[str, str], columns: Mapping[str, Any]
    ) -> str:
        """Return the question about these texts.

        Args:
            prompt: the prompt's text.
            messages: its messages, or None.
            texts: the completions, by the name that the template has for them.
            columns: the row's columns of the data.

        Raises:
            DataError: the template fails on them.
        """
        own = {name: columns.get(name) for name in self.columns}
        values = {**own, **self.filled, **texts, "prompt": prompt, "messages": messages}
        try:
            return self.template.render(values)
        except Exception as error:
            raise DataError(
                f"the rubric fails on this row: {type(error).__name__}, {said_by(error)}",
                "a template can be filled for every row",
                "correct the template; `{% if column %}` asks whether a value is there",
            ) from error


def rubric_of(judge: JudgeConfig) -> Rubric:
    """Read and check the rubric of a judge.

    Raises:
        ConfigError: it cannot be read, is no template, or lacks a name that it has to contain.
    """
    text = _text(judge)
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    try:
        names = meta.find_undeclared_variables(environment.parse(text))
        template = environment.from_string(text)
    except jinja2.TemplateError as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise ConfigError(
            f"rubric {judge.rubric}{line}: {said_by(error)}",
            "a rubric is a Jinja template",
            "correct the template; docs/judges.md has one",
        ) from error
    names -= environment.globals.keys()
    _refuse_missing(judge, names)
    known = {*_REQUIRED[judge.mode], *_FILLED[judge.mode], *_ASKED}
    filled = {
        "pointwise": {"lowest": judge.lowest_score, "highest": judge.highest_score},
        "pairwise": {"ties": judge.ties},
    }[judge.mode]
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Rubric(template, sha256, tuple(sorted(names - known)), filled)


def _refuse_missing(judge: JudgeConfig, names: set[str]) -> None:
    missing = [name for name in _REQUIRED[judge.mode] if name not in names]
    if not names & {*_ASKED}:
        missing.append("prompt")
    if missing:
        raise ConfigError(
            f"rubric {judge.rubric} does not contain {', '.join(f'{{{{ {n} }}}}' for n in missing)}",
            f"the template of a {judge.mode} judge contains "
            f"{', '.join(f'{{{{ {n} }}}}' for n in _REQUIRED[judge.mode])}, and {{{{ prompt }}}} "
            "or {{ messages }}",
            "add what is missing, or choose the other `mode`",
        )


def _text(judge: JudgeConfig) -> str:
    if judge.rubric in SHIPPED_RUBRICS:
        return (SHIPPED / f"{judge.rubric}.{judge.mode}.j2").read_text(encoding="utf-8")
    return text_of(judge.rubric, "rubric", f"one of {', '.join(SHIPPED_RUBRICS)}, or a file")


def text_of(path: str, what: str, rule: str) -> str:
    """Return the text of a file that the configuration names.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    folder, _, name = path.rpartition("/")
    try:
        return folder_of(folder or "/").read_bytes(name).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{what} {path} cannot be read: {said_by(error)}",
            f"it is {rule}, in UTF-8",
            "correct the path",
        ) from error
