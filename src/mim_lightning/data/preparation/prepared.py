"""Prepared data: the shard sets of one place, `queries/<split>` and `catalogue`, whole or not there at all.

A Source comes in, a PreparedData goes out; the `prepare` door and the DataModule call `prepare_shards`. The
training split's samples hold query and product together (a triple or quadruple); the other splits hold queries
alone, and are ranked against the catalogue. Nothing is written before the check has passed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mim_lightning.data.manifest.manifest import Source
from mim_lightning.data.preparation.local_engine import WritingSettings, write_again, write_sets
from mim_lightning.data.preparation.planned_sets import BY_PRODUCT, SHUFFLED, plan_sets
from mim_lightning.data.preparation.staging import (
    SETTINGS_FILE,
    first_difference,
    move_into_place,
    partial_work,
)
from mim_lightning.data.preparation.validated_source import Checking, LeaveReport, check_source
from mim_lightning.data.shards.cache import CacheSettings
from mim_lightning.data.shards.damage import Damage, find_damage
from mim_lightning.data.shards.set_index import IndexedShard
from mim_lightning.data.shards.set_writer import content_id
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.shards.writer import COLUMNS
from mim_lightning.data.splits import GivenSplits, Protocol
from mim_lightning.data.validation import CheckReport, ValidationSettings, write_skipped
from mim_lightning.display.progress import ProgressMeter
from mim_lightning.io.damaged_file import errors_as_damaged_file, validate_regular_file
from mim_lightning.io.paths import PathOrUrl, join, to_path_or_url
from mim_lightning.io.remote import download_bytes, list_folder
from mim_lightning.io.retry import NotFoundError, RetryPolicy
from mim_lightning.io.store import Store
from mim_lightning.types import InputSpec

log = logging.getLogger(__name__)

AGAIN = "run prepare with overwrite=true"
SKIPPED_FILE = "skipped.csv"  # rows and pictures that the check left out
CONTENT, FIRST_CONTENT = "content", "first_content"  # in SETTINGS_FILE: ids of the sets, now and before overwrite=true


@dataclass(frozen=True)
class ShardSettings:
    """How a manifest is cut into shards."""

    train_split: str = "train"
    val_split: str = "val"  # where a product-disjoint protocol puts what it holds out
    max_image_side: int = 512  # pixels; larger pictures are stored smaller
    samples_per_shard: int = 2000
    seed: int = 0  # of the order in which training rows are written
    layout: str = SHUFFLED  # or "by_product": rows of a product side by side, for data/sampling=grouped in many windows

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
    """The shard sets of one folder, or of an address such as s3://bucket/shop."""

    folder: PathOrUrl
    cache: CacheSettings | None = None  # of the shards of an address
    _opened: dict[str, ShardSet] = field(default_factory=dict, init=False, repr=False, compare=False)  # by name

    def describe(self) -> dict[str, Any]:
        """Return the source and settings that the data were made from, and which content came of them."""
        place = join(self.folder, SETTINGS_FILE)
        if isinstance(place, Path):
            validate_regular_file(place, AGAIN)
        content = download_bytes(place, self._retry_policy) if isinstance(place, str) else place.read_bytes()
        with errors_as_damaged_file(str(place), AGAIN):
            found: dict[str, Any] = json.loads(content)
            if not {"source", "settings"} <= found.keys():
                raise ValueError("it does not say what was prepared")
            return found

    def content(self) -> dict[str, str]:
        """Return the `content_id` of every set of a folder.

        Raises:
            OSError: a set is not finished.
        """
        return {name: content_id(Store(self.folder), name) for name in self._set_names()}

    @property
    def new_content(self) -> dict[str, str] | None:
        """The content of data that took the place of others made from the same tables, by overwrite=true; else None."""
        described = self.describe()
        return described[CONTENT] if FIRST_CONTENT in described else None

    def find_damage(self, is_thorough: bool) -> list[Damage]:
        """Return what is missing or damaged of the sets of a folder; `is_thorough` reads all there is of them."""
        assert isinstance(self.folder, Path)
        found: list[Damage | None] = []
        names = dict.fromkeys((*self.describe().get(CONTENT, ()), *self._set_names()))
        num_shards = sum(1 for _ in self.folder.rglob("*.tar")) if is_thorough else 0
        with ProgressMeter(num_shards, verb="compared", noun="shards") if is_thorough else nullcontext() as progress:

            def show(shard: IndexedShard) -> None:
                if progress is not None:
                    progress.update(progress.num_done + 1, progress.num_bytes + (shard.num_bytes or 0))

            for name in names:
                try:
                    shards = self._open(name)
                except (OSError, ValueError):
                    found.append(Damage(name, is_unknown=True))
                    continue
                found.append(find_damage(shards, name, tuple(COLUMNS), is_thorough, show))
        return [damage for damage in found if damage is not None]

    def splits(self) -> list[str]:
        """Return the names of the splits; none at an address that lists nothing, as plain web servers do."""
        if isinstance(self.folder, str):
            return list_folder(f"{self.folder.rstrip('/')}/queries", self._retry_policy)
        return Store(self.folder).names("queries")

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
        return self._open(f"queries/{split}")

    def catalogue(self) -> ShardSet:
        """Return the catalog; the same object every time."""
        return self._open("catalogue")

    def _open(self, name: str) -> ShardSet:
        if name not in self._opened:
            self._opened[name] = ShardSet(join(self.folder, name), self.cache)
        return self._opened[name]

    def _set_names(self) -> list[str]:
        return ["catalogue", *(f"queries/{split}" for split in self.splits())]

    @property
    def _retry_policy(self) -> RetryPolicy:
        return (self.cache or CacheSettings()).retry_policy


def is_prepared(folder: PathOrUrl, cache: CacheSettings | None = None) -> bool:
    if isinstance(folder, Path):
        return (folder / SETTINGS_FILE).exists()
    try:
        PreparedData(folder, cache).describe()
    except NotFoundError:
        return False
    return True


def open_prepared(folder: str | Path, cache: CacheSettings | None = None) -> PreparedData:
    """Open a prepared folder or address.

    Raises:
        ValueError: there is none.
    """
    place = to_path_or_url(str(folder))
    if not is_prepared(place, cache):
        raise ValueError(f"{folder}: no prepared data here; run python -m mim_lightning.prepare")
    return PreparedData(place, cache)


def find_new_content(folder: str | Path) -> dict[str, str] | None:
    """Return the content of a folder of this machine where it took the place of other content; else None."""
    place = to_path_or_url(str(folder))
    return PreparedData(place).new_content if isinstance(place, Path) and is_prepared(place) else None


def open_products(
    folder: str | Path, distractors: str | Path | None = None, cache: CacheSettings | None = None
) -> list[ShardSet]:
    """Open the sets that make up a gallery: the catalogue of `folder`, and that of `distractors` if there are any."""
    return [open_prepared(place, cache).catalogue() for place in (folder, distractors) if place is not None]


def describe_preparation(source: Mapping[str, Any], settings: ShardSettings, protocol: Protocol) -> dict[str, Any]:
    """Return what tells prepared data from others, as it stands in SETTINGS_FILE."""
    described = asdict(settings)
    if settings.layout == SHUFFLED:
        del described["layout"]  # folders that were prepared when there was no other do not name it
    else:
        described["layout"] = "product"  # its first name, which folders keep
    return json.loads(json.dumps({"source": source, "settings": described, "protocol": asdict(protocol)}))


@dataclass(frozen=True)
class Preparation:
    """The parts of a config's `data` section that say what is prepared, and where.

    Args:
        folder: where the prepared data are, or are to be written.
        source: where the manifest comes from; None: the data are prepared already.
        settings: of the shards.
        protocol: which queries may be trained on.
        check: how strict the source is checked; None, as in older runs: the defaults.
        cache: of shards at an address.
        num_workers: processes that write; None: see `prepare_shards`.
    """

    folder: PathOrUrl
    source: Source | None
    settings: ShardSettings
    protocol: Protocol | None = None
    check: ValidationSettings | None = None
    cache: CacheSettings | None = None
    num_workers: int | None = None

    def checking(self, leave_report: LeaveReport, specs: Mapping[str, InputSpec] | None = None) -> Checking:
        return Checking(self.check or ValidationSettings(), specs, leave_report)


def prepare_data(
    parts: Preparation,
    leave_report: LeaveReport,
    *,
    specs: Mapping[str, InputSpec] | None = None,
    description: Mapping[str, Any] | None = None,
    force: bool = False,
    is_compared: bool = False,
    needed: Sequence[str] = (),
) -> PreparedData:
    """Open the prepared data of a `data` section, and write them first if they have a source and are not there yet.

    Data at an address are written by engine=ray alone; here they have to be there.

    Args:
        leave_report: what is done with the report of the check.
        specs: of the towers, for the limits of their tokenizers; None: words are counted.
        description: `source.describe()`, if it was called before: it hashes whole tables.
        force, is_compared, needed: see `prepare_shards`.

    Raises:
        ValueError: see `prepare_shards` and `open_prepared`.
    """
    if parts.source is None or not isinstance(parts.folder, Path):
        return open_prepared(str(parts.folder), parts.cache)
    return prepare_shards(
        parts.source,
        parts.folder,
        parts.settings,
        parts.protocol,
        force=force,
        checking=parts.checking(leave_report, specs),
        num_workers=parts.num_workers,
        is_compared=is_compared,
        needed=needed,
        description=description,
    )


def open_same(folder: PathOrUrl, described: Mapping[str, Any]) -> PreparedData:
    """Open what is there.

    Raises:
        ValueError: it was made from another source or with other settings.
    """
    prepared = PreparedData(folder)
    difference = first_difference(described, prepared.describe())
    if difference is not None:
        key, found, wanted = difference
        raise ValueError(
            f"{folder}: was prepared with {key}={found}, asked for is {wanted}; "
            "run prepare with overwrite=true, or choose another data.folder"
        )
    return prepared


def prepare_shards(
    source: Source,
    folder: Path,
    settings: ShardSettings,
    protocol: Protocol | None = None,
    *,
    force: bool = False,
    checking: Checking | None = None,
    num_workers: int | None = None,
    is_compared: bool = False,
    needed: Sequence[str] = (),
    description: Mapping[str, Any] | None = None,
) -> PreparedData:
    """Write the shard sets of `source`, split by `protocol`, into `folder`, or open them if they are there already.

    Data made from another source or with other settings is refused, not reused, unless `force` has it rewritten.
    A folder that holds anything else is left alone. Everything is checked, then written beside the folder and
    renamed into place at the end; an interrupted attempt is gone on with. `num_workers` processes write; None: what
    the machine and the rows suggest. Of data that are there, what is missing or of another size is made again; with
    `is_compared` what differs from its checksum, too. Nothing is written of a manifest without a row of the `needed`
    splits. `description` is that of the source, if it is known already.

    Raises:
        ValueError: the manifest or an image is faulty, or the folder holds other data.
    """
    protocol, checking = protocol or GivenSplits(), checking or Checking()
    described = describe_preparation(description or source.describe(), settings, protocol)
    writing = WritingSettings(settings.samples_per_shard, settings.max_image_side, num_workers)
    if is_prepared(folder) and not force:
        prepared = open_same(folder, described)
        damages = prepared.find_damage(is_compared)
        if not damages:
            return prepared
        log.warning("%s: missing or damaged, and made again: %s", folder, ", ".join(map(str, damages)))
        if not any(damage.is_unknown for damage in damages):
            with partial_work(folder, described, force=False) as partial:
                prepared = PreparedData(folder)  # opened again: a process that was waited for may have mended it
                damages = prepared.find_damage(is_compared)
                if damages:
                    checked = check_source(source, partial, settings.splits, protocol, checking)
                    checked.require_good(partial, report_folder(folder), checking.leave_report)
                    sets = plan_sets(checked.good, settings.train_split, settings.seed, settings.layout)
                    write_again(sets, Store(folder), checked.reader, writing, damages)
                shutil.rmtree(partial, ignore_errors=True)
            return PreparedData(folder)
        force = True
    require_free(folder)
    with partial_work(folder, described, force=force) as partial:
        if is_prepared(folder) and not force:  # by the process that was waited for
            return open_same(folder, described)
        if not is_prepared(partial):  # else a process was killed just before it was renamed
            checked = check_source(source, partial, settings.splits, protocol, checking)
            checked.require_good(partial, report_folder(folder), checking.leave_report)
            for split in needed:
                checked.good.split(split)
            sets = plan_sets(checked.good, settings.train_split, settings.seed, settings.layout)
            write_sets(sets, Store(partial), checked.reader, writing)
            (partial / "queries").mkdir(exist_ok=True)  # a catalogue alone has none
            write_skipped(checked.report, partial / SKIPPED_FILE)
            write_settings(partial, described, folder)
        try:
            move_into_place(partial, folder, force=force)
        except OSError:
            if not is_prepared(folder):
                raise
            # another machine, which no lock holds back, was faster; its result is as good
            shutil.rmtree(partial, ignore_errors=True)
            return open_same(folder, described)
    return PreparedData(folder)


def write_settings(place: PathOrUrl, described: Mapping[str, Any], folder: PathOrUrl) -> None:
    """Write the last file of data that were prepared at `place` and will stand in `folder`.

    It tells the content of the sets and, where they take the place of others made from the same, that of the first of
    these: the pictures were others then, which the tables do not tell.
    """
    content = PreparedData(place).content()
    written: dict[str, Any] = {**described, CONTENT: content}
    with suppress(OSError, ValueError):  # nothing stands there, or it is damaged
        old = PreparedData(folder)
        before = old.describe()
        first = before.get(FIRST_CONTENT) or before.get(CONTENT) or old.content()
        if first != content and first_difference(described, before) is None:
            written[FIRST_CONTENT] = first
    Store(place).write(SETTINGS_FILE, json.dumps(written, indent=2).encode())


def check_only(
    source: Source, folder: Path, settings: ShardSettings, protocol: Protocol | None, checking: Checking
) -> CheckReport:
    """Check what would be prepared into `folder`, and write nothing but the report, into `report_folder`."""
    protocol = protocol or GivenSplits()
    described = describe_preparation(source.describe(), settings, protocol)
    with partial_work(folder, described, force=False) as partial:
        checked = check_source(source, partial, settings.splits, protocol, checking)
        checking.leave_report(checked.report, report_folder(folder), checked.reader)
    return checked.report


def report_folder(folder: Path) -> Path:
    """Return where the report of a check lies that no data were written after."""
    return folder.with_name(f"{folder.name}-check")


def require_free(folder: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        ValueError: it does.
    """
    is_foreign = folder.exists() and not (folder / SETTINGS_FILE).is_file()
    if is_foreign and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: exists and holds no prepared data; give an empty or new folder")
