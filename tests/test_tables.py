"""Every table of numbers in README, docs and records is quoted from a file in experiments/, and has not drifted."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "experiments" / "refresh.py"
QUOTED = re.compile(r"<!-- experiments/\S+ -->\n.*?<!-- end -->", re.DOTALL)
PAGES = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("experiments/*/**/README.md")]


def test_no_table_has_drifted() -> None:
    finished = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout


def test_no_table_of_measurements_is_typed_by_hand() -> None:
    for page in PAGES:
        rest = QUOTED.sub("", page.read_text())
        typed = [line for line in rest.splitlines() if line.startswith("|") and re.search(r"\d\.\d", line)]
        assert not typed, f"{page.relative_to(ROOT)}: {typed[0]}"


def test_drift_is_found_and_fixed(tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "one"
    folder.mkdir(parents=True)
    (folder / "table.md").write_text("| a |\n| --- |\n| 0.5 |\n")
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- experiments/one/table.md -->\n| a |\n| 0.4 |\n<!-- end -->\nafter\n")
    script = tmp_path / "experiments" / "refresh.py"
    script.write_text(SCRIPT.read_text())

    def run(*words: str) -> int:
        return subprocess.run([sys.executable, script, *words], capture_output=True, check=False).returncode

    assert run("--check") == 1 and "0.4" in page.read_text()
    assert run() == 0 and run("--check") == 0
    assert page.read_text() == (
        "before\n<!-- experiments/one/table.md -->\n| a |\n| --- |\n| 0.5 |\n<!-- end -->\nafter\n"
    )
