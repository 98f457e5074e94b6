"""Fill the HTML templates of the reports, which load nothing from anywhere else.

`page.html.j2` has what the reports of a run share: glossary, facts, configuration. All pages have
the style of `style.html.j2`. Everything that a model or a person wrote is escaped.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from raydpo import __version__


def render_page(template: str, **values: Any) -> str:
    """Fill a template of this room; `values` are the names that it uses."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=__version__, **values)


def _source(name: str) -> str:
    return resources.files("raydpo.evaluation").joinpath(name).read_text(encoding="utf-8")
