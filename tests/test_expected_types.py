"""Config values against signatures: values that a type excludes are refused, all others pass."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Protocol, Union

import pytest

from mim_lightning.expected_types import validate_arguments


class Reader(Protocol):
    def read(self) -> str: ...


class Thing:
    def __init__(
        self,
        count: int = 1,
        share: float = 1.0,
        maybe: Optional[int] = None,  # noqa: UP045
        either: Union[int, float, None] = None,  # noqa: UP007
        is_on: bool = False,
        name: str | None = None,
        mode: Literal["warn", 3] | bool = False,
        path: str | Path = "",
        several: Sequence[int] = (),
        table: Mapping[str, int] | None = None,
        part: Path | None = None,
        thing: "Thing | None" = None,
        reader: Reader | None = None,
        anything: Any = None,
        call: Callable[..., int] | None = None,
        bare=None,
    ) -> None: ...


@pytest.mark.parametrize(
    "values",
    [
        {"count": 3, "share": 1, "maybe": None, "either": 0.5, "is_on": True, "name": "a", "mode": "warn", "path": "p"},
        {"mode": 3, "several": [1], "table": {"a": 1}, "part": "p", "anything": 3, "bare": "x", "unknown": 1},
        {"reader": None},
        {"reader": {"_target_": "a.Reader"}},
        {"mode": True, "name": 2024, "thing": {"_target_": "a.Thing"}, "call": "a.function", "either": 3},
    ],
)
def test_fitting_values_pass(values: dict[str, Any]) -> None:
    validate_arguments(Thing, values, "x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": "abc"}, "x.count=abc: give a whole number"),
        ({"count": 1.5}, "x.count=1.5: give a whole number"),
        ({"count": True}, "x.count=True: give a whole number"),
        ({"count": None}, "x.count=null: give a whole number"),
        ({"share": "abc"}, "x.share=abc: give a number"),
        ({"maybe": []}, r"x.maybe=\[\]: give a whole number or null"),
        ({"is_on": 1}, "x.is_on=1: give true or false"),
        ({"mode": "wran"}, "x.mode=wran: give warn, 3 or true or false"),
        ({"several": 3}, "x.several=3: give a list"),
        ({"table": 3}, "x.table=3: give a mapping or null"),
        ({"thing": 3}, "x.thing=3: give null"),
        ({"reader": 3}, "x.reader=3: give null"),
    ],
)
def test_invalid_values_are_named_with_their_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_arguments(Thing, values, "x")
