"""Every setting is read by the code that acts on it, according to the type annotations."""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import replace
from functools import cache

import pytest

from tests.unit.test_architecture import MODULES, tree
from tests.unit.typed_reads import Package, Read, methods, package_of, reads_of

pytestmark = pytest.mark.thorough

Methods = dict[Read, set[Read]]
Lineages = dict[str, frozenset[str]]


@cache
def package() -> Package:
    return package_of(tree(path) for path in MODULES.values())


def is_section(name: str) -> bool:
    return "Section" in package().lineage(name)


def found_in(module: ast.Module) -> tuple[set[Read], Methods]:
    """What a module reads, and what methods of sections read in case they are called.

    What a section's own validators read does not count.
    """
    reads: set[Read] = set()
    by_method: Methods = {}
    for owner, node in methods(module):
        if not is_section(owner):
            reads |= reads_of(package(), owner, node)
        elif not _validates(node):
            by_method[owner, node.name] = reads_of(package(), owner, node)
    return reads, by_method


@cache
def found_in_package() -> tuple[set[Read], Methods]:
    reads: set[Read] = set()
    by_method: Methods = {}
    for path in MODULES.values():
        more, methods_of_module = found_in(tree(path))
        reads |= more
        by_method |= methods_of_module
    return reads, by_method


def unread(changed: ast.Module | None = None) -> set[Read]:
    """Fields of sections that nothing reads, as class and field.

    `changed` is a module of the configuration with something more in it.
    """
    reads, by_method = found_in_package()
    reads, by_method = set(reads), dict(by_method)
    classes = dict(package().classes)
    if changed is not None:
        more, methods_of_module = found_in(changed)
        reads |= more
        by_method |= methods_of_module
        classes |= package_of([changed]).classes
    now = replace(package(), classes=classes, known={})
    lineages = {name: frozenset(now.lineage(name)) for name in classes}
    readers: dict[str, set[str]] = defaultdict(set)
    for owner, name in _with_methods(lineages, reads, by_method):
        readers[name].add(owner)
    sections = {name for name in classes if name != "Section" and "Section" in lineages[name]}
    fields = {(name, one) for name in sections for one in now.declared(name)}
    return {field for field in fields if not _is_read(now, lineages, field, readers)}


def _validates(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("validator" in ast.unparse(decorator) for decorator in node.decorator_list)


def _with_methods(lineages: Lineages, reads: set[Read], by_method: Methods) -> set[Read]:
    """What is read, and what the methods read that are called."""
    owners: dict[str, set[str]] = defaultdict(set)
    for owner, name in by_method:
        owners[name].add(owner)
    found, waiting = set[Read](), set(reads)
    while waiting:
        asked, name = waiting.pop()
        found.add((asked, name))
        for owner in owners[name]:
            if owner in lineages[asked] or asked in lineages[owner]:
                inner = by_method[owner, name]
                # Of an inherited method `self` is whoever was asked.
                waiting |= {*inner, *((asked, n) for c, n in inner if c == owner)} - found
    return found


def _is_read(now: Package, lineages: Lineages, field: Read, readers: dict[str, set[str]]) -> bool:
    """Of the class, or of an heir; a field declared anew is its base's."""
    owner, name = field
    bases = {c for c in lineages[owner] if name in now.declared(c)}
    return any(c in bases or owner in lineages[c] for c in readers[name])


def test_every_setting_is_read() -> None:
    # Pydantic reads the name of a sum, which tells it from single objectives.
    assert unread() == {("SumObjective", "name")}


@pytest.mark.parametrize(
    ("module", "section", "name"),
    [
        ("raydpo.config.data", "PromptsConfig", "alpha"),
        ("raydpo.config.sampling", "SamplingConfig", "beta"),
        ("raydpo.config.sampling", "EnginesConfig", "temperature"),
        ("raydpo.config.reference", "ReferenceConfig", "max_prompt_tokens"),
        ("raydpo.config.training", "TrainerConfig", "candidates"),
        ("raydpo.config.objectives", "DpoObjective", "tau"),
        ("raydpo.config.objectives", "KtoObjective", "label_smoothing"),
        ("raydpo.config.online", "ReplayConfig", "rounds"),
    ],
)
def test_a_setting_that_nothing_reads_is_seen_though_another_has_its_name(
    module: str, section: str, name: str
) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    body = text.index(":\n", text.index(f"class {section}(")) + 2
    changed = ast.parse(f"{text[:body]}    {name}: float = 0.5\n{text[body:]}")
    assert unread(changed) - unread() == {(section, name)}


def test_a_setting_that_only_its_validator_reads_is_seen() -> None:
    text = MODULES["raydpo.config.online"].read_text(encoding="utf-8")
    place = '    @model_validator(mode="after")\n    def _an_age_has_a_share'
    assert place in text
    added = (
        '    least: float = 0.5\n\n    @model_validator(mode="after")\n'
        "    def _least(self) -> ReplayConfig:\n        assert self.least\n        return self\n\n"
    )
    assert unread(ast.parse(text.replace(place, added + place))) - unread() == {
        ("ReplayConfig", "least")
    }


def test_a_property_that_nobody_asks_for_reads_nothing() -> None:
    text = MODULES["raydpo.config.online"].read_text(encoding="utf-8")
    place = "    @property\n    def oldest_rounds"
    added = (
        "    least: float = 0.5\n\n"
        "    @property\n    def unasked(self) -> float:\n        return self.least\n\n"
    )
    assert unread(ast.parse(text.replace(place, added + place))) - unread() == {
        ("ReplayConfig", "least")
    }
