"""A log of impressions in a `RowStore`: which products a query showed at which position, and which were clicked.

An impression is a row: one product of one answer. Rows are counted by query, product and position, and only counts are
in memory, by position.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mim_lightning.data.clicks.examination import PairedClicks
from mim_lightning.data.manifest.row_store import RowStore, RowWriter
from mim_lightning.data.manifest.rows import OnIssue, RowError, known_id, text_of
from mim_lightning.data.manifest.table import ColumnNames, Table, TableSpec, read_rows

IMPRESSIONS = TableSpec(
    "impressions",
    known=("query_id", "product_id", "position", "clicked", "impression_id"),
    required=("query_id", "product_id", "position", "clicked"),
)
NUM_GROUPS = 1000  # of queries, that intervals resample: with fewer queries each is one
CLICKED = dict.fromkeys(("1", "true", "t", "yes"), True) | dict.fromkeys(("", "0", "false", "f", "no"), False)
MAX_POSITION = 1_000_000


class ClickLog:
    """The impressions of a table, read into a store.

    A product that occurs twice in one answer counts once, at its first position, as clicked if any row says so.

    Args:
        table, columns: of the impressions.
        store: for the rows.
        max_position: deeper ones are left out.
        on_issue: gets each invalid row.
    """

    def __init__(
        self, table: Table, columns: ColumnNames, store: RowStore, max_position: int, on_issue: OnIssue
    ) -> None:
        self.store, self.max_position = store, max_position
        self.num_rows = self.num_deeper = 0
        log = RowWriter(
            store, "log", "answer VARCHAR, query_id VARCHAR, product_id VARCHAR, position INTEGER, clicked BOOLEAN"
        )
        for origin, row in read_rows(table, IMPRESSIONS, columns, on_issue):
            try:
                values = _parse(row)
            except RowError as error:
                on_issue(error.at(IMPRESSIONS.name, origin, known_id(row, "query_id")))
                continue
            self.num_rows += 1
            if values[3] > max_position:
                self.num_deeper += 1
            else:
                log.add(values)
        log.flush()
        # without an id of its answer a row is one of its own: nothing is known of what was shown above it
        self._rows = store.select(
            "shown",
            f"""SELECT answer, query_id, product_id, min(position) AS position, bool_or(clicked) AS clicked
            FROM {log.table} WHERE answer IS NOT NULL GROUP BY answer, query_id, product_id
            UNION ALL FROM {log.table} WHERE answer IS NULL""",
        )
        store.drop(log.table)
        #: rows (query_id, product_id, position, num_shown, num_clicked)
        self.counts = store.select(
            "counts",
            f"""SELECT query_id, product_id, position, count(*) AS num_shown, count(*) FILTER (clicked) AS num_clicked
            FROM {self._rows} GROUP BY query_id, product_id, position""",
        )

    def totals(self) -> dict[str, int]:
        """Return how many queries, shown products of them, impressions and clicks there are."""
        names = "query", "shown product", "impression", "click"
        row = self.store.run(
            f"""SELECT count(DISTINCT query_id), count(DISTINCT (query_id, product_id)),
            ifnull(sum(num_shown), 0)::BIGINT, ifnull(sum(num_clicked), 0)::BIGINT FROM {self.counts}"""
        )[0]
        return dict(zip(names, row, strict=True))

    def by_position(self) -> list[tuple[int, int]]:
        """Return the impressions and clicks of each position from the first to the deepest with a row."""
        found = self.store.run(
            f"SELECT position, sum(num_shown)::BIGINT, sum(num_clicked)::BIGINT FROM {self.counts} GROUP BY position"
        )
        by_position: Mapping[int, tuple[int, int]] = {position: (shown, clicked) for position, shown, clicked in found}
        return [by_position.get(position, (0, 0)) for position in range(1, max(by_position, default=0) + 1)]

    def paired_clicks(self, has_positions: bool = True) -> PairedClicks:
        """Return the clicks of products that a query showed at two positions; see `PairedClicks`.

        Args:
            has_positions: False: without the sums by position, whose memory grows with the square of their number.
        """
        num_positions = len(self.by_position()) if has_positions else 0
        groups = self.store.select(
            "groups",
            f"""SELECT query_id, ((row_number() OVER (ORDER BY query_id)) - 1) % {NUM_GROUPS} AS idx
            FROM (SELECT DISTINCT query_id FROM {self.counts})""",
        )
        num_groups = 1 + self.store.number(f"SELECT max(idx) FROM {groups}")
        clicks_GKL = np.zeros((num_groups, num_positions, num_positions))
        num_products_KL = np.zeros((num_positions, num_positions))
        sums = f"""SELECT idx, a.position - 1, b.position - 1, count(*),
            sum(a.num_clicked * (b.num_shown / (a.num_shown + b.num_shown))) AS clicked
            FROM {self.counts} a JOIN {self.counts} b USING (query_id, product_id) JOIN {groups} USING (query_id)
            WHERE a.position <> b.position GROUP BY ALL"""
        for group, position, other, count, clicked in self.store.read(sums) if has_positions else ():
            clicks_GKL[group, position, other] = clicked
            num_products_KL[position, other] += count
        return PairedClicks(clicks_GKL, num_products_KL, self._after_click(groups, num_groups))

    def _after_click(self, groups: str, num_groups: int) -> np.ndarray:
        sums_G2 = np.zeros((num_groups, 2))
        above = "bool_or(clicked) OVER (PARTITION BY answer, query_id ORDER BY position ROWS BETWEEN UNBOUNDED "
        above += "PRECEDING AND 1 PRECEDING)"
        rows = f"SELECT *, ifnull({above}, false) AS is_after FROM {self._rows} WHERE answer IS NOT NULL"
        # the same product at the same position of the same query, below a click and not
        cells = f"""SELECT query_id, count(*) FILTER (is_after) AS num_after, count(*) AS num,
            count(*) FILTER (clicked AND is_after) AS clicked_after, count(*) FILTER (clicked) AS num_clicked
            FROM ({rows}) GROUP BY query_id, product_id, position HAVING num_after > 0 AND num_after < num"""
        for group, after, expected in self.store.read(
            f"""SELECT idx, sum(clicked_after * ((num - num_after) / num)),
            sum((num_clicked - clicked_after) * (num_after / num))
            FROM ({cells}) JOIN {groups} USING (query_id) GROUP BY idx"""
        ):
            sums_G2[group] = after, expected
        return sums_G2

    def skipped(self) -> str:
        """Return the table (query_id, product_id, num_skipped) of products above a click that no answer had clicked.

        Those above the lowest click of their answer were examined, as the shopper went further down (Joachims 2002,
        "skip above"). A product that the query clicked in any answer is not among them.
        """
        lowest = "max(position) FILTER (clicked) OVER (PARTITION BY answer, query_id)"
        return self.store.select(
            "skipped",
            f"""SELECT query_id, product_id, count(*) AS num_skipped
            FROM (SELECT *, {lowest} AS lowest FROM {self._rows} WHERE answer IS NOT NULL)
            ANTI JOIN (FROM {self.counts} WHERE num_clicked > 0) USING (query_id, product_id)
            WHERE position < lowest GROUP BY query_id, product_id""",
        )


def _parse(row: Mapping[str, Any]) -> tuple[str | None, str, str, int, bool]:
    """Return answer, query, product, position and click of a row.

    Raises:
        RowError: an id is empty, or a number is none.
    """
    query_id, product_id = text_of(row, "query_id"), text_of(row, "product_id")
    for column, value in (("query_id", query_id), ("product_id", product_id)):
        if value is None:
            raise RowError(column, "empty")
    assert query_id is not None
    assert product_id is not None
    position = (text_of(row, "position") or "").removesuffix(".0")
    if not position.isdecimal() or not 0 < int(position[:9]) <= MAX_POSITION or len(position) > 9:
        raise RowError("position", f"'{position}': give a whole number from 1, the first position")
    clicked = (text_of(row, "clicked") or "").lower().removesuffix(".0")
    if clicked not in CLICKED and not clicked.isdecimal():
        raise RowError("clicked", f"'{clicked}': give 1 or 0, true or false, or a number of clicks")
    is_clicked = CLICKED[clicked] if clicked in CLICKED else int(clicked[:9]) > 0
    return text_of(row, "impression_id"), query_id, product_id, int(position), is_clicked
