"""The destination of a preparation: a folder or URL, and the description of what is prepared there.

The description is `settings.json`, written last: it says what the data were made from, so that the same preparation
opens or resumes them and another one leaves them alone. Every engine that writes data writes them through here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mim_lightning.data.manifest.composed_rows import VariantSettings
from mim_lightning.data.preparation.plan import BY_PRODUCT, SHUFFLED
from mim_lightning.data.preparation.prepared import (
    COMPOSE,
    CONTENT,
    FIRST_CONTENT,
    PreparedData,
    ShardSettings,
    is_prepared,
)
from mim_lightning.data.preparation.staging import (
    SETTINGS_FILE,
    first_difference,
    move_into_place,
    remote_staging,
    staging_dir,
)
from mim_lightning.data.splits import Protocol
from mim_lightning.io.paths import PathOrUrl
from mim_lightning.io.store import Store


def describe_preparation(
    source: Mapping[str, Any], settings: ShardSettings, protocol: Protocol, variants: VariantSettings | None = None
) -> dict[str, Any]:
    """Return what identifies prepared data, as in SETTINGS_FILE."""
    described = asdict(settings)
    if settings.layout == SHUFFLED:
        del described["layout"]  # folders prepared before there was another do not name it
    else:
        described["layout"] = "product"  # its first name, which folders keep
    if variants is not None:
        described[COMPOSE] = variants.describe()
    return json.loads(json.dumps({"source": source, "settings": described, "protocol": asdict(protocol)}))


@dataclass(frozen=True)
class Destination:
    """Where data are prepared.

    Args:
        folder: of the data, or their URL.
        described: see `describe_preparation`.
        overwrite: replace existing data, also those of another description.
    """

    folder: PathOrUrl
    described: Mapping[str, Any]
    overwrite: bool = False

    def open_existing(self) -> PreparedData | None:
        """Open what is prepared here; None: nothing, or it is to be replaced.

        Raises:
            ValueError: it was made from another source or with other settings.
        """
        return self._open_same() if is_prepared(self.folder) and not self.overwrite else None

    def write(self, write_sets: Callable[[PathOrUrl], None]) -> PreparedData:
        """Stage the data, describe them, and move them into place.

        Args:
            write_sets: writes all but the description to the staging folder or URL, from what an interrupted call left
                there; not called if another process finishes the data meanwhile, or was killed just before the move.

        Raises:
            ValueError: the folder has anything but prepared data, or an unfinished preparation of another description.
        """
        with self._stage() as staging:
            existing = self.open_existing()  # by the process that this one waited for
            if existing is not None:
                return existing
            if not is_prepared(staging):
                write_sets(staging)
                self._write_description(staging)
            if isinstance(self.folder, Path):
                try:
                    move_into_place(Path(staging), self.folder, overwrite=self.overwrite)
                except OSError:
                    if not is_prepared(self.folder):
                        raise
                    # another machine, which no lock keeps out, was faster; its result is as good
                    shutil.rmtree(staging, ignore_errors=True)
                    return self._open_same()
        return PreparedData(self.folder)

    def _stage(self) -> AbstractContextManager[PathOrUrl]:
        if isinstance(self.folder, str):
            return remote_staging(self.folder, self.described, overwrite=self.overwrite)
        is_foreign = self.folder.exists() and not (self.folder / SETTINGS_FILE).is_file()
        if is_foreign and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(f"{self.folder}: exists and is not prepared data; give an empty or new folder")
        return staging_dir(self.folder, self.described, overwrite=self.overwrite)

    def _open_same(self) -> PreparedData:
        prepared = PreparedData(self.folder)
        difference = first_difference(self.described, prepared.describe())
        if difference is not None:
            key, found, wanted = difference
            if key == "layout":  # stored by its first name, or not at all
                found, wanted = (BY_PRODUCT if layout == "product" else SHUFFLED for layout in (found, wanted))
            raise ValueError(
                f"{self.folder}: was prepared with {key}={found}, this command has {wanted}; "
                "run prepare with overwrite=true, or choose another data.folder"
            )
        return prepared

    def _write_description(self, staging: PathOrUrl) -> None:
        """Write the last file of the staged data.

        It has the content ids of the sets. If they replace others made from the same tables, it also has those of the
        first: their images differed, which the tables do not show.
        """
        content = PreparedData(staging).content()
        written: dict[str, Any] = {**self.described, CONTENT: content}
        with suppress(OSError, ValueError):  # no data there, or damaged ones
            old = PreparedData(self.folder)
            before = old.describe()
            first = before.get(FIRST_CONTENT) or before.get(CONTENT) or old.content()
            if first != content and first_difference(self.described, before) is None:
                written[FIRST_CONTENT] = first
        Store(staging).write(SETTINGS_FILE, json.dumps(written, indent=2).encode())
