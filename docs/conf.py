"""Sphinx's settings for `make docs`: the Markdown pages of the repository as a site.

The pages are plain Markdown that reads well on GitHub too, so nothing of Sphinx stands in them. The
source folder is the repository, since pages link to each other across folders. Links to files that
are no pages, such as jobs/demo.yaml, become downloads. A link that leads nowhere is a warning, and
`make docs` takes warnings for errors.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "raydpo"
extensions = ["myst_parser"]
root_doc = "docs/README"
include_patterns = ["*.md", "docs/**.md", "deploy/*.md"]
# Sphinx looks into none of these folders.
exclude_patterns = [".*", "build", "runs", "assets", "tests"]
# Blocks without a language are output, trees and commands.
highlight_language = "none"
# Anchors of headings, as GitHub makes them.
myst_heading_anchors = 6

html_theme = "furo"
html_title = "raydpo"
templates_path = ["_templates"]
html_additional_pages = {"index": "to_the_index.html"}
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Connect the hook below."""
    app.connect("source-read", _menu_from_the_index)


def _menu_from_the_index(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the menu of the site behind the index page: the pages that it links to, under its headings."""
    if page != root_doc:
        return
    menus: list[str] = []
    listed = set[str]()
    for section in re.split(r"^## ", source[0], flags=re.MULTILINE):
        links = re.findall(r"\[([^\]]+)\]\(([^)#:]+\.md)\)", section)
        entries = [f"{title} <{path}>" for title, path in links if path not in listed]
        listed |= {path for _, path in links}
        if entries:
            heading = section.partition("\n")[0].removeprefix("# ")
            options = [":hidden:", f":caption: {heading}"]
            menus.append("\n".join(["```{toctree}", *options, "", *entries, "```"]))
    source[0] = "\n\n".join([source[0], *menus])
