"""A source, read and checked: the rows that are fit to be written, and what was found in the others.

A Source comes in, a CheckedSource goes out; `prepared` calls it before it writes, and to check alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mim_lightning.data.images.reader import ImageReader
from mim_lightning.data.manifest.manifest import Manifest, Source
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.preparation.staging import FACTS_FILE
from mim_lightning.data.splits import Protocol
from mim_lightning.data.validation import (
    CheckReport,
    ValidationSettings,
    check_manifest,
    keep_good,
    print_check,
    require_good,
)
from mim_lightning.data.validation.image_loading import refs_of

if TYPE_CHECKING:
    from mim_lightning.types import InputSpec

LeaveReport = Callable[[CheckReport, Path, ImageReader], None]  # tells a report, and leaves its files in a folder


@dataclass(frozen=True)
class CheckedSource:
    """A source's rows, what the check found in them, and what reads their pictures."""

    manifest: Manifest
    report: CheckReport
    reader: ImageReader

    @property
    def good(self) -> Manifest:
        """The rows that are written."""
        return keep_good(self.manifest, self.report)

    def require_good(self, folder: Path, refused: Path, leave_report: LeaveReport) -> None:
        """Leave the report in `folder`, or in `refused` if the data are not to be used.

        Raises:
            ValueError: they are not.
        """
        try:
            require_good(self.report)
        except ValueError as error:
            leave_report(self.report, refused, self.reader)
            if not refused.is_dir():
                raise
            raise ValueError(f"{error}; the report is in {refused}") from None
        leave_report(self.report, folder, self.reader)


@dataclass(frozen=True)
class Checking:
    """How a source is checked.

    Attributes:
        settings: how strict.
        specs: by field, for the limits of their tokenisers; None: words are counted.
        leave_report: what is done with the report.
    """

    settings: ValidationSettings = field(default_factory=ValidationSettings)
    specs: Mapping[str, InputSpec] | None = None
    leave_report: LeaveReport = lambda report, folder, reader: print_check(report, brief=True)


def check_source(
    source: Source, work_folder: Path, splits: tuple[str, str], protocol: Protocol, checking: Checking
) -> CheckedSource:
    """Read a source, fetch its pictures and look at everything; an interrupted check in the same folder goes on.

    Args:
        work_folder: where the source may leave files that its rows point to.
        splits: names of the training split and of that which a protocol evaluates.
    """
    issues: list[RowIssue] = []
    manifest = protocol.apply(source.read(work_folder / "source", issues.append), *splits)
    reader = ImageReader(manifest.download)
    reader.fetch_all(refs_of(manifest))
    report = check_manifest(
        manifest,
        issues,
        checking.settings,
        reader.read,
        facts_path=work_folder / FACTS_FILE,
        train_split=splits[0],
        specs=checking.specs,
    )
    return CheckedSource(manifest, report, reader)
