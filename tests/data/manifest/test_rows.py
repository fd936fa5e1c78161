"""All invalid rows are reported at once on request, and rows left out with them are reported too."""

from __future__ import annotations

import json
import pickle
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import pytest

from mim_lightning.data.manifest.manifest import Manifest, ManifestSource, read_manifest
from mim_lightning.data.manifest.rows import IssueType, Origin, RowIssue, raise_issue
from mim_lightning.data.validation.findings import KINDS, finding_of
from tests.data.conftest import write_csv

PRODUCTS = b"""product_id,image,title
1,a.jpg,Mug
,b.jpg,Cup
1,c.jpg,Mug again
3,,
4,d.jpg
5,e.jpg,T\xe9
6,f.jpg,Pan
"""
QUERIES = b"""query_id,split,image,text,product_id,shown_product_id,weight
a,train,qa.jpg,,1,,
b,train,qb.jpg,,3,,
c,train,qc.jpg,,1|9,,
d,train,,,1,,
a,train,qe.jpg,,1,,
,val,qf.jpg,,1,3,
,val,qg.jpg,,6,,heavy
,val,qh.jpg,,6,,2
"""


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "products.csv").write_bytes(PRODUCTS)
    (tmp_path / "queries.csv").write_bytes(QUERIES)
    return tmp_path / "products.csv", tmp_path / "queries.csv"


def read(tables: tuple[Path, Path]) -> tuple[Manifest, list[RowIssue]]:
    faults: list[RowIssue] = []
    source = ManifestSource(str(tables[0]), str(tables[1]))
    return source.read(tables[0].parent, on_issue=faults.append), faults


def test_valid_rows_are_kept_and_each_invalid_one_is_reported(tables: tuple[Path, Path]) -> None:
    manifest, faults = read(tables)
    assert list(manifest.products) == ["1", "6"]
    assert [(query.query_id, query.weight) for query in manifest.queries] == [("a", 1.0), ("query-000000007", 2.0)]
    products, queries = tables
    assert [(fault.table, fault.origin, fault.column, fault.row_id, fault.reason) for fault in faults] == [
        ("products", f"{products}, row 3", "product_id", "", "empty"),
        ("products", f"{products}, row 4", "product_id", "1", f"'1' is already in {products}, row 2"),
        ("products", f"{products}, row 5", "", "3", "product '3' has neither image nor title"),
        ("products", f"{products}, row 6", "", "", "2 cells, the header has 3"),
        (
            *("products", f"{products}, row 7", "title", ""),
            "not UTF-8; data.source.encoding.products=cp1252 reads it as 'Té'",
        ),
        ("queries", f"{queries}, row 5", "", "d", "the query has neither image nor text"),
        (
            "queries",
            f"{queries}, row 6",
            "query_id",
            "a",
            f"'a' is already in {queries}, row 2, with another image",
        ),
        ("queries", f"{queries}, row 8", "weight", "", "'heavy': give a number above 0"),
        (
            *("queries", f"{queries}, row 3", "product_id", "b"),
            f"product '3' is not in {products} (invalid: {products}, row 5)",
        ),
        ("queries", f"{queries}, row 4", "product_id", "c", f"product '9' is not in {products}"),
        (
            *("queries", f"{queries}, row 7", "shown_product_id", "query-000000005"),
            f"product '3' is not in {products} (invalid: {products}, row 5)",
        ),
    ]


def test_the_kind_of_an_issue_is_not_read_from_its_words(tmp_path: Path) -> None:
    """Cells that hold the words of another kind's message do not change the kind."""
    products = tmp_path / "products.csv"
    products.write_text("product_id,image,title\na,a.jpg,A\na,a.jpg,A\nb,,\n")
    queries = tmp_path / "queries.csv"
    rows = ["q,train,1.jpg,a,1", "q,val,1.jpg,a,1", "r,train,1.jpg,it stands already,1", "s,train,1.jpg,b,1"]
    rows += ["t,train,1.jpg,(left out: b),1", "u,train,1.jpg,a,it stands already"]
    queries.write_text("\n".join(["query_id,split,image,product_id,weight", *rows]))
    _, issues = read((products, queries))
    assert {(issue.table, issue.row_id): issue.kind for issue in issues} == {
        ("products", "a"): IssueType.DUPLICATE_ID,
        ("products", "b"): IssueType.INVALID_ROW,
        ("queries", "q"): IssueType.DUPLICATE_ID,
        ("queries", "r"): IssueType.UNKNOWN_PRODUCT,
        ("queries", "s"): IssueType.DROPPED_PRODUCT,
        ("queries", "t"): IssueType.UNKNOWN_PRODUCT,
        ("queries", "u"): IssueType.INVALID_ROW,
    }
    assert [RowIssue.from_json(json.loads(json.dumps(asdict(issue)))) for issue in issues] == issues
    assert {finding_of(issue, is_row_kept=False).kind for issue in issues} <= KINDS.keys()


def test_a_reported_and_a_raised_issue_have_the_same_line(tables: tuple[Path, Path]) -> None:
    _, faults = read(tables)
    with pytest.raises(ValueError) as caught:
        read_manifest(*tables)
    assert str(caught.value) == str(faults[0]) == f"{tables[0]}, row 3, column 'product_id': empty"
    with pytest.raises(ValueError, match=r"^here, row 1: all wrong$"):
        raise_issue(RowIssue("products", "here, row 1", "", "", "all wrong"))


def test_an_origin_is_text_with_file_and_number() -> None:
    origin = Origin("queries.csv", 10)
    assert origin == "queries.csv, row 10" and json.dumps(origin) == '"queries.csv, row 10"'
    for copied in (pickle.loads(pickle.dumps(origin)), deepcopy(origin)):
        assert (copied, copied.file, copied.number) == (origin, "queries.csv", 10)


def test_names_of_queries_do_not_depend_on_rows_left_out(tables: tuple[Path, Path]) -> None:
    rows = [
        {"split": "train", "image": f"{number}.jpg", "text": "", "product_id": "1" if number % 2 else "9"}
        for number in range(4)
    ]
    write_csv(tables[1], rows)
    assert [query.query_id for query in read(tables)[0].queries] == ["query-000000001", "query-000000003"]


def test_structural_errors_are_never_left_out(tables: tuple[Path, Path], tmp_path: Path) -> None:
    write_csv(tables[1], [{"split": "train", "text": "red", "product_id": "1"}])
    with pytest.raises(ValueError, match="missing column 'image'"):
        read(tables)
    with pytest.raises(ValueError, match="no such file"):
        read((tables[0], tmp_path / "gone.csv"))


def test_a_catalog_with_only_invalid_rows(tables: tuple[Path, Path]) -> None:
    write_csv(tables[0], [{"product_id": "", "image": "a.jpg", "title": "Mug"}])
    with pytest.raises(ValueError, match=r"no product is valid; .*row 2, column 'product_id': empty"):
        read(tables)
