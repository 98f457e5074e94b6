"""Read tutorials: the files that they tell a reader to save, and the commands that they give."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


def files_of(page: Path) -> dict[str, str]:
    """The files that a page tells its reader to save, by their paths."""
    text = page.read_text(encoding="utf-8")
    saved = r"Save this as `([^`]+)`:\n\n```\w+\n(.*?)^```$"
    return dict(re.findall(saved, text, re.MULTILINE | re.DOTALL))


def commands_of(page: Path) -> list[str]:
    """The lines of a page's fenced blocks that are commands of raydpo or of a shell, comments left out."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    shell = "".join(block for language, block in blocks if language in ("", "bash"))
    lines = shell.replace("\\\n", " ").splitlines()
    known = re.compile(r"(raydpo|ray job submit|make|kubectl apply|docker build) ")
    return [line.partition(" #")[0].strip() for line in lines if known.match(line)]


def save_files(pages: list[Path], folder: Path) -> None:
    """Save the files of pages in a folder that has the project's assets, as a reader would."""
    (folder / "assets").symlink_to(ROOT / "assets")
    for page in pages:
        for name, text in files_of(page).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
