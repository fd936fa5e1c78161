"""Facts of pictures on disk: a file that only grows, so that an interrupted check goes on where it stopped.

PictureFacts come in by reference and go out to the next `survey`. A line holds one picture; it counts only as long
as the file behind the reference has the same size and time of change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from mim_lightning.data.images.reader import ImageRef
from mim_lightning.data.validation.image_checks import FACTS_VERSION, PictureFacts
from mim_lightning.io.paths import to_path_or_url


class FactsFile:
    """The facts of one file; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._stamp = lru_cache(maxsize=10_000)(_stamp)  # the cells of a table share one
        self._known = dict(_read(path)) if path is not None else {}

    def find(self, refs: Iterable[ImageRef]) -> dict[ImageRef, PictureFacts]:
        """Return what is known of those pictures that have not changed since."""
        if not self._known:
            return {}
        return {ref: facts for ref in refs if (key := self._key(ref)) and (facts := self._known.get(key))}

    def append(self, found: Mapping[ImageRef, PictureFacts]) -> None:
        """Write facts down; what could not be read at all is left out, it may be there the next time."""
        if self.path is None:
            return
        lines = [
            json.dumps([key, *asdict(facts).values()])
            for ref, facts in found.items()
            if (facts.num_bytes or not facts.kind) and (key := self._key(ref))
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            # a killed process may have left half a line: the next one must not be glued to it
            file.write("".join(f"\n{line}" for line in lines) + ("\n" if lines else ""))

    def _key(self, ref: ImageRef) -> str | None:
        """Return what a reference means now, or None if it means nothing."""
        held_in = ref if isinstance(ref, Path | str) else to_path_or_url(ref.path)
        try:
            return f"{FACTS_VERSION} {ref} {self._stamp(held_in) if isinstance(held_in, Path) else ''}"
        except OSError:
            return None


def _stamp(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _read(path: Path) -> Iterable[tuple[str, PictureFacts]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                key, *values = json.loads(line)
                yield key, PictureFacts(*values)
            except (ValueError, TypeError):
                continue  # an empty or torn line
