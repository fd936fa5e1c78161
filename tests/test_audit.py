"""A known vulnerability fails the audit; packages that could not be checked are reported and do not."""

import runpy
from pathlib import Path
from typing import Any

import pytest

judge = runpy.run_path(str(Path(__file__).parents[1] / ".ci" / "audit.py"))["judge"]
CLEAN = {"name": "clean", "version": "1.0", "vulns": []}
SKIPPED = {"name": "ours", "skip_reason": "Dependency not found on PyPI"}
FOUND = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "fix_versions": ["1.1"], "description": ""}


@pytest.mark.parametrize(
    ("dependencies", "num_found", "words"),
    [
        ([CLEAN, CLEAN], 0, "0 known vulnerabilities in 2 packages"),
        ([CLEAN, SKIPPED], 0, "unknown to the database: ours"),
        ([SKIPPED, SKIPPED], 0, "not audited"),
        ([CLEAN, CLEAN | {"vulns": [FOUND]}], 1, "clean 1.0: PYSEC-2026-1, mended in 1.1"),
        ([CLEAN | {"vulns": [FOUND | {"fix_versions": []}] * 2}], 2, "mended in none"),
    ],
)
def test_a_report_is_judged(dependencies: list[dict[str, Any]], num_found: int, words: str) -> None:
    line, found = judge(dependencies)
    assert (found, words in line) == (num_found, True)
