"""Further text columns that `data.source.fields` declares are fields of a row like the built-in ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.preparation.plan import catalog_sample, evaluation_sample, training_sample
from mim_lightning.data.preparation.ray_tables import shop_tables
from tests.data.conftest import write_csv

PRODUCTS = [
    {"product_id": "1", "image": "1.jpg", "title": "mug", "brand": "Acme"},
    {"product_id": "2", "image": "2.jpg", "title": "cup", "brand": ""},
]
QUERIES = [
    {"query_id": "a", "split": "train", "image": "a.jpg", "product_id": "1", "kind of": "<b>big</b>"},
    {"query_id": "b", "split": "val", "image": "", "product_id": "2", "kind of": "small"},
    {"query_id": "c", "split": "val", "image": "c.jpg", "product_id": "2", "kind of": "NULL"},
]
FIELDS = {"query_kind_of": "Kind Of", "product_brand": "brand", "query_other": None}


def source(folder: Path, fields: Any = FIELDS, **options: Any) -> ManifestSource:
    tables = write_csv(folder / "products.csv", PRODUCTS), write_csv(folder / "queries.csv", QUERIES)
    return ManifestSource(*map(str, tables), fields=fields, **options)


def test_each_table_gives_its_own(tmp_path: Path) -> None:
    manifest = source(tmp_path, clean_html=True).read(tmp_path)
    assert [query.fields for query in manifest.queries] == [{"query_kind_of": "big"}, {"query_kind_of": "small"}, {}]
    first, second = manifest.products.values()
    assert first.fields == {"product_brand": "Acme"} and second.fields == {}
    assert first.metadata == {"brand": "Acme"}  # to show and to filter by, as without the declaration


def test_samples_store_them_by_name_and_others_stay_as_they_were(tmp_path: Path) -> None:
    manifest = source(tmp_path).read(tmp_path)
    (first, second), queries = manifest.products.values(), manifest.queries
    assert catalog_sample(first, None).facts["fields"] == {"product_brand": "Acme"}
    trained = training_sample(queries[0], first, 0, None).facts["fields"]
    assert trained == {"product_brand": "Acme", "query_kind_of": "<b>big</b>"}
    for sample in (catalog_sample(second, None), evaluation_sample(queries[2], None)):
        assert "fields" not in sample.facts


def test_declared_fields_are_described_only_where_there_are_any(tmp_path: Path) -> None:
    assert "fields" not in source(tmp_path, {}).describe()
    assert source(tmp_path).describe()["fields"] == {"query_kind_of": "Kind Of", "product_brand": "brand"}


def test_other_engines_read_them(tmp_path: Path) -> None:
    (first, *_), issues = shop_tables(source(tmp_path)).read_queries(0, print), list[RowIssue]()
    assert first.fields == {"query_kind_of": "<b>big</b>"} and not issues


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"query_size": "size"}, r"queries\.csv: missing column 'size'.*data\.source\.fields\.query_size=<column>"),
        ({"kind_of": "kind of"}, r"data\.source\.fields: 'kind_of' is no field; give a name such as query_category"),
        ({"query_text": "kind of"}, r"data\.source\.fields\.query_text: is built in; .* data\.source\.columns"),
        ({"query_id": "kind of"}, r"data\.source\.fields\.query_id: is built in"),
    ],
)
def test_mistakes_name_the_key(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(tmp_path, fields).read(tmp_path)


def test_rows_of_a_query_must_agree(tmp_path: Path) -> None:
    rows = [QUERIES[0], {**QUERIES[0], "product_id": "2", "kind of": "other"}]
    tables = write_csv(tmp_path / "products.csv", PRODUCTS), write_csv(tmp_path / "queries.csv", rows)
    with pytest.raises(ValueError, match=r"'a' .* with another query_kind_of"):
        ManifestSource(*map(str, tables), fields={"query_kind_of": "kind of"}).read(tmp_path)
