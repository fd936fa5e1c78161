"""Prepared data: the shard sets of one folder or URL, `queries/<split>` and `catalog`.

Samples of the training split have a query and a product (a triple or quadruple); those of other splits a query alone,
which is ranked against the catalog. `settings.json`, written last, says what the data were made from, and what each
later version of them changed: replacing that file makes a version the newest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mim_lightning.data.preparation.plan import BY_PRODUCT, SHUFFLED
from mim_lightning.data.preparation.staging import SETTINGS_FILE
from mim_lightning.data.shards.cache import CacheSettings
from mim_lightning.data.shards.damage import Damage, find_damage
from mim_lightning.data.shards.files import describe_removal
from mim_lightning.data.shards.set_index import FIRST_VERSION, INDEX_FILE, VERSIONS, IndexedShard, index_file
from mim_lightning.data.shards.set_writer import content_id
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.shards.shard_writer import COLUMNS
from mim_lightning.data.shards.verify import verify_sets
from mim_lightning.display.progress import ProgressMeter
from mim_lightning.display.text import plain
from mim_lightning.io.damaged_file import errors_as_damaged_file, validate_regular_file
from mim_lightning.io.locks import ReadLock
from mim_lightning.io.paths import PathOrUrl, join, to_path_or_url
from mim_lightning.io.remote import download_json, list_folder
from mim_lightning.io.retry import NotFoundError, RetryPolicy
from mim_lightning.io.store import Store

AGAIN = "run prepare with overwrite=true"
CATALOG, QUERY_SETS = "catalogue", "queries/"  # names of sets on disk; that of a split follows the second
COMPOSE = "compose"  # among the settings in SETTINGS_FILE: what rows were composed of
CONTENT, FIRST_CONTENT = "content", "first_content"  # in SETTINGS_FILE: ids of the sets, now and before overwrite=true


@dataclass(frozen=True)
class ShardSettings:
    """How a manifest is cut into shards."""

    train_split: str = "train"
    val_split: str = "val"  # of the queries that a product-disjoint protocol holds out
    max_image_side: int = 512  # pixels; larger images are scaled down
    samples_per_shard: int = 2000
    seed: int = 0  # of the order of training rows
    layout: str = SHUFFLED  # or "by_product": rows of a product adjacent, for data/sampling=grouped with many windows

    @property
    def splits(self) -> tuple[str, str]:
        return self.train_split, self.val_split

    def __post_init__(self) -> None:
        for name in ("max_image_side", "samples_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.shards.{name}={getattr(self, name)}: must be at least 1")
        if self.layout not in (SHUFFLED, BY_PRODUCT):
            raise ValueError(f"data.shards.layout={self.layout}: give {SHUFFLED} or {BY_PRODUCT}")


class MissingSplitError(ValueError):
    """Prepared data have no such split."""


@dataclass(frozen=True)
class PreparedData:
    """The shard sets of one folder, or of a URL such as s3://bucket/shop, in one version."""

    folder: PathOrUrl
    cache: CacheSettings | None = None  # of shards at a URL
    wanted_version: int | None = None  # None: the newest when a set is first opened
    _opened: dict[str, ShardSet] = field(default_factory=dict, init=False, repr=False, compare=False)  # by name
    _locks: list[ReadLock] = field(default_factory=list, init=False, repr=False, compare=False)  # of the version
    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # see `_settings`

    def describe(self) -> dict[str, Any]:
        """Return the source and settings that the data were made from, and the ids of their content."""
        found = self._read_settings()
        with errors_as_damaged_file(str(join(self.folder, SETTINGS_FILE)), AGAIN):
            if not {"source", "settings"} <= found.keys():
                raise ValueError("it does not say what was prepared")
        return found

    def _read_settings(self) -> dict[str, Any]:
        path = join(self.folder, SETTINGS_FILE)
        if isinstance(path, Path):
            validate_regular_file(path, AGAIN)
        content = download_json(path, self._retry_policy) if isinstance(path, str) else path.read_bytes()
        with errors_as_damaged_file(str(path), AGAIN):
            found = json.loads(content)
            if not isinstance(found, dict):
                raise ValueError("it holds no keys")
            if VERSIONS in found:
                _validate_versions(found[VERSIONS])
            return found

    @property
    def version(self) -> int:
        """The version that is read.

        Raises:
            ValueError: there is no such version.
        """
        known = [int(entry["version"]) for entry in self._settings().get(VERSIONS, ())] or [FIRST_VERSION]
        if self.wanted_version not in (None, *known):
            raise ValueError(
                f"{self.folder}: has no version {self.wanted_version}; it has {', '.join(map(str, known))}"
            )
        return self.wanted_version or known[-1]

    def hold(self) -> None:
        """Keep the version from being removed while this object exists; sets that are open keep theirs.

        Raises:
            ValueError: another process is removing it.
        """
        if not isinstance(self.folder, Path):
            return
        sets = (
            self._entry()["sets"] if VERSIONS in self._settings() else dict.fromkeys(self._set_names(), FIRST_VERSION)
        )
        for name, version in sets.items():
            first, later = self.folder / name / INDEX_FILE, self.folder / name / index_file(int(version))
            try:
                self._locks.append(ReadLock(later if later.exists() else first))
            except BlockingIOError:
                raise ValueError(describe_removal(self.folder, self.version)) from None
        # a removal that came before the locks has taken the version from the settings
        with suppress(FileNotFoundError):
            left = self._read_settings().get(VERSIONS) or [{"version": FIRST_VERSION}]
            if self.version not in [entry["version"] for entry in left]:
                raise ValueError(describe_removal(self.folder, self.version))

    def set_version(self, set_name: str) -> int:
        """Return the version of one set: the last one that changed it."""
        if VERSIONS not in self._settings():
            return FIRST_VERSION
        return int(self._entry()["sets"][set_name])

    def _entry(self) -> dict[str, Any]:
        """Return what the settings say of the version, where there are several."""
        entries: list[dict[str, Any]] = self._settings()[VERSIONS]
        return next(entry for entry in entries if entry["version"] == self.version)

    @property
    def exists(self) -> bool:
        """Whether anything is prepared here."""
        if isinstance(self.folder, Path):
            return (self.folder / SETTINGS_FILE).exists()
        return bool(self._settings())

    def _settings(self) -> dict[str, Any]:
        """Return the settings as they were at the first call; nothing in a staging directory, before they are there."""
        if not self._known:
            with suppress(FileNotFoundError, NotFoundError):
                self._known.update(self._read_settings())
        return self._known

    def content(self) -> dict[str, str]:
        """Return the `content_id` of every set of a folder.

        Raises:
            OSError: a set is not finished.
        """
        if VERSIONS in self._settings():
            return dict(self._entry()[CONTENT])
        return {name: content_id(Store(self.folder), name) for name in self._set_names()}

    @property
    def new_content(self) -> dict[str, str] | None:
        """The content of data that replaced others made from the same tables, by overwrite=true; else None."""
        described = self.describe()
        return described[CONTENT] if FIRST_CONTENT in described else None

    def find_damage(self, is_thorough: bool) -> list[Damage]:
        """Return what is missing or damaged in a folder; `is_thorough` reads all shards, else sizes are compared."""
        assert isinstance(self.folder, Path)
        found: list[Damage | None] = []
        recorded = self.content() if VERSIONS in self._settings() else self._settings().get(CONTENT, ())
        names = dict.fromkeys((*recorded, *self._set_names()))
        num_shards = sum(1 for _ in self.folder.rglob("*.tar")) if is_thorough else 0
        with ProgressMeter(num_shards, verb="compared", noun="shards") if is_thorough else nullcontext() as progress:

            def show(shard: IndexedShard) -> None:
                if progress is not None:
                    progress.update(progress.num_done + 1, progress.num_bytes + (shard.num_bytes or 0))

            for name in names:
                try:
                    shards = self.open_set(name)
                except ValueError:
                    found.append(Damage(name, is_unknown=True))
                    continue
                found.append(find_damage(shards, name, tuple(COLUMNS), is_thorough, show))
        return [damage for damage in found if damage is not None]

    def verify(self, report: Callable[[str], None]) -> str:
        """Compare all shards with their checksums, report each damaged file, and return a summary.

        Raises:
            ValueError: a file is damaged.
        """
        found = verify_sets(
            self.folder, self._set_names(), {name: self.set_version(name) for name in self._set_names()}
        )
        for line in found.damaged:
            report(f"damaged: {self.folder}/{line}")
        if found.damaged:
            raise ValueError(
                f"{self.folder}: {len(found.damaged)} damaged, the first is {found.damaged[0]}; copy the data again, "
                "or prepare them again with overwrite=true"
            )
        return f"{self.folder}: {found.num_shards} shards with {found.num_rows:,} rows match their checksums"

    def summary(self, train_split: str) -> str:
        """Return the number of rows of each set, a line each."""
        splits = self.splits()
        version = f", version {self.version}" if self.version > FIRST_VERSION else ""
        lines = [f"{self.folder}{version}", f"  catalog: {len(self.catalog())} rows"]
        for split in splits:
            use = "triples or quadruples to train on" if split == train_split else "queries"
            lines.append(f"  {plain(split)}: {len(self.queries(split))} {use}")
        if splits and train_split not in splits:
            lines.append(
                f"  no split '{train_split}': can be evaluated, not trained on; name another by data.shards.train_split"
            )
        return "\n".join(lines)

    def splits(self) -> list[str]:
        """Return the names of the splits; none at a URL without listings, such as a plain web server."""
        settings = self._settings()
        if VERSIONS in settings:
            names = self._entry()["sets"]
            return sorted(name.removeprefix(QUERY_SETS) for name in names if name.startswith(QUERY_SETS))
        if isinstance(self.folder, str):
            return list_folder(f"{self.folder.rstrip('/')}/queries", self._retry_policy)
        found = Store(self.folder).names("queries")
        # an interrupted addition may have left the folder of a split that is not in the data
        return [name for name in found if CONTENT not in settings or f"queries/{name}" in settings[CONTENT]]

    def queries(self, split: str) -> ShardSet:
        """Return the queries of a split; the same object every time.

        Raises:
            MissingSplitError: there is no such split.
        """
        if f"queries/{split}" in self._opened:
            return self._opened[f"queries/{split}"]
        known = self.splits()
        if split not in known and (known or isinstance(self.folder, Path)):
            raise MissingSplitError(f"{self.folder}: no split '{split}'; it has {known}")
        return self.open_set(f"queries/{split}")

    def catalog(self) -> ShardSet:
        """Return the catalog; the same object every time."""
        return self.open_set("catalogue")

    def open_set(self, name: str) -> ShardSet:
        """Return a set by its name on disk; the same object every time."""
        if name not in self._opened:
            self._opened[name] = ShardSet(join(self.folder, name), self.cache, self.set_version(name))
        return self._opened[name]

    def _set_names(self) -> list[str]:
        return ["catalogue", *(f"queries/{split}" for split in self.splits())]

    @property
    def _retry_policy(self) -> RetryPolicy:
        return (self.cache or CacheSettings()).retry_policy


def _validate_versions(entries: Any) -> None:
    """Raise ValueError unless these are the versions of prepared data, ascending, each with its sets."""
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{VERSIONS} must be a list of versions")
    for entry in entries:
        sets, number = entry.get("sets"), entry.get("version")
        if type(number) is not int or not isinstance(sets, dict) or not isinstance(entry.get(CONTENT), dict):
            raise ValueError(f"{VERSIONS}: each needs a number, its sets and their content")
        if CATALOG not in sets or not all(type(version) is int and version > 0 for version in sets.values()):
            raise ValueError(f"{VERSIONS}: version {number} lacks its catalog, or the version of a set")
    numbers = [entry["version"] for entry in entries]
    if numbers != sorted(set(numbers)):
        raise ValueError(f"{VERSIONS}: {numbers} do not ascend")


def is_prepared(folder: PathOrUrl, cache: CacheSettings | None = None) -> bool:
    return PreparedData(folder, cache).exists


def open_prepared(folder: str | Path, cache: CacheSettings | None = None, version: int | None = None) -> PreparedData:
    """Open a prepared folder or URL.

    Args:
        version: None: the newest.

    Raises:
        ValueError: it has no prepared data.
    """
    prepared = PreparedData(to_path_or_url(str(folder)), cache, version)
    if not prepared.exists:
        is_relative = isinstance(prepared.folder, Path) and not prepared.folder.is_absolute()
        place = f" below {Path.cwd()}" if is_relative else ""
        raise ValueError(f"{folder}: no prepared data here{place}; give that of `mim prepare` as data.folder=<folder>")
    _ = prepared.version  # which is the newest is decided now
    prepared.hold()
    return prepared


def find_new_content(folder: str | Path) -> dict[str, str] | None:
    """Return `new_content` of a local folder; None of any other, and where nothing is prepared."""
    path = to_path_or_url(str(folder))
    return PreparedData(path).new_content if isinstance(path, Path) and is_prepared(path) else None


def open_products(
    folder: str | Path,
    distractors: str | Path | None = None,
    cache: CacheSettings | None = None,
    versions: tuple[int | None, int | None] = (None, None),
) -> list[ShardSet]:
    """Open the sets of a gallery: the catalog of `folder`, and that of `distractors` if there are any."""
    places = zip((folder, distractors), versions, strict=True)
    return [open_prepared(path, cache, version).catalog() for path, version in places if path is not None]
