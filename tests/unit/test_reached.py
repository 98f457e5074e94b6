"""Every public name is reached from a program: production code keeps nothing for tests alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

import raydpo
from raydpo.labeling import verifiers
from tests.unit.test_architecture import MODULES, ROOT, tree

pytestmark = pytest.mark.thorough

#: A module and a function or class in it; "" for the module's own statements.
Definition = tuple[str, str]
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

JOBS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted((ROOT / "jobs").rglob("*.py"))
}
#: Reward functions that raydpo ships; configurations name them.
SHIPPED_REWARDS = [
    *((f.__module__, f.__name__) for f in map(vars(verifiers).get, verifiers.__all__) if f),
    *(("raydpo.labeling.penalties", name) for name in ("missing_eos", "soft_overlong")),
    ("raydpo.labeling.penalties", "tokens_beyond"),
]
#: Where programs start: the command, the Python API, and every job.
#: vLLM imports the last one by its name, into the processes of an engine.
STARTS = [
    ("raydpo.cli", "main"),
    *(("raydpo", name) for name in raydpo.__all__ if not name.startswith("_")),
    *((job, "") for job in JOBS),
    ("raydpo.sampling.reload", "ReloadingWorker"),
    *SHIPPED_REWARDS,
    ("raydpo.labeling.verifiers.sealed_child", ""),  # run as a file
]


def trees() -> dict[str, ast.Module]:
    return {name: tree(path) for name, path in {**MODULES, **JOBS}.items()}


def unreached(modules: dict[str, ast.Module]) -> set[Definition]:
    """Public functions and classes of the package that no program gets to."""
    definitions = {name: _definitions(module) for name, module in modules.items()}
    scopes = {name: _imported(module, modules) for name, module in modules.items()}
    found, waiting = set[Definition](), set(STARTS)
    while waiting:
        module, name = waiting.pop()
        found.add((module, name))
        for node in definitions[module].get(name, []):
            waiting |= set(_mentioned(node, module, scopes[module], definitions)) - found
        if name and (module, "") not in found:
            waiting.add((module, ""))
    public = {
        (module, name)
        for module in MODULES
        for name, nodes in definitions[module].items()
        if not name.startswith("_") and isinstance(nodes[0], DEFINITIONS)
    }
    return public - found


def _definitions(module: ast.Module) -> dict[str, list[ast.AST]]:
    """Functions and classes by name, assigned names, and the other statements under ""."""
    found: dict[str, list[ast.AST]] = {"": []}
    for node in module.body:
        if isinstance(node, DEFINITIONS):
            found[node.name] = [node]
            found[""] += node.decorator_list
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                found[ast.unparse(target)] = [node]
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            found[""].append(node)
    return found


def _imported(module: ast.Module, modules: dict[str, ast.Module]) -> dict[str, Definition]:
    """What a module's names stand for in others; with an empty name a module itself."""
    found: dict[str, Definition] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module:
            # Programs in jobs/ import packages beside them by their own names.
            beside = f"jobs.{node.module}"
            origin = beside if beside in modules else node.module
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                target = (whole, "") if whole in modules else (origin, alias.name)
                found[alias.asname or alias.name] = target
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name] = (alias.name, "")
    return {name: target for name, target in found.items() if target[0] in modules}


def _mentioned(
    node: ast.AST,
    module: str,
    scope: dict[str, Definition],
    definitions: dict[str, dict[str, list[ast.AST]]],
) -> Iterator[Definition]:
    """Functions and classes that a piece of code names."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            if inner.id in definitions[module]:
                yield module, inner.id
            elif inner.id in scope:
                yield _origin(scope[inner.id], definitions)
        elif isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name | ast.Attribute):
            owner = scope.get(ast.unparse(inner.value))
            if owner and not owner[1] and inner.attr in definitions[owner[0]]:
                yield owner[0], inner.attr


def _origin(found: Definition, definitions: dict[str, dict[str, list[ast.AST]]]) -> Definition:
    module, name = found
    return found if name in definitions[module] else (module, "")


def test_what_is_public_is_reached_from_a_program() -> None:
    assert unreached(trees()) == set()


def test_a_function_that_only_tests_call_is_seen() -> None:
    modules = trees()
    path = MODULES["raydpo.training.losses.hinge"]
    added = path.read_text(encoding="utf-8") + "\ndef squared_hinge_loss():\n    return None\n"
    modules["raydpo.training.losses.hinge"] = ast.parse(added)
    assert unreached(modules) == {("raydpo.training.losses.hinge", "squared_hinge_loss")}


def test_the_documentation_has_every_reward_that_raydpo_ships() -> None:
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    assert len(SHIPPED_REWARDS) == 8
    assert [name for _, name in SHIPPED_REWARDS if f"| `{name}` |" not in page] == []
