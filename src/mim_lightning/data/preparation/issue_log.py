"""The invalid rows of a preparation whose tasks report them one after the other."""

from __future__ import annotations

import csv
import io
from collections import Counter
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
    by_row: dict[tuple[str, str], RowIssue] = field(default_factory=dict, init=False)  # by table and origin
    _counts: Counter[str] = field(default_factory=Counter, init=False)  # by table

    def add(self, issues: Iterable[RowIssue]) -> None:
        """Add issues.

        Raises:
            ValueError: there are more than the settings allow.
        """
        for issue in issues:
            if (issue.table, issue.origin) not in self.by_row:
                self.by_row[issue.table, issue.origin] = issue
                self._counts[issue.table] += 1
        limit = f"data.validation.max_invalid={self.settings.max_invalid}"
        if self.by_row and self.settings.on_invalid == "raise":
            raise ValueError(
                f"{len(self.by_row):,} rows are invalid so far, the first is {next(iter(self.by_row.values()))}; mend "
                f"them, or drop them with data.validation.on_invalid=drop (at most {limit} of a table)"
            )
        for table, num_rows in self.num_rows.items():
            if self._counts[table] > self.settings.ceiling(num_rows):
                first = next(issue for issue in self.by_row.values() if issue.table == table)
                raise ValueError(
                    f"{self._counts[table]:,} of {num_rows:,} rows of the {table} table are invalid so far, which "
                    f"exceeds {limit}; the first is {first}"
                )

    def allows(self, issues: Iterable[RowIssue]) -> bool:
        """Return whether the issues could be added."""
        try:
            log = IssueLog(self.settings, self.num_rows)
            log.add([*self.by_row.values(), *issues])
        except ValueError:
            return False
        return True

    def write(self, store: Store, name: str) -> None:
        """Write the dropped rows as a CSV file."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("table", "row", "id", "column", "reason"))
        for issue in self.by_row.values():
            cells = (issue.table, issue.origin, issue.row_id, issue.column, issue.reason)
            writer.writerow(map(csv_cell, cells))
        store.write(name, text.getvalue().encode())
