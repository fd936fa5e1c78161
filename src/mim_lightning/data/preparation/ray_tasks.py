"""The tasks of a cluster: join queries with products, and write shards.

Each is a function from Arrow tables, as Ray Data groups them, to Arrow tables. Nothing here imports Ray.
"""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mim_lightning.data.images.download import DownloadSettings
from mim_lightning.data.images.reader import ImageReader
from mim_lightning.data.manifest.manifest import PRODUCTS, QUERIES
from mim_lightning.data.manifest.rows import IssueType, Origin, Product, Query, RowError, RowIssue, join_query
from mim_lightning.data.preparation.hash_layout import NAMES_PER_SHARD, HashLayout
from mim_lightning.data.preparation.plan import (
    PlannedSample,
    RecordReader,
    RowImageError,
    catalog_sample,
    category_of,
    evaluation_sample,
    training_sample,
)
from mim_lightning.data.preparation.ray_tables import CATALOG, joined_schema
from mim_lightning.data.shards.set_writer import find_marker, place_shard, read_notes
from mim_lightning.data.shards.shard_writer import Record, write_shard
from mim_lightning.fields import PRODUCT_IMAGE
from mim_lightning.ids import NO_KEY
from mim_lightning.io.store import Store

NO_ISSUES = "[]"  # as JSON
INCOMPLETE = "n"  # ends the content id in the marker of a shard without its invalid rows, which its notes list


@dataclass(frozen=True)
class Joined:
    """A query with one of its products; `turn` as in `training_sample`."""

    query: Query
    product_id: str
    product: Product | None  # None: no table has it
    turn: int


@dataclass(frozen=True)
class ShardJob:
    """What a task needs to write a shard, besides its rows."""

    store: Store
    layout: HashLayout
    train_split: str
    max_image_side: int
    products_name: str  # of the table, for messages
    content_id: str  # for the markers of complete shards
    download: DownloadSettings | None


def join_part(table: Any, finished: frozenset[int]) -> Any:
    """Return each query with its product; rows of finished shards only count for the turns."""
    import pyarrow

    product_ids, queries = table["product_id"].to_pylist(), table["query"]
    is_product = table["product"].is_valid().to_numpy()
    products: dict[str, bytes] = {}
    for row in np.flatnonzero(is_product).tolist():
        packed = table["product"][row].as_py()
        # of a repeated product always the same row is taken; the catalog's shard reports the issue
        products[product_ids[row]] = min(packed, products.get(product_ids[row], packed))
    shards = table["shard"].to_numpy()
    turns = _turns(product_ids, table["turn_key"].to_numpy())
    wanted = [row for row in np.flatnonzero(~is_product).tolist() if int(shards[row]) not in finished]
    bodies = []
    for row in wanted:
        product_id = product_ids[row]
        bodies.append(pickle.dumps((queries[row].as_py(), product_id, products.get(product_id), turns.get(row, 0))))
    arrays = [pyarrow.array(shards[wanted]), pyarrow.array(bodies, pyarrow.binary())]
    return pyarrow.Table.from_arrays(arrays, schema=joined_schema())


def _turns(product_ids: list[str], turn_keys: np.ndarray) -> dict[int, int]:
    """Return the turn of each training row, as in `training_sample`."""
    queues: dict[str, list[int]] = defaultdict(list)
    for row in np.flatnonzero(turn_keys != NO_KEY).tolist():
        queues[product_ids[row]].append(row)
    return {
        row: turn
        for rows in queues.values()
        for turn, row in enumerate(sorted(rows, key=lambda row: int(turn_keys[row])))
    }


def write_group(table: Any, job: ShardJob) -> dict[str, list[Any]]:
    """Write the shard of these rows unless it is finished, and return one row.

    Ray executes a task again when the node of its result was lost, at any time after the shard was written.

    Columns: rows and bytes written, issues (JSON: the invalid rows), error ("" or why there is no shard).
    """
    number = int(table["shard"][0].as_py())
    try:
        size, num_bytes, issues = _write(number, (pickle.loads(body) for body in table["body"].to_pylist()), job)
    except (OSError, ValueError) as error:
        return _result(0, 0, NO_ISSUES, " ".join(str(error).split()) or type(error).__name__)
    return _result(size, num_bytes, issues, "")


def _write(number: int, bodies: Iterable[Any], job: ShardJob) -> tuple[int, int, str]:
    set_name, shard_idx = job.layout.locate(number)
    marker = find_marker(job.store, set_name, shard_idx)
    if marker is not None and marker.content_id.removesuffix(INCOMPLETE) == job.content_id:
        (notes,) = read_notes(job.store, set_name, [marker])
        return marker.size, marker.num_bytes, notes or NO_ISSUES
    issues: list[RowIssue] = []
    samples = _catalog(bodies, issues) if set_name == CATALOG else _queries(map(_unpack, bodies), job, issues)
    samples.sort(key=lambda sample: job.layout.rank(_identity(sample)))
    with job.store.scratch() as scratch:
        stem = scratch / "shard"
        records = _read(samples, _record_reader(job.download, job.max_image_side), issues)
        facts = write_shard(stem, records, shard_idx * NAMES_PER_SHARD)
        packed = json.dumps([asdict(issue) for issue in issues])
        kind, notes = (job.content_id + INCOMPLETE, packed) if issues else (job.content_id, "")
        place_shard(job.store, set_name, shard_idx, stem, facts, kind, notes)
    return facts.size, facts.num_bytes, packed


def _result(rows: int, num_bytes: int, issues: str, error: str) -> dict[str, list[Any]]:
    return {"rows": [rows], "bytes": [num_bytes], "issues": [issues], "error": [error]}


def _unpack(body: tuple[bytes, str, bytes | None, int]) -> Joined:
    query, product_id, product, turn = body
    return Joined(pickle.loads(query), product_id, pickle.loads(product) if product else None, turn)


def _catalog(products: Iterable[Product], issues: list[RowIssue]) -> list[PlannedSample]:
    samples: list[PlannedSample] = []
    first: dict[str, Product] = {}
    for product in sorted(products, key=lambda product: _place(product.origin)):
        if product.product_id in first:
            reason = f"'{product.product_id}' is already in {first[product.product_id].origin}"
            error = RowError("product_id", reason, IssueType.DUPLICATE_ID)
            issues.append(error.at(PRODUCTS.name, product.origin, product.product_id))
            continue
        first[product.product_id] = product
        samples += [catalog_sample(product, image) for image in product.images or (None,)]
    return samples


def _queries(joined: Iterable[Joined], job: ShardJob, issues: list[RowIssue]) -> list[PlannedSample]:
    """Return the samples of the queries of one shard; all rows of a query are among them."""
    samples: list[PlannedSample] = []
    for query, rows in _by_query(joined, issues):
        missing = next((row.product_id for row in rows if row.product is None), None)
        if missing is not None:
            column = "product_id" if missing in query.target_ids else "shown_product_id"
            error = RowError(column, f"product '{missing}' is not in {job.products_name}", IssueType.UNKNOWN_PRODUCT)
            issues.append(error.at(QUERIES.name, query.origin, query.query_id))
            continue
        found = {row.product_id: row for row in rows}
        products = {row.product_id: row.product for row in rows if row.product is not None}
        category = category_of(query, products)
        if query.split == job.train_split:
            samples += [
                training_sample(query, products[product_id], found[product_id].turn, category)
                for product_id in query.target_ids
            ]
        else:
            samples.append(evaluation_sample(query, category))
    return samples


def _by_query(joined: Iterable[Joined], issues: list[RowIssue]) -> Iterator[tuple[Query, list[Joined]]]:
    """Yield each query with its rows; of rows that differ in more than their products the first by origin is kept."""
    by_id: dict[str, dict[str, list[Joined]]] = defaultdict(lambda: defaultdict(list))
    for row in joined:
        by_id[row.query.query_id][row.query.origin].append(row)
    for query_id, by_origin in by_id.items():
        first, *others = sorted(by_origin, key=_place)
        query, rows = by_origin[first][0].query, by_origin[first]
        for origin in others:
            try:
                query = join_query(query, by_origin[origin][0].query)
                rows += by_origin[origin]
            except RowError as error:
                issues.append(error.at(QUERIES.name, origin, query_id))
        yield query, rows


def _place(origin: str) -> tuple[str, int]:
    """Return file and number of a row, to sort by: as text, row 10 is before row 9."""
    assert isinstance(origin, Origin), "rows of a table"
    return origin.file, origin.number


def _read(samples: Iterable[PlannedSample], reader: RecordReader, issues: list[RowIssue]) -> Iterator[Record]:
    for sample in samples:
        try:
            yield reader.record(sample)
        except RowImageError as error:
            issues.append(error.issue)


def _identity(sample: PlannedSample) -> str:
    facts: Mapping[str, Any] = sample.facts
    image = sample.images.get(PRODUCT_IMAGE)  # a product may have several
    return f"{facts.get('query_id')}/{facts.get('product_id')}/{image[0] if image else ''}"


@lru_cache(maxsize=1)  # a process writes one shard after the other
def _record_reader(download: DownloadSettings | None, max_image_side: int) -> RecordReader:
    return RecordReader(ImageReader(download), max_image_side)
