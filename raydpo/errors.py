"""The exceptions that raydpo raises on purpose.

    RaydpoError
    |-- ConfigError      the configuration or a command-line override is wrong
    |-- DataError        an input file, a row or a table is wrong
    |   `-- QuarantineBudgetError  more rows were refused than the run allows
    |-- ModelError       a model, tokenizer or chat template cannot be used as asked
    |-- ClusterError     Ray cannot be reached, or lost a task, a process or a node
    |-- EngineError      a sampling engine got no place in the cluster, or died too often
    |-- RunError         the run directory cannot be used as asked
    |   |-- RunLockedError         another live process holds the directory
    |   `-- ManifestError          a manifest is unreadable or of another run
    |-- NumericsError    a loss, gradient or log-probability is not what it must be
    `-- UnexpectedError  an exception of Python or of a library that nothing explains

Every message states the value that was met, the rule that it breaks and the way
out. All of them pickle, so that they cross Ray's process borders unchanged.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from raydpo.credentials import without_credentials


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


class RunError(RaydpoError):
    """The run directory cannot be used as asked."""


class RunLockedError(RunError):
    """Another live process holds the run directory."""


class ManifestError(RunError):
    """A manifest is unreadable, or belongs to another run."""


class NumericsError(RaydpoError):
    """A loss, gradient or log-probability is not what it must be."""


class UnexpectedError(RaydpoError):
    """An exception of Python or of a library that nothing explains."""


def said_by(error: BaseException, most_characters: int = 300) -> str:
    """What a library's error says, in one line: its first ones, or its type where it is mute."""
    line = " ".join(str(error).split())
    if len(line) > most_characters:
        line = line[:most_characters] + " ..."
    return line or type(error).__name__


@contextmanager
def own_errors() -> Generator[None]:
    """Inside the block, a raydpo error that Ray wrapped is raised as it was in the worker.

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
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        if isinstance(current, RaydpoError):
            return _as_raised(current)
        seen.add(id(current))
        pending += [getattr(current, "cause", None), current.__cause__, current.__context__]
        pending += getattr(current, "worker_failures", {}).values()  # of Ray Train
    return None


def _as_raised(error: RaydpoError) -> RaydpoError:
    """Ray raises a subclass of its own of the error, whose text is the worker's traceback."""
    cause = getattr(error, "cause", None)
    return _as_raised(cause) if isinstance(cause, RaydpoError) else error
