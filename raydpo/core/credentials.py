"""Find credentials in texts: before a configuration is used, and in everything that raydpo
prints.

A function returns the kind of credential in a text, or the text without it. Secrets belong in the
environment, which raydpo neither prints nor saves.
"""

from __future__ import annotations

import os
import re
from typing import Final

_HIDDEN: Final = "***"
#: Words that name a secret in a query or in the name of a variable.
_SECRET_WORDS: Final = frozenset(
    [
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "passwd",
        "password",
        "secret",
        "sig",
        "signature",
        "token",
    ]
)
#: What is hidden is the group `secret`.
_PATTERNS: Final = {
    # The word after a colon is a port where digits and a slash follow.
    "a user name and password": re.compile(
        r"(?<=://)(?P<secret>[^/\s:@'\"]*:(?!\d+/)[^\s@'\"]+)(?=@)"
    ),
    "a secret in its query": re.compile(
        r"[?&](?:[\w.-]*[_.-])?(?:"
        + "|".join(sorted(_SECRET_WORDS))
        + r")(?:[_-]?id)?=(?P<secret>[^&\s'\"]+)",
        re.IGNORECASE,
    ),
    "a Hugging Face token": re.compile(r"(?P<secret>\bhf_[A-Za-z0-9]{16,})"),
    "an AWS access key": re.compile(r"(?P<secret>\b(?:AKIA|ASIA)[A-Z0-9]{16}\b)"),
    "a GitHub token": re.compile(r"(?P<secret>\b(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{20,})"),
    "a GitLab token": re.compile(r"(?P<secret>\bglpat-[A-Za-z0-9_-]{16,})"),
    "an API key": re.compile(r"(?P<secret>\bsk-[A-Za-z0-9_-]{20,})"),
    "a private key": re.compile(r"(?P<secret>-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*)"),
}
#: Shorter values of variables are words like `none`, which a text may hold by chance.
_FEWEST_CHARACTERS: Final = 8


def credential_in(text: str) -> str | None:
    """The kind of the first credential that a text holds, or None."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(text)), None)


def without_credentials(text: str) -> str:
    """The text with `***` for credentials, and for the values of this process's secret variables."""
    for pattern in _PATTERNS.values():
        text = pattern.sub(_hide, text)
    for value in _secret_values():
        text = text.replace(value, _HIDDEN)
    return text


def _hide(match: re.Match[str]) -> str:
    whole, start = match[0], match.start()
    first, last = match.span("secret")
    return whole[: first - start] + _HIDDEN + whole[last - start :]


def _secret_values() -> list[str]:
    """Values of environment variables whose names say that they are secret, longest first."""
    values = {
        value
        for name, value in os.environ.items()
        if _SECRET_WORDS.intersection(name.lower().split("_"))
        and len(value) >= _FEWEST_CHARACTERS
        and not value.startswith("/")  # the path of a file with a secret
    }
    return sorted(values, key=len, reverse=True)
