"""What a command says of an exception that is not one of raydpo's own.

What comes in: the exception. What goes out: a raydpo error in three lines (what failed and
where, the rule, the way out), and a file with the whole traceback. No Ray is imported: its
exceptions are known by their names.
"""

from __future__ import annotations

import re
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from raydpo import __version__
from raydpo.credentials import without_credentials
from raydpo.errors import ClusterError, RaydpoError, UnexpectedError, own_error
from raydpo.labeling.own_frames import is_own, own_lines
from raydpo.storage import Folder

_LONGEST_MESSAGE: Final = 300
#: What helps against what Ray lost, by the name of its exception.
_WAYS_OUT: Final = {
    "OutOfMemoryError": "give the node more memory, or let fewer workers run at once: lower "
    "`workers`, `num_workers` or the batch sizes of the stage",
    "NodeDiedError": "see why the node left the cluster; the same command goes on from here",
    "WorkerCrashedError": "look for a crash in native code or for missing memory in Ray's logs "
    "(/tmp/ray/session_latest/logs); the same command goes on from here",
    "ActorDiedError": "Ray's logs say why (/tmp/ray/session_latest/logs); often memory is short. "
    "The same command goes on from here",
    "ActorUnavailableError": "see whether its node is reachable; the same command goes on from here",
    "LocalRayletDiedError": "see whether Ray still runs on this machine (`ray status`), and start it "
    "again; the same command goes on from here",
    "RuntimeEnvSetupError": "mend the runtime environment of the job (packages, working directory)",
    "OutOfDiskError": "free some disk under Ray's temporary folder, /tmp/ray",
    "ObjectStoreFullError": "start Ray with a larger object store (--object-store-memory)",
}
_GO_ON: Final = "read the traceback; where it can pass, the same command goes on from here"


def explained(error: Exception) -> RaydpoError:
    """The raydpo error that a person reads instead of an exception's traceback."""
    own = own_error(error)
    if own is not None:
        return own
    if _is_of_ray(error):
        return _of_ray(error)
    lines = own_lines(error) or _innermost(traceback.extract_tb(error.__traceback__))
    return UnexpectedError(
        "\n    ".join([_in_one_line(error), *lines]),
        "what raydpo cannot use is refused with its own errors: this was not foreseen",
        "look at the lines above; where they are not yours, report it with the traceback",
    )


def keep_traceback(error: BaseException, run: Folder | None) -> str:
    """Write the whole traceback into the run directory, or else among temporary files.

    Returns where it is.
    """
    text = without_credentials("".join(traceback.format_exception(error)))
    content = f"raydpo {__version__}\n{text}".encode(errors="backslashreplace")
    name = f"traceback-{datetime.now(UTC):%Y%m%d-%H%M%S}.txt"
    try:
        if run is not None:
            run.child("errors").write_bytes(name, content)
            return f"{run.uri}/errors/{name}"
    except OSError:  # the disk may be what failed
        pass
    path = Path(tempfile.mkdtemp(prefix="raydpo-")) / name
    path.write_bytes(content)
    return str(path)


def has_more_to_tell(error: Exception, told: RaydpoError) -> bool:
    """Whether the traceback of an exception tells more than what was told of it."""
    cause = told.__cause__
    unforeseen = isinstance(told, ClusterError | UnexpectedError)
    return unforeseen or told is not error or (cause is not None and _is_of_ray(cause))


def _is_of_ray(error: BaseException) -> bool:
    return any(cls.__module__.partition(".")[0] == "ray" for cls in type(error).__mro__)


def _names(error: BaseException) -> list[str]:
    return [cls.__name__ for cls in type(error).__mro__]


def _of_ray(error: Exception) -> ClusterError:
    """What Ray says of a task, an actor or a node; of a task, the lines where it failed."""
    way_out = next((_WAYS_OUT[name] for name in _names(error) if name in _WAYS_OUT), _GO_ON)
    remote = _remote_text(error)
    if remote is None:
        what, lines = f"Ray lost what it was doing: {_in_one_line(error)}", []
    else:
        cause = getattr(error, "cause", None)
        said = _in_one_line(cause) if isinstance(cause, Exception) else remote.splitlines()[-1]
        what, lines = f"a process on the cluster failed: {said}", _frames_in(remote)
    rule = "tasks and actors of a run end well, or are begun again"
    return ClusterError("\n    ".join([what, *lines]), rule, way_out)


def _remote_text(error: BaseException) -> str | None:
    """The traceback of the process that failed, where the exception carries one."""
    failures = list(getattr(error, "worker_failures", {}).values())  # of Ray Train
    for inner in (error, getattr(error, "cause", None), error.__cause__, *failures):
        if inner is not None and "RayTaskError" in _names(inner):
            return re.sub(r"\x1b\[\d+m", "", str(inner)).strip()  # Ray's colours
    return "".join(traceback.format_exception(failures[0])).strip() if failures else None


def _frames_in(text: str) -> list[str]:
    """The innermost line of a traceback's text, and the user's own ones before it."""
    found = re.findall(r'File "([^"]+)", line (\d+), in (\S+)\n\s*(.*)', text)
    lines = [(file, f"{file}:{line}, in {name}: {code}"[:200]) for file, line, name, code in found]
    own = [line for file, line in lines[:-1] if is_own(file)][-2:]
    return [*own, *(line for _, line in lines[-1:])]


def _innermost(frames: traceback.StackSummary) -> list[str]:
    """The innermost line of raydpo, and the innermost of all."""
    ours = [frame for frame in frames if "raydpo" in Path(frame.filename).parts]
    lines = [f"{f.filename}:{f.lineno}, in {f.name}: {f.line}" for f in (*ours[-1:], *frames[-1:])]
    return list(dict.fromkeys(lines))


def _in_one_line(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}"[:_LONGEST_MESSAGE]
