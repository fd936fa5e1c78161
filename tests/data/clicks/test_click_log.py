"""Counts, pairs of positions and skipped products of a log equal loops over its rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from mim_lightning.data.clicks.click_log import ClickLog
from mim_lightning.data.manifest.row_store import RowStore
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.manifest.table import open_table
from tests.data.clicks.logs import click_log, draw_rows
from tests.data.clicks.test_examination import paired

ROWS = draw_rows(4, lambda position: 1 / position)


def test_sums_equal_loops_over_the_rows(tmp_path: Path) -> None:
    log = click_log(tmp_path / "log.csv", ROWS)
    shown: Counter[tuple[str, str, int]] = Counter()
    clicks: Counter[tuple[str, str, int]] = Counter()
    for _, query, product, position, is_clicked in ROWS:
        shown[query, product, position] += 1
        clicks[query, product, position] += is_clicked
    found = log.store.run(f"SELECT query_id, product_id, position, num_shown, num_clicked FROM {log.counts}")
    assert {tuple(row[:3]): tuple(row[3:]) for row in found} == {key: (shown[key], clicks[key]) for key in shown}
    assert log.totals() == {
        "query": 4,
        "shown product": len({key[:2] for key in shown}),
        "impression": len(ROWS),
        "click": sum(clicks.values()),
    }
    tables = np.zeros((2, 4, 9, 4))
    for (query, product, position), count in shown.items():
        place = int(query[1:]), int(product[1:]), position - 1
        tables[0][place], tables[1][place] = count, clicks[query, product, position]
    wanted = paired(*tables)
    sums = log.paired_clicks()
    without = log.paired_clicks(has_positions=False)
    assert without.num_positions == 0
    np.testing.assert_array_equal(without.after_click, sums.after_click)
    np.testing.assert_allclose(sums.clicks, wanted.clicks)
    np.testing.assert_array_equal(sums.num_products, wanted.num_products)


def test_clicks_below_a_click_and_skipped_products_equal_loops(tmp_path: Path) -> None:
    log = click_log(tmp_path / "log.csv", ROWS)
    answers = defaultdict(list)
    for answer, query, product, position, is_clicked in ROWS:
        answers[answer, query].append((position, product, is_clicked))
    cells: dict[tuple[str, str, int], list[tuple[bool, bool]]] = defaultdict(list)
    clicked = {(query, product) for _, query, product, _, is_clicked in ROWS if is_clicked}
    skipped: Counter[tuple[str, str]] = Counter()
    for (_, query), shown in answers.items():
        lowest = max((position for position, _, is_clicked in shown if is_clicked), default=0)
        for position, product, is_clicked in shown:
            is_after = any(other and place < position for place, _, other in shown)
            cells[query, product, position].append((is_after, is_clicked))
            if position < lowest and (query, product) not in clicked:
                skipped[query, product] += 1
    sums = np.zeros(2)
    for rows in cells.values():
        after, before = ([click for is_after, click in rows if is_after is wanted] for wanted in (True, False))
        if after and before:
            sums += np.array([sum(after) * len(before), sum(before) * len(after)]) / len(rows)
    np.testing.assert_allclose(log.paired_clicks().after_click.sum(0), sums)
    assert sums[1] > 0
    assert skipped
    assert {(query, product): count for query, product, count in log.store.run(f"FROM {log.skipped()}")} == skipped


def test_a_product_counts_once_an_answer_and_invalid_rows_are_reported(tmp_path: Path) -> None:
    path, issues = tmp_path / "log.csv", []
    path.write_text(
        "query_id,product_id,position,clicked,impression_id\n"
        "q,a,1,0.0,x\nq,a,1,true,x\nq,a,3,0,y\nq,b,2.0,False,\nq,b,2,3.0,\nq,c,9,1,x\n"
        "q,,1,0,x\nq,a,0,0,x\nq,a,one,0,x\nq,a,1,maybe,x\n"
    )
    log = ClickLog(open_table(path, "impressions"), {}, RowStore(), 5, issues.append)
    wanted = [("q", "a", 1, 1, 1), ("q", "a", 3, 1, 0), ("q", "b", 2, 2, 1)]
    assert sorted(log.store.run(f"FROM {log.counts}")) == wanted
    assert (log.num_rows, log.num_deeper) == (6, 1)
    assert [issue.column for issue in issues] == ["product_id", "position", "position", "clicked"]
    assert all(isinstance(issue, RowIssue) and issue.table == "impressions" for issue in issues)
    reason = "'maybe': give 1 or 0, true or false, or a number of clicks"
    assert str(issues[-1]) == f"{path}, row 11, column 'clicked': {reason}"


def test_a_missing_column_names_its_key(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("query_id,product_id,rank,clicked\nq,a,1,0\n")
    with pytest.raises(ValueError, match=r"missing column 'position'.*data.source.columns.impressions.position="):
        ClickLog(open_table(tmp_path / "log.csv", "impressions"), {}, RowStore(), 5, lambda issue: None)
