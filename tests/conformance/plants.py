"""Plant mistakes into functions of the package, in place, so that all callers meet them.

In the context for a module's name and its source with a mistake, the package has that mistake.
"""

from __future__ import annotations

import __future__  # isort: skip

import ast
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType, FunctionType

FunctionTree = ast.FunctionDef


@dataclass(frozen=True)
class Plant:
    """A function of a module with a mistake.

    Attributes:
        module: dotted name.
        name: of the function; of a method `Class.method`.
        line: the statement with the mistake.
        tree: the function as it is then.
    """

    module: str
    name: str
    line: str
    tree: FunctionTree

    @property
    def function(self) -> FunctionType:
        """What is shipped."""
        found: object = importlib.import_module(self.module)
        for part in self.name.split("."):
            found = vars(found)[part]
        if isinstance(found, property):
            found = found.fget
        if isinstance(found, cached_property):
            found = found.func
        assert isinstance(found, FunctionType)
        return found

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The function has the mistake in here."""
        function = self.function
        shipped = function.__code__
        function.__code__ = self._code(function)
        try:
            yield
        finally:
            function.__code__ = shipped

    def _code(self, function: FunctionType) -> CodeType:
        bare = ast.FunctionDef(**{**vars(self.tree), "decorator_list": []})
        module = ast.fix_missing_locations(ast.Module([bare], []))
        flags = __future__.annotations.compiler_flag
        space = dict(function.__globals__)
        exec(compile(module, f"<plant in {self.module}>", "exec", flags), space)
        return space[self.tree.name].__code__


def source_of(module: str) -> str:
    """A module's source."""
    return Path(str(importlib.import_module(module).__file__)).read_text(encoding="utf-8")


def functions(source: str) -> dict[str, FunctionTree]:
    """Functions of a module and methods of its classes, by name."""
    found: dict[str, FunctionTree] = {}
    for node in ast.parse(source).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found |= {f"{prefix}{n.name}": n for n in inner if isinstance(n, ast.FunctionDef)}
    return found


def written(module: str, shipped: str, mistaken: str) -> Plant:
    """The plant that has other words in the place of some that stand in the module once."""
    source = source_of(module)
    assert source.count(shipped) == 1, f"{module} has {source.count(shipped)} times: {shipped}"
    before, after = functions(source), functions(source.replace(shipped, mistaken))
    (name,) = [n for n in before if ast.dump(before[n]) != ast.dump(after[n])]
    return Plant(module, name, mistaken, after[name])
