"""Prepares data: reads and validates a source, and writes its shard sets.

Nothing is written before the whole source is validated. Data are staged beside their folder and renamed into place when
complete, so the folder is complete or absent; an interrupted call is resumed by the next one.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mim_lightning.data.images.reader import ImageReader
from mim_lightning.data.manifest.composed_rows import VariantSettings, compose_variants
from mim_lightning.data.manifest.manifest import Manifest, Source
from mim_lightning.data.manifest.row_store import rows_in
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.preparation.destination import Destination, describe_preparation
from mim_lightning.data.preparation.local_engine import WritingSettings, rewrite_damaged, write_sets
from mim_lightning.data.preparation.plan import PlannedSet, plan_sets
from mim_lightning.data.preparation.prepared import COMPOSE, PreparedData, ShardSettings, open_prepared
from mim_lightning.data.preparation.staging import IMAGES_FILE, SKIPPED_FILE, staging_dir
from mim_lightning.data.shards.cache import CacheSettings
from mim_lightning.data.shards.set_index import FIRST_VERSION
from mim_lightning.data.splits import GivenSplits, Protocol
from mim_lightning.data.validation.image_hashes import hashes_path, images_query, write_hashes
from mim_lightning.data.validation.image_scan import StoredImages, scan_images
from mim_lightning.data.validation.report_tables import print_validation
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.validation.validate import validate_manifest
from mim_lightning.data.validation.validation_report import (
    ValidationReport,
    drop_invalid,
    raise_if_invalid,
    write_skipped,
)
from mim_lightning.io.paths import PathOrUrl
from mim_lightning.io.store import Store
from mim_lightning.types import InputSpec

log = logging.getLogger(__name__)

NUM_FETCHED = 100_000  # images whose downloads are planned at once

WriteReport = Callable[[ValidationReport, Path, ImageReader], None]  # prints a report, and writes its files to a folder


@dataclass(frozen=True)
class Validation:
    """How a source is validated.

    Attributes:
        settings: what is invalid, and how much of it is allowed.
        specs: of the towers, for the limits of their tokenizers; None: words are counted.
        write_report: what is done with the report.
    """

    settings: ValidationSettings = field(default_factory=ValidationSettings)
    specs: Mapping[str, InputSpec] | None = None
    write_report: WriteReport = lambda report, folder, reader: print_validation(report, brief=True)


@dataclass(frozen=True)
class ValidatedSource:
    """The rows of a source, the report of their validation, the reader of their images, and the images' properties."""

    manifest: Manifest
    report: ValidationReport
    reader: ImageReader
    images: StoredImages

    @property
    def valid(self) -> Manifest:
        """The rows to be written."""
        return drop_invalid(self.manifest, self.report)


def validate_source(
    source: Source, work_dir: Path, splits: tuple[str, str], protocol: Protocol, validation: Validation
) -> ValidatedSource:
    """Read a source, download its images and inspect everything; resumes where an interrupted call stopped.

    Args:
        work_dir: for files of the source's own, and the properties of images inspected so far.
        splits: names of the training split, and of the split that a protocol evaluates.
    """
    issues: list[RowIssue] = []
    manifest = protocol.apply(source.read(work_dir / "source", issues.append), *splits)
    reader = ImageReader(manifest.download)
    rows = manifest.stored()
    refs = rows.image_refs()
    while block := list(islice(refs, NUM_FETCHED)):
        reader.fetch_all(block)
    manifest = manifest.with_rows(rows)
    processes = validation.settings.num_processes
    images = scan_images(rows.image_refs(), reader.read, work_dir / IMAGES_FILE, processes, rows.store)
    report = validate_manifest(
        manifest,
        issues,
        validation.settings,
        reader.read,
        images=images,
        train_split=splits[0],
        specs=validation.specs,
    )
    return ValidatedSource(manifest, report, reader, images)


@dataclass(frozen=True)
class Preparation:
    """The parts of a config's `data` section that say what is prepared, and where.

    Args:
        folder: of the prepared data, which may not exist yet.
        source: where the manifest comes from; None: the data are prepared already.
        settings: of the shards.
        splits: which queries may be trained on.
        strictness: how strictly the source is validated; None, as in older runs: the defaults.
        cache: of shards at a URL.
        num_workers: processes that write; None: see `prepare_shards`.
        variants: what rows are composed of; None: none are.
    """

    folder: PathOrUrl
    source: Source | None
    settings: ShardSettings
    splits: Protocol | None = None
    strictness: ValidationSettings | None = None
    cache: CacheSettings | None = None
    num_workers: int | None = None
    variants: VariantSettings | None = None

    def validation(self, write_report: WriteReport, specs: Mapping[str, InputSpec] | None = None) -> Validation:
        return Validation(self.strictness or ValidationSettings(), specs, write_report)


def prepare_data(
    parts: Preparation,
    write_report: WriteReport,
    *,
    specs: Mapping[str, InputSpec] | None = None,
    description: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    is_compared: bool = False,
    needed: Sequence[str] = (),
) -> PreparedData:
    """Open the prepared data of a `data` section; write them first if they have a source and do not exist yet.

    Only engine=ray writes data at a URL; here they have to exist.

    Args:
        write_report: what is done with the report of the validation.
        specs: of the towers, for the limits of their tokenizers; None: words are counted.
        description: `source.describe()`, if it was called before: it hashes whole tables.
        overwrite, is_compared, needed: see `prepare_shards`.

    Raises:
        ValueError: see `prepare_shards` and `open_prepared`.
    """
    if parts.source is None or not isinstance(parts.folder, Path):
        return open_prepared(str(parts.folder), parts.cache)
    return prepare_shards(
        parts.source,
        parts.folder,
        parts.settings,
        parts.splits,
        overwrite=overwrite,
        validation=parts.validation(write_report, specs),
        num_workers=parts.num_workers,
        is_compared=is_compared,
        needed=needed,
        description=description,
        variants=parts.variants,
    )


def validate_variants(prepared: PreparedData, variants: VariantSettings | None) -> None:
    """Raise ValueError if data that are not prepared here were composed in another way than `variants` say."""
    found = prepared.describe()["settings"].get(COMPOSE)
    if variants is not None and found != json.loads(json.dumps(variants.describe())):
        raise ValueError(
            f"{variants}: rows are composed where data are prepared, and {prepared.folder} was prepared with "
            f"compose={found}; prepare it again from its source, or give data.compose=null"
        )


def prepare_shards(
    source: Source,
    folder: Path,
    settings: ShardSettings,
    protocol: Protocol | None = None,
    *,
    overwrite: bool = False,
    validation: Validation | None = None,
    num_workers: int | None = None,
    is_compared: bool = False,
    needed: Sequence[str] = (),
    description: Mapping[str, Any] | None = None,
    variants: VariantSettings | None = None,
) -> PreparedData:
    """Write the shard sets of `source`, split by `protocol`, into `folder`, or open them if they exist already.

    Of existing data, what is missing or has another size is written again.

    Args:
        source: of the manifest.
        folder: of the prepared data; one with anything else in it is left alone.
        settings: of the shards.
        protocol: which queries may be trained on; None: as the tables say.
        overwrite: replace existing data, also those of another source or with other settings.
        validation: how the source is validated.
        num_workers: processes that write; None: by the cores and the number of rows.
        is_compared: compare existing data with their checksums, and write again what differs.
        needed: splits that must have rows, or nothing is written.
        description: `source.describe()`, if it was called before.
        variants: what rows are composed of, beside those of the source.

    Raises:
        ValueError: the manifest or an image is invalid, or the folder has other data.
    """
    protocol, validation = protocol or GivenSplits(), validation or Validation()
    described = describe_preparation(description or source.describe(), settings, protocol, variants)
    destination = Destination(folder, described, overwrite)
    writing = WritingSettings(settings.samples_per_shard, settings.max_image_side, num_workers)

    @contextmanager
    def planned_sets(staging: Path, needed: Sequence[str] = ()) -> Iterator[tuple[ValidatedSource, list[PlannedSet]]]:
        """Read and validate the source, and plan its sets; write the report, also if the data are rejected."""
        with rows_in(staging, validation.settings.memory_bytes):
            validated = validate_source(source, staging, settings.splits, protocol, validation)
            _raise_if_invalid(validated, report_dir(folder), validation)
            validation.write_report(validated.report, staging, validated.reader)
            manifest = validated.valid
            if variants is not None:  # of valid rows, whose images were read
                composed = compose_variants(manifest, variants, settings.splits, settings.seed)
                print(composed.summary, flush=True)
                manifest = composed.manifest
            for split in needed:
                manifest.validate_split(split)
            yield validated, plan_sets(manifest, settings.train_split, settings.seed, settings.layout)

    def write(staging: PathOrUrl) -> None:
        assert isinstance(staging, Path)
        with planned_sets(staging, needed) as (validated, sets):
            rows = validated.valid.stored()
            # what takes long comes before the sets: they end without their markers, by which shards are kept
            write_hashes(hashes_path(staging, FIRST_VERSION), rows.store, images_query(rows, validated.images.table))
            write_skipped(validated.report, staging / SKIPPED_FILE)
            (staging / "queries").mkdir(exist_ok=True)  # a catalog alone has none
            write_sets(sets, Store(staging), validated.reader, writing)

    prepared = destination.open_existing()
    if prepared is not None:
        damages = prepared.find_damage(is_compared)
        if not damages:
            return prepared
        if prepared.version > FIRST_VERSION:
            raise ValueError(
                f"{folder}: missing or damaged: {', '.join(map(str, damages))}; only the first version can be written "
                "again from the source: copy the files again, or run prepare with overwrite=true and make the "
                f"{prepared.version - 1} later changes again"
            )
        log.warning("%s: missing or damaged, and written again: %s", folder, ", ".join(map(str, damages)))
        if not any(damage.is_unknown for damage in damages):
            with staging_dir(folder, described, overwrite=False) as staging:
                prepared = PreparedData(folder)  # opened again: a process that this one waited for may have mended it
                damages = prepared.find_damage(is_compared)
                if damages:
                    with planned_sets(staging) as (validated, sets):
                        rewrite_damaged(sets, prepared, validated.reader, writing, damages)
                shutil.rmtree(staging, ignore_errors=True)
            return PreparedData(folder)
        destination = replace(destination, overwrite=True)
    return destination.write(write)


def validate_only(parts: Preparation, write_report: WriteReport, specs: Mapping[str, InputSpec] | None = None) -> Path:
    """Validate what `prepare_data` would write, and write nothing but the report, to the folder that is returned.

    Raises:
        ValueError: the data would be rejected.
    """
    assert parts.source is not None
    assert isinstance(parts.folder, Path)
    protocol, validation = parts.splits or GivenSplits(), parts.validation(write_report, specs)
    described = describe_preparation(parts.source.describe(), parts.settings, protocol, parts.variants)
    target = report_dir(parts.folder)
    memory = validation.settings.memory_bytes
    with staging_dir(parts.folder, described, overwrite=False) as staging, rows_in(staging, memory):
        validated = validate_source(parts.source, staging, parts.settings.splits, protocol, validation)
        _raise_if_invalid(validated, target, validation)
        validation.write_report(validated.report, target, validated.reader)
        if parts.variants is not None:
            print(compose_variants(validated.valid, parts.variants, parts.settings.splits, parts.settings.seed).summary)
    return target


def _raise_if_invalid(validated: ValidatedSource, target: Path, validation: Validation) -> None:
    """Write the report to `target` and raise a ValueError if there are too many errors."""
    try:
        raise_if_invalid(validated.report)
    except ValueError as error:
        validation.write_report(validated.report, target, validated.reader)
        if not target.is_dir():
            raise
        raise ValueError(f"{error}; the report is in {target}") from None


def report_dir(folder: Path) -> Path:
    """Return the folder of the report of a validation without data written after it."""
    return folder.with_name(f"{folder.name}-check")
