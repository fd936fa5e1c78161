"""The documentation site: pages are in the navigation, links lead somewhere, the config reference is whole."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from markdown import Markdown

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import config_pages  # noqa: E402
import make_site  # noqa: E402

MARKDOWN = [path for pattern in make_site.SOURCES if pattern.endswith(".md") for path in ROOT.glob(pattern)]
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "pages"
    make_site.write_pages(folder)
    return folder


def anchors(text: str) -> set[str]:
    """Return the anchors that a code host gives to headings."""
    titles = HEADING.findall(make_site.FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(pages: list[Path]) -> list[str]:
    """Return the links of Markdown files that lead to no file, or to no heading of one."""
    found = []
    for page in pages:
        for link, anchor in make_site.LINK.findall(make_site.FENCE.sub("", page.read_text())):
            if "://" in link or link.startswith("mailto:"):
                continue
            target = (page.parent / link).resolve() if link else page
            is_there = target.exists() and (not anchor or anchor[1:] in anchors(target.read_text()))
            if not is_there:
                found.append(f"{page.name}: {link}{anchor}")
    return found


def test_links_lead_somewhere_on_a_code_host_and_on_the_site(pages: Path, tmp_path: Path) -> None:
    assert len(MARKDOWN) > 50 and broken_links(MARKDOWN) == []
    assert broken_links(sorted(pages.rglob("*.md"))) == []
    (tmp_path / "a.md").write_text("# A b\n[x](#a-b) [y](#b) [z](c.md)\n")
    assert broken_links([tmp_path / "a.md"]) == ["a.md: #b", "a.md: c.md"]


def test_every_page_is_in_the_navigation(pages: Path) -> None:
    def listed(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [path for part in parts for path in listed(part)]  # type: ignore[attr-defined]

    nav = listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    written = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    records = {path for path in written if path.startswith("experiments/") and path != "experiments/index.md"}
    assert sorted(nav) == sorted(written - records)
    everything = "".join(path.read_text() for path in pages.rglob("*.md"))
    assert [path for path in records if "/".join(path.split("/")[-2:]) not in everything] == []


def test_the_config_reference_has_every_file_and_key(pages: Path) -> None:
    text = "".join(path.read_text() for path in (pages / "config").glob("*.md"))
    files = [path.relative_to(config_pages.CONF) for path in config_pages.CONF.rglob("*.yaml")]
    for path in files:
        heading = path.stem if len(path.parts) == 1 else f"{path.parent.as_posix()}={path.stem}"
        assert f"\n## {heading}\n" in text
    row = "| `loss.max_scale` | `100.0` |"
    assert row in text and "| `step.micro_batch_size` | `null` | inputs of a tower, on each process" in text


def test_a_comment_belongs_to_the_key_that_it_is_beside() -> None:
    text = """\
# what the file is
a: 1 # of a;
# more of a
b: # of b
  # above c, `x | y`
  c: [1,
    2] # of c
  _target_: some.Class
d: "x # no comment"
"""
    rows = [(row.key, row.default, row.comment) for row in config_pages.read_rows(text, "s.")]
    assert rows == [
        ("s.a", "1", "of a; more of a"),
        ("s.b", "some.Class", "of b"),
        ("s.b.c", "[1, 2]", "above c, `x | y` of c"),
        ("s.d", '"x # no comment"', ""),
    ]


def test_a_key_in_a_table_breaks_after_a_dot_or_an_underscore_and_in_no_word() -> None:
    table = "`a.b_c`\n\n| k | d |\n| --- | --- |\n| [`data.max_side`](x.md) | `${.p.data}/<x>` or `a\\|b` |\n"
    made = Markdown(extensions=["tables", "table_code"]).convert(table)
    assert "<p><code>a.b_c</code></p>" in made, "only in tables"
    assert '<td><a href="x.md"><code>data.<wbr />max_<wbr />side</code></a></td>' in made
    assert "<td><code>${.p.<wbr />data}/<wbr />&lt;x&gt;</code> or <code>a|b</code></td>" in made


def test_every_extra_is_in_the_page_on_installing() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "install.md").read_text()
    assert [name for name in extras if name != "dev" and f"`{name}`" not in page] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning() -> None:
    pytest.importorskip("zensical")
    built = subprocess.run([shutil.which("make") or "make", "docs"], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    page = (ROOT / "build" / "site" / "html" / "api" / "losses.html").read_text()
    assert "info_nce" in page and "positives" in page
    assert missing_addresses(ROOT / "build" / "site" / "html") == []


def missing_addresses(site: Path) -> list[str]:
    """Return the addresses in pages at which there is no file: of scripts and styles too."""
    found = []
    for page in site.rglob("*.html"):
        for address in re.findall(r'(?:href|src)="([^"#?:]+)(?:[#?][^"]*)?"', page.read_text()):
            if page.name != "404.html" and not (page.parent / unquote(address)).exists():
                found.append(f"{page.relative_to(site)}: {address}")
    return sorted(set(found))
