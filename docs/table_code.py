"""Markdown extension of the site: a key in a table may break after a dot or an underscore, and within no word.

PYTHONPATH=docs zensical build          # named in mkdocs.yml
"""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, SubElement

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from markdown.util import AtomicString

BREAKS = re.compile(r"(?<=[._/=,@}])(?<!{\.)(?=[^\s._/=,@}])")  # after the marks that join words
AFTER_INLINE = 10  # priority: once backticks have become elements


class TableCodeExtension(Extension):
    """Put `<wbr>` into the code in cells of tables."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - the name that Markdown calls
        md.treeprocessors.register(_TableCode(md), "table_code", AFTER_INLINE)


class _TableCode(Treeprocessor):
    def run(self, root: Element) -> None:
        for cell in root.iter("td"):
            for code in cell.iter("code"):
                _break(code)


def _break(code: Element) -> None:
    first, *rest = BREAKS.split((code.text or "").replace("\\|", "|"))  # a bar in a table is written so
    code.text = AtomicString(first)
    for part in rest:
        SubElement(code, "wbr").tail = AtomicString(part)


def makeExtension(**options: object) -> TableCodeExtension:  # noqa: N802 - the name that Markdown calls
    return TableCodeExtension(**options)
