"""A check on the terminal: what the tables hold, what was found where, and the verdict.

A CheckReport comes in, lines go out; `prepare` calls it.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mim_lightning.data.validation.findings import KINDS
from mim_lightning.data.validation.report import CheckReport, describe_refusal
from mim_lightning.display.numbers import NOTHING, format_bytes, format_count, format_percent
from mim_lightning.display.text import plain

NUM_SHOWN = 3  # findings of a kind; findings.csv has all
MAX_NAME, MAX_REASON = 60, 400  # characters
SHORT = 24  # words, which every text encoder reads whole
PIPE_WIDTH = 160  # characters: a pipe has no width of its own


def print_check(report: CheckReport, console: Console | None = None, *, brief: bool = False) -> None:
    """Print a report; `brief` says it in a line or two if nothing is bad."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=PIPE_WIDTH)
    if brief and not report.num_bad:
        told = f"\n  told: {_counted_kinds(report)}" if report.counts else ""
        told += "".join(f"\n  {line}" for line in _text_lengths(report))
        console.print(f"check: {_held(report)}: nothing bad{_missing(report)}{told}", highlight=False, markup=False)
        return
    console.print()
    for table, place in report.places.items():
        console.print(
            f"[bold]{table:<9}[/] {escape(plain(place))}: {format_count(report.num_rows[table], 'row')}",
            highlight=False,
        )
    if report.splits:
        console.print(_splits(report))
    for line in _facts(report):
        console.print(line, highlight=False, markup=False)
    if report.texts:
        console.print(_texts(report))
    for line in _findings(report):
        console.print(line, highlight=False)
    console.print(_verdict(report), highlight=False)


def verdict_of(report: CheckReport) -> str:
    """Return in one line what becomes of the data."""
    if not report.num_bad:
        return f"nothing bad{_missing(report)}"
    rows = [
        f"{report.num_bad_rows(table):,} of {format_count(num_rows, 'row')} of {table} "
        f"({format_percent(report.num_bad_rows(table), num_rows)})"
        for table, num_rows in report.num_rows.items()
        if num_rows
    ]
    num_pictures = sum(finding.drops == "picture" for finding in report.findings)
    bad = ", ".join([*rows, f"{format_count(num_pictures, 'single picture')} of products that have others"])
    if not describe_refusal(report):
        return f"left out: {bad}{_missing(report)}"
    settings = report.settings
    return f"refused with on_invalid={settings.on_invalid}, max_invalid={settings.max_invalid}: bad are {bad}"


def _missing(report: CheckReport) -> str:
    if not report.missing_split:
        return ""
    splits = ", ".join(plain(split.name, MAX_NAME) for split in report.splits)
    return (
        f"; no split '{report.missing_split}': can be evaluated, not trained on (it has {splits}; "
        "data.shards.train_split=<split> trains on one of them)"
    )


def _held(report: CheckReport) -> str:
    rows = [
        format_count(report.num_rows[table], noun) for table, noun in (("products", "product"), ("queries", "query"))
    ]
    pictures = report.pictures
    rows.append(f"{format_count(pictures.num_pictures, 'picture')} ({format_bytes(pictures.num_bytes)})")
    return ", ".join(rows)


def _counted_kinds(report: CheckReport) -> str:
    return ", ".join(f"{KINDS[kind].title}: {count:,}" for kind, count in report.counts.items())


def _splits(report: CheckReport) -> Table:
    table = _table("split", "queries", "with image", "with text", "with both", "products", "asked in other splits too")
    for split in report.splits:
        counts = (split.num_queries, split.num_with_image, split.num_with_text, split.num_with_both, split.num_products)
        shared = f"{split.num_shared:,} ({format_percent(split.num_shared, split.num_products)})"
        table.add_row(Text(plain(split.name, MAX_NAME)), *(f"{count:,}" for count in counts), shared)
    return table


def _facts(report: CheckReport) -> Iterator[str]:
    catalogue, pictures, balance = report.catalogue, report.pictures, report.categories
    yield (
        f"catalogue: {format_count(catalogue.num_products, 'product')} with "
        f"{format_count(catalogue.num_pictures, 'picture')}; "
        f"{catalogue.num_with_several:,} have several, {catalogue.num_products - catalogue.num_with_image:,} none; "
        f"{catalogue.num_with_text:,} have text; {catalogue.num_asked:,} answer a query"
    )
    yield (
        f"pictures: {format_count(pictures.num_pictures, 'distinct file')} of {format_bytes(pictures.num_bytes)}; "
        "longer side "
        f"{pictures.shortest_side:,} to {pictures.longest_side:,} pixels, median {pictures.median_side:,}"
    )
    if balance.counts:
        (largest, most), (smallest, fewest) = balance.counts[0], balance.counts[-1]
        largest, smallest = plain(largest, MAX_NAME), plain(smallest, MAX_NAME)
        yield (
            f"categories: {len(balance.counts):,}; the largest '{largest}' with {format_count(most, 'product')}, the "
            f"smallest '{smallest}' with {fewest:,}; half of the products stand in {balance.num_holding_half:,} of "
            f"them; {format_count(balance.num_without, 'product')} in none"
        )


def _text_lengths(report: CheckReport) -> Iterator[str]:
    """Yield how long the texts are that an encoder cuts, or may cut."""
    for texts in report.texts:
        if texts.limit is None and texts.percentile_95 > SHORT:
            yield f"{texts.tower}: median {texts.median:,} words, 95 % up to {texts.percentile_95:,};"
            yield "  prepare encoder/text@tokenizer=<encoder> counts the texts that it cuts"
        elif texts.limit is not None and texts.num_over:
            over = f"{format_percent(texts.num_over, texts.num_texts)} are cut after {texts.limit:,} tokens"
            yield f"{texts.tower}: {over}, median {texts.median:,};"
            yield "  encoder.text.max_length reads more"


def _texts(report: CheckReport) -> Table:
    table = _table("texts", "number", "unit", "median", "95 % up to", "longest", "limit", "over it")
    for texts in report.texts:
        numbers = (texts.median, texts.percentile_95, texts.longest)
        known = texts.limit is not None
        over = f"{texts.num_over:,} ({format_percent(texts.num_over, texts.num_texts)})" if known else NOTHING
        limit = f"{texts.limit:,}" if known else NOTHING
        table.add_row(texts.tower, f"{texts.num_texts:,}", texts.unit, *(f"{n:,}" for n in numbers), limit, over)
    return table


def _findings(report: CheckReport) -> Iterator[str]:
    for kind, known in KINDS.items():
        found = report.of_kind(kind)
        if found:
            colour, weight = ("red", "bad") if found[0].is_bad else ("yellow", "told")
            yield f"[{colour}]{known.title}: {report.counts[kind]:,}[/] [dim]({weight}; {known.advice})[/]"
            for finding in found[:NUM_SHOWN]:
                place, reason = plain(report.place_of(finding)), plain(finding.reason, MAX_REASON)
                yield f"  {escape(place)}: {escape(reason)}"
            if len(found) > NUM_SHOWN:
                yield f"  [dim]... {report.counts[kind] - NUM_SHOWN:,} more[/]"


def _verdict(report: CheckReport) -> str:
    colour = "red" if describe_refusal(report) else "yellow" if report.num_bad else "green"
    return f"[bold {colour}]check:[/] {escape(verdict_of(report))}"


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table
