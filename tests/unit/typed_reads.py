"""Find which fields of which classes a package reads, by its type annotations.

From modules as syntax trees, the functions return pairs of a class and an attribute that is read
of it. A name has the classes in its annotation, or those of the value assigned to it. Containers
have the classes of their elements. If nothing is known, nothing counts as read, so a field of one
class is not taken for another's of the same name.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Types = frozenset[str]
#: A class and an attribute or method of it.
Read = tuple[str, str]
Env = dict[str, Types]

NOTHING: Types = frozenset()
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
#: Functions that give back what they are given, or what it holds.
PASSING = {"replace", "list", "tuple", "sorted", "set", "next", "iter", "reversed", "enumerate"}
PASSING |= {"zip", "chain", "max", "min", "filter", "cast", "deepcopy"}
#: Methods likewise.
PASSING_METHODS = {"model_copy", "items", "values", "get", "pop", "copy"}


@dataclass
class Package:
    """What is declared in the modules.

    Attributes:
        classes: by name.
        aliases: names of types that are others: the expressions.
        returns: by name of a function, the annotations.
    """

    classes: dict[str, ast.ClassDef] = field(default_factory=dict[str, ast.ClassDef])
    aliases: dict[str, ast.expr] = field(default_factory=dict[str, ast.expr])
    returns: dict[str, list[ast.expr]] = field(default_factory=lambda: defaultdict(list))
    known: dict[Read, Types] = field(default_factory=dict[Read, Types])

    def lineage(self, name: str) -> Iterator[str]:
        """A class and its bases."""
        if name in self.classes:
            yield name
            for base in self.classes[name].bases:
                yield from self.lineage(ast.unparse(base).split(".")[-1])

    def declared(self, name: str) -> set[str]:
        """Annotated attributes of a class itself."""
        return {
            node.target.id
            for node in self.classes[name].body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }

    def types(self, annotation: ast.expr | None, seen: Types = NOTHING) -> Types:
        """Classes that stand in an annotation, aliases resolved."""
        found: set[str] = set()
        for node in ast.walk(annotation) if annotation is not None else ():
            names: list[str] = []
            if isinstance(node, ast.Name):
                names = [node.id]
            elif isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = [node.value] if node.value.isidentifier() else []
            for name in names:
                if name in self.classes:
                    found.add(name)
                elif name in self.aliases and name not in seen:
                    found |= self.types(self.aliases[name], seen | {name})
        return frozenset(found)

    def attribute(self, owner: str, name: str) -> Types:
        """Classes of an attribute, or of what a method gives back."""
        if (owner, name) not in self.known:
            self.known[owner, name] = NOTHING  # where it is asked for on the way
            self.known[owner, name] = self._attribute(owner, name)
        return self.known[owner, name]

    def _attribute(self, owner: str, name: str) -> Types:
        for one in self.lineage(owner):
            for node in self.classes[one].body:
                if isinstance(node, ast.AnnAssign) and _name(node.target) == name:
                    return self.types(node.annotation)
                if isinstance(node, DEFINITIONS) and node.name == name:
                    return self.types(node.returns)
                if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                    found = self._assigned_in_init(node, name)
                    if found:
                        return found
        return NOTHING

    def _assigned_in_init(self, init: ast.FunctionDef, name: str) -> Types:
        env = {one.arg: self.types(one.annotation) for one in _arguments(init)}
        for node in ast.walk(init):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == f"self.{name}":
                return Reader(self).types_of(node.value, env)
        return NOTHING


def package_of(trees: Iterable[ast.Module]) -> Package:
    """What all modules declare."""
    package = Package()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                package.classes[node.name] = node
            elif isinstance(node, DEFINITIONS) and node.returns is not None:
                package.returns[node.name].append(node.returns)
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                package.aliases[node.targets[0].id] = node.value
    return package


@dataclass
class Reader:
    """Goes through functions and notes what is read of which class."""

    package: Package
    reads: set[Read] = field(default_factory=set[Read])

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, env: Env) -> None:
        """A function, with what is known around it."""
        inner = {
            **env,
            **{a.arg: self.package.types(a.annotation) for a in _arguments(node) if a.annotation},
        }
        for _ in range(2):  # what is assigned further down is read further up in a loop
            self.block(node.body, inner)

    def block(self, body: list[ast.stmt], env: Env) -> None:
        """Statements one after another."""
        for statement in body:
            self.statement(statement, env)

    def statement(self, node: ast.stmt, env: Env) -> None:
        """One statement with all that is in it."""
        if isinstance(node, DEFINITIONS):
            self.function(node, env)
        elif isinstance(node, ast.ClassDef):
            return
        elif isinstance(node, ast.Match):
            self._match(node, env)
        elif isinstance(node, ast.Assign):
            self.note(node.value, env)
            for target in node.targets:
                self._assign(target, node.value, env)
        elif isinstance(node, ast.AnnAssign):
            self.note(node.value, env)
            env[ast.unparse(node.target)] = self.package.types(node.annotation)
        else:
            self._other(node, env)

    def _other(self, node: ast.stmt, env: Env) -> None:
        """Loops, conditions and the rest: their expressions, then their blocks."""
        if isinstance(node, ast.For | ast.AsyncFor):
            self._assign(node.target, node.iter, env)
        if isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                if item.optional_vars is not None:
                    self._assign(item.optional_vars, item.context_expr, env)
        if isinstance(node, ast.If | ast.Assert):
            self._narrow(node.test, env)
        for _, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.stmt):
                    self.statement(child, env)
                elif isinstance(child, ast.ExceptHandler):
                    self.block(child.body, env)
                elif isinstance(child, ast.withitem):
                    self.note(child.context_expr, env)
                elif isinstance(child, ast.expr):
                    self.note(child, env)

    def _match(self, node: ast.Match, env: Env) -> None:
        """In a case the subject is what the pattern names."""
        self.note(node.subject, env)
        subject = ast.unparse(node.subject)
        for case in node.cases:
            named = self.package.types(
                ast.Tuple(
                    [n.cls for n in ast.walk(case.pattern) if isinstance(n, ast.MatchClass)],
                    ast.Load(),
                )
            )
            inner = {**env, **({subject: named} if named else {})}
            for pattern in ast.walk(case.pattern):
                if isinstance(pattern, ast.MatchClass):
                    classes = self.package.types(pattern.cls)
                    self.reads |= {(c, name) for c in classes for name in pattern.kwd_attrs}
            self.note(case.guard, inner)
            self.block(case.body, inner)

    def _assign(self, target: ast.expr, value: ast.expr, env: Env) -> None:
        if (
            isinstance(target, ast.Tuple)
            and isinstance(value, ast.Tuple)
            and len(target.elts) == len(value.elts)
        ):
            for one, other in zip(target.elts, value.elts, strict=True):
                self._assign(one, other, env)
            return
        found = self.types_of(value, env)
        for node in ast.walk(target):
            if isinstance(node, ast.Name | ast.Attribute) and found:
                env[ast.unparse(node)] = found

    def _narrow(self, test: ast.expr, env: Env) -> None:
        """After `isinstance(x, A)` x may be an A."""
        for node in ast.walk(test):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                key = ast.unparse(node.args[0])
                env[key] = self.types_of(node.args[0], env) | self.package.types(node.args[1])

    def note(self, node: ast.expr | None, env: Env) -> None:
        """All that an expression reads."""
        if node is None:
            return
        if isinstance(node, ast.Lambda):
            self.note(node.body, env)
            return
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            env = self._inside(node, env)
        if isinstance(node, ast.IfExp | ast.BoolOp):
            env = dict(env)
            self._narrow(node, env)
        if isinstance(node, ast.Attribute):
            self.reads |= {(owner, node.attr) for owner in self.types_of(node.value, env)}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            name = node.args[1]
            if isinstance(name, ast.Constant):
                self.reads |= {(o, str(name.value)) for o in self.types_of(node.args[0], env)}
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.note(child, env)
            elif isinstance(child, ast.keyword):
                self.note(child.value, env)
            elif isinstance(child, ast.comprehension):
                self.note(child.iter, env)
                for test in child.ifs:
                    self.note(test, env)

    def _inside(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, env: Env
    ) -> Env:
        inner = dict(env)
        for generator in node.generators:
            self._assign(generator.target, generator.iter, inner)
        return inner

    def types_of(self, node: ast.expr, env: Env) -> Types:
        """The classes that an expression may have."""
        key = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
        if key in env:
            return env[key]
        match node:
            case ast.Attribute(value=value, attr=attr):
                owners = self.types_of(value, env)
                return frozenset().union(*(self.package.attribute(o, attr) for o in owners))
            case ast.Call():
                return self._called(node, env)
            case (
                ast.Subscript(value=value)
                | ast.Starred(value=value)
                | ast.Await(value=value)
                | ast.NamedExpr(value=value)
            ):
                return self.types_of(value, env)
            case ast.IfExp(body=one, orelse=other):
                return self.types_of(one, env) | self.types_of(other, env)
            case (
                ast.BoolOp(values=values)
                | ast.List(elts=values)
                | ast.Tuple(elts=values)
                | ast.Set(elts=values)
            ):
                return self._union(values, env)
            case ast.ListComp(elt=elt) | ast.SetComp(elt=elt) | ast.GeneratorExp(elt=elt):
                return self.types_of(elt, self._inside(node, env))
            case ast.DictComp(value=value):
                return self.types_of(value, self._inside(node, env))
            case ast.Dict(values=values):
                return self._union(values, env)
            case ast.BinOp(left=left, right=right):
                return self._union([left, right], env)
            case _:
                return NOTHING

    def _union(self, nodes: list[ast.expr], env: Env) -> Types:
        return frozenset().union(*(self.types_of(node, env) for node in nodes))

    def _called(self, node: ast.Call, env: Env) -> Types:
        name = ast.unparse(node.func).split(".")[-1]
        if isinstance(node.func, ast.Attribute):
            owners = self.types_of(node.func.value, env)
            if owners and name in PASSING_METHODS:
                return owners
            found = frozenset[str]().union(*(self.package.attribute(o, name) for o in owners))
            if found:
                return found
            if name == "model_validate":
                return self.package.types(node.func.value)
        if name in self.package.classes:
            return frozenset({name})
        if name in PASSING:
            return self._union(node.args, env)
        found = (self.package.types(one) for one in self.package.returns.get(name, []))
        return frozenset[str]().union(*found)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    found = node.args
    more = [one for one in (found.vararg, found.kwarg) if one is not None]
    return [*found.posonlyargs, *found.args, *found.kwonlyargs, *more]


def methods(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Methods of a module with their classes; functions with an empty name."""
    for node in tree.body:
        if isinstance(node, DEFINITIONS):
            yield "", node
        elif isinstance(node, ast.ClassDef):
            yield from ((node.name, inner) for inner in node.body if isinstance(inner, DEFINITIONS))


def reads_of(
    package: Package, owner: str, node: ast.FunctionDef | ast.AsyncFunctionDef
) -> set[Read]:
    """What a function, or a method of `owner`, reads of which class."""
    reader = Reader(package)
    reader.function(node, {"self": frozenset({owner}), "cls": frozenset({owner})} if owner else {})
    return reader.reads
