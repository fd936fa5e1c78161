"""The printed report: every count, the first rows of each kind, the verdict; text of tables is never markup."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from mim_lightning.data.validation.report_tables import print_validation
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.validation.validation_report import ValidationReport
from mim_lightning.display.numbers import format_bytes
from tests.data.validation.broken import check, jpeg, write_shop


def printed(report: ValidationReport, brief: bool = False) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_validation(report, console, brief=brief)
    return console.file.getvalue()  # type: ignore[attr-defined]


def broken(folder: Path, num_bad: int = 5) -> ValidationReport:
    queries = [{"query_id": f"q{n}", "image": "[red].jpg", "product_id": "p"} for n in range(num_bad)]
    queries += [{"query_id": "ok", "split": "val", "image": "ok.jpg", "product_id": "p"}]
    products = [{"product_id": "p", "image": "p.jpg", "title": "A long [bold] mug", "category": "[blue]"}]
    pictures = {"p.jpg": jpeg(1), "ok.jpg": jpeg(2), "[red].jpg": b"text"}
    return check(*write_shop(folder, pictures, products, queries))


def test_the_whole_report(tmp_path: Path) -> None:
    report = broken(tmp_path)
    text = printed(report)
    words = " ".join(text.split())
    assert f"products {tmp_path / 'products.csv'}: 1 row" in words and "queries.csv: 6 rows" in words
    assert "train 5 5 0 0 1 1 (100.0 %)" in words and "val 1 1 0 0 1 1 (100.0 %)" in words
    assert "error: 5 unreadable images (replace the file)" in words
    for row in ("row 2 (q0)", "row 3 (q1)", "row 4 (q2)"):
        assert f"queries, {row}, column 'image': {tmp_path / '[red].jpg'}: not a readable image" in words
    assert "row 5 (q3)" not in words and "... 2 more" in words
    assert "categories: 1, from '[blue]' (1 product) to '[blue]' (1 product);" in words
    assert "product_text 1 words 4 4 4 - -" in words
    assert "validation: rejected by on_invalid=raise, max_invalid=1%; invalid are 0 of 1 row of products (0" in words
    assert "(0.0 %), 5 of 6 rows of queries (83.3 %)" in words


def test_the_verdict_follows_the_settings(tmp_path: Path) -> None:
    report = broken(tmp_path, num_bad=1)
    skipping = replace(report, settings=ValidationSettings(on_invalid="drop", max_invalid="50%"))
    words = " ".join(printed(skipping).split())
    assert "validation: dropped 0 of 1 row of products (0.0 %), 1 of 2 rows of queries (50.0 %), 0 single" in words


def test_in_brief(tmp_path: Path) -> None:
    pictures = {"a.jpg": jpeg(1), "b.jpg": jpeg(2)}
    products = [{"product_id": "a", "image": "a.jpg", "title": "A"}, {"product_id": "b", "title": "B"}]
    report = check(*write_shop(tmp_path, pictures, products, [{"query_id": "q", "image": "b.jpg", "product_id": "a"}]))
    total = format_bytes(sum(map(len, pictures.values())))
    assert printed(report, brief=True).splitlines() == [
        f"validation: 2 products, 1 query, 2 images ({total}): no errors, 1 warning",
        "  warning: 1 product without image",
    ]  # fmt: skip
    assert "replace the file" in printed(broken(tmp_path / "b"), brief=True)


def test_the_brief_report_names_long_texts_and_the_key_that_counts_cut_ones(tmp_path: Path) -> None:
    products = [{"product_id": "a", "image": "a.jpg", "title": "word " * 57}]
    query = {"query_id": "q", "image": "a.jpg", "product_id": "a"}
    report = check(*write_shop(tmp_path, {"a.jpg": jpeg(1)}, products, [query]))
    lines = printed(report, brief=True).splitlines()
    assert "  product_text: median 57 words, 95th percentile 57 words;" in lines
    assert "    prepare encoder/text@tokenizer=<encoder> counts the texts that it truncates" in lines


def test_a_set_for_evaluation_only_is_reported(tmp_path: Path) -> None:
    queries = [{"query_id": "q", "split": "test", "image": "b.jpg", "product_id": "a"}]
    products = [{"product_id": "a", "image": "a.jpg", "title": "A"}]
    report = check(*write_shop(tmp_path, {"a.jpg": jpeg(1), "b.jpg": jpeg(2)}, products, queries))
    for brief in (False, True):
        text = " ".join(printed(report, brief).split())
        assert "no split 'train': can be evaluated, not trained on (it has test; data.shards.train_split" in text
    assert "no split" not in printed(replace(report, missing_split=""))


def test_no_line_of_the_statistics_wraps_on_a_terminal_of_80_columns(tmp_path: Path) -> None:
    report = broken(tmp_path)
    counts = {"num_queries": 1_234_567, "num_products": 1_234_567, "num_shared": 1_234_567}
    splits = tuple(replace(split, **counts) for split in report.splits)
    texts = tuple(replace(texts, num_texts=1_234_567, limit=77, num_over=234_567) for texts in report.texts)
    for brief in (False, True):
        console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
        print_validation(replace(report, splits=splits, texts=texts, findings=(), paths={}), console, brief=brief)
        lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
        assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
        if not brief:
            starts = (
                "split",
                "train",
                "val",
                "catalog:",
                "images:",
                "categories:",
                "tower",
                "product_text",
                "validation:",
            )
            others = [line for line in lines if line.strip("─ ") and not line.lstrip().startswith(starts)]
            assert all(line.startswith(" " * 12) for line in others) and len(others) == 2, "no part of a line"
