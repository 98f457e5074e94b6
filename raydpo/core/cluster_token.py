"""The token of a cluster on this machine, in a file that only its user can read.

The module creates Ray's default token file, or closes an existing one, with the mode 0600.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from raydpo.core.progress import logger


def asks_for_token() -> bool:
    """Whether a cluster that starts here asks for a token: always, unless Ray is told otherwise."""
    return os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def close_token() -> None:
    """Ensure that no other user can read the token of a cluster that starts here.

    Ray makes a token where there is none, and leaves its file readable by everybody (0644). A token
    that the environment gives is left as it is.

    Raises:
        OSError: the file cannot be written.
    """
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named or not asks_for_token():
        return
    file = Path.home() / ".ray" / "auth_token"
    if not file.exists():
        _make(file)
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        file.chmod(0o600)
        logger.info("%s had the mode %04o; it has 0600 now: it lets into clusters", file, mode)


def _make(file: Path) -> None:
    """Write a new token atomically, and keep one that another process writes meanwhile."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".auth_token-")
    try:
        with open(handle, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            file.hardlink_to(name)
    finally:
        Path(name).unlink()
