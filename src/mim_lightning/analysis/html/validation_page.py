"""The check of a manifest as one HTML file that stands alone, with pictures of what was found.

A CheckReport and a reader of pictures come in, a page goes out; the prepare door calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mim_lightning.analysis.html.images import Picture, data_uri
from mim_lightning.analysis.html.render import write_page
from mim_lightning.data.images.reader import ImageRef
from mim_lightning.data.validation import KINDS, CheckReport, Finding
from mim_lightning.data.validation.console import verdict_of
from mim_lightning.display.numbers import format_percent

NUM_LARGEST, NUM_SMALLEST = 12, 3  # categories shown
Read = Callable[[ImageRef], bytes]


@dataclass(frozen=True)
class Card:
    """A finding with its picture, and the one it is the same as."""

    finding: Finding
    picture: Picture | None
    other: Picture | None


@dataclass(frozen=True)
class Section:
    """What was found of one kind."""

    kind: str
    title: str
    advice: str
    is_bad: bool
    num_found: int
    has_pictures: bool
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class CategoryRow:
    name: str
    num_products: int
    width: float  # of its bar, in percent of the largest


def write_check_page(report: CheckReport, path: Path, read: Read, num_shown: int = 24) -> None:
    """Write a check: what the tables hold, and of each kind of finding the first ones with their pictures.

    Args:
        report: of the check.
        path: of the file; its folder is made.
        read: returns the stored bytes of a picture.
        num_shown: findings of a kind; `findings.csv` has all.
    """
    largest, smallest = _category_rows(report)
    write_page(
        path,
        "check.html.j2",
        title="Check of the data",
        report=report,
        verdict=verdict_of(report),
        is_good=not report.num_bad,
        sections=_sections(report, read, num_shown),
        largest=largest,
        smallest=smallest,
        share=format_percent,
        missing=(),
    )


def _sections(report: CheckReport, read: Read, num_shown: int) -> list[Section]:
    show = lru_cache(maxsize=None)(lambda ref, kind: _picture(ref, kind, read))  # a placeholder is found often
    sections = []
    for kind, known in KINDS.items():
        found = report.of_kind(kind)[:num_shown]
        if found:
            cards = tuple(
                Card(
                    finding,
                    show(finding.image, kind) if finding.image is not None else None,
                    show(finding.other_image, kind) if finding.other_image is not None else None,
                )
                for finding in found
            )
            has_pictures = any(card.picture for card in cards)
            num_found, is_bad = report.counts[kind], found[0].is_bad
            sections.append(Section(kind, known.title, known.advice, is_bad, num_found, has_pictures, cards))
    return sections


def _picture(ref: ImageRef, kind: str, read: Read) -> Picture:
    """Return a small picture, of a truncated one what is there; without `uri` where there is nothing to show."""
    if kind == "huge_image":
        return Picture("", "too large to show")
    try:
        return Picture(data_uri(read(ref), is_whole=kind != "truncated_image"), str(ref))
    except Exception:  # decoders raise what they like at damaged files
        return Picture("", "cannot be shown")


def _category_rows(report: CheckReport) -> tuple[list[CategoryRow], list[CategoryRow]]:
    """Return the largest categories, and the smallest of the others."""
    counts = report.categories.counts
    rows = [CategoryRow(name, count, round(100 * count / counts[0][1], 1)) for name, count in counts]
    return rows[:NUM_LARGEST], rows[NUM_LARGEST:][-NUM_SMALLEST:]
