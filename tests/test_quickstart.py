"""The quickstart, followed as it is printed, on tables whose columns have the names that it gives them."""

import csv
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image

from mim_lightning.data.synthetic import write_synthetic_world
from tests.preloaded import PYTHON

PAGE = Path(__file__).parents[1] / "docs" / "quickstart.md"
sys.path.insert(0, str(PAGE.parent))
from code_blocks import Block, read_blocks  # noqa: E402

EMOJI = Path(os.environ.get("MIM_DATA_DIR", "external")) / "data" / "emoji"
COLUMNS = {  # ours: those of the page
    "catalog.csv": {
        "product_id": "sku",
        "title": "name",
        "category": "department",
        "image": "picture",
    },
    "photos.csv": {
        "split": "part",
        "image": "photo",
        "text": "words",
        "product_id": "sku",
        "shown_product_id": "sku_on_photo",
    },
}
BASH = shutil.which("bash") or "bash"
FAST, PORT = "debug=fast", "port=8000"  # what the page offers to change
PATIENCE = 120  # seconds until a service answers


def steps() -> list[Block]:
    """Return the blocks of the page's numbered steps, without those that need what a test does not have."""
    numbered = PAGE.read_text().partition("\n## What ")[0].count("\n")
    blocks = [block for block in read_blocks(PAGE) if block.line < numbered and block.language == "sh"]
    return [block for block in blocks if block.needs is None]


def write_tables(folder: Path, num_products: int | None) -> None:
    """Write a stranger's tables: emoji, or the drawn shop where there are none, with the columns of the page."""
    source = EMOJI
    if not (EMOJI / "queries.csv").is_file():
        source = folder / "drawn"
        write_synthetic_world(source, num_products=num_products or 240)
    with (source / "products.csv").open(newline="") as file:
        products = list(csv.DictReader(file))
    with (source / "queries.csv").open(newline="") as file:
        queries = [row for row in csv.DictReader(file) if row["split"] != "test"]
    if num_products is not None:
        families = [row for row in products if row.get("split") != "test"]
        random.Random(1).shuffle(families)
        products = families[:num_products]
        known = {row["product_id"] for row in products}
        queries = [row for row in queries if {row["product_id"], row["shown_product_id"] or row["product_id"]} <= known]
    for name, rows in (("catalog.csv", products), ("photos.csv", queries)):
        columns = COLUMNS[name]
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns.values())
            writer.writeheader()
            for row in rows:
                image = f"pictures/{row['image']}"
                (folder / image).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / row["image"], folder / image)
                row["image"] = image
                writer.writerow({theirs: row[ours] for ours, theirs in columns.items()})
    shutil.copy(folder / image, folder / "photo.jpg")


def write_command(folder: Path, python: str) -> dict[str, str]:
    """Write `mim` as a program, and return an environment that finds it."""
    program = folder / "bin" / "mim"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{python}" -m mim_lightning "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(PAGE.parents[1])}


def follow(folder: Path, python: str, text_of: dict[str, str]) -> str:
    """Run the blocks in order, with some words of them replaced; return what they print."""
    environment, printed, service = write_command(folder, python), "", None
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    try:
        for block in steps():
            code = block.text.replace(PORT, f"port={port}").replace(":8000/", f":{port}/")
            for line, changed in text_of.items():
                code = code.replace(line, changed)
            if code.startswith("mim serve"):
                service = subprocess.Popen([BASH, "-c", f"exec {code}"], cwd=folder, env=environment)
                wait_for(f"http://127.0.0.1:{port}/health", service)
                continue
            ran = subprocess.run([BASH, "-ec", code], cwd=folder, env=environment, capture_output=True, text=True)
            assert ran.returncode == 0, f"{PAGE.name}:{block.line}:\n{code}\n{ran.stdout}\n{ran.stderr}"
            printed += ran.stdout
    finally:
        if service is not None:
            service.terminate()
            assert service.wait(60) is not None
    return printed


def wait_for(address: str, service: subprocess.Popen) -> None:
    for _ in range(PATIENCE * 10):
        try:
            with urlopen(address) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert service.poll() is None, "the service ended"
            time.sleep(0.1)
    raise AssertionError(f"{address} does not answer")


def test_the_page_has_steps_and_says_how_they_are_shortened() -> None:
    page = PAGE.read_text()
    assert len(steps()) == 6 and FAST in page and page.count(PORT) == 1
    listed = re.findall(r"```csv\n(.*)\n", page)
    assert [set(header.split(",")) - {"price"} for header in listed] == [{*of.values()} for of in COLUMNS.values()]


def test_it_can_be_followed(tmp_path: Path) -> None:
    write_tables(tmp_path, num_products=24)
    (train,) = [line for block in steps() for line in block.text.splitlines() if line.startswith("mim train")]
    printed = follow(tmp_path, os.environ[PYTHON], {train: f"{train} {FAST}"})
    check(tmp_path, printed)


@pytest.mark.slow
@pytest.mark.skipif(not EMOJI.is_dir(), reason="set MIM_DATA_DIR to a folder with data/emoji")
def test_it_can_be_followed_to_the_letter(tmp_path: Path) -> None:
    write_tables(tmp_path, num_products=None)
    printed = follow(tmp_path, sys.executable, {})
    check(tmp_path, printed)
    ((initial, hit),) = re.findall(r"^ *image_to_image +\d+ +\d+ +([\d.]+) +([\d.]+)", printed, re.MULTILINE)[:1]
    assert float(hit) > 3 * float(initial)


def check(folder: Path, printed: str) -> None:
    """Check what the steps leave and print."""
    for path in ("shop/check.html", "runs/first/report.html", "runs/first/hits.png", "index/card.json", "search.png"):
        assert (folder / path).stat().st_size > 0, path
    with Image.open(folder / "search.png") as image:
        assert image.width > 100
    assert '"hits": [' in printed or '"hits":[' in printed  # of the service
    assert re.search(r"first +finished|first +out of time", printed)
