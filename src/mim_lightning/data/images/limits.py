"""What a picture from elsewhere may cost: the limits of every decoder, and the errors that say what is wrong with one.

Facts of a header come in, nothing or an error goes out. `decode` holds pictures to `LIMITS` before it decodes any; a
service may hold them to tighter ones first.
"""

from __future__ import annotations

from dataclasses import dataclass


class ImageError(ValueError):
    """A picture that cannot be used."""


class UnreadableImageError(ImageError):
    """No picture, a damaged one, or one of a kind that cannot be read here."""


class TruncatedImageError(UnreadableImageError):
    """The file ends before the picture does."""


class ImageTooLargeError(ImageError):
    """More than a limit allows; nothing was decoded."""


@dataclass(frozen=True)
class PictureLimits:
    """Upper limits of one picture: a few bytes can unpack to gigabytes, or to minutes of work.

    Attributes:
        pixels: of the whole picture.
        side: pixels of the longer side.
        aspect: how many times as long as the shorter side the longer one may be.
        scans: passes over a progressive JPEG; encoders write about ten.
    """

    pixels: int = 64_000_000
    side: int = 65_535
    aspect: int = 1_000
    scans: int = 100

    def check(self, height: int, width: int, num_scans: int = 1) -> None:
        """Refuse what goes beyond a limit.

        Raises:
            ImageTooLargeError: it does.
        """
        size, longer, shorter = f"{width} x {height} pixels", max(height, width), min(height, width)
        if height * width > self.pixels:
            raise ImageTooLargeError(f"{size}, at most {self.pixels:,} are decoded")
        if longer > self.side:
            raise ImageTooLargeError(f"{size}, at most {self.side:,} a side are decoded")
        if longer > self.aspect * max(shorter, 1):
            raise ImageTooLargeError(f"{size}, one side is more than {self.aspect:,} times the other")
        if num_scans > self.scans:
            raise ImageTooLargeError(f"{num_scans} scans of a progressive JPEG or more, at most {self.scans} are read")


LIMITS = PictureLimits()
