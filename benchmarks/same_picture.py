"""Measure distances of perceptual hashes, of one image stored twice and of different images.

Reads folders of images, each with a label. Prints by distance the fraction of images that are found again after they
were resized and stored in another format, and the fraction of pairs of different images that would be taken for the
same.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mim_lightning.data.validation.duplicates import MAX_COLOR_DISTANCE
from mim_lightning.data.validation.image_checks import ImageProperties, image_properties
from mim_lightning.data.validation.settings import ValidationSettings

SCALES = (0.25, 0.5, 0.75, 1.0, 1.3)
STORED_AS = (("JPEG", 40), ("JPEG", 60), ("JPEG", 80), ("JPEG", 95), ("WEBP", 60), ("PNG", 0))
DISTANCES = (0, 2, 4, 8)  # bits


def main() -> None:
    options = _options()
    print("| pictures | at most | found again | different pairs taken for the same | ... without the colours |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for word, folder in options.folders:
        for row in _rows(word, folder, options.num, random.Random(options.seed)):
            print(f"| {' | '.join(row)} |".replace("|  |", "| |"))
    print(f"\n*Colours: of a 3 x 3 grid, in none of its cells more than {MAX_COLOR_DISTANCE} of 255 levels apart. "
          f"Stored again at {SCALES[0]} to {SCALES[-1]} of their size, as JPEG of quality 40 to 95, WebP or PNG. "
          f"Seed {options.seed}.*")  # fmt: skip


def _rows(word: str, folder: Path, num: int, rng: random.Random) -> Iterator[tuple[str, ...]]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    paths = sorted(rng.sample(paths, min(num, len(paths))))
    pictures = [path.read_bytes() for path in paths]
    hashes, colours = _arrays([image_properties(data) for data in pictures])
    other_hashes, other_colours = _arrays([image_properties(_stored_otherwise(data, rng)) for data in pictures])
    again = np.bitwise_count(hashes ^ other_hashes)
    is_near_again = np.abs(colours - other_colours).max(1) <= MAX_COLOR_DISTANCE
    left, right = np.triu_indices(len(pictures), 1)
    between = np.bitwise_count(hashes[left] ^ hashes[right])
    num_pairs = len(between)
    left, right, between = (array[between <= DISTANCES[-1]] for array in (left, right, between))
    is_near = np.abs(colours[left] - colours[right]).max(1, initial=0) <= MAX_COLOR_DISTANCE
    for distance in DISTANCES:
        is_first, is_default = distance == DISTANCES[0], distance == ValidationSettings().max_hash_distance
        pairs = f"{((between <= distance) & is_near).sum():,}"
        yield (
            f"{len(pictures):,} {word}" if is_first else "",
            f"**{distance} bits**" if is_default else f"{distance} bits",
            f"{100 * ((again <= distance) & is_near_again).mean():.1f} %",
            f"{pairs} of {num_pairs:,}" if is_first else pairs,
            f"{(between <= distance).sum():,}",
        )


def _arrays(found: list[ImageProperties]) -> tuple[np.ndarray, np.ndarray]:
    hashes = np.array([facts.perceptual_hash for facts in found], dtype=np.uint64)
    return hashes, np.stack([np.frombuffer(bytes.fromhex(facts.grid_colors), np.uint8) for facts in found]).astype(int)


def _stored_otherwise(data: bytes, rng: random.Random) -> bytes:
    image, scale, (kind, quality) = (
        Image.open(io.BytesIO(data)).convert("RGB"),
        rng.choice(SCALES),
        rng.choice(STORED_AS),
    )
    size = max(8, round(image.width * scale)), max(8, round(image.height * scale))
    out = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(out, kind, **({"quality": quality} if quality else {}))
    return out.getvalue()


def _named_folder(text: str) -> tuple[str, Path]:
    word, is_given, folder = text.partition("=")
    if not is_given or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"'{text}': give <word>=<folder that is there>")
    return word, Path(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "folders", nargs="+", type=_named_folder, metavar="word=folder", help="pictures, and what the table calls them"
    )
    parser.add_argument("--num", type=int, default=3000, metavar="N", help="pictures of each, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and of how they are stored again")
    return parser.parse_args()


if __name__ == "__main__":
    main()
