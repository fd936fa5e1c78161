"""Texts are measured as the tokenizer counts them, before it cuts; without one in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mim_lightning.data.images.reader import ImageReader
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.validation.validate import validate_manifest
from mim_lightning.data.validation.validation_report import ValidationReport
from mim_lightning.encoders.tiny import TinyText
from mim_lightning.types import TextSpec
from tests.data.validation.broken import write_shop

PRODUCTS = [
    {"product_id": "a", "title": "one two three"},
    {"product_id": "b", "title": "one", "description": "two three four five six"},
    {"product_id": "c", "title": "one two three four five six seven"},
]
QUERIES = [
    {"query_id": "q1", "text": "one two", "product_id": "a"},
    {"query_id": "q2", "text": "one two three four five", "product_id": "a"},
]


def letters(texts: Sequence[str]) -> dict[str, Tensor]:
    return {"ids": torch.zeros(len(texts), max(map(len, texts)))}


def measured(folder: Path, specs: dict[str, Any] | None, **settings: Any) -> ValidationReport:
    manifest, faults = write_shop(folder, {}, PRODUCTS, QUERIES)
    return validate_manifest(
        manifest, faults, ValidationSettings(num_processes=1, **settings), ImageReader().read, specs=specs
    )


def test_text_without_a_tokenizer(tmp_path: Path) -> None:
    products, queries = measured(tmp_path, None).texts
    assert (products.tower, products.unit, products.num_texts, products.limit) == ("product_text", "words", 3, None)
    assert (products.median, products.longest, products.num_over) == (6, 7, 0)
    assert (queries.tower, queries.num_texts, queries.longest) == ("query_text", 2, 5)


def test_tokens_over_the_limit(tmp_path: Path) -> None:
    spec = TinyText(max_length=5, vocabulary=64, width=32).spec
    report = measured(tmp_path, {"product_text": spec, "query_text": spec})
    products, queries = report.texts
    assert (products.unit, products.limit, products.num_over, products.longest) == ("tokens", 5, 2, 7)
    assert (queries.num_over, queries.longest) == (0, 5)  # as many as fit is not too many
    found = report.of_kind("text_over_limit")
    assert [(report.row_of(f), f.row_id, f.column, f.is_error) for f in found] == [
        ("3", "b", "description", False),
        ("4", "c", "title", False),
    ]
    assert found[1].reason == "7 tokens, of which the first 5 are read"
    bad = measured(
        tmp_path,
        {"query_text": TinyText(max_length=4, vocabulary=64, width=32).spec},
        treat_as_invalid=["text_over_limit"],
    )
    assert [(f.table, f.row_id, f.column, f.drops) for f in bad.errors] == [("queries", "q2", "text", "row")]
    assert bad.texts[0].unit == "words"


def test_a_tokenizer_that_cannot_count(tmp_path: Path) -> None:
    (products, _) = measured(tmp_path, {"product_text": TextSpec(letters, 3)}).texts
    assert products.unit == "words" and products.limit is None


def test_texts_are_given_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim_lightning.data.validation.statistics.TOKENIZER_BATCH_SIZE", 2)
    given: list[int] = []

    def count(texts: Sequence[str]) -> list[int]:
        given.append(len(texts))
        return [len(text) for text in texts]

    report = measured(tmp_path, {"product_text": TextSpec(letters, 1000, count)})
    assert given == [2, 1] and report.texts[0].longest == len(PRODUCTS[2]["title"])
