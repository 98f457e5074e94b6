"""Plant mistakes into every loss and see whether the checks notice.

`python -m tests.conformance.mutants` prints every mutant with its fate. Each mutant of a module
in raydpo.training.losses has one mistake of the kinds that papers and code are known for: a sign,
a term or factor misplaced (beta reaching one term only, gamma inside of beta), mean for sum, a
gradient that is not stopped, a setting off by one, chosen for rejected, another comparison.
"""

from __future__ import annotations

import ast
import copy
import importlib
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydpo.training import losses
from tests.conformance.cases import CASES
from tests.conformance.golden import TOLERANCE, errors
from tests.conformance.small_checks import SMALL_CHECKS

FOLDER = Path(losses.__file__).parent

BORDER = "bounded = torch.where(exponents {}, torch.expm1(held), torch.exp(held) - 1)"
ODDS = "return held - torch.where(held {}, near_one, near_zero)"

#: Mutants that are the same function, or one as right, by module and mutated line.
EQUIVALENT: dict[tuple[str, str], str] = {
    # Both forms are exact around the border between them.
    ("f_divergence", BORDER.format(">= -1")): "same",
    ("f_divergence", BORDER.format("> -2")): "same",
    ("reference_free", ODDS.format(">= -math.log(2)")): "same",
    ("reference_free", ODDS.format("> -math.log(3)")): "same",
    ("reference_free", ODDS.format("> -math.log1p(2)")): "same",
    # e^40 - 1 is e^40 in float64.
    ("f_divergence", "return bounded + math.expm1(LARGEST_EXPONENT) * beyond"): "same",
}

SWAPPED_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
}
SWAPPED_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.LtE: ast.Lt,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Lt: ast.LtE,
    ast.Gt: ast.GtE,
}
SWAPPED_METHODS = {
    "sum": "mean",
    "mean": "sum",
    "amin": "amax",
    "logsigmoid": "sigmoid",
    "sigmoid": "tanh",
    "expm1": "exp",
    "exp": "expm1",
    "log1p": "log",
    "log": "log1p",
    "cumsum": "cumprod",
}


#: How a check says no.
FAILURES = (
    AssertionError,
    ArithmeticError,
    AttributeError,
    IndexError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Mutant:
    """A module of losses with one mistake, in one of its functions."""

    module: str
    line: str
    function: ast.FunctionDef

    def space(self) -> dict[str, Any]:
        """The module's functions; all of them see the mutated one in place of the shipped."""
        shipped = vars(importlib.import_module(f"raydpo.training.losses.{self.module}"))
        space = dict(shipped)
        for name, value in shipped.items():
            if isinstance(value, types.FunctionType) and value.__globals__ is shipped:
                space[name] = types.FunctionType(value.__code__, space, name)
        tree = ast.fix_missing_locations(ast.Module([self.function], []))
        exec(compile(tree, f"<mutant of {self.module}>", "exec"), space)
        return space


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in place of a node."""
    if isinstance(node, ast.BinOp):
        yield from _binary(node)
    if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield node.operand
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield ast.Constant(node.value + 1)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        yield from _call(node, node.func)
    if isinstance(node, ast.Compare):
        yield ast.Compare(node.left, [SWAPPED_COMPARISONS[type(node.ops[0])]()], node.comparators)
    if isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        yield from _name(node.id)


def _binary(node: ast.BinOp) -> Iterator[ast.AST]:
    if type(node.op) in SWAPPED_OPERATORS:
        yield ast.BinOp(node.left, SWAPPED_OPERATORS[type(node.op)](), node.right)
    sums = (ast.Add, ast.Sub)
    left, right = node.left, node.right
    if isinstance(node.op, ast.Mult) and isinstance(right, ast.BinOp) and _is(right, sums):
        # A factor that reaches the first term only.
        yield ast.BinOp(ast.BinOp(left, ast.Mult(), right.left), right.op, right.right)
    if _is(node, sums) and isinstance(left, ast.BinOp) and _is(left, (ast.Mult,)):
        # A term taken into the factor.
        yield ast.BinOp(left.left, ast.Mult(), ast.BinOp(left.right, node.op, right))
    if _is(node, (ast.Mult, ast.Div)):
        yield left
        yield right


def _is(node: ast.BinOp, operators: tuple[type[ast.operator], ...]) -> bool:
    return isinstance(node.op, operators)


def _call(node: ast.Call, method: ast.Attribute) -> Iterator[ast.AST]:
    if method.attr in SWAPPED_METHODS:
        swapped = ast.Attribute(method.value, SWAPPED_METHODS[method.attr], method.ctx)
        yield ast.Call(swapped, node.args, node.keywords)
    if method.attr in ("detach", "clamp", "relu", "masked_fill", "argsort"):
        yield method.value


def _name(name: str) -> Iterator[ast.AST]:
    for one, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if name.startswith(one):
            yield ast.Name(name.replace(one, other), ast.Load())


def mutants(module: str) -> Iterator[Mutant]:
    """All mutants of a module of losses."""
    tree = ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"))
    for function in tree.body:
        if isinstance(function, ast.FunctionDef):
            for line, mutated in _mutated(function):
                yield Mutant(module, line, mutated)


def _mutated(function: ast.FunctionDef) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The function with one mistake, and the statement that has it."""
    names = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    names |= {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    for place, statement in enumerate(function.body[1:], 1):  # the first is the docstring
        for index, node in enumerate(ast.walk(statement)):
            for replacement in replacements(node):
                if isinstance(replacement, ast.Name) and replacement.id not in names:
                    continue
                mutated = copy.deepcopy(function)
                found = list(ast.walk(mutated.body[place]))[index]
                Replace(found, replacement).visit(mutated.body[place])
                yield ast.unparse(mutated.body[place]), mutated


class Replace(ast.NodeTransformer):
    """Puts `new` in the place of the very node `old`."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return copy.deepcopy(self.new) if node is self.old else self.generic_visit(node)


def survives(mutant: Mutant) -> bool:
    """Whether no check notices the mistake."""
    space = mutant.space()
    return not any(_fails(check, space) for check in _checks(mutant.module))


def _checks(module: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    for case in CASES:
        if case.where.split(".")[0] == module:

            def golden(space: dict[str, Any], case=case) -> None:
                function = space[case.function_name]
                for dtype, tolerance in TOLERANCE.items():
                    assert errors(case, function, dtype).worst() < tolerance

            yield golden
    yield from SMALL_CHECKS.get(module, [])


def _fails(check: Callable[[dict[str, Any]], None], space: dict[str, Any]) -> bool:
    try:
        check(space)
    except FAILURES:
        return True
    return False


def modules() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def main() -> None:
    survivors = total = 0
    for module in modules():
        for mutant in mutants(module):
            total += 1
            alive = survives(mutant)
            survivors += alive
            known = EQUIVALENT.get((module, mutant.line), "NOT NOTICED") if alive else "noticed"
            print(f"{module:15} {known:12} {mutant.line}")
    print(f"{total} mutants, {survivors} not noticed")


if __name__ == "__main__":
    main()
