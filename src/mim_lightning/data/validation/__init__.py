"""The check of a manifest before anything is written: every row and picture, in one report.

`check_manifest` makes a CheckReport; `print_check` shows it, `require_good` stops if it says so, `keep_good` leaves
bad rows out, and `write_skipped` lists them.
"""

from mim_lightning.data.validation.console import print_check
from mim_lightning.data.validation.findings import KINDS, Finding
from mim_lightning.data.validation.keeping import keep_good
from mim_lightning.data.validation.report import CheckReport, require_good, write_findings, write_skipped
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.validation.validate import check_manifest

__all__ = [
    "KINDS",
    "CheckReport",
    "Finding",
    "ValidationSettings",
    "check_manifest",
    "keep_good",
    "print_check",
    "require_good",
    "write_findings",
    "write_skipped",
]
