"""The invalid rows of a conversion that no process sees as a whole: collected, counted, and listed at the end.

Issues come in as tasks report them, one ValueError goes out as soon as they are too many; `ray_engine` calls it.
`check` does the same where one process sees all rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.validation import ValidationSettings
from mim_lightning.display.text import csv_cell
from mim_lightning.io.store import Store


@dataclass
class IssueLog:
    """The rows that are left out, and whether they are too many."""

    settings: ValidationSettings
    num_rows: Mapping[str, int]  # by table
    by_row: dict[tuple[str, str], RowIssue] = field(default_factory=dict)  # table and origin

    def add(self, issues: Iterable[RowIssue]) -> None:
        """Note issues.

        Raises:
            ValueError: there must be none, or fewer.
        """
        for issue in issues:
            self.by_row.setdefault((issue.table, issue.origin), issue)
        if self.by_row and self.settings.on_invalid == "raise":
            raise ValueError(
                f"{len(self.by_row):,} rows are bad so far, the first is {next(iter(self.by_row.values()))}; mend "
                f"them, or leave them out with data.validation.on_invalid=drop (at most data.validation.max_invalid="
                f"{self.settings.max_invalid} of a table)"
            )
        for table, num_rows in self.num_rows.items():
            found = [issue for issue in self.by_row.values() if issue.table == table]
            if len(found) > self.settings.ceiling(num_rows):
                raise ValueError(
                    f"{len(found):,} of {num_rows:,} rows of the {table} table are bad so far, more than "
                    f"data.validation.max_invalid={self.settings.max_invalid}; the first is {found[0]}"
                )

    def write(self, store: Store, name: str) -> None:
        """List what was left out, as the check does."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("table", "row", "id", "column", "reason"))
        for issue in self.by_row.values():
            cells = (issue.table, issue.origin, issue.row_id, issue.column, issue.reason)
            writer.writerow(map(csv_cell, cells))
        store.write(name, text.getvalue().encode())
