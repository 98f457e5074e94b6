"""Call a function of the user's own on a batch, and row by row if it raises.

It runs in the function's process, so it imports no torch, no Arrow and no Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from raydpo.core.errors import RaydpoError
from raydpo.core.own_frames import own_lines
from raydpo.core.own_functions import raised

T = TypeVar("T")


def batch_or_rows(
    call: Callable[[int, int], list[T]],
    count: int,
    refuse: Callable[[str], T],
    failed: Callable[[BaseException], RaydpoError] | None,
) -> list[T]:
    """Return an answer for each row; a row for which the function raises alone is refused.

    Args:
        call: given a range of rows, it returns an answer for each; what it raises on purpose (a
            `RaydpoError`) ends the batch.
        count: rows of the batch.
        refuse: makes an answer of what the function raised, in one line.
        failed: makes the error for a function that raises for every row; None if other rows exist
            beside these.
    """
    if not count:
        return []
    try:
        return call(0, count)
    except RaydpoError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's function may raise anything
        first = error
    answers: list[T] = []
    failures = 0
    for index in range(count):
        try:
            answers += call(index, index + 1)
        except RaydpoError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - likewise
            failures += 1
            answers.append(refuse(_in_one_line(error)))
    if failed is not None and failures == count:
        raise failed(first) from first
    return answers


def _in_one_line(error: BaseException) -> str:
    """Describe an exception with the innermost line of the user's code, without its source text."""
    where = [line.partition(": ")[0] for line in own_lines(error)[-1:]]
    return " at ".join([raised(error).partition("\n")[0], *where])
