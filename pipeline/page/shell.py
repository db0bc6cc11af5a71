"""A page as one HTML file. It loads nothing, runs nothing, and escapes whatever it was given.

``page.html.jinja`` is what all pages have in common: head, style, content policy, header and footer. A page's template
extends it, and fills the blocks ``links`` and ``main``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from pipeline.page.numbers import FILTERS


def environment(package: str, views: Mapping[str, Any] | None = None) -> Environment:
    """The templates of a package, which come before ours, and the filters of `numbers`.

    Args:
        package: has the folder ``templates``.
        views: what its templates may call.
    """
    # Not by the file's suffix: that rule would leave a template called *.jinja unescaped.
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("pipeline.page")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(FILTERS)
    made.globals.update(views or {})
    return made


def rendered(templates: Environment, name: str, context: Mapping[str, Any]) -> str:
    """The page, as text that UTF-8 can hold: names may have half a surrogate pair, files cannot."""
    return templates.get_template(name).render(context).encode("utf-8", "replace").decode("utf-8")
