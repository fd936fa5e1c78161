"""The event log in SQLite and in a real PostgreSQL server: events are read as written and never removed."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.exc import DBAPIError

from mim_lightning.online.aggregates import count_experiments
from mim_lightning.online.database import clicks, database_url, impressions, reading, shown
from mim_lightning.online.event_log import EventLog
from mim_lightning.online.events import AskedQuery, Click, Impression, new_id
from tests.online.event_factory import SALT, impression


def engine_of(events: str) -> Engine:
    return create_engine(database_url(events))


def rows(events: str, table: str) -> list[tuple]:
    engine = engine_of(events)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}"))]
    engine.dispose()
    return found


def test_recorded_events_are_stored_with_every_field(events: str) -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    made = impression("ann", products="xyz", time=datetime(2026, 3, 1, 4, 0, 0, 123456, tzinfo=east))
    with EventLog(events) as log:
        assert log.record_impression(made) == made.impression_id
        assert log.record_click(Click(made.impression_id, "y", made.time + timedelta(seconds=3)))
    engine = engine_of(events)
    with engine.connect() as connection:
        (row,) = connection.execute(select(impressions)).mappings()
        assert dict(row) == {
            "impression_id": made.impression_id,
            "time": datetime(2026, 2, 28, 22, 30, 0, 123456, tzinfo=UTC),
            "experiment": "towers",
            "arm": "control",
            "user_hash": made.user_hash,
            "kind": "image",
            "num_results": 3,
            "latency_ms": 12.5,
            "fingerprint": "f1",
        }
        listed = connection.execute(select(shown.c.product_id, shown.c.position, shown.c.score)).all()
        assert sorted(map(tuple, listed)) == [("x", 1, 1.0), ("y", 2, 0.9), ("z", 3, 0.8)]
        (click,) = connection.execute(select(clicks)).mappings()
        assert (click["product_id"], click["position"]) == ("y", 2)
        assert click["time"] == datetime(2026, 2, 28, 22, 30, 3, 123456, tzinfo=UTC)
    engine.dispose()


def test_a_click_must_be_on_what_was_shown_and_counts_once(events: str) -> None:
    with EventLog(events) as log:
        one, two = log.record_impression(impression(products="ab")), log.record_impression(impression(products="cd"))
        first = datetime(2026, 5, 1, tzinfo=UTC)
        assert log.record_click(Click(one, "a", first))
        assert not log.record_click(Click(one, "a", first + timedelta(days=1)))
        for click, expected in (
            (Click(one, "c"), f"click on product 'c' of impression '{one}': was not shown"),
            (Click(new_id(), "a"), "there is no such impression"),
            (Click(two, "a' OR '1'='1"), "was not shown"),
        ):
            with pytest.raises(ValueError, match=expected.replace("'", ".")):
                log.record_click(click)
        assert log.record_click(Click(one, "b"))
    assert sorted(row[1:3] for row in rows(events, "clicks")) == [("a", 1), ("b", 2)]


def test_a_batch_is_recorded_whole_or_not_at_all(events: str) -> None:
    one, two = impression(products="ab"), impression(products="c")
    with EventLog(events) as log:
        with pytest.raises(ValueError, match="the product is not in an impression recorded with the click"):
            log.record_many([one, two], [Click(one.impression_id, "a"), Click(two.impression_id, "a")])
        assert log.experiments() == {}
        log.record_many([one, two], [Click(one.impression_id, "b"), Click(one.impression_id, "b")])
        with pytest.raises(ValueError, match="is already recorded"):
            log.record_many([impression(), two])
        assert log.experiments() == {"towers": 2}
    assert [row[1:3] for row in rows(events, "clicks")] == [("b", 2)]
    assert len(rows(events, "shown")) == 3


def test_no_row_can_be_changed_or_removed(events: str) -> None:
    with EventLog(events) as log:
        one = log.record_impression(impression(products="a"))
        log.record_click(Click(one, "a"))
    engine = engine_of(events)
    tables = ("impressions", "shown", "clicks", "event_log_version")
    before = {table: rows(events, table) for table in tables}
    column = {"impressions": "arm", "shown": "score", "clicks": "position", "event_log_version": "version"}
    statements = [f"DELETE FROM {table}" for table in tables]
    statements += [f"UPDATE {table} SET {column[table]} = {column[table]}" for table in tables]
    for table in tables:
        repeated = f"INSERT INTO {table} SELECT * FROM {table} WHERE true ON CONFLICT"
        key = {"impressions": "(impression_id)", "event_log_version": "(version)"}.get(
            table, "(impression_id, product_id)"
        )
        statements.append(f"{repeated} {key} DO UPDATE SET {column[table]} = excluded.{column[table]}")
    if engine.dialect.name == "sqlite":
        statements += [f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}" for table in tables if table != "clicks"]
    else:
        statements += [f"TRUNCATE {table} CASCADE" for table in tables]
    for statement in statements:
        if engine.dialect.name == "sqlite" and statement.startswith("INSERT INTO clicks"):
            continue  # see below
        with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
            connection.execute(text(statement))
    if engine.dialect.name == "sqlite":  # a repeated click is no error there; but it replaces nothing
        for verb in ("INSERT OR REPLACE", "INSERT"):
            with engine.begin() as connection:
                connection.execute(text(f"{verb} INTO clicks SELECT impression_id, product_id, 9, time FROM clicks"))
    engine.dispose()
    assert {table: rows(events, table) for table in tables} == before


def test_the_rules_hold_for_other_programs_too(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    EventLog(str(path)).close()
    with sqlite3.connect(path) as connection, pytest.raises(sqlite3.IntegrityError, match="kind_is_known"):
        connection.execute("INSERT INTO impressions VALUES ('i', 't', 'e', 'a', ?, 'voice', 0, 1, 'f')", ["0" * 32])
    with sqlite3.connect(path) as connection, pytest.raises(sqlite3.IntegrityError, match="user_is_hashed"):
        connection.execute("INSERT INTO impressions VALUES ('i', 't', 'e', 'a', 'ann', 'text', 0, 1, 'f')")
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_database_contains_no_user_and_no_query(tmp_path: Path) -> None:
    """As the service does it: a key, an address and words are at hand, and none of them is in any byte of any file."""
    secrets = ["ann.smith@shop.example", "ann.smith", "203.0.113.77", "crimson brogues size 44", "brogues", SALT]
    with EventLog(str(tmp_path / "log" / "events.db")) as log:
        made = impression(secrets[0], kind="composed", products="ab")
        log.record_click(Click(log.record_impression(made), "a"))
        while_open = b"".join(path.read_bytes() for path in (tmp_path / "log").iterdir())
    dump = "\n".join(sqlite3.connect(tmp_path / "log" / "events.db").iterdump())
    assert made.user_hash in dump and made.user_hash.encode() in while_open  # so what is looked for could be found
    for secret in secrets:
        assert secret not in dump and secret.encode() not in while_open


def test_many_threads_and_an_event_loop_write_at_once(events: str) -> None:
    with EventLog(events) as log:

        def answer(number: int) -> None:
            made = log.record_impression(impression(f"user-{number % 7}", products="abc"))
            log.record_click(Click(made, "b"))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(answer, range(40)))

        async def serve() -> None:
            await asyncio.gather(*(asyncio.to_thread(answer, number) for number in range(40)))

        asyncio.run(serve())
        shared = log.record_impression(impression("late", products="z"))
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda _: log.record_click(Click(shared, "z")), range(16))) == 1
        arm = log.counts("towers").arms["control"]
    assert (arm.num_impressions, arm.num_clicked, arm.num_clicks, arm.num_users) == (81, 81, 81, 8)


def write_for_ever(events: str, acknowledged: Connection) -> None:
    log = EventLog(events)
    while True:
        made = log.record_impression(impression(products="abcdefghij"))
        log.record_click(Click(made, "c"))
        acknowledged.send(made)


def start_writer(events: str) -> tuple[ForkProcess, Connection]:
    processes = get_context("fork")  # a new interpreter would first read SQLAlchemy for seconds
    reader, writer = processes.Pipe(duplex=False)
    process = processes.Process(target=write_for_ever, args=(events, writer), daemon=True)
    process.start()
    writer.close()  # or its end would not be seen
    return process, reader


def test_a_killed_writer_loses_no_confirmed_event(events: str) -> None:
    writers = [start_writer(events) for _ in range(3)]  # each makes the tables, if it comes first
    try:
        acknowledged = {reader.recv() for _, reader in writers for _ in range(12)}
    finally:
        for process, _ in writers:
            process.kill()
    for process, reader in writers:
        process.join()
        assert process.exitcode == -signal.SIGKILL
        with suppress(EOFError, OSError):
            while True:
                acknowledged.add(reader.recv())
        reader.close()
    with EventLog(events) as log:  # no repair
        engine = engine_of(events)
        with engine.connect() as connection:
            recorded = set(connection.execute(select(impressions.c.impression_id)).scalars())
            clicked = set(connection.execute(select(clicks.c.impression_id)).scalars())
            listed = list(connection.execute(select(shown.c.impression_id)).scalars())
            if engine.dialect.name == "sqlite":
                assert connection.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"
        engine.dispose()
        assert len(acknowledged) >= 36 and acknowledged <= recorded and acknowledged <= clicked
        assert len(listed) == 10 * len(recorded) and set(listed) == recorded  # no half impression
        log.record_impression(impression("after"))
        assert log.experiments() == {"towers": len(recorded) + 1}


def test_a_log_is_continued(events: str) -> None:
    with EventLog(events) as log:
        one = log.record_impression(impression(products="a"))
    with EventLog(events, create=False) as log:
        assert log.record_click(Click(one, "a"))
        log.record_impression(impression(experiment="other"))
        assert log.experiments() == {"other": 1, "towers": 1}
        assert log.counts("unknown").arms == {}


def test_another_version_is_refused_by_name(events: str) -> None:
    EventLog(events).close()
    engine = engine_of(events)
    with engine.begin() as connection:  # one that this program has not heard of was added
        connection.execute(text("INSERT INTO event_log_version VALUES (7)"))
    engine.dispose()
    with pytest.raises(
        ValueError, match=r"is an event log of schema version 1, 7; this program reads and writes version 1"
    ):
        EventLog(events)


def test_tables_of_other_programs_are_left_alone(events: str) -> None:
    engine = engine_of(events)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE clicks (what TEXT)"))
    for create in (True, False):
        with pytest.raises(ValueError, match="has a table 'clicks' but is no event log"):
            EventLog(events, create)
    with engine.connect() as connection:
        assert not engine.dialect.has_table(connection, "impressions")
    engine.dispose()


def test_a_reader_makes_nothing(events: str, tmp_path: Path) -> None:
    if "://" in events:
        with pytest.raises(ValueError, match="contains no event log"):
            EventLog(events, create=False)
    else:
        with pytest.raises(ValueError, match=r"events.db: there is no such event log"):
            EventLog(events, create=False)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ("mysql://ann:secret@host/shop", r"mysql://ann:\*\*\*@host/shop: 'mysql' is not supported; give postgresql://"),
        ("postgresql://ann:secret@127.0.0.1:port/shop", "is not a database URL"),
        ("postgresql://ann:secret@127.0.0.1:1/shop", r"ann:\*\*\*@127.0.0.1:1/shop: cannot be opened: .*refused"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_an_invalid_database_is_refused(events: str, expected: str) -> None:
    if events.endswith("1:1/shop"):
        pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(ValueError, match=expected) as error:
        EventLog(events)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_database(tmp_path: Path) -> None:
    (tmp_path / "words.db").write_text("not a database " * 100)
    for path, expected in (("words.db", "file is not a database"), ("words.db/under.db", "words.db")):
        with pytest.raises(ValueError, match=expected):
            EventLog(str(tmp_path / path))
    (tmp_path / "empty.db").touch()
    with pytest.raises(ValueError, match="contains no event log"):
        EventLog(str(tmp_path / "empty.db"), create=False)


def test_a_database_that_fails_later_is_an_os_error(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    log = EventLog(str(path))
    one = log.record_impression(impression(products="a"))
    log.close()
    path.write_bytes(b"something else" * 1000)
    for call in (
        lambda: log.record_impression(impression()),
        lambda: log.record_click(Click(one, "a")),
        lambda: log.experiments(),
    ):
        with pytest.raises(OSError, match=r"events.db: the event log failed: file is not a database"):
            call()


def test_a_run_recorded_twice_is_an_error(events: str) -> None:
    made: Impression = impression()
    with EventLog(events) as log:
        log.record_impression(made)
        with pytest.raises(ValueError, match="is already recorded"):
            log.record_impression(made)
        assert log.experiments() == {"towers": 1}


def test_a_reader_sees_one_moment_while_others_write(events: str) -> None:
    with EventLog(events) as log, EventLog(events) as other:
        log.record_impression(impression())
        with reading(log._engine, log.name) as connection:
            before = count_experiments(connection)
            other.record_impression(impression())
            assert count_experiments(connection) == before == {"towers": 1}
        assert log.experiments() == {"towers": 2}


def test_queries_are_recorded_on_request_and_read_with_what_they_showed(events: str) -> None:
    asked = AskedQuery("q1", "in blue", "photos/1.jpg")
    with EventLog(events) as log:  # as before queries were recorded
        log.record_impression(impression(products="ab"))
        assert [*log.read_queries()] == [*log.read_shown()] == []
        with pytest.raises(OSError, match="asked_queries"):
            log.record_impression(impression(asked=asked))
    words = AskedQuery("q0", "red")
    made = [
        impression(products="xy", asked=one, kind=kind)
        for one, kind in zip((asked, words, asked), ("image", "text", "image"), strict=True)
    ]
    made.append(impression(products="z", asked=AskedQuery("q9", "hat"), kind="text", experiment="other"))
    made += [
        impression(asked=AskedQuery(name, "red", photo), kind=kind)
        for name, photo, kind in (("q2", None, "image"), ("q3", "1.jpg", "composed"))
    ]
    with EventLog(events, with_queries=True) as log, EventLog(events, with_queries=True):
        log.record_many(made, [Click(made[0].impression_id, "y")])
        log.record_impression(impression())
        assert [*log.read_queries()] == [("q0", "red", None), ("q1", "in blue", "photos/1.jpg"), ("q9", "hat", None)]
        assert sorted(log.count_left_out("towers").values()) == [1, 1] and not log.count_left_out("other")
        found = [*log.read_shown("towers")]
        assert sorted(found) == sorted(
            (each.impression_id, each.asked.query_id, product, place, each is made[0] and product == "y")
            for each in made[:3]
            if each.asked
            for place, product in enumerate("xy", start=1)
        )
        assert [row[1:] for row in log.read_shown("other")] == [("q9", "z", 1, False)]
    assert len(rows(events, "impressions")) == 8
    with pytest.raises(DBAPIError, match="append-only"), engine_of(events).begin() as connection:
        connection.execute(text("DELETE FROM asked_queries"))
