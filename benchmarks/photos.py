"""Images for the data benchmarks."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mim_lightning.data.synthetic import write_synthetic_world


def read_photos(folder: Path | None, num_most: int) -> list[bytes]:
    """Return the .jpg files of a folder, or images of the synthetic shop at 256 pixels if it is None."""
    if folder is None:
        with tempfile.TemporaryDirectory() as drawn:
            write_synthetic_world(
                Path(drawn),
                num_products=240,
                train_queries_per_product=4,
                val_queries_per_product=1,
                image_size=256,
                change_share=0.0,
                seed=0,
            )
            return read_photos(Path(drawn), num_most)
    paths = sorted(folder.rglob("*.jpg"))[:num_most]
    if not paths:
        raise SystemExit(f"{folder}: holds no .jpg photo")
    return [path.read_bytes() for path in paths]


def marked(photo: bytes, number: int) -> bytes:
    """Return a JPEG with a comment, so that a photo used twice has different bytes."""
    return photo[:2] + b"\xff\xfe\x00\x06" + number.to_bytes(4, "big") + photo[2:]
