"""Graded, weighted answers of queries, and products that they skipped, from a log of impressions and clicks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mim_lightning.data.clicks.click_log import ClickLog
from mim_lightning.data.manifest.row_store import RowStore
from mim_lightning.io.atomic import atomic_write


@dataclass(frozen=True)
class QueryLabels:
    """The clicked products of one query, best first."""

    number: int  # of the query, from 0
    product_ids: list[str]
    grades: list[int]
    weights: list[float]  # mean 1 over all products of all queries


@dataclass(frozen=True)
class LabelSettings:
    """How clicks become answers.

    Args:
        min_examination: lower examinations count as this one, so no click weighs more than its inverse.
        min_clicks: of a query on a product, to be an answer.
        max_grade: of the product of a query with the highest click rate an examination.
        min_skips: answers in which a product was skipped, to be a negative.
        max_negatives: of a query, the most often skipped.

    Source: clicks weighted by inverse propensity (Joachims, Swaminathan and Schnabel 2017), clipped as in Strehl et al.
    2010; skip-above as in Joachims 2002; grades are our choice.
    """

    min_examination: float = 0.1
    min_clicks: int = 1
    max_grade: int = 4
    min_skips: int = 2
    max_negatives: int = 8


def label_queries(
    log: ClickLog, examination: Sequence[float], queries: str, products: str, settings: LabelSettings
) -> Iterator[QueryLabels]:
    """Yield the labels of the queries that clicked on a known product, in the order of their numbers.

    A product weighs what its clicks would be if every position were examined as the first one is. Its grade compares
    clicks an examination, of which one at the mean rate is added, with those of the query's best product.

    Args:
        examination: of each position from the first.
        queries: a table (number, query_id) in the log's store.
        products: a table (product_id): others are no answers and no negatives.
        settings: see `LabelSettings`.
    """
    store = log.store
    pairs = _weigh(log, examination, products, settings)
    labels = store.select(
        "labels",
        f"""SELECT number, list(product_id ORDER BY rate DESC, product_id) AS ids,
        list(greatest(1, round({settings.max_grade} * rate / best))::INTEGER ORDER BY rate DESC, product_id) AS grades,
        list(weight ORDER BY rate DESC, product_id) AS weights
        FROM (SELECT *, max(rate) OVER (PARTITION BY query_id) AS best FROM {pairs}) JOIN {queries} USING (query_id)
        GROUP BY number""",
    )
    mean = store.run(f"SELECT avg(weight) FROM (SELECT unnest(weights) AS weight FROM {labels})")[0][0]
    for number, product_ids, grades, weights in store.read(f"FROM {labels} ORDER BY number"):
        yield QueryLabels(number, product_ids, grades, [weight / mean for weight in weights])


def write_skipped(log: ClickLog, queries: str, products: str, settings: LabelSettings, path: Path) -> int:
    """Write the products that queries skipped as a table of hard negatives, and return their number.

    None of them was clicked by its query; an answer of the query is a clicked product, so none is an answer.

    Args:
        queries, products: see `label_queries`.
        path: of the file, see `data.sampling.negative_table`; it is not written without a product.
    """
    store = log.store
    skipped = store.select(
        "skipped",
        f"""SELECT query_id, list(product_id ORDER BY num_skipped DESC, product_id)[:{settings.max_negatives}] AS ids
        FROM {log.skipped()} SEMI JOIN {products} USING (product_id) SEMI JOIN {queries} USING (query_id)
        WHERE num_skipped >= {settings.min_skips} GROUP BY query_id""",
    )
    num_skipped = store.number(f"SELECT sum(len(ids)) FROM {skipped}")
    if num_skipped:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            target = str(partial).replace("'", "''")
            found = f"SELECT query_id, ids AS negative_ids FROM {skipped} ORDER BY query_id"
            store.run(f"COPY ({found}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
    return num_skipped


def _weigh(log: ClickLog, examination: Sequence[float], products: str, settings: LabelSettings) -> str:
    """Return the table (query_id, product_id, weight, rate) of clicked products."""
    store = log.store
    clipped = _table(store, [max(value, settings.min_examination) for value in examination])
    overall = f"SELECT sum(num_clicked) / sum(num_shown * p) FROM {log.counts} JOIN {clipped} USING (position)"
    mean_rate = store.run(overall)[0][0] or 0.0
    return store.select(
        "weighed",
        f"""SELECT query_id, product_id, sum(num_clicked / p) AS weight,
        (sum(num_clicked) + ?) / (sum(num_shown * p) + 1) AS rate
        FROM {log.counts} JOIN {clipped} USING (position) SEMI JOIN {products} USING (product_id)
        GROUP BY query_id, product_id HAVING sum(num_clicked) >= {settings.min_clicks}""",
        [mean_rate],
    )


def _table(store: RowStore, examination: Sequence[float]) -> str:
    table = store.create("examination", "position INTEGER, p DOUBLE")
    store.write(table, list(enumerate(examination, start=1)))
    return table
