"""The user interface in a real browser: an image, text, a click, an empty query, and a file that is no image."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("gradio") is None:  # importing takes seconds, in every process that collects
    pytest.skip("the extra `serve` is not installed", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import numpy as np  # noqa: E402
import uvicorn  # noqa: E402
from PIL import Image  # noqa: E402

from mim_lightning.search.service.app import make_app  # noqa: E402
from tests.chromium import CHROMIUM  # noqa: E402
from tests.search.service.color_shop import COLORS, HalvesDetector, color_service, square  # noqa: E402

SCREENSHOTS = os.environ.get("MIM_SCREENSHOTS")  # a folder: keep what the browser showed
WAIT_MS = 60_000  # a machine may be busy

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("shop"), None) as address:
        yield address


@pytest.fixture
def address_with_key(tmp_path: Path) -> Iterator[str]:
    with served(tmp_path, "sesame") as address:
        yield address


@contextmanager
def served(folder: Path, api_key: str | None) -> Iterator[str]:
    service = color_service(folder, ("default", "other"), detector=HalvesDetector())
    app = make_app(service, api_key, has_ui=True, is_stopping=lambda: server.should_exit)
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "an open page keeps the service from stopping"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # shows a green picture
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(WAIT_MS)
    page.goto(address)
    page.locator("#words textarea").wait_for()
    yield page
    page.close()


def first_caption(page: Any, caption: str) -> None:
    sync_api.expect(page.locator("#results .caption-label").first).to_contain_text(caption, timeout=WAIT_MS)


def ask(page: Any, words: str) -> None:
    page.locator("#words textarea").fill(words)
    page.locator("#words textarea").press("Enter")


def upload(page: Any, folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    page.locator("#photo input[type=file]").set_input_files(folder / name)


def keep(page: Any, name: str) -> None:
    if SCREENSHOTS:
        page.wait_for_timeout(500)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def test_image_then_text_then_a_click(page: Any, tmp_path: Path) -> None:
    upload(page, tmp_path, "q.jpg", square("blue", side=200))
    first_caption(page, "A blue square")
    sync_api.expect(page.locator("#status")).to_contain_text("of 4 products in")
    ask(page, "red")
    first_caption(page, "A grey square")  # between blue and red: the words have been answered
    page.locator("#status").get_by_text("products").wait_for()
    keep(page, "page")
    page.locator("#results").get_by_text("A green square").wait_for()
    page.locator("#results button").filter(has_text="A green square").click()
    sync_api.expect(page.locator("#going-on")).to_contain_text("Similar to A green square", timeout=WAIT_MS)
    sync_api.expect(page.locator("#results")).not_to_contain_text("A green square", timeout=WAIT_MS)


def test_a_part_of_an_image_and_more_images(page: Any, tmp_path: Path) -> None:
    pixels = np.full((200, 400, 3), COLORS["blue"], np.uint8)
    pixels[:, 200:] = COLORS["red"]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: shown with red below blue
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", exif=exif)
    upload(page, tmp_path, "street.jpg", out.getvalue())
    page.locator("#corners").get_by_text("two opposite corners").wait_for()
    shown = page.locator("#photo img")
    sides = shown.bounding_box()
    for x, y, caption in ((0.9, 0.95, "opposite corner"), (0.1, 0.55, None)):
        shown.click(position={"x": x * sides["width"], "y": y * sides["height"]})
        if caption:
            page.locator("#corners").get_by_text(caption).wait_for()
    first_caption(page, "A red square")
    part = page.locator("#part img")
    part.wait_for()
    keep(page, "part")
    page.locator("#whole").click()
    first_caption(page, "A grey square")  # between blue and red
    sync_api.expect(part).not_to_be_visible(timeout=WAIT_MS)
    page.locator("#suggest").click()
    page.locator("#suggestions button").filter(has_text="part 2").wait_for()
    keep(page, "suggestions")
    page.locator("#suggestions button").filter(has_text="cup").click()
    first_caption(page, "A blue square")
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(square("green"))
    page.locator("#more").get_by_text("More images").click()
    page.locator("#more-photos input[type=file]").set_input_files([tmp_path / "1.jpg", tmp_path / "2.jpg"])
    first_caption(page, "A green square")  # nearest to blue and twice green
    keep(page, "more")


def test_a_new_image_replaces_the_clicked_product(page: Any, tmp_path: Path) -> None:
    ask(page, "red")
    first_caption(page, "A red square")
    page.locator("#results button").filter(has_text="A green square").click()
    sync_api.expect(page.locator("#going-on")).to_contain_text("Similar to A green square", timeout=WAIT_MS)
    page.locator("#words textarea").fill("")
    upload(page, tmp_path, "q.jpg", square("blue", side=200))
    first_caption(page, "A blue square")
    sync_api.expect(page.locator("#going-on")).not_to_be_visible(timeout=WAIT_MS)


def test_start_over_clears_everything(page: Any) -> None:
    ask(page, "red")
    first_caption(page, "A red square")
    page.locator("#results button").filter(has_text="A green square").click()
    page.locator("#going-on").get_by_text("A green square").wait_for()
    page.locator("#start-over").click()
    sync_api.expect(page.locator("#status")).to_contain_text("Give an image or a text", timeout=WAIT_MS)
    sync_api.expect(page.locator("#going-on")).not_to_be_visible()


def test_search_with_an_image_from_the_camera(page: Any) -> None:
    page.locator("#photo").get_by_label("Capture from camera").click()
    page.locator("#photo").get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#photo video')?.videoWidth > 0")  # before, nothing is taken
    page.locator("#photo").get_by_label("capture photo").click()
    first_caption(page, "square")
    keep(page, "camera")


def test_the_api_key_is_the_password(browser: Any, address_with_key: str) -> None:
    page = browser.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(address_with_key)
    page.get_by_text("The password is the service's API key").wait_for()
    for key in ("guessed", "sesame"):
        page.locator("input").first.fill("anybody")
        page.locator("input[type=password]").fill(key)
        page.get_by_role("button", name="Login").click()
        if key == "guessed":
            page.get_by_text("Incorrect Credentials").wait_for()
    ask(page, "red")
    first_caption(page, "A red square")
    assert page.request.post(f"{address_with_key}/search", form={"text": "red"}).status == 401
    # and stays open while the service stops


def test_filters(page: Any) -> None:
    page.locator("#filters").get_by_text("Filters").click()
    page.locator("#filters").get_by_label("price, min").fill("25")
    ask(page, "red")
    first_caption(page, "A grey square")
    sync_api.expect(page.locator("#status")).to_contain_text("1 of 4 products")


def test_two_models_side_by_side(page: Any) -> None:
    ask(page, "red")
    first_caption(page, "A red square")
    page.locator("#right input").click()
    page.get_by_role("option", name="other").click()
    sync_api.expect(page.locator("#results-beside .caption-label").first).to_contain_text(
        "A red square", timeout=WAIT_MS
    )


def test_an_empty_query_and_an_unreadable_image_are_reported(page: Any, tmp_path: Path) -> None:
    ask(page, "  ")
    sync_api.expect(page.locator("#status")).to_contain_text("Give an image or a text")
    upload(page, tmp_path, "broken.jpg", square("red")[:300])
    page.get_by_text("image").filter(has_text="damaged").or_(page.locator(".toast-body")).first.wait_for()
    ask(page, "red")


def test_it_fits_a_phone(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 375, "height": 740}, is_mobile=True, has_touch=True)
    page.set_default_timeout(WAIT_MS)
    page.goto(address)
    ask(page, "red")
    first_caption(page, "A red square")
    keep(page, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 376
    picture = page.locator("#results button img").first.bounding_box()
    caption = page.locator("#results .caption-label").first.bounding_box()
    assert caption["y"] >= picture["y"] + picture["height"] - 1, "the caption covers the picture"
    page.close()
