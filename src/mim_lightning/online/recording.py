"""Events into rows: impressions with what they showed, and clicks on that.

A connection in a transaction and events come in, rows are in the tables afterwards; `EventLog` calls it. There is no
statement here, nor anywhere in this room, that changes or removes a row.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, insert, literal, select
from sqlalchemy.dialects import postgresql, sqlite

from mim_lightning.online.events import Click, Impression
from mim_lightning.online.schema import Row, clicks, impressions, shown


def add_events(connection: Connection, batch: Sequence[Impression], clicked: Sequence[Click] = ()) -> None:
    """Insert impressions with what they showed, and clicks on these.

    Raises:
        ValueError: a click is on nothing that these impressions showed.
    """
    shown_rows = [row for impression in batch for row in _shown_rows(impression)]
    positions = {(row["impression_id"], row["product_id"]): row["position"] for row in shown_rows}
    click_rows: dict[tuple[str, str], Row] = {}
    for click in clicked:
        key = click.impression_id, click.product_id
        if key not in positions:
            raise ValueError(f"{_named(click)}: is on no product that an impression recorded with it showed")
        click_rows.setdefault(key, {**_key(click), "position": positions[key], "time": click.time})
    rows = {impressions: [_impression_row(i) for i in batch], shown: shown_rows, clicks: list(click_rows.values())}
    for table, values in rows.items():
        if values:
            connection.execute(insert(table), values)


def add_click(connection: Connection, click: Click) -> bool:
    """Insert a click on what was recorded before; return whether it is the first on this product and impression.

    Raises:
        ValueError: the impression is not known, or did not show this product.
    """
    is_it = (shown.c.impression_id == click.impression_id) & (shown.c.product_id == click.product_id)
    time = literal(click.time, clicks.c.time.type)
    found = select(shown.c.impression_id, shown.c.product_id, shown.c.position, time).where(is_it)
    # one statement: between a look and an insert another process could record the same click
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(clicks).from_select(["impression_id", "product_id", "position", "time"], found)
    counting = {"preserve_rowcount": True}  # of an insert PostgreSQL's would be gone otherwise
    if connection.execute(statement.on_conflict_do_nothing(), execution_options=counting).rowcount > 0:
        return True
    if connection.execute(found).first() is None:
        is_known = connection.execute(select(1).where(impressions.c.impression_id == click.impression_id)).first()
        raise ValueError(f"{_named(click)}: " + ("was not shown" if is_known else "there is no such impression"))
    return False


def _impression_row(impression: Impression) -> Row:
    names = ("impression_id", "time", "experiment", "arm", "user_hash", "kind", "latency_ms", "fingerprint")
    return {**{name: getattr(impression, name) for name in names}, "num_results": len(impression.shown)}


def _shown_rows(impression: Impression) -> list[Row]:
    return [
        {
            "impression_id": impression.impression_id,
            "product_id": product.product_id,
            "position": position,
            "score": product.score,
        }
        for position, product in enumerate(impression.shown, start=1)
    ]


def _key(click: Click) -> Row:
    return {"impression_id": click.impression_id, "product_id": click.product_id}


def _named(click: Click) -> str:
    return f"click on product '{click.product_id[:80]}' of impression '{click.impression_id}'"
