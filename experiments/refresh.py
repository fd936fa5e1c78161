"""Put the tables of experiments/ into the pages that quote them, so that no number is typed by hand.

    python experiments/refresh.py            write
    python experiments/refresh.py --check    name the pages that differ, and fail

A page quotes a file between two comments, <!-- experiments/<name>/table.md --> and <!-- end -->; a .txt file is
put into a code block.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- (experiments/\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a page has drifted")
    is_check = parser.parse_args().check
    drifted = [page for page in pages() if refreshed(page) != page.read_text()]
    for page in drifted:
        print(f"{page.relative_to(ROOT)}: {'has drifted, run make tables' if is_check else 'refreshed'}")
        if not is_check:
            page.write_text(refreshed(page))
    sys.exit(1 if is_check and drifted else 0)


def pages() -> list[Path]:
    """Return every page that may quote a table."""
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("experiments/*/**/README.md"))]


def refreshed(page: Path) -> str:
    """Return a page's text with every quoted file as it is now."""
    return BLOCK.sub(lambda block: f"{block[1]}{quoted(ROOT / block[2])}{block[3]}", page.read_text())


def quoted(path: Path) -> str:
    text = path.read_text().rstrip("\n")
    return f"```text\n{text}\n```\n" if path.suffix == ".txt" else f"{text}\n"


if __name__ == "__main__":
    main()
