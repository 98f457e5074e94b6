"""The lease of a run directory that the kernel cannot lock: one driver at a time writes into it.

It serves folders in an object store, or on a file system without `flock`. A block holds the
folder, or an error names the holder. Each driver writes a claim and then lists all claims. It
goes on only if it sees no other. Of two drivers that start together, at least one sees the
other's claim. That asks one thing of a store: a list shows what was written before it, as S3,
Google Cloud Storage, Azure and shared file systems do. A driver renews its claim while it lives.
Others take the folder from a driver that stopped, and that driver finds out before it commits.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from raydpo.core.checked import read_checked, write_checked
from raydpo.core.errors import ManifestError, RunLockedError
from raydpo.core.periodic import periodically
from raydpo.core.progress import logger
from raydpo.core.storage import Folder

_CLAIMS: Final = "lease"
#: Says who held the directory last, for a driver that slept while another came and went.
_LAST: Final = "lease.json"


@dataclass(frozen=True)
class Timing:
    """How often a claim is renewed, and how long it counts without renewal."""

    renewal_seconds: float = 10.0
    lapse_seconds: float = 60.0


@contextlib.contextmanager
def leased(run: Folder, timing: Timing | None = None) -> Generator[None]:
    """Hold a run directory by a claim that is renewed until the block ends.

    Raises:
        RunLockedError: another live driver holds it, or took it from this one.
    """
    lease = _Lease(run, timing or Timing())
    lease.acquire()
    _held.append(lease)
    try:
        with periodically("raydpo-lease", lease.keep, lease.timing.renewal_seconds):
            yield
    except Exception as error:
        _blame(lease, error)
        raise
    finally:
        _held.remove(lease)
        try:
            lease.release()
        except OSError as error:  # what the block returned or raised matters more
            logger.warning("%s: the lease lapses by itself: %s", run.uri, error)


def _blame(lease: _Lease, error: Exception) -> None:
    """Report the lost lease, if that may be why the driver failed."""
    try:
        lease.check()
    except RunLockedError as lost:
        raise lost from error
    except OSError:
        pass  # the driver's own error says more


#: Leases that this process holds.
_held: list[_Lease] = []


def check_lease(folder: Folder) -> None:
    """Stop a driver that no longer holds the run directory which `folder` lies in.

    Nothing happens where this process holds no lease on it.

    Raises:
        RunLockedError: another driver took it, since this one did not renew its claim in time.
    """
    for lease in _held:
        if f"{folder.uri}/".startswith(f"{lease.run.uri}/"):
            lease.check()


class _Lease:
    """One driver's claim on a run directory.

    Others pass over a claim that did not change for `lapse_seconds`, so its driver trusts it for
    half as long. After that it asks again, and goes on only if nobody took the directory.
    """

    def __init__(self, run: Folder, timing: Timing) -> None:
        self.run = run
        self.timing = timing
        self._claims = run.child(_CLAIMS)
        self._name = f"{uuid.uuid4().hex}.json"
        self._watch = _Watch(timing.lapse_seconds)
        self._changes = 0
        self._renewed_at = _now_seconds()
        self._lost: RunLockedError | None = None
        self._one_at_a_time = threading.Lock()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._who = {
            "holder": f"process {os.getpid()} on {socket.gethostname()}, since {since}",
            "pid": os.getpid(),
            "processes": _process_table(),
        }

    def acquire(self) -> None:
        """Return once no other claim counts.

        Raises:
            RunLockedError: another driver holds the directory, and renews its claim.
        """
        told = False
        asked_at, others = self._asked()
        while others:
            self.release()
            for claim in others:
                if claim.holding and claim.renewed:
                    raise locked_by(self.run, claim.holder)
            if not told:
                text = "%s: waiting up to %.0f s for a sign of life of %s"
                logger.info(text, self.run.uri, self.timing.lapse_seconds, others[0].holder)
                told = True
            self._pause()
            asked_at, others = self._asked()
        self.run.write_json(_LAST, {"claim": self._name, "holder": self._who["holder"]})
        if not self._hold(asked_at):
            self._ask_again()

    def keep(self) -> None:
        """Renew the claim, unless it is known to be lost."""
        if self._lost is not None:
            return
        try:
            self.check(renew=True)
        except RunLockedError as error:
            logger.error("this run ends when its stage does: %s", error)
        except OSError as error:
            logger.warning("%s: the lease was not renewed: %s", self.run.uri, error)

    def check(self, renew: bool = False) -> None:
        """Raise if the lease is lost; ask the store if it may be."""
        with self._one_at_a_time:
            if self._lost is None:
                try:
                    if self._late() or (renew and not self._hold(self._renewed_at)):
                        self._ask_again()
                except RunLockedError as error:
                    self._lost = error
            if self._lost is not None:
                raise self._lost

    def release(self) -> None:
        """Remove the claim."""
        self._take_away(self._name)

    def _asked(self) -> tuple[float, list[_Claim]]:
        """Write a claim; since when it stands, and the others that count.

        Where none counts, those that do not are deleted.
        """
        asked_at = self._write("asking")
        others, passed_over = self._watch.look(self._claims, self._name)
        if not others:
            for name in passed_over:
                self._take_away(name)
        return asked_at, others

    def _take_away(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # another driver was faster
            self._claims.delete(name)

    def _hold(self, stood_since: float) -> bool:
        """Write that the directory is held; whether a claim stood all the time since then.

        Where the store was slow, others may have passed over the claim meanwhile.
        """
        at = self._write("holding")
        half = self.timing.lapse_seconds / 2
        if at - stood_since > half or _now_seconds() - at > half:
            return False
        self._renewed_at = at
        return True

    def _ask_again(self) -> None:
        """Hold the directory again, if nobody took it; unlike in `acquire`, the claim stays."""
        while True:
            asked_at, others = self._asked()
            last = self.run.read_json(_LAST)
            if last["claim"] != self._name:
                self.release()
                raise locked_by(
                    self.run, f"{last['holder']}, which saw no sign of life of this run"
                )
            if others:
                self._pause()
            elif self._hold(asked_at):
                return

    def _late(self) -> bool:
        return _now_seconds() - self._renewed_at > self.timing.lapse_seconds / 2

    def _write(self, state: Literal["asking", "holding"]) -> float:
        """Write the claim; returns when that began, since others see it from then on at the earliest."""
        at = _now_seconds()
        self._changes += 1
        value = {**self._who, "state": state, "changes": self._changes}
        write_checked(self._claims, self._name, value)
        return at

    def _pause(self) -> None:
        longest = self.timing.renewal_seconds / 5
        time.sleep(random.uniform(longest / 10, longest))  # noqa: S311 - no secret


@dataclass(frozen=True)
class _Claim:
    """Another driver's claim: who holds it, whether it is held, and whether this driver saw it change."""

    holder: str
    holding: bool
    renewed: bool


class _Watch:
    """What one driver has seen of the others' claims, by its own clock."""

    def __init__(self, lapse_seconds: float) -> None:
        self._lapse_seconds = lapse_seconds
        self._first: dict[str, int] = {}
        self._seen: dict[str, tuple[int, float]] = {}

    def look(self, claims: Folder, own: str) -> tuple[list[_Claim], list[str]]:
        """The other claims that count, and the names of those that do not."""
        counting: list[_Claim] = []
        passed_over: list[str] = []
        for name in claims.files():
            if name == own or not name.endswith(".json") or name.startswith("."):
                continue
            content = _read_claim(claims, name)
            if content is None:
                continue
            changes = int(content["changes"])
            first = self._first.setdefault(name, changes)
            if self._seen.get(name, (None,))[0] != changes:
                self._seen[name] = (changes, _now_seconds())
            unchanged_seconds = _now_seconds() - self._seen[name][1]
            if unchanged_seconds > self._lapse_seconds or _has_ended(content):
                passed_over.append(name)
            else:
                holding = content["state"] == "holding"
                counting.append(_Claim(str(content["holder"]), holding, changes != first))
        return counting, passed_over


def _read_claim(claims: Folder, name: str) -> dict[str, Any] | None:
    """A claim's content; None if it was removed."""
    try:
        return read_checked(claims, name)
    except FileNotFoundError:
        return None
    except ManifestError:
        return {"changes": 0, "state": "asking", "holder": f"the damaged claim {name}"}


def _has_ended(content: dict[str, Any]) -> bool:
    """Whether the driver of a claim was a process of this machine that has ended."""
    table = _process_table()
    if table is None or content.get("processes") != table:
        return False
    try:
        os.kill(int(content["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _process_table() -> str | None:
    """Name the process table that this process is listed in; None if the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _now_seconds() -> float:
    """A clock that also goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def locked_by(run: Folder, holder: str) -> RunLockedError:
    """The error for a run directory that another process holds."""
    return RunLockedError(
        f"{run.uri} is in use by {holder}",
        "one run at a time writes into a run directory",
        "wait for it or end it, or give this run another `name`",
    )
