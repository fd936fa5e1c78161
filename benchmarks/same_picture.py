"""How far apart are the hashes of one picture stored twice, and how near those of different pictures?

In: folders of pictures. Out: a table by distance of the share of pictures that are found again after they were resized
and stored otherwise, and of the pairs of different pictures that would be taken for the same.
"""

from __future__ import annotations

import argparse
import io
import random
from pathlib import Path

import numpy as np
from PIL import Image

from mim_lightning.data.check.duplicates import MAX_COLOUR_DISTANCE
from mim_lightning.data.check.picture_facts import PictureFacts, picture_facts

SCALES = (0.25, 0.5, 0.75, 1.0, 1.3)
STORED_AS = (("JPEG", 40), ("JPEG", 60), ("JPEG", 80), ("JPEG", 95), ("WEBP", 60), ("PNG", 0))
DISTANCES = (0, 2, 4, 6, 8)  # bits


def main() -> None:
    options = _options()
    print("| pictures | at most | found again | ... with near colours | other pairs | ... with near colours |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for folder in options.folders:
        _measure(folder, options.num, random.Random(options.seed))
    print(
        f"\n*Near colours: {MAX_COLOUR_DISTANCE} of 255 levels, at most, in each cell of a 3 x 3 grid. Stored again at"
    )
    print(f"{SCALES[0]} to {SCALES[-1]} of their size, as JPEG of quality 40 to 95, WebP or PNG. Seed {options.seed}.*")


def _measure(folder: Path, num: int, rng: random.Random) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    paths = sorted(rng.sample(paths, min(num, len(paths))))
    pictures = [path.read_bytes() for path in paths]
    hashes, colours = _arrays([picture_facts(data) for data in pictures])
    other_hashes, other_colours = _arrays([picture_facts(_stored_otherwise(data, rng)) for data in pictures])
    again = np.bitwise_count(hashes ^ other_hashes)
    is_near_again = np.abs(colours - other_colours).max(1) <= MAX_COLOUR_DISTANCE
    left, right = np.triu_indices(len(pictures), 1)
    between = np.bitwise_count(hashes[left] ^ hashes[right])
    near = between <= DISTANCES[-1]
    left, right, between = left[near], right[near], between[near]
    is_near = np.abs(colours[left] - colours[right]).max(1, initial=0) <= MAX_COLOUR_DISTANCE
    for distance in DISTANCES:
        found, others = again <= distance, between <= distance
        print(
            f"| {len(pictures):,} of {folder} | {distance} bits | {100 * found.mean():.1f} % "
            f"| {100 * (found & is_near_again).mean():.1f} % | {others.sum():,} of {near.size:,} "
            f"| {(others & is_near).sum():,} |"
        )


def _arrays(found: list[PictureFacts]) -> tuple[np.ndarray, np.ndarray]:
    hashes = np.array([facts.picture_hash for facts in found], dtype=np.uint64)
    return hashes, np.stack([np.frombuffer(bytes.fromhex(facts.colours), np.uint8) for facts in found]).astype(int)


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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="folder", help="of pictures")
    parser.add_argument("--num", type=int, default=3000, metavar="N", help="pictures of each, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and of how they are stored again")
    return parser.parse_args()


if __name__ == "__main__":
    main()
