"""A log of clicks becomes graded, weighted answers that do not depend on where products were shown."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mim_lightning.analysis.html.validation_page import write_validation_report
from mim_lightning.data.manifest.click_report import ClickReport
from mim_lightning.data.manifest.rows import Query, RowError, parse_query
from mim_lightning.data.preparation.preparation import Validation, prepare_shards
from mim_lightning.data.preparation.prepared import ShardSettings
from mim_lightning.data.sampling.negative_table import read_negatives
from mim_lightning.data.sources import clicks
from mim_lightning.data.sources.clicks import ClicksSource
from mim_lightning.ids import NO_KEY, hash_id
from tests.data.clicks.logs import Row, draw_rows, write_log

NUM_QUERIES = 40
COLUMNS = {"queries": {"image": None}, "products": {"image": None}}


def examine(position: int) -> float:
    return 1 / position


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    # products 7 and 8 are not in the catalog
    return draw_rows(NUM_QUERIES, examine, num_answers=20)


def write_shop(folder: Path, rows: list[Row], labeled: str = "") -> dict[str, Any]:
    (folder / "products.csv").write_text("product_id,title\n" + "".join(f"p{n},thing {n}\n" for n in range(7)))
    queries = [f"q{n},{'train' if n % 4 else 'val'},thing,{labeled if n == 3 else ''}\n" for n in range(NUM_QUERIES)]
    (folder / "queries.csv").write_text(
        "query_id,split,text,product_id\n" + "".join(queries) + "quiet,train,no click,\n"
    )
    write_log(folder / "log.csv", rows)
    paths = {name: str(folder / f"{name}.csv") for name in ("products", "queries")}
    return {"impressions": str(folder / "log.csv"), "columns": COLUMNS, **paths}


def read(source: ClicksSource | dict[str, Any], folder: Path) -> tuple[dict[str, Query], ClickReport]:
    manifest = (source if isinstance(source, ClicksSource) else ClicksSource(**source)).read(folder)
    assert manifest.clicks is not None
    return {query.query_id: query for query in manifest.queries}, manifest.clicks


def test_answers_are_weighed_by_the_inverse_examination_and_graded(tmp_path: Path, rows: list[Row]) -> None:
    arguments = write_shop(tmp_path, rows, labeled="p1|p2")
    queries, report = read(arguments | {"min_examination": 0.3}, tmp_path)
    found = [row.examination for row in report.positions]
    assert all(each.low <= examine(place) <= each.high for place, each in enumerate(found, start=1))
    assert [row.weight for row in report.positions] == pytest.approx([1 / max(each.value, 0.3) for each in found])
    examined = [max(each.value, 0.3) for each in found]
    weights: dict[tuple[str, str], float] = defaultdict(float)
    exposures: dict[tuple[str, str], float] = defaultdict(float)
    clicks: dict[tuple[str, str], int] = defaultdict(int)
    for _, query, product, position, is_clicked in rows:
        weights[query, product] += is_clicked / examined[position - 1]
        exposures[query, product] += examined[position - 1]
        clicks[query, product] += is_clicked
    mean_rate = sum(clicks.values()) / sum(exposures.values())
    kept = {key for key, number in clicks.items() if number and key[1] < "p7" and key[0] != "q3"}
    mean_weight = sum(weights[key] for key in kept) / len(kept)
    for query_id in (f"q{number}" for number in range(NUM_QUERIES)):
        query, own = queries[query_id], sorted(product for name, product in kept if name == query_id)
        if query_id == "q3":  # its answers are known
            assert (query.target_ids, query.target_grades, query.weight) == (("p1", "p2"), (1, 1), 1)
            continue
        rates = {p: (clicks[query_id, p] + mean_rate) / (exposures[query_id, p] + 1) for p in own}
        grades = {p: max(1, round(4 * rate / max(rates.values()))) for p, rate in rates.items()}
        assert dict(zip(query.target_ids, query.target_grades, strict=True)) == grades
        assert query.target_grades[0] == 4
        for product in own:
            weight = query.product_weights.get(product, query.weight)
            assert weight == pytest.approx(weights[query_id, product] / mean_weight)
    assert "quiet" not in queries
    assert report.counts["query without a click"] == 1
    assert (report.num_rows, report.counts["answer"]) == (len(rows), len(kept))


def test_weights_and_products_of_a_query_count_beside_its_clicks(tmp_path: Path, rows: list[Row]) -> None:
    arguments = write_shop(tmp_path, rows) | {"examination": "none"}
    plain, _ = read(arguments, tmp_path)
    queries = [
        {"query_id": f"q{n}", "split": "train", "text": "thing", "weight": 3 if n == 1 else None, "product_id": ids}
        for n, ids in enumerate((["p1", "p2"], [], [" "], None))
    ]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    found, report = read(arguments | {"queries": str(tmp_path / "queries.jsonl")}, tmp_path)
    assert found["q0"].target_ids == ("p1", "p2") and report.counts["labeled query"] == 3
    assert found["q1"].target_ids == plain["q1"].target_ids and found["q2"].target_ids == plain["q2"].target_ids
    assert found["q1"].weight / found["q2"].weight == pytest.approx(3 * plain["q1"].weight / plain["q2"].weight)
    with pytest.raises(ValueError, match=r"data\.source\.max_position=101: the examination of at most 100 positions"):
        ClicksSource(**arguments | {"examination": "estimated", "max_position": 101})


def test_clicks_are_counted_without_examination_and_weighed_by_a_table(tmp_path: Path, rows: list[Row]) -> None:
    arguments = write_shop(tmp_path, rows)
    counted, report = read(arguments | {"examination": "none"}, tmp_path)
    assert {row.weight for row in report.positions} == {1.0}
    (tmp_path / "curve.csv").write_text("position,examination\n1,2\n2,2\n3,2\n4,2\n")
    flat, _ = read(arguments | {"examination": str(tmp_path / "curve.csv")}, tmp_path)
    assert {key: (query.target_grades, query.weight) for key, query in flat.items()} == {
        key: (query.target_grades, query.weight) for key, query in counted.items()
    }
    (tmp_path / "curve.csv").write_text("position,examination\n1,1\n2,0.5\n4,0.2\n")
    with pytest.raises(ValueError, match=r"curve\.csv: has no position 3; the log has 4"):
        read(arguments | {"examination": str(tmp_path / "curve.csv")}, tmp_path)


def test_a_log_that_does_not_vary_is_refused_in_one_line(
    tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed: list[Row] = [(f"a{n}", f"q{n % 4}", f"p{place}", place, place < 3) for n in range(40) for place in (1, 2, 3)]
    arguments = write_shop(tmp_path, fixed)
    with pytest.raises(ValueError, match=r"examination cannot be estimated: no product.*examination=none") as caught:
        read(arguments, tmp_path)
    assert "\n" not in str(caught.value)
    varied = [*fixed, ("b", "q0", "p1", 2, True), ("c", "q0", "p2", 1, True), ("d", "q0", "p1", 3, False)]
    with pytest.raises(ValueError, match="too few clicks at position 3"):
        read(write_shop(tmp_path, varied), tmp_path)
    monkeypatch.setattr(clicks, "MAX_SPREAD", 1.1)
    with pytest.raises(ValueError, match="too wide to weigh clicks by"):
        read(write_shop(tmp_path, rows), tmp_path)
    with pytest.raises(ValueError, match="has no click up to position 20"):
        read(write_shop(tmp_path, [(*row[:4], False) for row in fixed]), tmp_path)


def test_a_weight_for_each_product_of_a_row() -> None:
    row = {"split": "train", "text": "shoe", "product_id": "a|b|c", "grade": "2|0|1", "weight": "3|2|1"}
    query = parse_query(row, Path(), "row", 0, ())
    assert (query.target_ids, query.weight, query.product_weights) == (("a", "c"), 3, {"c": 1})
    with pytest.raises(RowError, match="2 weights of 3 products"):
        parse_query(row | {"weight": "3|2"}, Path(), "row", 0, ())
    with pytest.raises(RowError, match="number above 0"):
        parse_query(row | {"weight": "3|2|0"}, Path(), "row", 0, ())


def test_prepared_data_have_a_report_of_positions(tmp_path: Path, rows: list[Row]) -> None:
    source = ClicksSource(**write_shop(tmp_path, rows))
    prepared = prepare_shards(
        source,
        tmp_path / "shards",
        ShardSettings(),
        validation=Validation(write_report=write_validation_report),
        num_workers=1,
    )
    queries, report = read(source, tmp_path)
    weights = {
        query.product_weights.get(product, query.weight)
        for query in queries.values()
        for product in query.target_ids
        if query.split == "train"
    }
    negatives = read_negatives(tmp_path / "shards" / "source" / "negatives.parquet", "the table")
    clicked = {(query, product) for _, query, product, _, is_clicked in rows if is_clicked}
    answers = defaultdict(list)
    for answer, query_id, product, position, is_clicked in rows:
        answers[answer, query_id].append((position, product, is_clicked))
    skips: Counter[tuple[str, str]] = Counter()
    for (_, query_id), shown in answers.items():
        lowest = max((position for position, _, is_clicked in shown if is_clicked), default=0)
        skips.update((query_id, product) for position, product, _ in shown if position < lowest)
    skipped = {key for key, count in skips.items() if count >= 2 and key not in clicked and key[1] < "p7"}
    assert skipped and report.counts["skipped product"] == len(skipped)
    for query_id in queries:
        keys = negatives.find(np.array([hash_id(query_id)]))[0]
        assert {*keys} - {NO_KEY} == {hash_id(product) for name, product in skipped if name == query_id}
    stored = prepared.open_set("queries/train").column("weights")
    assert {*stored.tolist()} == {*np.float32([*weights]).tolist()}
    page = (tmp_path / "shards" / "check.html").read_text()
    header, *table = (tmp_path / "shards" / "positions.csv").read_text().splitlines()
    assert header == "position,shown,clicked,click_rate,examination,low,high,weight_of_click"
    for row, line in zip(report.positions, table, strict=True):
        assert line.startswith(f"{row.position},{row.num_shown},{row.num_clicked},")
        assert f"{row.examination.value:.3f}" in page
    drawing = (tmp_path / "shards" / "positions.svg").read_text()
    assert drawing.count("<circle") == page.count("<circle") == len(report.positions)
