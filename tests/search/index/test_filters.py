"""Filters: valid ones become conditions, invalid ones are errors."""

from __future__ import annotations

from typing import Any

import pytest

from mim_lightning.search.index.filters import FLAG, NUMBER, TEXT, OneOf, Within, parse_filter

KINDS = {"category": TEXT, "brand": TEXT, "price": NUMBER, "vegan": FLAG}


def test_conditions_are_ordered_so_that_equal_filters_are_equal() -> None:
    where = {"price": {"min": 1, "max": 20}, "brand": ["b", "a", "b"], "category": "Fruit", "vegan": True}
    conditions = parse_filter(where, KINDS)
    assert conditions == (
        OneOf("brand", ("a", "b")),
        OneOf("category", ("Fruit",)),
        Within("price", 1.0, 20.0),
        OneOf("vegan", (True,)),
    )
    other = {"vegan": [True], "category": ("Fruit",), "brand": {"a", "b"}, "price": {"max": 20.0, "min": 1.0}}
    assert parse_filter(other, KINDS) == conditions and hash(conditions)


@pytest.mark.parametrize("where", [None, {}])
def test_no_filter_is_no_condition(where: dict | None) -> None:
    assert parse_filter(where, KINDS) == ()


def test_a_range_may_have_one_end() -> None:
    assert parse_filter({"price": {"min": 0}}, KINDS) == (Within("price", 0.0, None),)
    assert parse_filter({"price": {"max": 7, "min": None}}, KINDS) == (Within("price", None, 7.0),)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"colour": 1}, "no column 'colour'; there are brand, category, price, vegan"),
        ({"pirce": 1}, "did you mean 'price'"),
        ({"price": "1"}, "'price': '1' cannot be compared, the column contains numbers"),
        ({"price": True}, "'price': True cannot be compared"),
        ({"price": float("nan")}, "'price': nan cannot be compared"),
        ({"price": {"min": float("inf")}}, "'price': inf cannot be compared"),
        ({"price": [1, None]}, "'price': None cannot be compared"),
        ({"brand": 3}, "'brand': 3 cannot be compared, the column contains text"),
        ({"vegan": 1}, "'vegan': 1 cannot be compared, the column contains true or false"),
        ({"brand": []}, "'brand': an empty list matches nothing"),
        ({"brand": {"min": 1}}, "'brand': a range needs numbers, the column contains text"),
        ({"price": {"from": 1}}, r"'price': a range has 'min', 'max' or both, not \['from'\]"),
        ({"price": {}}, r"a range has 'min', 'max' or both, not \[\]"),
        ({"price": {"min": 3, "max": 2}}, "'price': min 3 is above max 2"),
        (["price"], "a filter is a mapping from column to value, not list"),
    ],
)
def test_invalid_filters_are_errors(where: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_filter(where, KINDS)
