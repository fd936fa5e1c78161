"""Malformed files of a run: the record of an evaluation, embeddings, results, config, history, log, and an event log."""

from __future__ import annotations

import io
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.campaign.malformed import REMOVED, Malformed, cut, edit, flip, json_at, of_file, of_json, replaced, write

FACTS, TABLE, VECTORS = (
    "evaluation/record.json",
    "evaluation/composed_to_product.parquet",
    "evaluation/embeddings.safetensors",
)
RESULTS, CONFIG = "results.json", "config.yaml"
HISTORY, LOG = "browser/history.jsonl", "csv/version_0/metrics.csv"
COMPOSED = ("directions", "composed_to_product")
NAN = float("nan")


def table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], Any]:
    def edited(content: bytes) -> bytes:
        out = io.BytesIO()
        pq.write_table(change(pq.read_table(io.BytesIO(content))), out)
        return out.getvalue()

    return edit(TABLE, edited)


def column(name: str, make: Callable[[int], Any]) -> Callable[[Path], Any]:
    return table(lambda found: found.set_column(found.column_names.index(name), name, pa.array(make(len(found)))))


RECORDS = [
    *of_file("the facts of a record", FACTS, left_out=("missing", "a link to itself")),
    *of_json("the facts of a record", FACTS),
    *of_file("the ranks of a record", TABLE),
    *(
        Malformed(f"{'.'.join(keys)} of a record is {said}", json_at(FACTS, *keys, value=value), FACTS)
        for keys, said, value in (
            (("version",), "from the future", 99),
            (("version",), "missing", REMOVED),
            (("run",), "null", None),
            (("run",), "a list", []),
            (("run", "config"), "a text", "x"),
            (("run", "config", "seed"), "an interpolation", "${oc.env:HOME}"),
            (("run", "config", "seed"), "a text", "first"),
            (("run", "config", "data"), "a list", []),
            (("run", "run_id"), "a number", 7),
            (("run", "run_id"), "missing", REMOVED),
            (("run", "fingerprint"), "null", None),
            (("run", "monitor"), "without a direction", "loss"),
            (("run", "monitor"), "a number", 7),
            (("run", "more"), "there", 1),
            (("directions",), "a list", []),
            (("directions",), "a number", 7),
            (("directions",), "of a file outside", {"../x": {}}),
            ((*COMPOSED, "num_products"), "a text", "many"),
            ((*COMPOSED, "num_products"), "negative", -1),
            ((*COMPOSED, "num_unanswerable"), "missing", REMOVED),
            ((*COMPOSED, "counting"), "a text", "x"),
        )
    ),
    Malformed("ranks without rows", table(lambda found: found.slice(0, 0)), "no query in common"),
    Malformed("directions of a record is empty", json_at(FACTS, "directions", value={}), "no direction in common"),
    *(
        Malformed(f"ranks {said}", change, TABLE)
        for said, change in (
            ("without queries", table(lambda found: found.drop_columns(["query_id"]))),
            ("without ranks", table(lambda found: found.drop_columns(["rank"]))),
            ("of texts", column("rank", lambda size: ["first"] * size)),
            ("that are missing", column("rank", lambda size: [None] * size)),
            ("that are negative", column("rank", lambda size: [-1] * size)),
            ("with scores of texts", column("score:mrr", lambda size: ["high"] * size)),
            ("with ids that are missing", column("query_id", lambda size: [None] * size)),
            ("with ids twice", column("query_id", lambda size: ["a"] * size)),
            ("with hits that are no lists", column("hit_ids", lambda size: ["a"] * size)),
            ("with more hits than scores", column("hit_ids", lambda size: [["a"] * 99] * size)),
        )
    ),
]  # fmt: skip
EMBEDDINGS = [
    *of_file("the embeddings of a record", VECTORS),
    Malformed("the embeddings of a record have a changed header", flip(VECTORS, 0.01), VECTORS),
    Malformed("the embeddings of a record have no fusions", edit(VECTORS, lambda data: data.replace(b'"fusions"', b'"fusionz"', 1)), VECTORS),
    Malformed("the embeddings of a record have fusions that are no JSON", edit(VECTORS, lambda data: data.replace(b'"fusions":"{', b'"fusions":"x', 1)), VECTORS),
    Malformed("the embeddings of a record lack the queries", edit(VECTORS, lambda data: data.replace(b"queries/", b"askedxx/")), VECTORS),
]  # fmt: skip
RUN_FILES = [
    *of_file("results", RESULTS, left_out=("missing", "a link to itself")),
    *of_json("results", RESULTS, left_out=("an empty object",)),
    Malformed("results of texts", write(RESULTS, b'{"val/a/mrr": "high"}'), RESULTS),
    Malformed("results of lists", write(RESULTS, b'{"val/a/mrr": [1]}'), RESULTS),
    *of_file("the config of a run", CONFIG, left_out=("missing", "half", "without its last byte", "a link to itself")),
    *(
        Malformed(f"the config of a run {said}", write(CONFIG, text.encode("utf-8", "surrogateescape")), CONFIG)
        for said, text in (
            ("is a list", "- 1\n"),
            ("is no YAML", "a: [1\nb: }"),
            ("has tabs", "a:\n\t- 1\n"),
            ("builds objects", "a: !!python/object/apply:os.system ['touch ran']\n"),
            ("multiplies itself", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"),
            ("nests 500 deep", "a: " + "[" * 500 + "]" * 500),
            ("looks up a value", "a: ${oc.env:HOME}\n"),
            ("has a key that is a number", "7: 1\n"),
            ("has a key that is a list", "[1]: 1\n"),
            ("has a date", "a: 2024-01-01\n"),
            ("is not UTF-8", "a: caf\udce9\n"),
            ("has control characters", "a: \x07\n"),
            ("has two documents", "a: 1\n---\nb: 2\n"),
        )
    ),
    *of_file("the history", HISTORY, left_out=("missing", "empty", "half", "without its last byte", "a link to itself")),
    *(
        Malformed(f"a line of the history is {said}", edit(HISTORY, lambda data, line=line: line + b"\n" + data), HISTORY)
        for said, line in (
            ("half", b'{"epoch": 1,'), ("an array", b"[]"), ("empty", b""), ("an empty object", b"{}"),
            ("of unknown keys", b'{"a": 1}'), ("nested 100,000 deep", b"[" * 100_000), ("not UTF-8", b'{"a": "\xff"}'),
        )
    ),
    Malformed("a value of the history is of another type", edit(HISTORY, lambda data: data.replace(b'"rank": ', b'"rank": "x", "r": ', 1)), HISTORY),
    *of_file("the log", LOG, left_out=("missing", "empty", "half", "without its last byte", "a link to itself")),
    Malformed("a value of the log is a text", edit(LOG, lambda data: data.replace(b"\n0,", b"\nzero,", 1) if b"\n0," in data else data + b"x,x\n"), LOG),
    Malformed("the log lacks its steps", edit(LOG, lambda data: data.replace(b"step", b"stop", 1)), LOG),
]  # fmt: skip

EVENTS = "events.db"


def sql(*statements: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with sqlite3.connect(folder / EVENTS) as connection:
            connection.execute("PRAGMA foreign_keys=OFF")
            connection.execute("PRAGMA ignore_check_constraints=ON")
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
                connection.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                connection.execute(statement)
        connection.close()

    return damage


EVENT_LOGS = [
    *of_file("the event log", EVENTS, left_out=("without its last byte",)),
    Malformed("the event log lacks its last page", cut(EVENTS, -4096), EVENTS),
    Malformed("the event log has another magic", edit(EVENTS, lambda data: b"SQLite format 9\0" + data[16:]), EVENTS),
    Malformed("the event log has pages of 3 bytes", edit(EVENTS, lambda data: data[:16] + b"\0\3" + data[18:]), EVENTS),
    Malformed("the event log has damaged pages", edit(EVENTS, lambda data: data[:4096] + b"\xff" * (len(data) - 4096)), EVENTS),
    Malformed("the event log is a database of others", replaced(EVENTS, lambda path: sqlite3.connect(path).execute("CREATE TABLE a (b)").connection.close()), EVENTS),
    Malformed("the event log is a device", replaced(EVENTS, lambda path: path.symlink_to(os.devnull)), EVENTS),
    Malformed("the event log is of a version from the future", sql("UPDATE event_log_version SET version = 99"), EVENTS),
    Malformed("the event log is of no version", sql("DELETE FROM event_log_version"), EVENTS),
    Malformed("the event log is of two versions", sql("INSERT INTO event_log_version VALUES (99)"), EVENTS),
    Malformed("a table of the event log is missing", sql("DROP TABLE clicks"), EVENTS),
    Malformed("a column of the event log is missing", sql("ALTER TABLE impressions RENAME COLUMN arm TO leg"), EVENTS),
    Malformed("the event log has no impressions", sql("DELETE FROM clicks", "DELETE FROM shown", "DELETE FROM impressions"), "no impressions"),
    Malformed("the event log has another experiment", sql("UPDATE impressions SET experiment = 'others'"), "others"),
    Malformed("a name of an experiment has control characters", sql("UPDATE impressions SET experiment = char(27) || '[31m'"), ""),
]  # fmt: skip
