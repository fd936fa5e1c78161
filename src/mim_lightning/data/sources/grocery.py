"""The Grocery Store Dataset (Klasson et al., WACV 2019, MIT licence): as published, or as a compact street-to-shop set.

The published set is a clone of github.com/marcusklasson/GroceryStoreDataset, the compact one a folder with
`products.csv`, `pairs.csv` and `images/`; nothing is copied. In-store phone photos are the queries; one iconic image,
title and description a product are the catalog. The compact set has query texts: its triples are quadruples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mim_lightning.data.manifest.builder import ManifestBuilder
from mim_lightning.data.manifest.content_hash import file_id
from mim_lightning.data.manifest.manifest import Manifest, finish_manifest, read_manifest
from mim_lightning.data.manifest.rows import OnIssue, raise_issue
from mim_lightning.data.manifest.table import TableSpec, open_table, read_rows

QUERY_COLUMNS = {"image": "query_image", "text": "query_text"}
SPLITS = ("train", "val", "test")  # of the published set, with a list of photos each
CLASS_COLUMNS = {
    "name": "Class Name (str)",
    "number": "Class ID (int)",
    "coarse": "Coarse Class Name (str)",
    "image": "Iconic Image Path (str)",
    "description": "Product Description Path (str)",
}
CLASSES = TableSpec("products", tuple(CLASS_COLUMNS), tuple(CLASS_COLUMNS))


class GrocerySource:
    """`root` is the clone, or the folder with the two tables of the compact set."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def read(self, work_dir: Path, on_issue: OnIssue = raise_issue) -> Manifest:
        folder, is_compact = self._find()
        if not is_compact:
            return _read_published(folder, on_issue)
        tables = folder / "products.csv", folder / "pairs.csv"
        return read_manifest(*tables, {"queries": QUERY_COLUMNS}, segments=("query_text_kind",), on_issue=on_issue)

    def describe(self) -> dict[str, Any]:
        folder, is_compact = self._find()
        names = ("products.csv", "pairs.csv") if is_compact else ("classes.csv", *(f"{name}.txt" for name in SPLITS))
        return {"grocery": [file_id(folder / name) for name in names]}

    def _find(self) -> tuple[Path, bool]:
        """Return the folder of the set, and whether it is the compact one."""
        if (self.root / "pairs.csv").is_file():
            return self.root, True
        for folder in (self.root / "dataset", self.root):
            if (folder / "classes.csv").is_file():
                return folder, False
        raise ValueError(
            f"{self.root}: no grocery set found (no pairs.csv, no dataset/classes.csv); set MIM_DATA_DIR to the "
            "folder that contains data/grocery, or data.source.root to the set itself"
        )


def _read_published(folder: Path, on_issue: OnIssue) -> Manifest:
    builder = ManifestBuilder(str(folder / "classes.csv"), on_issue, metadata=())
    ids: dict[str, str] = {}
    for origin, row in read_rows(open_table(folder / "classes.csv", "products"), CLASSES, CLASS_COLUMNS, on_issue):
        product = _product_row(folder, row)
        ids[row["name"]] = product["product_id"]
        builder.add_product(origin, product, folder)
    for split in SPLITS:
        for origin, photo in _photos(folder / f"{split}.txt"):
            # the folder has the name of the class; the numbers after the path are its ids
            row = {"split": split, "image": photo, "product_id": ids.get(Path(photo).parent.name)}
            builder.add_query(origin, row, folder)
    return finish_manifest(builder, str(folder / "train.txt"))


def _product_row(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    image, description = row["image"].lstrip("/"), folder / row["description"].lstrip("/")
    department = Path(image).parts[1]  # iconic-images-and-descriptions/Fruit/...
    return {
        "product_id": f"gro-{int(row['number']):02d}",
        "image": image,
        "title": row["name"].replace("-", " "),
        "description": " ".join(description.read_text(encoding="utf-8").split()) if description.is_file() else None,
        "category": f"{department}/{row['coarse']}",
        "metadata": {},
    }


def _photos(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (origin, path of a photo) of one of the published lists.

    Raises:
        ValueError: there is no such list.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file (list of the grocery set's photos)")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            yield f"{path}, row {number}", line.split(",")[0].strip()
