"""Ids of rows to delete: given one by one, or by a table that lists them."""

from __future__ import annotations

from collections.abc import Sequence

from mim_lightning.data.manifest.rows import RowError, raise_issue, text_of
from mim_lightning.data.manifest.table import TableSpec, open_table, read_rows
from mim_lightning.io.paths import to_path_or_url


def read_ids(given: str | Sequence[str], column: str) -> list[str]:
    """Return ids that are given as a list, or by the path or URL of a table with a column of them.

    Raises:
        ValueError: no such file, no such column, or a line that is not a row.
    """
    if not isinstance(given, str):
        return [str(one) for one in given]
    table = open_table(to_path_or_url(given), "delete")
    spec = TableSpec("delete", known=(column,), required=(column,))
    found: dict[str, None] = {}
    for origin, row in read_rows(table, spec, {}):
        try:
            one = text_of(row, column)
        except RowError as error:
            raise_issue(error.at(spec.name, origin, ""))
        if one is not None:
            found[one] = None
    return list(found)
