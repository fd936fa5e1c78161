"""How long the texts are, which ones the tokeniser cuts, and which hold HTML.

A Manifest and the towers' specs come in, lengths and findings go out; `check_manifest` calls it. Without specs, or
with a tokeniser that cannot count, words are counted and nothing is known of a limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from mim_lightning.data.manifest.html_text import find_html
from mim_lightning.data.manifest.manifest import Manifest, Product, Query
from mim_lightning.data.validation.findings import Finding
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.display.text import plain
from mim_lightning.fields import PRODUCT, TEXT_FIELDS, side_of

if TYPE_CHECKING:  # torch would come along, into the processes that look at pictures
    from mim_lightning.types import InputSpec, TextSpec

MAX_SHOWN = 80  # characters of a text with HTML
TEXTS_AT_ONCE = 1_000  # given to the tokeniser


@dataclass(frozen=True)
class TextLengths:
    """How long the texts of one tower are."""

    tower: str
    unit: str  # "tokens" or "words"
    num_texts: int
    median: int
    percentile_95: int
    longest: int
    limit: int | None  # tokens that the encoder reads; None: not known
    num_over: int  # texts that are cut


def measure_texts(
    manifest: Manifest, specs: Mapping[str, InputSpec], settings: ValidationSettings
) -> tuple[tuple[TextLengths, ...], Iterator[Finding]]:
    """Return the lengths of the texts by tower, and a finding for each text that is cut."""
    lengths: list[TextLengths] = []
    findings: list[Iterator[Finding]] = []
    for name in (*TEXT_FIELDS, *_declared(manifest)):
        rows = [row for row in _rows(manifest, name) if _text(row, name) is not None]
        if rows:
            spec = cast("TextSpec | None", specs.get(name))
            counts = _count([str(_text(row, name)) for row in rows], spec)
            limit = spec.max_length if spec is not None and spec.count is not None else None
            lengths.append(_summarise(name, counts, limit))
            if limit is not None:
                findings.append(_find_cut(name, rows, counts, limit, settings))
    return tuple(lengths), chain.from_iterable(findings)


def find_html_texts(manifest: Manifest, settings: ValidationSettings) -> Iterator[Finding]:
    """Yield the products and queries whose words hold HTML tags or entities; the first of each row."""
    drops = "row" if settings.is_bad("html_in_text") else ""
    for product in manifest.products.values():
        own = (("title", product.title), ("description", product.text), ("category", product.category))
        for column, text in (*own, *product.fields.items()):
            if text and (found := find_html(text)):
                reason = _html_reason(found, text)
                yield Finding("html_in_text", "products", product.origin, product.product_id, column, reason, drops)
                break
    for query in manifest.queries:
        for column, text in (("text", query.text), *query.fields.items()):
            if text and (found := find_html(text)):
                reason = _html_reason(found, text)
                yield Finding("html_in_text", "queries", query.origin, query.query_id, column, reason, drops)
                break


def _html_reason(found: str, text: str) -> str:
    return f"{plain(found, MAX_SHOWN)} in '{plain(text, MAX_SHOWN)}'"


def _rows(manifest: Manifest, tower: str) -> Sequence[Product] | Sequence[Query]:
    return list(manifest.products.values()) if side_of(tower) == PRODUCT else manifest.queries


def _declared(manifest: Manifest) -> list[str]:
    """Return the declared fields that any row has."""
    fields = chain((row.fields for row in manifest.products.values()), (row.fields for row in manifest.queries))
    return sorted(set(chain.from_iterable(fields)))


def _text(row: Product | Query, name: str) -> str | None:
    return row.text if name in TEXT_FIELDS else row.fields.get(name)


def _count(texts: Sequence[str], spec: TextSpec | None) -> npt.NDArray[np.int64]:
    if spec is None or spec.count is None:
        return np.array([len(text.split()) for text in texts], dtype=np.int64)
    remaining, counts = iter(texts), []
    while batch := list(islice(remaining, TEXTS_AT_ONCE)):
        counts += spec.count(batch)
    return np.array(counts, dtype=np.int64)


def _summarise(tower: str, counts: npt.NDArray[np.int64], limit: int | None) -> TextLengths:
    return TextLengths(
        tower=tower,
        unit="words" if limit is None else "tokens",
        num_texts=len(counts),
        median=round(float(np.median(counts))),
        percentile_95=round(float(np.percentile(counts, 95))),
        longest=int(counts.max()),
        limit=limit,
        num_over=0 if limit is None else int((counts > limit).sum()),
    )


def _find_cut(
    name: str, rows: Sequence[Product | Query], counts: npt.NDArray[np.int64], limit: int, settings: ValidationSettings
) -> Iterator[Finding]:
    drops = "row" if settings.is_bad("text_over_limit") else ""
    for place in np.flatnonzero(counts > limit).tolist():
        row, reason = rows[place], f"{counts[place]:,} tokens, of which the first {limit:,} are read"
        if isinstance(row, Query):
            column = "text" if name in TEXT_FIELDS else name
            yield Finding("text_over_limit", "queries", row.origin, row.query_id, column, reason, drops)
        else:
            column = "title" if row.text == row.title else "description"
            column = column if name in TEXT_FIELDS else name
            yield Finding("text_over_limit", "products", row.origin, row.product_id, column, reason, drops)
