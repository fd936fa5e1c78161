"""The validation of a manifest as files: an HTML page with images of the findings, and CSV tables of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mim_lightning.analysis.html.images import PageImage, data_uri
from mim_lightning.analysis.html.position_figure import PositionFigure, write_position_figure
from mim_lightning.analysis.html.render import write_page
from mim_lightning.data.images.reader import ImageReader, ImageRef
from mim_lightning.data.validation.findings import KINDS, Finding
from mim_lightning.data.validation.report_tables import print_validation, verdict_of
from mim_lightning.data.validation.validation_report import (
    FINDINGS_FILE,
    ValidationReport,
    write_findings,
    write_skipped,
)
from mim_lightning.display.numbers import format_percent

PAGE_FILE = "check.html"
POSITIONS_FILE, FIGURE_FILE = "positions.csv", "positions.svg"
NUM_LARGEST, NUM_SMALLEST = 12, 3  # categories shown
Read = Callable[[ImageRef], bytes]


@dataclass(frozen=True)
class FindingCard:
    """A finding with its image, and the image that it duplicates."""

    finding: Finding
    image: PageImage | None
    other: PageImage | None


@dataclass(frozen=True)
class Section:
    """The findings of one kind."""

    kind: str
    title: str
    advice: str
    is_error: bool
    num_found: int
    has_images: bool
    cards: tuple[FindingCard, ...]


@dataclass(frozen=True)
class CategoryRow:
    """A category with the length of its bar."""

    name: str
    num_products: int
    width: float  # in percent of the largest


def write_validation_report(report: ValidationReport, folder: Path, reader: ImageReader, brief: bool = True) -> None:
    """Print a report, in full if not `brief`, and write check.html, findings.csv and skipped.csv.

    Of answers made from clicks also positions.csv and positions.svg.
    """
    print_validation(report, brief=brief)
    folder.mkdir(parents=True, exist_ok=True)
    write_validation_page(report, folder / PAGE_FILE, reader.read)
    write_findings(report, folder / FINDINGS_FILE)
    if report.clicks:
        report.clicks.write_csv(folder / POSITIONS_FILE)
        write_position_figure(report.clicks, folder / FIGURE_FILE)
    write_skipped(report, folder / "skipped.csv")


def write_validation_page(report: ValidationReport, path: Path, read: Read, num_shown: int = 24) -> None:
    """Write the page of a validation: statistics of the tables, and the first findings of each kind with their images.

    Args:
        report: of the validation.
        path: of the file; its folder is created.
        read: returns the encoded bytes of an image.
        num_shown: findings of a kind; `findings.csv` has all.
    """
    largest, smallest = _category_rows(report)
    write_page(
        path,
        "check.html.j2",
        title="Check of the data",
        report=report,
        verdict=verdict_of(report),
        is_good=not report.errors,
        sections=_sections(report, read, num_shown),
        figure=PositionFigure.of(report.clicks) if report.clicks else None,
        largest=largest,
        smallest=smallest,
        share=format_percent,
        missing=(),
    )


def _sections(report: ValidationReport, read: Read, num_shown: int) -> list[Section]:
    show = lru_cache(maxsize=None)(lambda ref, kind: _image(ref, kind, read))  # many findings may have one image
    sections = []
    for kind, known in KINDS.items():
        found = report.of_kind(kind)[:num_shown]
        if found:
            cards = tuple(
                FindingCard(
                    finding,
                    show(finding.image, kind) if finding.image is not None else None,
                    show(finding.other_image, kind) if finding.other_image is not None else None,
                )
                for finding in found
            )
            has_images = any(card.image for card in cards)
            num_found, is_error = report.counts[kind], found[0].is_error
            sections.append(Section(kind, known.title, known.advice, is_error, num_found, has_images, cards))
    return sections


def _image(ref: ImageRef, kind: str, read: Read) -> PageImage:
    """Return a small image, of a truncated one the part that decodes; without `uri` if there is nothing to show."""
    if kind == "huge_image":
        return PageImage("", "too large to show")
    try:
        return PageImage(data_uri(read(ref), is_whole=kind != "truncated_image"), str(ref))
    except Exception:  # decoders raise any exception on damaged files
        return PageImage("", "cannot be shown")


def _category_rows(report: ValidationReport) -> tuple[list[CategoryRow], list[CategoryRow]]:
    """Return the largest categories, and the smallest of the others."""
    counts = report.categories.counts
    rows = [CategoryRow(name, count, round(100 * count / counts[0][1], 1)) for name, count in counts]
    return rows[:NUM_LARGEST], rows[NUM_LARGEST:][-NUM_SMALLEST:]
