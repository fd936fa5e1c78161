"""What is known of one picture: size, whether it decodes, whether it shows anything, and its perceptual hash.

Encoded bytes come in, PictureFacts go out. Runs in the processes of `survey`: it imports no torch, and what is too
large is refused from the header, before a pixel is decoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from mim_lightning.data.images.codec import decode_upright, image_size
from mim_lightning.data.images.limits import MAX_FILE_BYTES, ImageTooLargeError, TruncatedImageError
from mim_lightning.data.images.reader import ImageRef, TarMember

FACTS_VERSION = 1  # of what is measured here: facts of another version are not gone on with
LOOK_SIDE = 128  # pixels, of the shorter side, at which pictures are looked at
COLOUR_TOLERANCE = 8  # levels of 255 in which pixels of one colour may differ


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """Facts of one stored picture; with a `kind` it cannot be used, and `reason` says why.

    Attributes:
        height, width: pixels as stored; 0 where the header cannot be read.
        one_colour: share of the pixels within COLOUR_TOLERANCE of the picture's median colour.
        picture_hash: 64-bit perceptual hash of the grey picture.
        colours: mean red, green and blue of a 3 x 3 grid, as 54 hexadecimal digits.
    """

    num_bytes: int = 0
    height: int = 0
    width: int = 0
    one_colour: float = 0.0
    picture_hash: int = 0
    colours: str = ""
    kind: str = ""
    reason: str = ""


def look_at(ref: ImageRef, read: Callable[[ImageRef], bytes]) -> PictureFacts:
    """Read one picture and return its facts; a picture that cannot be read has a kind and a reason."""
    try:
        num_bytes = ref.stat().st_size if isinstance(ref, Path) else ref.size if isinstance(ref, TarMember) else 0
        if num_bytes > MAX_FILE_BYTES:
            reason = f"{num_bytes:,} bytes, at most {MAX_FILE_BYTES:,} are read"
            return PictureFacts(num_bytes, kind="huge_image", reason=reason)
        data = read(ref)
    except FileNotFoundError:
        return PictureFacts(kind="unreadable_image", reason="no such file")
    except ImageTooLargeError as error:
        return PictureFacts(num_bytes, kind="huge_image", reason=_in_words(error))
    except (OSError, ValueError) as error:
        return PictureFacts(kind="unreadable_image", reason=_in_words(error))
    return picture_facts(data)


def picture_facts(data: bytes) -> PictureFacts:
    """Return the facts of an encoded picture."""
    height, width = 0, 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            height, width = image_size(data)
            image = Image.fromarray(decode_upright(data, LOOK_SIDE, LOOK_SIDE))
    except Exception as error:  # decoders raise what they like at damaged files, and no file may end the check
        return PictureFacts(len(data), height, width, kind=_kind_of(error), reason=_in_words(error))
    return PictureFacts(len(data), height, width, _one_colour(image), _hash(image), _colours(image))


def _in_words(error: Exception) -> str:
    """Return an error in one line, with its type where the words alone say little."""
    text = " ".join(str(error).split())
    return text if text and isinstance(error, ValueError | OSError) else f"{type(error).__name__} {text}".rstrip()


def _kind_of(error: Exception) -> str:
    if isinstance(error, ImageTooLargeError):
        return "huge_image"
    return "truncated_image" if isinstance(error, TruncatedImageError) else "unreadable_image"


def _one_colour(image: Image.Image) -> float:
    small = np.asarray(image.resize((64, 64), Image.Resampling.BOX), dtype=np.int16)
    distances = np.abs(small - np.median(small, axis=(0, 1))).max(axis=2)
    return round(float((distances <= COLOUR_TOLERANCE).mean()), 4)


def _hash(image: Image.Image) -> int:
    """Return the DCT hash of Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"."""
    return int(str(imagehash.phash(image)), 16)


def _colours(image: Image.Image) -> str:
    return image.resize((3, 3), Image.Resampling.BOX).tobytes().hex()
