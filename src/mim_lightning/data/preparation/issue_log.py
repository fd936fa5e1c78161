"""The invalid rows of a preparation whose tasks report them one after the other."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.display.text import csv_cell
from mim_lightning.io.store import Store


@dataclass
class IssueLog:
    """The invalid rows that the tasks reported so far, as no process sees all rows."""

    settings: ValidationSettings
    num_rows: Mapping[str, int]  # by table
    by_row: dict[tuple[str, str], RowIssue] = field(default_factory=dict)  # by table and origin

    def add(self, issues: Iterable[RowIssue]) -> None:
        """Add issues.

        Raises:
            ValueError: there are more than the settings allow.
        """
        for issue in issues:
            self.by_row.setdefault((issue.table, issue.origin), issue)
        limit = f"data.validation.max_invalid={self.settings.max_invalid}"
        if self.by_row and self.settings.on_invalid == "raise":
            raise ValueError(
                f"{len(self.by_row):,} rows are invalid so far, the first is {next(iter(self.by_row.values()))}; mend "
                f"them, or drop them with data.validation.on_invalid=drop (at most {limit} of a table)"
            )
        for table, num_rows in self.num_rows.items():
            found = [issue for issue in self.by_row.values() if issue.table == table]
            if len(found) > self.settings.ceiling(num_rows):
                raise ValueError(
                    f"{len(found):,} of {num_rows:,} rows of the {table} table are invalid so far, which exceeds "
                    f"{limit}; the first is {found[0]}"
                )

    def write(self, store: Store, name: str) -> None:
        """Write the dropped rows as a CSV file."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("table", "row", "id", "column", "reason"))
        for issue in self.by_row.values():
            cells = (issue.table, issue.origin, issue.row_id, issue.column, issue.reason)
            writer.writerow(map(csv_cell, cells))
        store.write(name, text.getvalue().encode())
