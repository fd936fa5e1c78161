"""An event log in each kind of database, and what to write into it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.online.postgres import running_server

pytest.importorskip("sqlalchemy", reason="the extra 'online' is not installed")
pytest.importorskip("statsmodels", reason="the extra 'online' is not installed")

_numbers = count()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with running_server() as query:
        yield query


@pytest.fixture(params=["sqlite", "postgresql"])
def events(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an event log may be made: the same tests for every kind of database."""
    if request.param == "sqlite":
        return str(tmp_path / "events.db")
    return new_database(request.getfixturevalue("server"))


def new_database(query: str) -> str:
    import psycopg

    name = f"events_{next(_numbers)}"
    with psycopg.connect(f"postgresql:///postgres?{query}", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql:///{name}?{query}"
