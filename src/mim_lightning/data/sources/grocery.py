"""The Grocery Store Dataset as a compact street-to-shop set (Klasson et al., WACV 2019, MIT licence).

A folder with `products.csv`, `pairs.csv` and `images/` comes in, a Manifest goes out; nothing is copied.
In-store phone photos are the queries, one iconic image, title and description a product are the catalogue.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mim_lightning.data.manifest import Manifest, read_manifest
from mim_lightning.data.tables import table_id

QUERY_COLUMNS = {"image": "query_image", "text": "query_text"}


class GrocerySource:
    """`root` is the folder that holds the two tables."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def read(self, work_dir: Path) -> Manifest:
        self._require()
        tables = self.root / "products.csv", self.root / "pairs.csv"
        return read_manifest(*tables, {"queries": QUERY_COLUMNS}, segments=("query_text_kind",))

    def describe(self) -> dict[str, Any]:
        self._require()
        return {"grocery": [table_id(self.root / name) for name in ("products.csv", "pairs.csv")]}

    def _require(self) -> None:
        if not (self.root / "pairs.csv").is_file():
            raise ValueError(
                f"{self.root}: the grocery set is not there (no pairs.csv); set MIM_DATA_DIR to the folder "
                "that holds data/grocery, or data.source.root to the set itself"
            )
