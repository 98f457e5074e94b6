"""Turn an exception that is not one of raydpo's own into a short error for the command line.

The error has three lines (what failed and where, the rule, the way out), and a file holds the
whole traceback. The module does not import Ray: it recognizes Ray's exceptions by name.
"""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from raydpo import __version__
from raydpo.core import errors
from raydpo.core.credentials import without_credentials
from raydpo.core.errors import (
    ClusterError,
    RaydpoError,
    RunError,
    UnexpectedError,
    inside,
    is_of_ray,
    own_error,
)
from raydpo.core.own_frames import is_own, own_lines
from raydpo.core.storage import Folder

_LONGEST_MESSAGE: Final = 300
#: Characters of a traceback that are printed where no disk takes it.
_LAST_OF_IT: Final = 2000
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
    "RuntimeEnvSetupError": "fix the runtime environment of the job (packages, working directory)",
    "OutOfDiskError": "free some disk under Ray's temporary folder, /tmp/ray",
    "TaskUnschedulableError": "the cluster has no node with what a worker holds: lower the stage's "
    "CPUs or GPUs, or add a node",
    "ActorUnschedulableError": "the cluster has no node with what a worker holds: lower the stage's "
    "CPUs or GPUs, or add a node",
    "InsufficientClusterResourcesError": "the cluster has less than the training's workers hold: "
    "lower `num_workers` or what each holds",
    "WorkerGroupStartupTimeoutError": "the cluster had no room for the training's workers in time: "
    "lower `num_workers` or what each holds, or add a node",
    "WorkerHealthCheckTimeoutError": "a train worker did not answer: see whether its node is busy or "
    "stopped; the same command goes on from the last checkpoint",
    "OwnerDiedError": "the process that held data is gone; the same command goes on from here",
    "ObjectLostError": "data between stages is gone with a node; the same command goes on from here",
    "ObjectStoreFullError": "start Ray with a larger object store (--object-store-memory)",
}
_GO_ON: Final = "read the traceback; where it can pass, the same command goes on from here"
_MORE_MEMORY: Final = _WAYS_OUT["OutOfMemoryError"]
#: How an error of raydpo ends a traceback.
_OWN_TEXT: Final = re.compile(
    r"raydpo\.core\.errors\.(\w+): (.+?)\n\s*rule: (.+?)\n\s*way out: (.+?)\s*(?=\n|$)", re.DOTALL
)
#: What the operating system says where there is no room for a file.
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: What Ray Data adds to the arguments of an exception, where an OSError has its file.
_RETRY_NOTE: Final = re.compile(r"\s*Failed to [^\n]* attempts \(total backoff .*", re.DOTALL)
_NO_RIGHT: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


def explained(error: Exception) -> RaydpoError:
    """The raydpo error that a person reads instead of an exception's traceback."""
    own = own_error(error) or _own_in_text(error)
    if own is not None:
        return own
    root = _without_retry_note(_root(error), _remote_text(error))
    lines = own_lines(error) if root is error else _frames_in(_remote_text(error))
    if (plain := _of_the_system(root, lines)) is not None:
        return plain
    if is_of_ray(error):
        return _of_ray(error, root, lines)
    return UnexpectedError(
        _with_lines(
            _in_one_line(error), lines or _innermost(traceback.extract_tb(error.__traceback__))
        ),
        "raydpo refuses what it cannot use with its own errors, and did not foresee this one",
        "look at the lines above; if they are not yours, report it with the traceback",
    )


def _own_in_text(error: BaseException) -> RaydpoError | None:
    """The raydpo error that an actor's constructor raised, of which only a text is left."""
    if not is_of_ray(error):
        return None
    for inner in inside(error):
        found = _OWN_TEXT.search(_plain(str(inner)))
        kind = getattr(errors, found[1], None) if found else None
        if found and isinstance(kind, type) and issubclass(kind, RaydpoError):
            return kind(found[2], found[3], found[4])
    return None


def _root(error: BaseException) -> BaseException:
    """Return the first cause: the exception inside Ray's own ones, or the innermost with a message."""
    if not is_of_ray(error):
        return error
    held = list(inside(error))
    plain = (inner for inner in held if not is_of_ray(inner))
    known = (inner for inner in reversed(held) if not _WAYS_OUT.keys().isdisjoint(_names(inner)))
    return next(plain, None) or next(known, error)


def _without_retry_note(root: BaseException, remote: str) -> BaseException:
    """An exception as it was raised, before Ray Data wrote into it.

    An OSError that was pickled then has the note in the place of its file: the file stands in the
    traceback of the process that failed.
    """
    if isinstance(root, OSError) and _RETRY_NOTE.match(str(root.filename)):
        found = re.search(rf"\[Errno {root.errno}\] [^\n]*?: '([^'\n]+)'", remote)
        return OSError(root.errno, root.strerror, *(found.groups() if found else ()))
    return root


def _of_the_system(root: BaseException, lines: list[str]) -> RaydpoError | None:
    """The error for a refusal of the system: disk, rights, memory, open files; otherwise None."""
    said = _with_lines(_in_one_line(root), lines)
    number = root.errno if isinstance(root, OSError) else None
    named = root.filename if isinstance(root, OSError) and root.filename else None
    place = f": {named}" if named else ""
    if number in _NO_ROOM or "No space left on device" in said:
        return RunError(
            f"there is no room left on a disk{place} ({said})",
            "what a run writes has room, in the run directory and in the temporary folder of each node",
            f"free some{_free_space(named)}, raise the quota, or set `output` or TMPDIR to another "
            "disk. What was finished is whole: the same command goes on from here",
        )
    if number in _NO_RIGHT:
        return RunError(
            f"a file may not be read or written{place} ({said})",
            "the user that raydpo and its workers run as may write the run directory",
            "fix its owner or mode, or set `output` to another folder",
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return RunError(
            f"too many files are open ({said})",
            "a process opens as many files as its limit allows",
            "raise it: `ulimit -n 65536` before Ray starts",
        )
    if isinstance(root, MemoryError) or (
        "OutOfMemoryError" in _names(root) and not is_of_ray(root)
    ):
        return ClusterError(
            f"memory ran out: {said}", "what a process computes fits its memory", _MORE_MEMORY
        )
    return None


def _free_space(path: object) -> str:
    """The free space where a file should be, in words; empty if it is unknown."""
    if not isinstance(path, str):
        return ""
    folder = next((f for f in Path(path).parents if f.is_dir()), Path("/"))
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f" under {folder} ({free / (1 << 20):,.0f} MiB are free there on this machine)"


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
    try:
        path = Path(tempfile.mkdtemp(prefix="raydpo-")) / name
        path.write_bytes(content)
    except OSError as again:
        return f"it cannot be kept, {_in_one_line(again)}; the last of it:\n{text[-_LAST_OF_IT:]}"
    return str(path)


def has_more_to_tell(error: Exception, told: RaydpoError) -> bool:
    """Whether an exception's traceback says more than its error message."""
    cause = told.__cause__
    unforeseen = isinstance(told, ClusterError | UnexpectedError)
    return unforeseen or told is not error or (cause is not None and is_of_ray(cause))


def _names(error: BaseException) -> list[str]:
    return [cls.__name__ for cls in type(error).__mro__]


def _of_ray(error: Exception, root: BaseException, lines: list[str]) -> ClusterError:
    """The error for a failure that Ray reports; for a task, with the lines where it failed."""
    way_out = next((_WAYS_OUT[name] for name in _names(root) if name in _WAYS_OUT), _GO_ON)
    remote = _remote_text(error)
    if not is_of_ray(root):
        what = f"a process on the cluster failed: {_in_one_line(root)}"
    elif remote:
        what = f"a process on the cluster failed: {remote.splitlines()[-1]}"
    else:
        what = f"Ray lost what it was doing: {_in_one_line(root)}"
    rule = "tasks and actors of a run end well, or are begun again"
    return ClusterError(_with_lines(what, lines), rule, way_out)


def _remote_text(error: BaseException) -> str:
    """The traceback of the process that failed, where the exception carries one; else nothing."""
    for inner in inside(error):
        text = getattr(inner, "_traceback_str", None)  # of a worker of Ray Train
        if text is None and ("RayTaskError" in _names(inner) or _has_frames(inner)):
            text = str(inner)
        if isinstance(text, str):
            return _plain(text)
    return ""


def _has_frames(error: BaseException) -> bool:
    """Whether an exception of Ray's, such as of an actor that never began, quotes a traceback."""
    return is_of_ray(error) and '  File "' in str(error)


def _plain(text: str) -> str:
    """A text without Ray's colours."""
    return re.sub(r"\x1b\[\d+m", "", text).strip()


def _frames_in(text: str) -> list[str]:
    """The innermost line of a traceback's text, and the user's own ones before it."""
    found = re.findall(r'File "([^"]+)", line (\d+), in (\S+)\n\s*(.*)', text)
    lines = [(file, f"{file}:{line}, in {name}: {code[:100]}") for file, line, name, code in found]
    own = [line for file, line in lines[:-1] if is_own(file)][-3:]
    return [*own, *(line for _, line in lines[-1:])]


def _with_lines(said: str, lines: list[str]) -> str:
    return "\n    ".join([said, *lines])


def _innermost(frames: traceback.StackSummary) -> list[str]:
    """The innermost line of raydpo, and the innermost of all."""
    ours = [frame for frame in frames if "raydpo" in Path(frame.filename).parts]
    lines = [f"{f.filename}:{f.lineno}, in {f.name}: {f.line}" for f in (*ours[-1:], *frames[-1:])]
    return list(dict.fromkeys(lines))


def _in_one_line(error: BaseException) -> str:
    message = " ".join(_RETRY_NOTE.sub("", _plain(str(error))).split())
    return f"{type(error).__name__}: {message}"[:_LONGEST_MESSAGE]
