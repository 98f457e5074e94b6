"""Configuration files: read YAML into a checked `Config`, and write it back.

The reader takes a path and `--set` overrides. A `ConfigError` lists every problem at once.
"""

from __future__ import annotations

import difflib
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import yaml
from pydantic import BaseModel, ValidationError

from raydpo.config.job import Config
from raydpo.config.yaml_text import override_value, yaml_values
from raydpo.core.errors import ConfigError
from raydpo.core.stages import OLD_WORDS, STAGES

if TYPE_CHECKING:
    from raydpo.core.storage import Folder

#: The old words of stages, which `--set` accepts in place of a section's name.
_SECTION_OF_OLD_WORD: Final = {old: new for old, new in OLD_WORDS.items() if new in STAGES}

#: Characters of a wrong value that an error shows.
_MOST_SHOWN: Final = 200
#: Problems that an error lists.
_MOST_PROBLEMS: Final = 30


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply dotted overrides, and check everything.

    Args:
        path: the YAML file.
        overrides: `section.key=value` strings; the value is YAML.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    values = _read_yaml(Path(path))
    for override in overrides or []:
        _apply_override(values, override)
    return config_from_values(values, str(path))


def config_from_values(values: dict[str, Any], where: str) -> Config:
    """Check a mapping of values.

    Raises:
        ConfigError: a key or value is wrong; the error has one line for each.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_problem(item) for item in _without_consequences(error.errors())]
        lines = [f"  - {problem}" for problem in problems[:_MOST_PROBLEMS]]
        lines += [f"  ... {len(problems) - len(lines)} more"] if problems[len(lines) :] else []
        raise ConfigError(
            "\n".join([f"{where} has {len(problems)} problem(s):", *lines]),
            "every key is known and every value obeys its type and range",
            "fix the lines above; `raydpo check CONFIG` looks again without starting anything",
        ) from error


def config_of(run: Folder) -> Config:
    """Return the job of a run directory, as its last command resolved it.

    Raises:
        ConfigError: its config.yaml comes from another version.
    """
    where = f"{run.uri}/config.yaml"
    return config_from_values(yaml_values(run.read_bytes("config.yaml").decode(), where), where)


def config_to_yaml(config: Config) -> str:
    """Write the resolved configuration as YAML that `load_config` reads back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}",
            "the configuration is a readable YAML file",
            "give the path of a file, such as jobs/demo.yaml",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8: {error.reason} at byte {error.start}",
            "the configuration is a YAML file in UTF-8",
            "save it as UTF-8",
        ) from error
    values = yaml_values(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds a {type(values).__name__}",
            "the configuration is a YAML mapping of sections",
            "start it with `name:` and `model:`; jobs/ has examples",
        )
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"--set {override}",
            "an override is `section.key=value`",
            "for example --set training.learning_rate=1e-5",
        )
    *sections, last = key.split(".")
    if sections:
        sections[0] = _SECTION_OF_OLD_WORD.get(sections[0], sections[0])
    place: dict[str, Any] = values
    for section in sections:
        place[section] = _section_to_override(section, place.get(section), override)
        place = place[section]
    place[last] = override_value(text, f"--set {key}")


def _section_to_override(section: str, value: Any, override: str) -> dict[str, Any]:
    """Return what a section already contains, with its shorthand expanded."""
    if value is None:
        return {}
    if isinstance(value, str):
        # A plain string is an objective's name, a service's URL, or in all other sections a path.
        return {{"objective": "name", "http": "url"}.get(section, "path"): value}
    if not isinstance(value, dict):
        raise ConfigError(
            f"--set {override}: {section} is {_shown(value)}",
            "an override reaches into a section, not into a list",
            f"override {section} as a whole: --set '...{section}={{key: value}}'",
        )
    return dict(value)


def _without_consequences(items: list[Any]) -> list[Any]:
    """Drop errors about lists that are too short only because their items are invalid."""
    places = [item["loc"] for item in items]

    def follows(item: Any) -> bool:
        own = item["loc"]
        return item["type"] == "too_short" and any(
            place != own and place[: len(own)] == own for place in places
        )

    return [item for item in items if not follows(item)]


def _problem(item: Any) -> str:
    location = ".".join(str(part) for part in item["loc"]) or "the configuration"
    if item["type"] == "extra_forbidden":
        return f"{location}: unknown key{_did_you_mean(item['loc'])}"
    if item["type"] == "missing":
        return f"{location}: required, and missing"
    if item["type"] == "union_tag_invalid":
        return f"{location}: {_unknown_name(item['ctx']['tag'], item['ctx']['expected_tags'])}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "string_type" and isinstance(item["input"], int | float | date):
        message += ": put it in quotes"
    given = "" if isinstance(item["input"], dict | BaseModel) else _shown(item["input"])
    return f"{location}: {message}{given and f' (given: {given})'}"


def _shown(value: Any) -> str:
    """Return a value as Python writes it, on one line, printable, and cut if it is long."""
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except ValueError:  # an integer with more digits than Python converts
        return f"a very large {type(value).__name__}"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _unknown_name(name: str, listed: str) -> str:
    known = listed.replace("'", "").split(", ")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown name {name!r}{hint}; known here: {', '.join(known)}"


def _did_you_mean(location: tuple[int | str, ...]) -> str:
    known = _keys_at(location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the section at `location`; if several sections fit there, the keys of all."""
    sections: list[type[BaseModel]] = [Config]
    for part in location:
        if not isinstance(part, int):
            sections = [inner for section in sections for inner in _sections_below(section, part)]
    return list(dict.fromkeys(key for section in sections for key in section.model_fields))


def _sections_below(section: type[BaseModel], part: str) -> list[type[BaseModel]]:
    """Return the sections that a part of a location leads to: by key, or by a section's name."""
    if part in section.model_fields:
        return _sections_in(section.model_fields[part].annotation)
    name = section.model_fields.get("name")
    known_by = get_args(name.annotation) if name is not None else ()
    return [section] if part in (*known_by, section.__name__) else []


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_in(inner)]


def job_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a job's file, with the sentence of each key."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **Config.model_json_schema(), "title": "A raydpo job"}
