"""Write docs/configuration.md and docs/commands.md from the code.

    python jobs/reference_pages.py

The pages come from the configuration's models, with the sentence at each field, and from the
command line's parser. A test fails if a page differs from what this job writes.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, cast, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raydpo.cli import command_parser
from raydpo.config.content import is_placement
from raydpo.config.file import job_schema
from raydpo.config.job import Config
from raydpo.config.objectives import SingleObjective, SumObjective, Term

DOCS: Final = Path(__file__).parents[1] / "docs"
WRITTEN: Final = "<!-- `python jobs/reference_pages.py` writes this page from the code. -->\n\n"
CONFIGURATION: Final = """\
# Configuration

A job is a YAML file. Every key stands here, with its type, its default, and what it does; the code is the source of
this page. Unknown keys are refused, with what you may have meant. `--set section.key=value` overrides a key in any
command. Relative paths start at the folder where the command runs.

*Counts* says whether another value makes finished stages stale, so that they are done again. Of a path, the content
of the file counts, not its name. Keys that do not count say where, how fast, or how closely watched the work is done.

`raydpo schema` prints the same as JSON Schema. An editor completes and checks the keys of a file whose first line is
`# yaml-language-server: $schema=PATH/job.schema.json`.
"""
COMMANDS: Final = """\
# Commands

`raydpo COMMAND --help` prints the same. The code is the source of this page.

A command goes on where an earlier one ended: what is finished and fits the configuration costs nothing.
The names of stages are those of the configuration's sections. The commands and `--redo` also accept the words of
version 0.1: `sample`, `label`, `train`, `evaluate`, and `score` for `scores`.

| exit status | meaning |
| ---: | --- |
| 0 | all went well |
| 1 | an error, which the last lines explain; or a replay that differs |
| 2 | the arguments are wrong |
| 3 | the run waits for people's votes |
| 130 | interrupted; the same command goes on |
"""
_AN_OBJECTIVE: Final = "[an objective](#trainingobjective)"


def main() -> None:
    """Write both pages."""
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """The generated pages, by their file names in docs/."""
    return {
        "configuration.md": f"{WRITTEN}{CONFIGURATION}\n" + "\n".join(_configuration()),
        "commands.md": f"{WRITTEN}{COMMANDS}\n" + "\n".join(_commands()),
    }


@dataclass(frozen=True)
class Place:
    """A section of the configuration and where it stands."""

    section: type[BaseModel]
    path: str
    counts: bool

    @property
    def link(self) -> str:
        """A link to its table."""
        return f"[`{self.path}`](#{self.path.replace('.', '')})"


def _configuration() -> Iterator[str]:
    places = {place.section: place for place in _places(Place(Config, "", True))}
    yield "## The whole job\n"
    yield from _table(places[Config], places)
    for place in list(places.values())[1:]:
        yield f"\n{'#' * (2 + place.path.count('.'))} `{place.path}`\n"
        yield f"{_first_paragraph(place.section)}\n"
        yield from _table(place, places)
        if place.path == "training":
            yield from _objectives(places)


def _places(place: Place) -> Iterator[Place]:
    """A section and those in it, each where it stands first; objectives have tables of their own."""
    waiting, seen = [place], set[type[BaseModel]]()
    while waiting:
        current = waiting.pop(0)
        if current.section in seen:
            continue
        seen.add(current.section)
        yield current
        inner = [
            Place(
                section,
                f"{current.path}.{name}".lstrip("."),
                current.counts and not is_placement(field),
            )
            for name, field in current.section.model_fields.items()
            for section in _sections_in(field.annotation)
            if section not in _objective_sections() and section not in seen
        ]
        waiting = [*inner, *waiting]


def _objective_sections() -> list[type[BaseModel]]:
    return [*_single_objectives(), SumObjective, Term]


def _single_objectives() -> list[type[BaseModel]]:
    return _sections_in(SingleObjective)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_in(inner)]


def _table(place: Place, places: dict[type[BaseModel], Place]) -> Iterator[str]:
    yield "| key | type | default | counts | what it does |"
    yield "| --- | --- | --- | --- | --- |"
    fields = place.section.model_fields.items()
    for name, field in sorted(fields, key=lambda item: not item[1].is_required()):
        counts = "yes" if place.counts and not is_placement(field) else "no"
        cells = [f"`{name}`", _type_of(place.section, name, places), _default(field), counts]
        yield _row([*cells, _sentence(field)])


def _objectives(places: dict[type[BaseModel], Place]) -> Iterator[str]:
    """The objectives with their options; an option that several have in common stands once."""
    yield "\n### `training.objective`\n"
    yield "A name, or a section with `name` and the options of that objective. All of them count."
    yield "[Objectives](objectives.md) has the formulas, and says when to use which.\n"
    yield "| name | what it is | options |"
    yield "| --- | --- | --- |"
    owners: dict[tuple[str, str, str, str], list[str]] = {}
    every: list[str] = []
    for section in [*_single_objectives(), SumObjective]:
        [objective] = get_args(section.model_fields["name"].annotation)
        options = {k: field for k, field in section.model_fields.items() if k != "name"}
        every.append(objective)
        yield _row([f"`{objective}`", _first_paragraph(section), _in_code(options)])
        for name, field in options.items():
            option = (name, _type_of(section, name, places), _default(field), _sentence(field))
            owners.setdefault(option, []).append(objective)
    yield "\n| option | of | type | default | what it does |"
    yield "| --- | --- | --- | --- | --- |"
    for (name, kind, default, text), of in owners.items():
        others = [objective for objective in every if objective not in of]
        whose = f"all but {_in_code(others)}" if len(others) < len(of) else _in_code(of)
        yield _row([f"`{name}`", whose, kind, default, text])
    yield "\nA term of `sum`:\n"
    yield from _table(Place(Term, "", True), places)


@cache
def _schema() -> dict[str, Any]:
    return job_schema()


def _in_code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _type_of(section: type[BaseModel], name: str, places: dict[type[BaseModel], Place]) -> str:
    schema = _schema()
    of_section = schema if section is Config else schema["$defs"][section.__name__]
    links = {inner.__name__: place.link for inner, place in places.items()}
    return _kind(of_section["properties"][name], links)


def _kind(schema: dict[str, Any], links: dict[str, str]) -> str:
    """A type of JSON Schema in words."""
    if "oneOf" in schema:
        return _AN_OBJECTIVE
    if "anyOf" in schema:
        kinds = [_kind(inner, links) for inner in schema["anyOf"]]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in schema:
        return _section(schema["$ref"].rpartition("/")[2], links)
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(v).strip(chr(34))}`" for v in _values(schema))
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return f"[{', '.join(_kind(inner, links) for inner in schema['prefixItems'])}]"
        case "array":
            return f"list of {_kind(schema['items'], links)}"
        case "object":
            return "mapping"
        case "integer" | "number" as kind:
            return f"{kind} {_bounds(schema)}".rstrip()
        case "string":
            return "`package.module:name`" if ":" in schema.get("pattern", "") else "text"
        case "boolean":
            return "true, false"
        case other:
            return str(other)


def _section(name: str, links: dict[str, str]) -> str:
    """A section: a link to its table, or, where it has none, its keys."""
    if name in links:
        return f"section {links[name]}"
    if name.endswith("Objective"):
        return _AN_OBJECTIVE
    return f"`{{{', '.join(_schema()['$defs'][name]['properties'])}}}`"


def _values(schema: dict[str, Any]) -> list[Any]:
    return schema["enum"] if "enum" in schema else [schema["const"]]


def _bounds(schema: dict[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    return ", ".join(f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        named = getattr(default, "name", None)
        return f"`{named}`" if named else ""
    return "" if default == "" else f"`{json.dumps(default).strip(chr(34))}`"


def _sentence(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _first_paragraph(section: type[BaseModel]) -> str:
    return " ".join((inspect.getdoc(section) or "").split("\n\n")[0].split())


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(map(_in_markdown, cells))} |"


def _in_markdown(text: str) -> str:
    """Text for a cell of a table: what Markdown would read as a border or as HTML is escaped."""
    parts = text.replace("|", r"\|").split("`")
    return "`".join(
        part if i % 2 else re.sub(r"<(?=\w)", r"\\<", part) for i, part in enumerate(parts)
    )


def _commands() -> Iterator[str]:
    first: dict[tuple[str, ...], str] = {}
    for command, parser, text in _all_commands():
        yield f"## `raydpo {command}`\n"
        yield f"{_ended(text)}\n"
        yield f"```\n{_usage(command, parser)}\n```"
        rows = tuple(map(_argument, _actions(parser)))
        same = first.setdefault(rows, command)
        if same != command:
            yield f"\nIts arguments are those of [`raydpo {same}`](#raydpo-{same.replace(' ', '-')})."
        elif rows:
            yield "\n| argument | default | what it does |"
            yield "| --- | --- | --- |"
            yield from rows
        yield ""


def _all_commands() -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    for name, parser, text in _subcommands(command_parser()):
        inner = list(_subcommands(parser))
        for action, its_parser, its_text in inner:
            yield f"{name} {action}", its_parser, its_text
        if not inner:
            yield name, parser, text


def _subcommands(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """The commands right below a parser, with their help."""
    for action in _actions(parser):
        if isinstance(action.choices, dict):
            subactions = cast("Any", action)._get_subactions()
            texts: dict[str, str] = {one.dest: one.help for one in subactions}
            for name, command in cast("dict[str, Any]", action.choices).items():
                if name in texts:  # an alias has none
                    yield name, command, texts[name]


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a parser; argparse has no public way to list them."""
    actions: list[argparse.Action] = cast("Any", parser)._actions
    return [action for action in actions if action.dest not in ("help", "version")]


def _usage(command: str, parser: argparse.ArgumentParser) -> str:
    actions = _actions(parser)
    positional = [_shown(action) for action in actions if not action.option_strings]
    options = ["[OPTION ...]"] if len(actions) > len(positional) else []
    return " ".join(["raydpo", command, *positional, *options])


def _argument(action: argparse.Action) -> str:
    has_default = action.default not in (None, []) and action.nargs != 0
    default = f"`{action.default}`" if has_default else ""
    return _row([f"`{_shown(action)}`", default, _ended(action.help or "")])


def _shown(action: argparse.Action) -> str:
    if not action.option_strings:
        return action.dest.upper()
    name = action.option_strings[-1]
    if action.nargs == 0:
        return name
    choices = f"{{{','.join(map(str, action.choices))}}}" if action.choices else ""
    return f"{name} {choices or action.metavar or action.dest.upper()}"


def _ended(text: str) -> str:
    """Help as a sentence: argparse's begins small and has no full stop."""
    return f"{text[:1].upper()}{text[1:]}." if text and not text.endswith(".") else text


if __name__ == "__main__":
    main()
