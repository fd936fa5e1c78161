"""Prepared data of a small shop, and the same with rows added: what an uninterrupted preparation leaves."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from mim_lightning.data.preparation.prepared import open_prepared
from tests.campaign.processes import EntryPoint
from tests.flow.test_growing import write_additions
from tests.shop import write_shop

TIME = re.compile(rb"\d{4}-\d\d-\d\dT[\d:+]+")


@dataclass(frozen=True)
class Prepared:
    """A shop, prepared without a fault, and with rows added.

    Args:
        events: of the preparation, and of the addition.
        cpu: seconds of each.
    """

    shop: Path
    events: dict[str, list[str]]
    cpu: dict[str, float]

    @property
    def whole(self) -> Path:
        return self.shop / "whole" / "out"  # of one name everywhere: it is part of the names of events

    @property
    def grown(self) -> Path:
        return self.shop / "grown" / "out"

    def command(self, what: str, folder: Path) -> list[str]:
        shop = self.shop / "shop"
        if what == "prepare add":
            added = [f"add.products={shop}/new.csv", f"add.queries={shop}/more.csv"]
            return ["data=shards", f"data.folder={folder}", "num_workers=2", *added]
        tables = [f"data.source.{name}={shop}/{name}.csv" for name in ("products", "queries")]
        shards = ["data.shards.samples_per_shard=3", "num_workers=2"]
        return ["data=manifest", *tables, f"data.folder={folder}", *shards]


def make_prepared(shop: Path) -> Prepared:
    write_shop(shop / "shop", num_products=7)
    write_additions(shop / "shop")
    found = Prepared(shop, {}, {})
    for what, folder in (("prepare", found.whole), ("prepare add", found.grown)):
        if what == "prepare add":
            shutil.copytree(found.whole, folder)
        started = EntryPoint("prepare", found.command(what, folder), shop / "scratch", [folder, folder.parent])
        assert started.wait() == 0, started.stderr
        found.events[what], found.cpu[what] = started.events(), started.cpu("main")
    return found


def is_done(out: Path, prepared: Prepared, what: str) -> bool:
    """Is an addition in the data already? Repeated, it would be refused: its products are there."""
    return (
        what == "prepare add" and out.exists() and open_prepared(out).version == open_prepared(prepared.grown).version
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file, without what differs anywhere: the folder's own name, and the time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix in (".json", ".html", ".csv"):
                content = TIME.sub(b"", content.replace(str(folder).encode(), b""))
            found[str(path.relative_to(folder))] = content
    return found
