"""What a check leaves behind: lines on the terminal, a page with pictures, and a table of every finding.

A CheckReport, a folder and a reader of pictures come in; `prepare` and the DataModule hand it to the preparation, which
knows when a check is done and where its files belong.
"""

from __future__ import annotations

from pathlib import Path

from mim_lightning.analysis.html.validation_page import write_check_page
from mim_lightning.data.images.reader import ImageReader
from mim_lightning.data.validation import CheckReport, print_check, write_findings, write_skipped
from mim_lightning.data.validation.report import FINDINGS_FILE

PAGE_FILE = "check.html"


def leave_check(report: CheckReport, folder: Path, reader: ImageReader, brief: bool = True) -> None:
    """Print a report, the whole of it if it is not `brief`, and write check.html, findings.csv and skipped.csv."""
    print_check(report, brief=brief)
    folder.mkdir(parents=True, exist_ok=True)
    write_check_page(report, folder / PAGE_FILE, reader.read)
    write_findings(report, folder / FINDINGS_FILE)
    write_skipped(report, folder / "skipped.csv")
