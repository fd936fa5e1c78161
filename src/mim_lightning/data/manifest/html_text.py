"""HTML in texts: find it, and remove it.

Exports of shops often contain `Lumatech&trade;`, `<b>` and `&amp;amp;`. Only unambiguous HTML counts: entities with a
semicolon, and tags that exist in HTML; `R&D`, `a < b` and `<blue>` are text.
"""

from __future__ import annotations

import re
from html import unescape
from html.entities import html5

MAX_ROUNDS = 5  # of text that was escaped several times
BREAKS = (  # tags that separate words
    *("address", "article", "aside", "blockquote", "body", "br", "center", "dd", "div", "dl", "dt", "fieldset"),
    *("figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "head", "header", "hr", "html"),
    *("iframe", "li", "main", "nav", "ol", "option", "p", "pre", "section", "select", "table", "tbody", "td"),
    *("textarea", "tfoot", "th", "thead", "title", "tr", "ul", "video"),
)
INLINE = (
    *("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "button", "cite", "code", "del", "dfn", "em", "font", "i"),
    *("img", "input", "ins", "kbd", "label", "mark", "meta", "link", "q", "s", "samp", "small", "span", "strike"),
    *("strong", "sub", "sup", "time", "tt", "u", "var", "wbr", "script", "style"),
)
# no pattern matches past the next "<": a text of nothing but opening tags takes no longer than others
_UNSHOWN = re.compile(r"<!--[^<>]*-->|<(script|style)\b[^<>]*>[^<]*</\1\s*>", re.IGNORECASE)
_BREAK = re.compile(rf"</?(?:{'|'.join(BREAKS)})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_INLINE = re.compile(rf"</?(?:{'|'.join(INLINE)})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


def find_html(text: str) -> str:
    """Return the first entity or tag of a text, "" where there is none."""
    if "&" not in text and "<" not in text:
        return ""
    found = [match for pattern in (_UNSHOWN, _BREAK, _INLINE) if (match := pattern.search(text))]
    found += [match for match in _ENTITY.finditer(text) if _is_entity(match[0])][:1]
    return min(found, key=lambda match: match.start())[0] if found else ""


def clean_html(text: str) -> str:
    """Return a text without tags and with its entities decoded; unchanged if it has neither."""
    for _ in range(MAX_ROUNDS):
        if not find_html(text):
            break
        text = _INLINE.sub("", _BREAK.sub(" ", _UNSHOWN.sub(" ", text)))
        text = _ENTITY.sub(lambda match: unescape(match[0]) if _is_entity(match[0]) else match[0], text)
        text = " ".join(text.split())
    return text


def _is_entity(text: str) -> bool:
    return text[1] == "#" or text[1:] in html5
