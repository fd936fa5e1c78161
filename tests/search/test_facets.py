"""Facets: what a page can offer as filters, when an index is built and after products were added."""

from __future__ import annotations

import pyarrow as pa
import pytest

from mim_lightning.search.facets import MAX_VALUES, describe_facets, extend_facets, select_choices

PRODUCTS = {
    "product_id": ["a", "b", "c"],
    "title": ["A", "B", "C"],
    "category": ["milk", "fruit", ""],
    "brand": ["own"] * 3,
    "price": ["3.5", "", "12"],  # as a CSV has it
    "vegan": [True, False, None],
    "origin": [None, None, None],
}


def table(number: int = 1, **columns: list) -> pa.Table:
    return pa.table({"product_id": [f"new{n}" for n in range(number)], **columns})


def test_columns_are_reported_with_their_index_type() -> None:
    facets = describe_facets(pa.table(PRODUCTS))
    assert facets == {
        "category": {"values": ["fruit", "milk"]},
        "brand": {"values": ["own"]},
        "price": {"min": 3.5, "max": 12.0},
        "origin": {"values": []},
    }
    assert set(select_choices(facets)) == {"category", "price"}


def test_a_constant_price_is_no_choice() -> None:
    facets = describe_facets(pa.table({"product_id": ["a", "b"], "price": [2, 2]}))
    assert facets == {"price": {"min": 2.0, "max": 2.0}} and select_choices(facets) == {}
    assert select_choices({"price": {"min": None, "max": None}}) == {}


def test_a_column_of_too_many_texts_is_a_description() -> None:
    many = [f"word {number}" for number in range(MAX_VALUES + 1)]
    assert set(describe_facets(table(len(many), notes=many, kind=["x"] * len(many)))) == {"kind"}
    assert describe_facets(table(len(many), notes=[many[1], *many[1:]]))["notes"] == {"values": sorted(many[1:])}


def test_added_values_appear_as_facets() -> None:
    facets = describe_facets(pa.table(PRODUCTS))
    more = {"title": ["N"], "category": ["bread"], "brand": ["5"], "price": ["20"], "origin": ["Ulm"]}
    assert extend_facets(facets, table(**more)) == {
        "category": {"values": ["bread", "fruit", "milk"]},
        "brand": {"values": ["5", "own"]},
        "price": {"min": 3.5, "max": 20.0},
        "origin": {"values": ["Ulm"]},
    }
    assert extend_facets(facets, table(category=["milk"])) == facets


def test_a_column_with_too_many_texts_stops_being_a_facet_and_stays_so() -> None:
    half = [f"word {number}" for number in range(MAX_VALUES // 2 + 1)]
    facets = describe_facets(table(len(half), notes=half))
    grown = extend_facets(facets, table(len(half), notes=[f"other {word}" for word in half]))
    assert set(facets) == {"notes"} and grown == {}
    assert extend_facets(grown, table(notes=["word 0"])) == {}


def test_an_invalid_price_is_an_error() -> None:
    with pytest.raises(ValueError, match="column 'price' contains numbers in the index"):
        extend_facets({"price": {"min": 1.0, "max": 2.0}}, table(price=["dear"]))
