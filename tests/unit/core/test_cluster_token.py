"""Only the user can read the file with the token of a cluster that starts here."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.core.cluster import _make, asks_for_token, close_token


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the token of somebody without settings of their own lies."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray" / "auth_token"


def mode(file: Path) -> int:
    return file.stat().st_mode & 0o777


def test_a_new_token_is_long_and_its_file_is_closed(token: Path) -> None:
    close_token()
    assert (mode(token), mode(token.parent)) == (0o600, 0o700)
    assert len(bytes.fromhex(token.read_text())) == 32
    assert list(token.parent.iterdir()) == [token]


def test_a_token_that_is_there_is_kept_and_closed(token: Path) -> None:
    token.parent.mkdir()
    token.write_text("a" * 64)
    token.chmod(0o644)
    close_token()
    assert (mode(token), token.read_text()) == (0o600, "a" * 64)


def test_a_token_that_another_process_makes_meanwhile_stays(token: Path) -> None:
    token.parent.mkdir()
    token.write_text("b" * 64)
    _make(token)
    assert token.read_text() == "b" * 64
    assert list(token.parent.iterdir()) == [token]


@pytest.mark.parametrize(
    ("name", "value", "asks"),
    [
        ("RAY_AUTH_MODE", "disabled", False),
        ("RAY_AUTH_TOKEN", "c" * 64, True),
        ("RAY_AUTH_TOKEN_PATH", "elsewhere", True),
    ],
)
def test_who_says_otherwise_gets_no_file(token, monkeypatch, name, value, asks) -> None:
    monkeypatch.setenv(name, value)
    close_token()
    assert not token.parent.exists()
    assert asks_for_token() is asks
