"""Composed rows made of variants: the photo of one product, words that change an attribute, and what they ask for.

Two products are variants if they share a style and all named attributes but one. Rows are made and joined in the
store of the manifest, so their number is not limited by memory.
"""

from __future__ import annotations

import difflib
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mim_lightning.data.manifest.manifest import Manifest
from mim_lightning.data.manifest.row_store import RowWriter
from mim_lightning.data.manifest.rows import KIND, Product, Query
from mim_lightning.data.manifest.stored_rows import QUERIES, StoredRows, image_of, pack_query
from mim_lightning.ids import hash_id

KEY = "data.compose"
TEMPLATES = ("in {value}", "{value} one", "same but {value}", "this in {value}", "but {value}", "{value} please")
PLACEHOLDERS = ("value", "former_value", "attribute")  # of a template
FROM_QUERIES, FROM_PRODUCTS = "queries", "products"
COMPOSED = "composed"  # `kind` of the rows, a segment of those that are evaluated
MAX_LISTED = 20  # columns that an error names
MAX_STYLE = 2_000  # products of a style: all pairs of them are joined
# a product and an attribute; `rest` is what it shares with those that differ from it in this attribute alone
AXES = "product_position BIGINT, product_id VARCHAR, style VARCHAR, attribute VARCHAR, rest VARCHAR[], value VARCHAR"


@dataclass(frozen=True)
class VariantSettings:
    """What rows are composed of.

    Attributes:
        columns: the column of the products that tells styles apart, and those in which variants differ.
        templates: words of a change, by attribute; an attribute that is not named has TEMPLATES.
        phrases: by the new value of any attribute: words instead of a template.
        rows_per_product: at most, with photos of one product.
        photos: FROM_QUERIES: photos of the training queries that show a product; FROM_PRODUCTS: its own images; None:
            its own where no query shows it.
        val_fraction: of the styles that no query names, whose rows are evaluated instead of trained on.
    """

    columns: tuple[str, ...]
    templates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    phrases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rows_per_product: int = 4
    photos: str | None = None
    val_fraction: float = 0.0

    @property
    def style(self) -> str:
        return self.columns[0]

    @property
    def attributes(self) -> tuple[str, ...]:
        return self.columns[1:]

    def __str__(self) -> str:
        return f"{KEY}={':'.join(self.columns)}"

    def describe(self) -> dict[str, Any]:
        """Return what decides the rows, as JSON has it."""
        given = {part.name: getattr(self, part.name) for part in fields(self)}
        default = {part.name: getattr(VariantSettings(()), part.name) for part in fields(self)}
        return {name: value for name, value in given.items() if value != default[name]}

    def words(self, attribute: str, value: str, former_value: str, query_id: str) -> str:
        """Return the words of a change, chosen by the query's id."""
        choices = self.phrases.get(value) or self.templates.get(attribute, TEMPLATES)
        names = {"value": value, "former_value": former_value, "attribute": attribute}
        return choices[hash_id(query_id) % len(choices)].format_map(names)


def parse_variants(given: Any) -> VariantSettings | None:
    """Return what `data.compose` says: null, <style>:<attribute>[:<attribute>...], or a mapping with it as `columns`.

    Raises:
        ValueError: a key or value is wrong; names it.
    """
    if given is None:
        return None
    entry = dict(given) if isinstance(given, Mapping) else {"columns": given}
    known = [part.name for part in fields(VariantSettings)]
    for name in entry:
        if name not in known:
            raise ValueError(f"no config key '{KEY}.{name}'; there are {known}")
    text = entry.get("columns")
    columns = tuple(part.strip() for part in text.split(":")) if isinstance(text, str) else ()
    if len(columns) < 2 or not all(columns) or len({*columns}) < len(columns):
        raise ValueError(f"{KEY}={text}: give two columns of the products, <style>:<attribute>, as style_id:color")
    templates = entry.get("templates") or {}
    if not isinstance(templates, Mapping):
        templates = dict.fromkeys(columns[1:], templates)
    for name in templates:
        if name not in columns[1:]:
            raise ValueError(f"{KEY}.templates.{name}: is none of the attributes {', '.join(columns[1:])}")
    phrases = entry.get("phrases") or {}
    if not isinstance(phrases, Mapping):
        raise ValueError(f"{KEY}.phrases={phrases}: give a text or a list of texts by value: {{navy: in dark blue}}")
    parsed = VariantSettings(
        columns,
        {name: _formats(f"{KEY}.templates", texts, needs_value=True) for name, texts in templates.items()},
        {str(name): _formats(f"{KEY}.phrases.{name}", texts) for name, texts in phrases.items()},
        **{name: entry[name] for name in ("rows_per_product", "photos", "val_fraction") if name in entry},
    )
    if type(parsed.rows_per_product) is not int or parsed.rows_per_product < 1:
        raise ValueError(f"{KEY}.rows_per_product={parsed.rows_per_product}: give a whole number from 1")
    if parsed.photos not in (None, FROM_QUERIES, FROM_PRODUCTS):
        raise ValueError(f"{KEY}.photos={parsed.photos}: give {FROM_QUERIES}, {FROM_PRODUCTS} or null")
    if not isinstance(parsed.val_fraction, int | float) or not 0 <= parsed.val_fraction < 1:
        raise ValueError(f"{KEY}.val_fraction={parsed.val_fraction}: give a fraction of the styles, from 0 to below 1")
    return parsed


def _texts(key: str, texts: Any) -> tuple[str, ...]:
    found = (texts,) if isinstance(texts, str) else tuple(texts) if isinstance(texts, Sequence) else ()
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise ValueError(f"{key}={texts}: give a text or a list of texts")
    return found


def _formats(key: str, texts: Any, needs_value: bool = False) -> tuple[str, ...]:
    found = _texts(key, texts)
    for text in found:
        try:
            parts = [part for part in string.Formatter().parse(text) if part[1] is not None]
            is_plain = all(name in PLACEHOLDERS and not (spec or conversion) for _, name, spec, conversion in parts)
            has_value = any(name == "value" for _, name, _, _ in parts)
        except ValueError:
            is_plain = has_value = False
        if not is_plain or (needs_value and not has_value):
            first = (
                "must have {value}, the new value, and may"
                if needs_value
                else "may have in braces {value}, the new value,"
            )
            rest = "have {former_value} and {attribute}" if needs_value else "{former_value} and {attribute}, no more"
            raise ValueError(f"{key}: '{text}' {first} {rest}")
    return found


@dataclass(frozen=True)
class ComposedRows:
    """A manifest with composed rows, and a sentence on them."""

    manifest: Manifest
    summary: str


def compose_variants(
    manifest: Manifest, settings: VariantSettings, splits: tuple[str, str], seed: int = 0
) -> ComposedRows:
    """Add the composed rows of the variants among the products.

    A style never crosses splits by them: one that only other splits than the training split name gives no rows, and a
    product that only they name is in none.

    Args:
        splits: names of the training split, and of the split for `val_fraction`.
        seed: of the choice among changes and photos.

    Raises:
        ValueError: a column that no product has, or nothing to compose.
    """
    rows = manifest.stored()
    store, composer = rows.store, _Composer(rows, settings, splits, seed)
    axes, left_out = composer.read_axes()
    usable = composer.keep_splits(axes)
    changes = composer.list_changes(usable)
    queries = composer.write_queries(changes)
    one = f"SELECT style FROM {axes} GROUP BY style HAVING count(DISTINCT product_id) = 1"
    left_out["products of other splits"] = store.number(
        f"SELECT count(*) FROM (SELECT product_id FROM {axes} EXCEPT SELECT product_id FROM {usable})"
    )
    left_out["styles of one product"] = store.number(f"SELECT count(*) FROM ({one})")
    num_rows, num_products, num_styles = store.run(
        f"SELECT count(*), count(DISTINCT product_id), count(DISTINCT style) FROM {changes}"
    )[0]
    summary = f"{settings}: {num_rows:,} rows composed of {num_products:,} products in {num_styles:,} styles"
    others = ", ".join(f"{number:,} {what}" for what, number in left_out.items() if number)
    for table in (axes, usable, changes):
        store.drop(table)
    return ComposedRows(
        manifest.with_rows(replace(rows, queries=queries)), f"{summary}; left out: {others}" if others else summary
    )


@dataclass(frozen=True)
class _Composer:
    rows: StoredRows
    settings: VariantSettings
    splits: tuple[str, str]
    seed: int

    def read_axes(self) -> tuple[str, dict[str, int]]:
        """Return the table of the products' attributes, and how many products lack which column."""
        settings, lacking, seen = self.settings, Counter[str](), Counter[str]()
        axes = RowWriter(self.rows.store, "axes", AXES)
        for position, product in enumerate(self.rows.read_products()):
            values = {name: value for name in settings.columns if (value := _value_of(product, name))}
            seen.update(("category", *product.metadata))
            missing = next((name for name in settings.columns if name not in values), None)
            if missing is not None:
                lacking[f"products without '{missing}'"] += 1
                continue
            for name in settings.attributes:
                rest = [values[other] for other in settings.columns if other != name]
                axes.add((position, product.product_id, values[settings.style], name, rest, values[name]))
        axes.flush()
        for name in settings.columns:
            if name not in seen:
                close = difflib.get_close_matches(name, seen, 1)
                hint = f"did you mean '{close[0]}'?" if close else f"they have {', '.join(sorted(seen)[:MAX_LISTED])}"
                raise ValueError(
                    f"{settings}: no product has a value in a column '{name}', if data.source.metadata keeps it; {hint}"
                )
        if self.rows.store.is_empty(axes.table):
            raise ValueError(f"{settings}: no product has a value in each of {', '.join(settings.columns)}")
        sizes = f"SELECT style, count(DISTINCT product_id) AS size FROM {axes.table} GROUP BY style"
        style, size = self.rows.store.run(f"{sizes} ORDER BY size DESC LIMIT 1")[0]
        if size > MAX_STYLE:
            raise ValueError(
                f"{settings}: {size:,} products have the {settings.style} '{style}', at most {MAX_STYLE:,} may; name "
                "the column whose value only the variants of one product share"
            )
        return axes.table, dict(lacking)

    def keep_splits(self, axes: str) -> str:
        """Return the table without products, and styles, that other splits name and the training split does not."""
        train = _quoted(self.splits[0])
        named = f"""SELECT product_id, bool_or(split = {train}) AS is_trained FROM (
            SELECT split, unnest(targets || ifnull(reference_ids, [])) AS product_id FROM {self.rows.queries}
        ) GROUP BY product_id"""
        return self.rows.store.select(
            "usable",
            f"""SELECT * EXCLUDE (is_trained, is_style_trained), is_style_trained IS NULL AS is_unnamed FROM (
                SELECT a.*, is_trained, bool_or(is_trained) OVER (PARTITION BY style) AS is_style_trained
                FROM {axes} a LEFT JOIN ({named}) n USING (product_id)
            ) WHERE ifnull(is_trained, true) AND ifnull(is_style_trained, true)""",
        )

    def list_changes(self, usable: str) -> str:
        """Return a table of changes: a product and its photo, another value, and the products that have it."""
        store, settings = self.rows.store, self.settings
        changes = store.select(
            "changes",
            f"""SELECT one.*, other.value AS new_value, targets,
            md5(concat_ws(chr(0), ?, product_id, attribute, new_value)) AS rank
            FROM {usable} one JOIN (
                SELECT attribute, rest, value, list(product_id ORDER BY product_position) AS targets
                FROM {usable} GROUP BY attribute, rest, value
            ) other USING (attribute, rest) WHERE one.value != other.value""",
            [str(self.seed)],
        )
        if store.is_empty(changes):
            attributes = " or ".join(settings.attributes)
            raise ValueError(f"{settings}: no style has two products to train on that differ in {attributes} alone")
        kept = store.select(
            "kept",
            f"""SELECT * FROM {changes}
            QUALIFY row_number() OVER (PARTITION BY product_id ORDER BY rank) <= {settings.rows_per_product}""",
        )
        photos = self._photos()
        chosen = store.select(
            "chosen",
            f"""SELECT c.*, p.image FROM {kept} c
            JOIN (SELECT *, count(*) OVER (PARTITION BY product_id) AS num_photos FROM {photos}) p
            ON p.product_id = c.product_id AND p.number = md5_number_lower(c.rank) % p.num_photos""",
        )
        for table in (changes, kept, photos):
            store.drop(table)
        if store.is_empty(chosen):
            raise ValueError(f"{settings}: no variant has a photo; see {KEY}.photos")
        return chosen

    def write_queries(self, changes: str) -> str:
        """Return a table of the queries with the composed ones after them."""
        store = self.rows.store
        queries = RowWriter(store, "queries", QUERIES)
        store.run(f"INSERT INTO {queries.table} FROM {self.rows.queries}")
        last = store.number(
            f"SELECT max(position) FROM (SELECT position FROM {self.rows.queries} UNION ALL "
            f"SELECT position FROM {self.rows.products})"
        )
        for number, query in enumerate(self._read_queries(changes), last + 1):
            queries.add(pack_query(number, query))
        queries.flush()
        return queries.table

    def _read_queries(self, changes: str) -> Iterator[Query]:
        for product_id, style, attribute, former, value, targets, image, is_unnamed in self.rows.store.read(
            f"""SELECT product_id, style, attribute, value, new_value, targets, image, is_unnamed
            FROM {changes} ORDER BY product_position, rank"""
        ):
            query_id = f"{COMPOSED}:{product_id}:{attribute}:{value}"
            is_held_out = is_unnamed and self._fraction_of(style) < self.settings.val_fraction
            yield Query(
                query_id=query_id,
                split=self.splits[1] if is_held_out else self.splits[0],
                image=image_of(image),
                text=self.settings.words(attribute, value, former, f"{self.seed}/{query_id}"),
                target_ids=tuple(targets),
                target_grades=(1,) * len(targets),
                reference_ids=(product_id,),
                segments={KIND: COMPOSED},
                origin=f"{self.settings}, product '{product_id}'",
            )

    def _fraction_of(self, style: str) -> float:
        return hash_id(f"{self.seed}/{style}") / 2**63

    def _photos(self) -> str:
        """Return a table of the photos of each product, numbered from 0."""
        settings, rows = self.settings, self.rows
        train = _quoted(self.splits[0])
        shown = f"""SELECT ifnull(reference_ids, targets)[1] AS product_id, image, position AS place FROM {rows.queries}
            WHERE split = {train} AND image IS NOT NULL AND len(ifnull(reference_ids, targets)) = 1"""
        own = f"""SELECT product_id, unnest(images) AS image, generate_subscripts(images, 1) AS place
            FROM {rows.products}"""
        if settings.photos == FROM_QUERIES:
            found = shown
        elif settings.photos == FROM_PRODUCTS:
            found = own
        else:
            found = f"{shown} UNION ALL FROM ({own}) ANTI JOIN ({shown}) s USING (product_id)"
        # a photo of several queries counts once
        return rows.store.select(
            "photos",
            f"""SELECT product_id, image,
            row_number() OVER (PARTITION BY product_id ORDER BY min(place), image) - 1 AS number
            FROM ({found}) GROUP BY product_id, image""",
        )


def _value_of(product: Product, column: str) -> str:
    value = product.category if column == "category" else product.metadata.get(column)
    return "" if value is None else str(value)


def _quoted(text: str) -> str:
    """Return a text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"
