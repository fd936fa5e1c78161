"""Templates filled in and written: HTML files that stand alone, pictures and style inside.

Content comes in, a file goes out; the files beside this one, each of which makes one kind of page, call it. Nothing
is fetched when a page is opened, and no script runs.
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
    """Fill in a template of the folder beside this file; the folder of `path` is made.

    `content` needs `title`, and `missing`: why there are no pictures, if there are none.
    """
    html = _environment().get_template(template).render(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_text(html, encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # titles and words come from users' tables
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment
