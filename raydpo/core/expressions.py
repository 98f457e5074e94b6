"""A small language of conditions on rows, such as `score > 0.5 and lang == "en"`.

The text is read by Python's parser into a tree, of which only the kinds of nodes below are known;
nothing of it is run as Python. A condition sees the columns of one row and nothing else.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

#: What the language has, for messages.
LANGUAGE: Final = (
    "a condition has columns (`score`, `meta.lang`, `tags[0]`), texts, numbers, lists, True, False "
    "and None, comparisons, `in`, `and`, `or`, `not`, + - * / and len, lower, startswith and endswith"
)
_Row = Mapping[str, Any]
_Value = Callable[[_Row], Any]

_COMPARISONS: Final[dict[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class ExpressionError(ValueError):
    """A text that is no condition, or a row on which a condition cannot be decided."""


@dataclass(frozen=True)
class Expression:
    """A condition on rows.

    Attributes:
        text: as it was written.
        columns: the names of the columns that it reads, sorted.
    """

    text: str
    columns: tuple[str, ...]
    _value: _Value

    def holds(self, row: _Row) -> bool:
        """Return whether the condition holds for a row.

        A column that the row lacks is None. A comparison by order with None does not hold, and a
        value that is None, 0 or empty counts as false.

        Raises:
            ExpressionError: types do not fit, such as a text compared with a number.
        """
        return bool(self._value(row))


def parsed(text: str) -> Expression:
    """Read a condition.

    Raises:
        ExpressionError: it is not one.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"{text!r} is no condition: {error}; {LANGUAGE}") from error
    columns: set[str] = set()
    try:
        value = _read(tree.body, columns)
    except RecursionError as error:
        raise ExpressionError(f"{text!r} is nested too deeply") from error
    if not columns:
        raise ExpressionError(f"{text!r} reads no column, so it is the same for all rows")
    return Expression(text, tuple(sorted(columns)), value)


def _read(node: ast.expr, columns: set[str]) -> _Value:
    """Return the function that computes a node; columns that it reads are added."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return lambda _: value
        case ast.Name(id=name):
            columns.add(name)
            return lambda row: row.get(name)
        case ast.Attribute(value=owner, attr=name):
            return _item(_read(owner, columns), name)
        case ast.Subscript(value=owner, slice=ast.Constant(value=str() | int() as key)):
            return _item(_read(owner, columns), key)
        case ast.Subscript(
            value=owner, slice=ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as key))
        ):
            return _item(_read(owner, columns), -key)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            values = [_read(item, columns) for item in items]
            return lambda row: [value(row) for value in values]
        case ast.BoolOp(op=operation, values=operands):
            return _joined(
                [_read(one, columns) for one in operands], isinstance(operation, ast.And)
            )
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            negated = _read(operand, columns)
            return lambda row: not negated(row)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            minus = _read(operand, columns)
            return lambda row: _number(operator.sub, 0, minus(row))
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _ARITHMETIC:
            calculate = _ARITHMETIC[type(operation)]
            one, other = _read(left, columns), _read(right, columns)
            return lambda row: _number(calculate, one(row), other(row))
        case ast.Compare(left=left, ops=operations, comparators=others):
            return _compared(left, operations, others, columns)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _called(name, [_read(one, columns) for one in arguments])
        case _:
            raise ExpressionError(f"{ast.unparse(node)!r} is not known; {LANGUAGE}")


def _joined(values: list[_Value], every: bool) -> _Value:
    join = all if every else any
    return lambda row: join(bool(value(row)) for value in values)


def _item(owner: _Value, key: str | int) -> _Value:
    """Return a value of a mapping or a list; None where it is not there."""

    def item(row: _Row) -> Any:
        found = owner(row)
        if found is None:
            return None
        if isinstance(key, str) and isinstance(found, Mapping):
            return cast("Mapping[str, Any]", found).get(key)
        if isinstance(key, int) and isinstance(found, list | tuple):
            items = cast("list[Any]", found)
            return items[key] if -len(items) <= key < len(items) else None
        raise ExpressionError(f"[{key!r}] of a {type(found).__name__}")

    return item


def _compared(
    left: ast.expr, operations: list[ast.cmpop], others: list[ast.expr], columns: set[str]
) -> _Value:
    values = [_read(one, columns) for one in (left, *others)]
    comparisons = [_comparison(operation) for operation in operations]

    def compare(row: _Row) -> bool:
        found = [value(row) for value in values]
        return all(
            holds(one, other)
            for holds, one, other in zip(comparisons, found[:-1], found[1:], strict=True)
        )

    return compare


def _comparison(operation: ast.cmpop) -> Callable[[Any, Any], bool]:
    match operation:
        case ast.Eq() | ast.Is():
            return lambda one, other: bool(one == other)
        case ast.NotEq() | ast.IsNot():
            return lambda one, other: bool(one != other)
        case ast.In():
            return _is_in
        case ast.NotIn():
            return lambda one, other: not _is_in(one, other)
        case _:
            order = _COMPARISONS[type(operation)]
            return lambda one, other: _ordered(order, one, other)


def _is_in(one: Any, other: Any) -> bool:
    if other is None:
        return False
    try:
        return one in other
    except TypeError as error:
        raise ExpressionError(f"`in` with {_kinds(one, other)}") from error


def _ordered(order: Callable[[Any, Any], bool], one: Any, other: Any) -> bool:
    if one is None or other is None:
        return False
    try:
        return bool(order(one, other))
    except TypeError as error:
        raise ExpressionError(f"a comparison of {_kinds(one, other)}") from error


def _number(calculate: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
    """Calculate with numbers; None with None."""
    if one is None or other is None:
        return None
    if not isinstance(one, int | float) or not isinstance(other, int | float):
        raise ExpressionError(f"a calculation with {_kinds(one, other)}")
    try:
        return calculate(one, other)
    except ArithmeticError as error:
        raise ExpressionError(f"a calculation: {error}") from error


def _kinds(one: Any, other: Any) -> str:
    return f"{type(one).__name__} and {type(other).__name__}"


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ExpressionError(f"{name} of a {type(value).__name__}")
    return value


def _length(value: Any) -> int:
    if not isinstance(value, str | list | tuple | Mapping):
        raise ExpressionError(f"len of a {type(value).__name__}")
    return len(cast("str", value))


#: Functions by name, with the number of their arguments. A first argument of None gives None.
_FUNCTIONS: Final[dict[str, tuple[int, Callable[..., Any]]]] = {
    "len": (1, _length),
    "lower": (1, lambda text: _text("lower", text).lower()),
    "startswith": (2, lambda a, b: _text("startswith", a).startswith(_text("startswith", b))),
    "endswith": (2, lambda a, b: _text("endswith", a).endswith(_text("endswith", b))),
}


def _called(name: str, arguments: list[_Value]) -> _Value:
    count, function = _FUNCTIONS[name]
    if len(arguments) != count:
        raise ExpressionError(f"{name} takes {count} argument(s), and is given {len(arguments)}")

    def call(row: _Row) -> Any:
        values = [argument(row) for argument in arguments]
        return None if values[0] is None else function(*values)

    return call
