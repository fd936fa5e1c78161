"""Prints a validation report: statistics, findings, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mim_lightning.data.manifest.click_report import ClickReport
from mim_lightning.data.validation.findings import KINDS
from mim_lightning.data.validation.validation_report import ValidationReport, describe_rejection
from mim_lightning.display.numbers import (
    NOTHING,
    format_bytes,
    format_count,
    format_interval,
    format_number,
    format_percent,
)
from mim_lightning.display.text import plain

NUM_SHOWN = 3  # findings of a kind; findings.csv has all
MAX_NAME, MAX_REASON = 60, 400  # characters
MAX_CATEGORY = 20  # characters: two fit into a line
SHORT = 24  # words, which every text encoder reads whole
PIPE_WIDTH = 160  # characters: a pipe has no width of its own


def print_validation(report: ValidationReport, console: Console | None = None, *, brief: bool = False) -> None:
    """Print a report; `brief` is for a line or two if there are no errors."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=PIPE_WIDTH)
    if brief and not report.errors:
        for line in _brief_lines(report):
            console.print(line, highlight=False, markup=False)
        for line in _click_lines(report.clicks) if report.clicks else ():
            console.print(line, highlight=False, markup=False)
        return
    console.print()
    for table, path in report.paths.items():
        num_rows = format_count(report.num_rows[table], "row")
        console.print(f"[bold]{table:<9}[/] {escape(plain(path))}: {num_rows}", highlight=False)
    if report.splits:
        console.print(_split_table(report))
    for line in _statistics(report):
        console.print(line, highlight=False, markup=False)
    if report.texts:
        console.print(_text_table(report))
    if report.clicks:
        console.print(_position_table(report.clicks))
        for line in _click_lines(report.clicks):
            console.print(line, highlight=False, markup=False)
    for line in _findings(report):
        console.print(line, highlight=False)
    color = "red" if describe_rejection(report) else "yellow" if report.errors else "green"
    console.print(f"[bold {color}]validation:[/] {escape(verdict_of(report))}", highlight=False)


def verdict_of(report: ValidationReport) -> str:
    """Return in one line what happens to the data."""
    missing = "".join(f"; {line}" for line in _missing_split(report))
    if not report.errors:
        return f"no errors{missing}"
    rows = [
        f"{report.num_invalid_rows(table):,} of {format_count(num_rows, 'row')} of {table} "
        f"({format_percent(report.num_invalid_rows(table), num_rows)})"
        for table, num_rows in report.num_rows.items()
        if num_rows
    ]
    num_images = sum(finding.drops == "image" for finding in report.findings)
    invalid = ", ".join([*rows, f"{format_count(num_images, 'single image')} of products that have others"])
    if not describe_rejection(report):
        return f"dropped {invalid}{missing}"
    settings = report.settings
    return f"rejected by on_invalid={settings.on_invalid}, max_invalid={settings.max_invalid}; invalid are {invalid}"


def _brief_lines(report: ValidationReport) -> Iterator[str]:
    rows = [
        format_count(report.num_rows[table], noun) for table, noun in (("products", "product"), ("queries", "query"))
    ]
    images = f"{format_count(report.images.num_images, 'image')} ({format_bytes(report.images.num_bytes)})"
    warnings = [KINDS[kind].describe(count) for kind, count in report.counts.items()]
    warnings += _missing_split(report)
    yield f"validation: {', '.join([*rows, images])}: no errors, {format_count(len(warnings), 'warning')}"
    for warning in warnings:
        yield f"  warning: {warning}"
    for texts in report.texts:
        if texts.limit is None and texts.percentile_95 > SHORT:
            yield f"  {texts.tower}: median {texts.median:,} words, 95th percentile {texts.percentile_95:,} words;"
            yield "    prepare encoder/text@tokenizer=<encoder> counts the texts that it truncates"
        elif texts.limit is not None and texts.num_over:
            over = f"{format_percent(texts.num_over, texts.num_texts)} are truncated to {texts.limit:,} tokens"
            yield f"  {texts.tower}: {over}, median {texts.median:,} tokens;"
            yield "    a larger encoder.text.max_length reads more"


def _click_lines(clicks: ClickReport) -> Iterator[str]:
    yield from (f"clicks: {line}" for line in clicks.lines())
    yield from (f"  warning: {warning}" for warning in clicks.warnings())


def _missing_split(report: ValidationReport) -> Iterator[str]:
    if report.missing_split:
        splits = ", ".join(plain(split.name, MAX_NAME) for split in report.splits)
        yield (
            f"no split '{report.missing_split}': can be evaluated, not trained on (it has {splits}; "
            "data.shards.train_split=<split> trains on one of them)"
        )


def _split_table(report: ValidationReport) -> Table:
    table = _table("split", "queries", "images", "texts", "both", "products", "in other splits")
    for split in report.splits:
        counts = (split.num_queries, split.num_with_image, split.num_with_text, split.num_with_both, split.num_products)
        shared = f"{split.num_shared:,} ({format_percent(split.num_shared, split.num_products)})"
        table.add_row(Text(plain(split.name, MAX_NAME)), *(f"{count:,}" for count in counts), shared)
    return table


def _statistics(report: ValidationReport) -> Iterator[str]:
    catalog, images, balance = report.catalog, report.images, report.categories
    yield (
        f"catalog:    {format_count(catalog.num_products, 'product')}, {catalog.num_with_text:,} with text, "
        f"{catalog.num_with_image:,} with image, {catalog.num_with_several:,} with several;"
    )
    yield f"            {format_count(catalog.num_images, 'image')}, {catalog.num_targets:,} products are targets"
    yield (
        f"images:     {images.num_images:,} distinct ({format_bytes(images.num_bytes)}), longer side "
        f"{images.shortest_side:,}-{images.longest_side:,} px, median {images.median_side:,} px"
    )
    if balance.counts:
        largest, smallest = (
            f"'{plain(name, MAX_CATEGORY)}' ({format_count(count, 'product')})"
            for name, count in (balance.counts[0], balance.counts[-1])
        )
        yield f"categories: {len(balance.counts):,}, from {largest} to {smallest};"
        yield (
            f"            {balance.num_with_half:,} of them have half of the products, "
            f"{format_count(balance.num_without, 'product')} none"
        )


def _text_table(report: ValidationReport) -> Table:
    table = _table("tower", "texts", "unit", "median", "p95", "longest", "limit", "truncated")
    for texts in report.texts:
        numbers = (texts.median, texts.percentile_95, texts.longest)
        known = texts.limit is not None
        over = f"{texts.num_over:,} ({format_percent(texts.num_over, texts.num_texts)})" if known else NOTHING
        limit = f"{texts.limit:,}" if known else NOTHING
        table.add_row(texts.tower, f"{texts.num_texts:,}", texts.unit, *(f"{n:,}" for n in numbers), limit, over)
    return table


def _position_table(clicks: ClickReport) -> Table:
    table = _table("position", "shown", "clicked", "click rate", "examination", "95 %", "weight of a click")
    for row in clicks.positions:
        ends = format_interval(row.examination.low, row.examination.high) if clicks.is_estimated else NOTHING
        numbers = *map(format_number, (row.click_rate, row.examination.value)), ends, format_number(row.weight, 2)
        table.add_row(str(row.position), f"{row.num_shown:,}", f"{row.num_clicked:,}", *numbers)
    return table


def _findings(report: ValidationReport) -> Iterator[str]:
    for kind, known in KINDS.items():
        found = report.of_kind(kind)
        if found:
            color, severity = ("red", "error") if found[0].is_error else ("yellow", "warning")
            yield f"[{color}]{severity}: {known.describe(report.counts[kind])}[/] [dim]({known.advice})[/]"
            for finding in found[:NUM_SHOWN]:
                place, reason = plain(report.place_of(finding)), plain(finding.reason, MAX_REASON)
                yield f"  {escape(place)}: {escape(reason)}"
            if len(found) > NUM_SHOWN:
                yield f"  [dim]... {report.counts[kind] - NUM_SHOWN:,} more[/]"


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="ellipsis", no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
