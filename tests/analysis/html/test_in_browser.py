"""Pages in Chromium: they fit a phone, load nothing, can be read in both schemes, and can be used without a mouse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.analysis.html.pages import write_comparison_page, write_report_page
from mim_lightning.data.preparation.prepared import PreparedData
from tests.analysis.html import test_pages
from tests.chromium import CHROMIUM

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

prepared = test_pages.prepared
WIDTHS = {f"val/a/ndcg@10{of}": value for of, value in (("", 0.8), ("/low", 0.7), ("/high", 0.9))}  # draw a figure
WIDTHS |= {key.replace("@10", "@10/width_8"): value / 2 for key, value in WIDTHS.items()}
CONTRAST = 4.5  # of WCAG 2, level AA
# contrast of the text of every element that has some with the nearest background; the body has one
READ_CONTRASTS = """() => {
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = node => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
  };
  return [...document.querySelectorAll('main *')]
    .filter(node => [...node.childNodes].some(part => part.nodeType === 3 && part.data.trim()) && !node.closest('svg'))
    .map(node => {
      const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((a, b) => b - a);
      return [(a + 0.05) / (b + 0.05), node.tagName + '.' + node.className + ': ' + node.textContent.slice(0, 40)];
    });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_pages_fit_can_be_read_and_used_with_keys(browser: Any, tmp_path: Path, prepared: PreparedData) -> None:
    comparison = test_pages.compared(tmp_path, prepared)
    write_comparison_page(comparison, tmp_path / "compare.html")
    (record,) = comparison.groups[1].records[0]
    write_report_page(record, tmp_path / "report.html", results=WIDTHS, full_width=32)
    for name in ("compare.html", "report.html"):
        for width, scheme in ((390, "light"), (390, "dark"), (1280, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            asked, said = [], []
            page.on("request", lambda request, asked=asked: asked.append(request.url.split(":")[0]))
            page.on("console", lambda message, said=said: said.append(message.text))
            page.goto((tmp_path / name).as_uri())
            assert asked.count("file") == 1 and set(asked) <= {"file", "data"} and said == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
            contrasts = page.evaluate(READ_CONTRASTS)
            assert len(contrasts) > 30 and min(contrasts)[0] >= CONTRAST, (name, scheme, min(contrasts))
            assert page.locator("img:not([alt]), img[alt='']").count() == 0
            assert page.locator("svg[role=img]:not(:has(title))").count() == 0
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "[document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle]"
            )
            assert focused[0] != "BODY" and focused[1] == "solid", (name, focused)
            page.close()
