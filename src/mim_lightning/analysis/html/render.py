"""Rendering of HTML pages from the templates in this package: one self-contained file, with images and style inside.

A page loads nothing when it is opened, and runs no script.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2

from mim_lightning.display.numbers import (
    format_bytes,
    format_count,
    format_difference,
    format_interval,
    format_number,
    format_p_value,
    format_relative,
)
from mim_lightning.display.text import plain
from mim_lightning.io.atomic import atomic_write

FILTERS = {
    "format_number": format_number,
    "format_difference": format_difference,
    "format_interval": format_interval,
    "format_difference_interval": partial(format_interval, write=format_difference),
    "format_relative": format_relative,
    "format_p_value": format_p_value,
    "format_count": format_count,
    "format_bytes": format_bytes,
    "plain": plain,
}


def write_page(path: Path, template: str, **content: Any) -> None:
    """Render a template to a file; the folder of `path` is created.

    `content` needs `title`, and `missing`: why there are no images, if there are none.
    """
    html = _environment().get_template(template).render(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_text(html, encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # titles and texts come from users' tables
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment
