"""A trained model and an index of its catalog, for tests that kill or stop what makes and serves indexes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mim_lightning.config import compose
from mim_lightning.run import identify
from mim_lightning.search.index.factory import open_index
from tests.campaign.processes import EntryPoint
from tests.shop import small, write_shop

BUILD, ADD = "build_index", "build_index update=true"


@dataclass(frozen=True)
class Shop:
    """A trained model, an index of its catalog, the same index with two products more, and what making them did.

    Args:
        events: of building, and of adding.
        cpu: seconds of each.
    """

    folder: Path
    checkpoint: Path
    events: dict[str, list[str]]
    cpu: dict[str, float]

    @property
    def index(self) -> Path:
        return self.folder / "data" / "index"

    @property
    def grown(self) -> Path:
        return self.folder / "grown" / "index"  # of one name everywhere: it is part of the names of events

    def command(self, what: str, index: Path) -> list[str]:
        common = [f"checkpoint={self.checkpoint}", f"output={index}", "trainer=cpu", "data.num_workers=0"]
        if what == BUILD:
            return common[:3]
        tables = [f"data.source.products={self.folder}/shop/more.csv", "data.source.queries=null"]
        shards = [f"data.folder={self.folder}/more-shards", f"embeddings={index.parent}/more"]
        return [*common, "update=true", "data=manifest", *tables, *shards]


def make_shop(folder: Path) -> Shop:
    write_shop(folder / "shop", num_products=7)
    head, *rows = (folder / "shop" / "products.csv").read_text().splitlines()
    more = [rows[number].replace(f"00{number}", f"90{number}", 1) for number in (0, 1)]
    (folder / "shop" / "more.csv").write_text("\n".join([head, *more]) + "\n")
    words = small(folder, "model=2tower", "trainer.max_epochs=1", "data.shards.samples_per_shard=3")
    trained = EntryPoint("train", words, folder / "scratch")
    assert trained.wait() == 0, trained.stderr
    shop = Shop(folder, identify(compose("train", words))[0].last_checkpoint, {}, {})
    for what, index in ((BUILD, shop.index), (ADD, shop.grown)):
        if what == ADD:
            shutil.copytree(shop.index, index)
            first = EntryPoint(
                "build_index", shop.command(ADD, shutil.copytree(index, folder / "first" / "index")), folder / "scratch"
            )
            assert first.wait() == 0, first.stderr  # prepares the shards that are added
        made = EntryPoint("build_index", shop.command(what, index), folder / "scratch", [index, index.parent])
        assert made.wait() == 0, made.stderr
        shop.events[what], shop.cpu[what] = made.events(), made.cpu("main")
    return shop


def content_of(index: Path) -> dict[str, tuple[str, list[list[float]]]]:
    """Return the title and the vectors of each product, by id; raises where the index is torn."""
    opened = open_index(index)
    probe = np.ones((1, opened.card.dimension), dtype=np.float32)
    ids = sorted(str(one) for one in opened.search(probe, 50).product_ids[0] if one)
    assert len(ids) == opened.card.num_products, "the card counts other products than are found"
    titles = {record["product_id"]: record["title"] for record in opened.products(ids)}
    return {one: (titles[one], sorted(opened.vectors_of(one).tolist())) for one in ids}
