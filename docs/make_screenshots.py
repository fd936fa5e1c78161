"""Take the screenshots of the pages: data check, report of a run, comparison of two, and search.

Each is taken at the width of a desktop and of a phone, light and dark; a guide shows the desktop in light beside the
phone in dark. Everything that the pages show is made here, of the grocery photos in MIM_DATA_DIR, in build/screenshots;
what is there from another time is used again. Needs Chromium.

    python docs/make_screenshots.py                 # into docs/images
    python docs/make_screenshots.py page            # one of them
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
BUILD, IMAGES = ROOT / "build" / "screenshots", ROOT / "docs" / "images"
GROCERY = Path(os.environ.get("MIM_DATA_DIR", "external")) / "data" / "grocery"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
VIEWPORTS = {
    "desktop": {"viewport": {"width": 1280, "height": 860}},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "is_mobile": True,
        "has_touch": True,
        "device_scale_factor": 2,
    },
}
SCHEMES = ("light", "dark")
GROUND, GAP, HEIGHT = (226, 230, 235), 24, 760  # of a picture, in pixels
QUALITY = 78  # of WebP
BELOW = {"report": ".cards", "comparison": ".cards", "page": "#status"}  # what a phone shows, of a page
WAIT_MS = 120_000
PHOTO, WORDS = "Lemon", "pear"  # what is searched for
TRAINING = ("encoder.image.image_size=112", "trainer.max_epochs=8", "callbacks.progress_bar=null", "trainer=cpu")


def main() -> None:
    if not GROCERY.is_dir():
        sys.exit(f"error: {GROCERY}: no such folder; set MIM_DATA_DIR to a folder with data/grocery and weights")
    wanted = sys.argv[1:] or ["check", "report", "comparison", "page"]
    make_pages()
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    service = served(BUILD / "index") if "page" in wanted else nullcontext("")
    with sync_playwright() as playwright, service as address:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        places = {
            "check": (BUILD / "shop" / "check.html").as_uri(),
            "report": (BUILD / "runs" / "4tower" / "report.html").as_uri(),
            "comparison": (BUILD / "compared" / "compare.html").as_uri(),
            "page": address,
        }
        for name in wanted:
            shots = {
                (kind, scheme): take(browser, name, places[name], kind, scheme)
                for kind in VIEWPORTS
                for scheme in SCHEMES
            }
            path = IMAGES / f"{name}.webp"
            join(shots["desktop", "light"], shots["phone", "dark"]).save(path, quality=QUALITY, method=6)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB")
        browser.close()


def make_pages() -> None:
    """Prepare the photos, train three and four towers, compare them and build an index."""
    BUILD.mkdir(parents=True, exist_ok=True)
    if not (BUILD / GROCERY.name).exists():
        (BUILD / GROCERY.name).symlink_to(GROCERY.resolve())  # a page says where tables are: not where they are here
    source = ("data=grocery", f"data.source.root={GROCERY.name}")
    mim("prepare", *source, f"data.folder={BUILD / 'shop'}", "data.shards.max_image_side=256")
    for model in ("3tower", "4tower"):
        data = (f"model={model}", "data=shards", f"data.folder={BUILD / 'shop'}", f"run.id={model}")
        mim("train", "experiment=small_catalog", *data, *TRAINING, f"paths.runs={BUILD / 'runs'}")
    folders = (str(BUILD / "runs" / model) for model in ("3tower", "4tower"))
    mim("compare", *folders, "--output", str(BUILD / "compared"))
    if not (BUILD / "index").exists():
        checkpoint = BUILD / "runs" / "4tower" / "checkpoints" / "last.ckpt"
        mim("build_index", f"checkpoint={checkpoint}", f"output={BUILD / 'index'}")


def mim(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "mim_lightning", *words], check=True, cwd=BUILD)


@contextmanager
def served(index: Path) -> Iterator[str]:
    """Serve an index; give the address of its page."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mim_lightning", "serve", f"index={index}", f"port={port}"]
    service = subprocess.Popen(command)
    address = f"http://127.0.0.1:{port}"
    try:
        while not is_up(f"{address}/health"):
            if service.poll() is not None:
                sys.exit("error: the service ended")
            time.sleep(0.2)
        yield address
    finally:
        service.terminate()
        service.wait()


def is_up(address: str) -> bool:
    try:
        with urlopen(address) as answer:  # noqa: S310 - on loopback
            return bool(answer.status == 200)
    except OSError:
        return False


def take(browser: Browser, name: str, address: str, kind: str, scheme: Any) -> Path:
    """Take one screenshot, and end if the page is wider than the screen."""
    options: dict[str, Any] = VIEWPORTS[kind]
    page = browser.new_page(**options, color_scheme=scheme)
    page.set_default_timeout(WAIT_MS)
    page.goto(address)
    if name == "page":
        search(page)
    if kind == "phone" and name in BELOW:
        page.evaluate("place => document.querySelector(place).scrollIntoView()", BELOW[name])
        page.wait_for_timeout(1000)  # pictures are loaded when they are near
    width = page.evaluate("document.documentElement.scrollWidth")
    if width > options["viewport"]["width"]:
        sys.exit(f"error: {name} is {width} pixels wide on a screen of {options['viewport']['width']}")
    path = BUILD / "shots" / f"{name}-{kind}-{scheme}.png"
    path.parent.mkdir(exist_ok=True)
    page.screenshot(path=path)
    page.close()
    return path


def search(page: Page) -> None:
    """Search with a photo and a word."""
    photos = [
        row for row in (GROCERY / "pairs.csv").read_text().splitlines() if row.startswith("val,") and PHOTO in row
    ]
    page.locator("#words textarea").wait_for()
    page.locator("#words textarea").fill(WORDS)
    page.locator("#photo input[type=file]").set_input_files(GROCERY / photos[0].split(",")[1])
    page.locator("#results .caption-label").first.wait_for()
    page.locator("#words textarea").press("Enter")
    page.wait_for_timeout(3000)  # until the last pictures are there
    page.evaluate("document.activeElement.blur()")


def join(desktop: Path, phone: Path) -> Image.Image:
    """Return two screenshots side by side, at the same height."""
    shots = [Image.open(path).convert("RGB") for path in (desktop, phone)]
    shots = [
        shot.resize((round(shot.width * HEIGHT / shot.height), HEIGHT), Image.Resampling.LANCZOS) for shot in shots
    ]
    picture = Image.new("RGB", (sum(shot.width for shot in shots) + 3 * GAP, HEIGHT + 2 * GAP), GROUND)
    left = GAP
    for shot in shots:
        picture.paste(shot, (left, GAP))
        left += shot.width + GAP
    return picture


if __name__ == "__main__":
    main()
