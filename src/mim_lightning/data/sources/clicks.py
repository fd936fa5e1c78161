"""A catalog, queries and a log of what they showed and what was clicked, as a manifest of graded, weighted answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from mim_lightning.data.clicks.click_labels import LabelSettings, QueryLabels, label_queries, write_skipped
from mim_lightning.data.clicks.click_log import IMPRESSIONS, ClickLog
from mim_lightning.data.clicks.examination import (
    PairedClicks,
    estimate_after_click,
    estimate_examination,
)
from mim_lightning.data.images.download import DownloadSettings
from mim_lightning.data.manifest.builder import ManifestBuilder
from mim_lightning.data.manifest.click_report import ClickReport, Estimate, PositionRow
from mim_lightning.data.manifest.content_hash import table_id
from mim_lightning.data.manifest.decoding import TextFormat
from mim_lightning.data.manifest.manifest import (
    PRODUCTS,
    QUERIES,
    ByTable,
    Manifest,
    ManifestSource,
    changed_names,
    finish_manifest,
    with_fields,
)
from mim_lightning.data.manifest.row_store import RowStore, RowWriter
from mim_lightning.data.manifest.rows import OnIssue, RowError, ids_of, known_id, raise_issue, text_of
from mim_lightning.data.manifest.table import ColumnNames, TableSpec, open_table, read_rows
from mim_lightning.display.numbers import format_interval
from mim_lightning.io.paths import PathOrUrl, to_path_or_url

NEGATIVES_FILE = "negatives.parquet"  # of skipped products, in the working folder
ESTIMATED, NONE = "estimated", "none"
EXAMINATION = TableSpec("examination", known=("position", "examination"), required=("position", "examination"))
MAX_ESTIMATED = 100  # positions: what the estimate holds grows with the square of their number
MAX_SPREAD = 4.0  # ratio of an interval's ends above which an examination is not known


class ClicksSource:
    """Two tables as of `ManifestSource`, and one of impressions: a row is a product that an answer showed.

    A query without products of its own gets those that it clicked, graded and weighted, beside a weight of its own, so
    that the position at which they were shown does not count; without a click it is left out. Products that queries
    skipped are written as a table of hard negatives.

    Args:
        impressions: the table: a path or URL of a file, a folder or a pattern.
        products, queries: see ManifestSource; queries are found by their id.
        columns: our column name -> the file's, by table, "impressions" too.
        examination: "estimated" from the log; "none": every position alike, so that clicks are counted; or a table of
            position and examination that was learnt elsewhere.
        max_position: deeper positions are left out; at most MAX_ESTIMATED where they are estimated.
        min_examination, min_clicks, max_grade, min_skips, max_negatives: see LabelSettings.
        image_root, segments, metadata, download, encoding, delimiter, clean_html, fields: see ManifestSource.
    """

    def __init__(
        self,
        impressions: str,
        products: str,
        queries: str,
        columns: Mapping[str, ColumnNames] | None = None,
        examination: str = ESTIMATED,
        max_position: int = 20,
        min_examination: float = 0.1,
        min_clicks: int = 1,
        max_grade: int = 4,
        min_skips: int = 2,
        max_negatives: int = 8,
        image_root: str | None = None,
        segments: Sequence[str] = (),
        metadata: Sequence[str] | None = None,
        download: DownloadSettings | None = None,
        encoding: ByTable = None,
        delimiter: ByTable = None,
        clean_html: bool = False,
        fields: Mapping[str, str | None] | None = None,
    ) -> None:
        if not 0 < min_examination <= 1:
            raise ValueError(f"data.source.min_examination={min_examination}: give a number above 0, up to 1")
        at_least = {"max_position": 1, "min_clicks": 1, "max_grade": 1, "min_skips": 1, "max_negatives": 0}
        for name, value in zip(at_least, (max_position, min_clicks, max_grade, min_skips, max_negatives), strict=True):
            if value < at_least[name]:
                raise ValueError(f"data.source.{name}={value}: must be {at_least[name]} or more")
        if examination == ESTIMATED and max_position > MAX_ESTIMATED:
            raise ValueError(
                f"data.source.max_position={max_position}: the examination of at most {MAX_ESTIMATED} positions is "
                "estimated; give fewer, or data.source.examination=none or a table of position,examination"
            )
        columns = {table: dict(names) for table, names in (columns or {}).items()}
        self.columns = columns.pop(IMPRESSIONS.name, {})
        self.impressions, self.examination, self.max_position = to_path_or_url(impressions), examination, max_position
        self.labels = LabelSettings(min_examination, min_clicks, max_grade, min_skips, max_negatives)
        self.tables = ManifestSource(
            products,
            queries,
            columns,
            image_root,
            segments,
            metadata,
            download,
            encoding,
            delimiter,
            clean_html,
            fields,
        )

    def read(self, work_dir: Path, on_issue: OnIssue = raise_issue) -> Manifest:
        tables = self.tables
        products, queries = tables.open(PRODUCTS.name), tables.open(QUERIES.name)
        if products is None or queries is None:
            raise ValueError("data.source: data=clicks needs a table of products and one of queries")
        builder = ManifestBuilder(products.name, on_issue, tables.segments, tables.metadata, tables.clean_html)
        log = ClickLog(
            open_table(self.impressions, IMPRESSIONS.name, TextFormat(table=IMPRESSIONS.name)),
            self.columns,
            builder.store,
            self.max_position,
            on_issue,
        )
        positions, after_click = self._positions(log)
        names = {table: tables.columns.get(table) or {} for table in (PRODUCTS.name, QUERIES.name)}
        known = RowWriter(builder.store, "known", "product_id VARCHAR")
        spec = with_fields(PRODUCTS, tables.fields)
        for origin, row in read_rows(products, spec, names[PRODUCTS.name], builder.report, tables.metadata):
            builder.add_product(origin, row, tables.image_root or products.root)
            known.add((known_id(row, "product_id"),))
        known.flush()
        spec = replace(QUERIES, known=(*QUERIES.known, *tables.segments), required=("split", "image", *tables.segments))
        spec = with_fields(spec, tables.fields)
        rows = partial(read_rows, queries, spec, names[QUERIES.name])
        asked = _number_queries(builder.store, rows(lambda issue: None))
        examination = [row.examination.value for row in positions]
        labels = label_queries(log, examination, asked, known.table, self.labels)
        counts = _add_queries(builder, rows(builder.report), labels, tables.image_root or queries.root)
        skipped = write_skipped(log, asked, known.table, self.labels, work_dir / NEGATIVES_FILE)
        counts["skipped product"] = skipped
        report = ClickReport(
            str(self.impressions), log.num_rows, self.examination, positions, after_click, log.totals() | counts
        )
        return replace(finish_manifest(builder, queries.name), download=tables.download, clicks=report)

    def describe(self) -> dict[str, Any]:
        own = {"examination": self.examination, "max_position": self.max_position} | asdict(self.labels)
        if self.examination not in (ESTIMATED, NONE):
            own["examination"] = table_id(to_path_or_url(self.examination))
        columns = changed_names({IMPRESSIONS.name: self.columns})
        return self.tables.describe() | {"impressions": table_id(self.impressions), "clicks": own | columns}

    def _positions(self, log: ClickLog) -> tuple[tuple[PositionRow, ...], Estimate | None]:
        """Return what is known of each position, and of clicks below a click.

        Raises:
            ValueError: the log does not say how often positions are examined.
        """
        by_position = log.by_position()
        if not any(clicked for _, clicked in by_position):
            raise ValueError(f"{self.impressions}: has no click up to position {self.max_position}")
        paired = log.paired_clicks(has_positions=self.examination == ESTIMATED)
        found = self._examinations(paired, len(by_position))
        rows = (
            PositionRow(position, shown, clicked, estimate, 1 / max(estimate.value, self.labels.min_examination))
            for position, ((shown, clicked), estimate) in enumerate(zip(by_position, found, strict=True), start=1)
        )
        return tuple(rows), estimate_after_click(paired)

    def _examinations(self, paired: PairedClicks, num_positions: int) -> Sequence[Estimate]:
        if self.examination == NONE:
            return [Estimate(1.0, 1.0, 1.0)] * num_positions
        if self.examination != ESTIMATED:
            return _read_examination(to_path_or_url(self.examination), num_positions)
        other = (
            "change rankers or shuffle a small part of the answers, lower data.source.max_position, or give "
            "data.source.examination=none (clicks are counted as they are) or a table of position,examination"
        )
        try:
            found = estimate_examination(paired)
        except ValueError as error:
            raise ValueError(f"{self.impressions}: examination cannot be estimated: {error}; {other}") from error
        for position, estimate in enumerate(found, start=1):
            if estimate.spread > MAX_SPREAD:
                ends = format_interval(estimate.low, estimate.high)
                raise ValueError(
                    f"{self.impressions}: examination cannot be estimated: at position {position} its 95 % interval is "
                    f"{ends}, too wide to weigh clicks by; collect more clicks, {other}"
                )
        return found


def _read_examination(path: PathOrUrl, num_positions: int) -> list[Estimate]:
    """Return the examinations of a table, whose ends are not known.

    Raises:
        ValueError: a position is missing, or a value is not above 0.
    """
    found: dict[str, float] = {}
    for origin, row in read_rows(open_table(path, EXAMINATION.name), EXAMINATION, {}):
        try:
            found[text_of(row, "position") or ""] = value = float(text_of(row, "examination") or "")
        except ValueError:
            value = 0.0
        if not 0 < value < math.inf:
            raise ValueError(f"{origin}, column 'examination': '{row['examination']}': give a number above 0")
    missing = next((str(position) for position in range(1, num_positions + 1) if str(position) not in found), None)
    if missing is not None:
        raise ValueError(f"data.source.examination={path}: has no position {missing}; the log has {num_positions}")
    values = [found[str(position)] / found["1"] for position in range(1, num_positions + 1)]
    return [Estimate(value, value, value) for value in values]


def _number_queries(store: RowStore, rows: Iterator[tuple[str, dict[str, Any]]]) -> str:
    """Return the table (number, query_id) of the queries without products of their own."""
    asked = RowWriter(store, "asked", "number BIGINT, query_id VARCHAR")
    for number, (_, row) in enumerate(rows):
        if not _has_products(row) and (query_id := known_id(row, "query_id")):
            asked.add((number, query_id))
    asked.flush()
    return asked.table


def _add_queries(
    builder: ManifestBuilder,
    rows: Iterator[tuple[str, dict[str, Any]]],
    labels: Iterator[QueryLabels],
    root: PathOrUrl,
) -> dict[str, int]:
    """Add the queries with their own or their clicked products, and count the others."""
    counts = dict.fromkeys(("labeled query", "answer", "query without a click"), 0)
    label = next(labels, None)
    for number, (origin, row) in enumerate(rows):
        if label is not None and label.number == number:
            counts["labeled query"] += 1
            counts["answer"] += len(label.product_ids)
            answers = {"product_id": label.product_ids, "grade": label.grades, "weight": _weigh(row, label)}
            builder.add_query(origin, row | answers, root)
            label = next(labels, None)
        elif _has_products(row):
            builder.add_query(origin, row, root)
        else:
            counts["query without a click"] += 1
    return counts


def _has_products(row: Mapping[str, Any]) -> bool:
    """Return whether a query has products of its own, be they valid or not."""
    try:
        return bool(ids_of(row, "product_id"))
    except RowError:
        return True


def _weigh(row: Mapping[str, Any], label: QueryLabels) -> Any:
    """Return the weights of the clicked products, each times that of the query's row."""
    own = row.get("weight")
    try:
        factor = float(own) if own not in (None, "") else 1.0
    except (TypeError, ValueError):
        return own  # invalid, as it is in any row
    return [factor * weight for weight in label.weights]
