"""The synthetic shop as a source: drawn into the working folder, then read as any manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mim_lightning.data.manifest.manifest import Manifest, read_manifest
from mim_lightning.data.manifest.rows import OnIssue, raise_issue
from mim_lightning.data.synthetic import write_synthetic_world


class SyntheticSource:
    """See `write_synthetic_world` for the arguments."""

    def __init__(
        self,
        num_products: int,
        train_queries_per_product: int,
        val_queries_per_product: int,
        image_size: int,
        change_share: float,
        seed: int,
    ) -> None:
        self.arguments = {
            "num_products": num_products,
            "train_queries_per_product": train_queries_per_product,
            "val_queries_per_product": val_queries_per_product,
            "image_size": image_size,
            "change_share": change_share,
            "seed": seed,
        }

    def read(self, work_dir: Path, on_issue: OnIssue = raise_issue) -> Manifest:
        products_path, queries_path = write_synthetic_world(work_dir, **self.arguments)  # type: ignore[arg-type]
        return read_manifest(products_path, queries_path, segments=("kind",), on_issue=on_issue)

    def describe(self) -> dict[str, Any]:
        return {"synthetic": self.arguments}
