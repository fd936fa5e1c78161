"""Write the pages of the documentation site into build/site/pages; `make docs` builds the site of them.

The pages are the Markdown files of the project as they are, with links that fit the site, the notebook, the config
reference made from conf/, and the API made from docstrings. Before, the code blocks are checked: docs/code_blocks.py.

    python docs/make_site.py
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

from code_blocks import find_faults
from config_pages import write_config_pages

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "site" / "pages"
PACKAGES = ("data", "encoders", "losses", "model", "metrics", "lit", "inference", "search")
SOURCES = ("*.md", "docs/*.md", "docs/*.ipynb", "experiments/README.md", "experiments/**/README.md")
CODE = ("README.md", "CONTRIBUTING.md", "docs/*.md")  # pages whose code is checked
LINK = re.compile(r"(?<=\]\()([^)\s#]+)?(#[^)\s]+)?(?=\))")
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def write_pages(folder: Path) -> list[Path]:
    """Write all pages, and the files that they link to, and return the paths of the pages.

    Raises:
        ValueError: a page links to a file that does not exist.
    """
    shutil.rmtree(folder, ignore_errors=True)
    sources = [path for pattern in SOURCES for path in sorted(ROOT.glob(pattern))]
    pages = [_write_page(folder, source) for source in dict.fromkeys(sources)]
    shutil.copy(ROOT / "docs" / "site.css", folder)
    return [*pages, *write_config_pages(folder / "config"), *_write_api(folder / "api")]


def place_of(source: Path) -> Path:
    """Return where a file of the project is on the site, relative to its pages."""
    place = source.relative_to(ROOT)
    place = place.relative_to("docs") if place.parts[0] == "docs" else place
    if place.suffix == ".ipynb":
        return place.with_name(f"{place.stem}_notebook.md")
    return place.with_name("index.md") if place.name == "README.md" else place


def _write_page(folder: Path, source: Path) -> Path:
    text = source.read_text()
    if source.suffix == ".ipynb":
        text = _notebook_text(text)
    parts = FENCE.split(text)
    page = folder / place_of(source)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("".join(part if "```" in part[:12] else _adapt(part, source, folder) for part in parts))
    return page


def _adapt(text: str, source: Path, folder: Path) -> str:
    """Return Markdown with links that fit the site; copies linked files that are no pages."""

    def relink(match: re.Match[str]) -> str:
        link, anchor = match.group(1) or "", match.group(2) or ""
        if not link or "://" in link or link.startswith("mailto:"):
            return link + anchor
        target = (source.parent / link).resolve()
        if not target.exists():
            raise ValueError(f"{source.relative_to(ROOT)}: links to {link}, which does not exist")
        if target.is_dir():
            target = next(
                (target / name for name in ("README.md", "Containerfile") if (target / name).exists()), target
            )
        place = folder / place_of(target)
        if target.suffix not in (".md", ".ipynb"):
            place = place if place.suffix else place.with_name(f"{place.name}.txt")  # a browser shows it
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, place)
        return os.path.relpath(place, (folder / place_of(source)).parent) + anchor

    # a code host begins a list without an empty line before it
    text = re.sub(r"^(?!\s*(?:[-*] |\d+\. |\||<|#))(.+\S)\n(?=- )", r"\1\n\n", text, flags=re.MULTILINE)
    return LINK.sub(relink, text)


def _notebook_text(text: str) -> str:
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(source if kind == "markdown" else f"```python\n{source}\n```" for kind, source in cells)


def _write_api(folder: Path) -> list[Path]:
    """Write a page for the functions of `mim_lightning`, and one for each package that others may name."""
    folder.mkdir(parents=True, exist_ok=True)
    package = importlib.import_module("mim_lightning")
    functions = "\n".join(f"| `mim_lightning.{name}` | {_purpose(name)} |" for name in package.ENTRY_POINTS)
    documentation = (package.__doc__ or "").split("\n\n")
    example = f"```python\nimport mim_lightning\n\n{documentation[1].partition(chr(10))[2]}\n```"
    note = (
        "Each takes the words of its command line and raises `ValueError` with the line that the command would print."
    )
    names = "\n\n".join(f"::: {module}.{name}" for name, module in sorted(package.EXPORTS.items()))
    table = f"| function | |\n| --- | --- |\n{functions}"
    pages = {"index": "\n\n".join(["# mim_lightning", documentation[0], example, table, note, names])}
    for name in PACKAGES:
        module = importlib.import_module(f"mim_lightning.{name}")
        exported = "\n\n".join(f"::: mim_lightning.{name}.{member}" for member in dir(module))
        pages[name] = f"# mim_lightning.{name}\n\n{module.__doc__}\n\n{exported}\n"
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text)
    return [folder / f"{name}.md" for name in pages]


def _purpose(name: str) -> str:
    path = ROOT / "src" / "mim_lightning" / f"{name}.py"
    return (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0].partition(": ")[2]


def main() -> None:
    if faults := find_faults([path for pattern in CODE for path in sorted(ROOT.glob(pattern))]):
        sys.exit("\n".join(faults))
    print(f"{len(write_pages(PAGES))} pages in {PAGES}")


if __name__ == "__main__":
    main()
