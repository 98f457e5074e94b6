"""The exceptions that raydpo raises on purpose.

    RaydpoError
    |-- ConfigError      the configuration or a command-line override is wrong
    |-- DataError        an input file, a row or a table is wrong
    |   `-- QuarantineBudgetError  more rows were refused than the run allows
    |-- ModelError       a model, tokenizer or chat template cannot be used as asked
    |-- ClusterError     Ray cannot be reached, or lost a task, a process or a node
    |-- EngineError      a sampling engine got no place in the cluster, or died too often
    |-- ServiceError     a reward service is down, or does not answer as it has to
    |-- BudgetError      a judge has spent what it may spend
    |-- RunError         the run directory cannot be used as asked
    |   |-- StorageError           a store of files could not be reached; an OSError, too
    |   |-- RunLockedError         another live process holds the directory
    |   `-- ManifestError          a manifest is unreadable or of another run
    |-- NumericsError    a loss, gradient or log-probability is not what it must be
    `-- UnexpectedError  an exception of Python or of a library that nothing explains

Every message states the offending value, the rule that it breaks and the way out. All exceptions
can be pickled, so that they cross Ray's process borders unchanged.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from raydpo.core.credentials import without_credentials


class RaydpoError(Exception):
    """Base of all errors raised on purpose.

    Args:
        value: what was met, in the user's own terms.
        rule: what is required instead.
        way_out: what to do about it.
    """

    def __init__(self, value: str, rule: str, way_out: str) -> None:
        # Whatever a library said may stand in them, such as a URI with a password.
        self.value, self.rule, self.way_out = map(without_credentials, (value, rule, way_out))
        super().__init__(self.value, self.rule, self.way_out)

    def __str__(self) -> str:
        text = f"{self.value}\n  rule: {self.rule}\n  way out: {self.way_out}"
        # A value may hold a lone surrogate, which no terminal and no log takes.
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


class ConfigError(RaydpoError):
    """The configuration or a command-line override is wrong."""


class DataError(RaydpoError):
    """An input file, a row or a table is wrong."""


class QuarantineBudgetError(DataError):
    """More rows were refused than `max_quarantined_fraction` allows."""


class ModelError(RaydpoError):
    """A model, tokenizer or chat template cannot be used as asked."""


class ClusterError(RaydpoError):
    """Ray cannot be reached, or lost a task, a process or a node."""


class EngineError(RaydpoError):
    """A sampling engine got no place in the cluster, or died too often."""


class ServiceError(RaydpoError):
    """A reward service is down, or does not answer as it has to."""


class BudgetError(RaydpoError):
    """A judge has spent what it may spend."""


class RunError(RaydpoError):
    """The run directory cannot be used as asked."""


class StorageError(RunError, OSError):
    """A store of files could not be reached.

    It is also an OSError, so code that tolerates an unreadable file tolerates it, too.
    """

    def __init__(self, value: str, rule: str, way_out: str) -> None:
        super().__init__(value, rule, way_out)
        self.args = (value, rule, way_out)  # OSError makes a number and a file name of them

    def __reduce__(self) -> tuple[type[StorageError], tuple[str, str, str], dict[str, object]]:
        return type(self), (self.value, self.rule, self.way_out), vars(self)


class RunLockedError(RunError):
    """Another live process holds the run directory."""


class ManifestError(RunError):
    """A manifest is unreadable, or belongs to another run."""


class NumericsError(RaydpoError):
    """A loss, gradient or log-probability is not what it must be."""


class UnexpectedError(RaydpoError):
    """An exception of Python or of a library that nothing explains."""


def said_by(error: BaseException, most_characters: int = 300) -> str:
    """A library's error in one line: its first lines, or its type if it has no message."""
    line = " ".join(str(error).split())
    if len(line) > most_characters:
        line = line[:most_characters] + " ..."
    return line or type(error).__name__


@contextmanager
def own_errors() -> Generator[None]:
    """Unwrap raydpo errors: raise one from a worker as it was raised there.

    Raises:
        RaydpoError: raised in a worker, it arrives here as it was raised.
    """
    try:
        yield
    except Exception as error:
        own = own_error(error)
        if own is None or own is error:
            raise
        raise own from error


def own_error(error: BaseException) -> RaydpoError | None:
    """The raydpo error inside an exception that Ray wrapped, as it was raised, if there is one."""
    for inner in inside(error):
        # What Ray raises in its place is of a class of its own, and holds it.
        if isinstance(inner, RaydpoError) and not is_of_ray(inner):
            return inner
    return None


def inside(error: BaseException) -> Generator[BaseException]:
    """An exception, then those that it holds or came from, the nearest first.

    Ray and Ray Train keep what was raised in attributes of many names, some of them in mappings.
    """
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += _held_by(current)


def is_of_ray(error: BaseException) -> bool:
    """Whether an exception's class is Ray's, or one that Ray derived from another."""
    return any(cls.__module__.partition(".")[0] == "ray" for cls in type(error).__mro__)


def _held_by(error: BaseException) -> list[BaseException]:
    values: list[object] = list(vars(error).values())
    values += [inner for value in values if isinstance(value, dict) for inner in value.values()]
    values.append(error.__cause__)
    if not error.__suppress_context__:
        values.append(error.__context__)
    return [value for value in values if isinstance(value, BaseException)]


#: How a note on an exception begins that says where it was raised.
_PLACE: Final = "where: "


def note_place(error: BaseException, place: str) -> None:
    """Note on an exception where it was raised; the note travels with it to the driver."""
    error.add_note(f"{_PLACE}{place}")


def places_of(error: BaseException) -> list[str]:
    """What `note_place` wrote on an exception and on those inside it."""
    notes = [note for one in inside(error) for note in getattr(one, "__notes__", [])]
    places = [note.removeprefix(_PLACE) for note in notes if note.startswith(_PLACE)]
    return list(dict.fromkeys(places))
