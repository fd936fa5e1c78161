"""The entry point compare: arguments, tables and files, one line for each mistake."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mim_lightning.compare import main
from tests.analysis.evaluations import Row, config, write_evaluation


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Write two seeds of two models; the second finds every third query that the first does not."""
    folders = []
    for model in ("2tower", "4tower"):
        for seed in (1, 2):
            ranks = [1 if q % 3 == 0 or (model == "4tower" and q % 3 == 1) else 2 + q % 4 for q in range(60)]
            rows = [Row(f"q{q:02d}", f"p{q:02d}", rank, {"half": f"{q % 2}"}) for q, rank in enumerate(ranks)]
            folder = tmp_path / "runs" / f"{model}-{seed}"
            write_evaluation(folder / "evaluation", rows, config(model, seed))
            folders.append(str(folder))
    return folders


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["compare", *words])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_runs_become_a_table_a_page_and_numbers(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "out"
    words = [*runs, "--metric", "hit@1,mrr", "--output", str(output), "--num-queries", "3"]
    assert call(monkeypatch, *words) == 0
    stdout = capsys.readouterr().out
    assert "baseline  2tower: 2 runs, seeds 1, 2" in stdout
    (line,) = [line.split() for line in stdout.splitlines() if line.split()[1:2] == ["hit@1"]]
    assert line[:6] == ["image_to_image", "hit@1", "4tower", "0.333", "0.667", "+0.333"]
    assert line[8:] == ["*", "+100.0", "%", "<", "0.001", "60", "50"]
    content = json.loads((output / "compare.json").read_text())
    assert [row["metric"] for row in content["overall"]] == ["hit@1", "mrr"]
    assert [row["label"] for row in content["by_segment"] if row["metric"] == "hit@1"] == ["0", "1"]
    assert len(content["gained"]) == 3 and not content["lost"]
    assert "4tower against 2tower" in (output / "compare.html").read_text()


def test_an_evaluation_folder_is_as_good_as_its_run(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, runs[2], f"{runs[0]}/evaluation", "--segments", "none") == 0
    stdout = capsys.readouterr().out
    assert "baseline  4tower" in stdout and "-0.333" in stdout
    assert "Holm" not in stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: run"),
        (["{0}"], "give at least two runs"),
        (["{0}", "nowhere"], "nowhere: contains no evaluation record"),
        (["{0}", "{0}"], "is given twice"),
        (["{0}", "{1}"], "differ only in seed or fold"),
        (["{0}", "{2}", "--metric", "hit@3"], "--metric hit@3"),
        (["{0}", "{2}", "--direction", "up"], "share image_to_image"),
        (["{0}", "{2}", "--segments", "color"], "has half"),
        (["{0}", "{2}", "--resamples", "0"], "'0': must be a whole number, 1 or more"),
        (["{0}", "{2}", "--metrics", "mrr"], "unrecognized arguments: --metrics mrr"),
    ],
)
def test_a_mistake_is_one_line(
    runs: list[str],
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *(word.format(*runs) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_help_is_no_mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    assert "<run> <run>" in capsys.readouterr().out
