"""What is kept of a manifest once bad rows and pictures are left out, and which queries go with their products.

A Manifest and bad findings come in; `check_manifest` asks which queries lose their answer, whoever writes shards
asks for the manifest that remains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mim_lightning.data.images.reader import ImageRef
from mim_lightning.data.manifest.manifest import Manifest, Product, Query
from mim_lightning.data.validation.findings import Finding
from mim_lightning.data.validation.report import CheckReport


def keep_good(manifest: Manifest, report: CheckReport) -> Manifest:
    """Return the manifest without the rows and pictures that its check found bad.

    Queries that more products answer keep the others.
    """
    rows = {finding.place for finding in report.skipped if finding.drops == "row"}
    pictures = {(finding.origin, finding.image) for finding in report.skipped if finding.drops == "picture"}
    products = {
        product_id: _keep_pictures(product, pictures)
        for product_id, product in manifest.products.items()
        if ("products", product.origin) not in rows
    }
    good = (query for query in manifest.queries if ("queries", query.origin) not in rows)
    queries = [_keep_answers(query, products) for query in good]
    return replace(manifest, products=products, queries=queries)


def find_unanswered(manifest: Manifest, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the queries that lose all their products to `findings`, with what was wrong with the first."""
    bad = [finding for finding in findings if finding.drops == "row"]
    rows = {finding.place for finding in bad}
    why = {finding.place: finding for finding in reversed(bad)}
    lost = {key for key, product in manifest.products.items() if ("products", product.origin) in rows}
    for query in manifest.queries:
        wanted = query.asked_ids or query.shown_ids
        if wanted and lost.issuperset(wanted) and ("queries", query.origin) not in rows:
            cause = why["products", manifest.products[wanted[0]].origin]
            what = f"its product '{wanted[0]}' is" if len(wanted) == 1 else f"all its {len(wanted)} products are"
            reason = f"{what} left out: {cause}"
            yield Finding("answer_left_out", "queries", query.origin, query.query_id, "product_id", reason, "row")


def _keep_pictures(product: Product, bad: set[tuple[str, ImageRef | None]]) -> Product:
    images = tuple(image for image in product.images if (product.origin, image) not in bad)
    return product if len(images) == len(product.images) else replace(product, images=images)


def _keep_answers(query: Query, products: dict[str, Product]) -> Query:
    if all(product_id in products for product_id in (*query.asked_ids, *query.shown_ids)):
        return query
    asked = [pair for pair in zip(query.asked_ids, query.asked_grades, strict=True) if pair[0] in products]
    return replace(
        query,
        asked_ids=tuple(product_id for product_id, _ in asked),
        asked_grades=tuple(grade for _, grade in asked),
        shown_ids=tuple(product_id for product_id in query.shown_ids if product_id in products),
    )
