"""The LightningDataModule: loaders of training rows, evaluation queries and gallery over shard sets.

It prepares the data if they have a source, opens each set once (`opened`), and saves the position in the training
stream in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from mim_lightning.analysis.html.validation_page import write_validation_report
from mim_lightning.data.images.codec import MAX_KNOWN, hash_bytes, hash_pixels
from mim_lightning.data.images.transforms import Augment
from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.corrupt_samples import CorruptSamplePolicy
from mim_lightning.data.loading.feature_cache import FeatureCacheSettings, FeatureTable
from mim_lightning.data.loading.loader import SequentialLoader, ShardDataset, StreamLoader
from mim_lightning.data.loading.references import ReferenceReader
from mim_lightning.data.loading.vector_table import (
    VectorTable,
    open_vectors,
    read_width,
    validate_vectors,
)
from mim_lightning.data.manifest.composed_rows import parse_variants
from mim_lightning.data.manifest.manifest import Source
from mim_lightning.data.preparation.opened_data import DISTRACTORS as DISTRACTOR_SET
from mim_lightning.data.preparation.opened_data import OpenedData, parse_versions
from mim_lightning.data.preparation.preparation import Preparation, prepare_data, validate_variants
from mim_lightning.data.preparation.prepared import PreparedData, ShardSettings
from mim_lightning.data.sampling.gallery_sample import SelectedOrder, sample_gallery
from mim_lightning.data.sampling.mixture import make_mixture_order
from mim_lightning.data.sampling.negative_table import digest_negatives
from mim_lightning.data.sampling.order import BatchOrder, EpochSettings, OrderSettings, read_column, release_pages
from mim_lightning.data.sampling.product_frequency import log_frequencies
from mim_lightning.data.sampling.shuffled import ShuffledSettings, sequential_order
from mim_lightning.data.shards.cache import CacheSettings
from mim_lightning.data.shards.mixture_set import MAIN, ConcatShardSet, parse_mixture, split_fractions
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.splits import Protocol
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.fields import PRODUCT, QUERY
from mim_lightning.io.machine import num_cores
from mim_lightning.io.paths import to_path_or_url
from mim_lightning.types import LOG_FREQUENCY, ImageSpec, TowerSpec, fields_of, side_of, specs_by_field

# in a checkpoint: digests of the training set, of `vectors` by name, and of the table of hard negatives
CONTENT, VECTORS, NEGATIVES = "content", "vectors", "negatives"
QUERIES, GALLERY, DISTRACTORS = 0, 1, 2  # the dataloader_idx of the validation loaders


class MatchDataModule(LightningDataModule):
    """Streams triples or quadruples for training, and queries and gallery for evaluation.

    Args:
        name: of the data set, as in run names.
        specs: preprocessing of each tower's encoder, by tower name (see `TowerSpec`); decides what a batch contains.
        folder: of the prepared shard sets, existing or to be written; or an address of such, as s3://bucket/shop.
        source: of the manifest; None if `folder` is prepared already.
        shards: settings of the shards.
        splits: which queries may be trained on.
        validation: how strictly the source is validated before anything is written.
        val_split: the split that is evaluated.
        distractors: another prepared folder, whose catalog is added to the gallery of every evaluation.
        batch_size: training rows of all processes together.
        eval_batch_size: evaluation rows of all processes together; of each one with `as_one_process`.
        num_workers: loader processes of each rank, and processes that prepare; None: by the machine's cores, up to 8.
        seed: of order and augmentation.
        sampling: which rows form a training batch.
        num_interleaved: shard streams that each batch is interleaved from.
        shuffle_window_shards: shards whose rows are shuffled together; None: the default of `sampling`.
        rows_per_epoch: rounded up to whole batches; None: a pass over the (first) set.
        mixture: further prepared folders to train on, by name: see `data.shards.mixture_set`.
        compose: what rows are composed of, beside those of the source: see `parse_variants`.
        reference_products: read the product on the photo of each composed row from the catalog, into its batch.
        augment: augmentation of training images; None: as in evaluation.
        cache: of shards at an address.
        feature_cache: of the features of frozen encoders, see `lit.frozen_features`.
        on_corrupt_sample: "raise", or "skip": training continues without samples that cannot be read.
        max_corrupt_samples: that may be skipped in an epoch, as "1%" or a number.
        description: `source.describe()`, if it was called before: it hashes whole tables.
        prepared: the data in `folder`, if they were prepared and opened before.
        version: of data that were changed since they were prepared, in `folder` or by name: see `parse_versions`; None:
            the newest when they are opened.
        versions: all of them by name, where a run goes on with those that it started with.
        vectors: Parquet files of vectors by product or query id, by name of a side of a pair: see
            `data.loading.vector_table`.

    Attributes:
        opened: the shard sets, each opened once.
        as_one_process: whether each process evaluates the very batches that one alone would make, so that vectors are
            equal to the last bit; one needs as much memory then as one alone.
    """

    def __init__(
        self,
        name: str,
        specs: Mapping[str, TowerSpec],
        folder: str,
        source: Source | None,
        shards: ShardSettings,
        val_split: str,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int | None,
        seed: int,
        splits: Protocol | None = None,
        validation: ValidationSettings | None = None,
        distractors: str | None = None,
        sampling: OrderSettings | None = None,
        num_interleaved: int = 1,
        shuffle_window_shards: int | None = None,
        rows_per_epoch: int | None = None,
        mixture: Mapping[str, Mapping[str, Any] | None] | None = None,
        compose: str | Mapping[str, Any] | None = None,
        reference_products: bool = False,
        augment: Augment | None = None,
        cache: CacheSettings | None = None,
        feature_cache: FeatureCacheSettings | None = None,
        on_corrupt_sample: str = "raise",
        max_corrupt_samples: str | int = "1%",
        description: Mapping[str, Any] | None = None,
        prepared: PreparedData | None = None,
        version: int | Mapping[str, int] | None = None,
        versions: Mapping[str, int] | None = None,
        vectors: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.specs, self.augment = name, dict(specs), augment
        self.folder, self.source, self.shards, self.val_split = to_path_or_url(folder), source, shards, val_split
        self.splits, self.distractors = splits, to_path_or_url(distractors) if distractors else None
        self.cache, self.corrupt_samples = cache, CorruptSamplePolicy(on_corrupt_sample, max_corrupt_samples)
        self.validation, self.description, self.feature_cache = validation, description, feature_cache
        least = {
            "batch_size": (batch_size, 1),
            "eval_batch_size": (eval_batch_size, 1),
            "num_workers": (num_workers, 0),
        }
        for key, (value, smallest) in least.items():
            if value is not None and value < smallest:
                raise ValueError(f"data.{key}={value}: must be at least {smallest}")
        self.batch_size, self.eval_batch_size, self.variants = batch_size, eval_batch_size, parse_variants(compose)
        self.num_workers, self.sampling, self.mixture = (
            num_workers,
            sampling or ShuffledSettings(),
            parse_mixture(mixture or {}),
        )
        self.epoch_settings = EpochSettings(batch_size, seed, num_interleaved, shuffle_window_shards, rows_per_epoch)
        self.seed, self.as_one_process, self.reference_products = seed, False, reference_products
        names = [MAIN, *([DISTRACTOR_SET] if self.distractors else []), *self.mixture]
        self.versions = {**parse_versions(version, names), **(versions or {})}
        self.opened, self._is_prepared = self._open(prepared), prepared is not None or source is None
        self._gallery_sample: tuple[int, int] | None = None
        self._gallery_numbers: list[np.ndarray] | None = None
        self._embedded: dict[int, np.ndarray] = {}  # by dataloader_idx
        self._was_checked: dict[bool, bool] = {}  # for training, or for evaluation alone
        self._features: dict[str, FeatureTable] = {}  # by tower
        self.vectors = dict(vectors or {})
        self._vectors: dict[str, Path] = {}  # of `vectors`, what training reads
        self._vector_tables: dict[str, VectorTable] = {}  # of these, once they are opened
        self._columns: tuple[str, ...] = ()
        self._column_values: dict[str, np.ndarray] = {}  # of `_columns`
        self._train_loader: StreamLoader | None = None
        self._state: dict[str, Any] | None = None

    def _open(self, prepared: PreparedData | None = None) -> OpenedData:
        splits = self.shards.train_split, self.val_split
        return OpenedData(self.folder, *splits, self.distractors, self.mixture, self.cache, prepared, self.versions)

    def prepare_data(self) -> None:
        """Write the shards if they are not there, and check the sets that will be read; on one process of a node.

        Lightning calls it before fitting and again before evaluation: only the first call does anything.
        """
        is_training = self.trainer is None or self.trainer.state.fn == "fit"
        if self._was_checked.get(True) or self._was_checked.get(is_training):
            return
        if self.source is not None and not self._is_prepared:
            parts = self.source, self.shards, self.splits, self.validation, self.cache, self.num_workers
            needed = self.shards.train_split if is_training else self.val_split
            prepared = prepare_data(
                Preparation(self.folder, *parts, self.variants),
                write_validation_report,
                specs=specs_by_field(self.specs),
                description=self.description,
                needed=(needed,),
            )
            self.opened, self._is_prepared = self._open(prepared), True
        if is_training:
            _ = self.opened.train
            if self.source is None:
                validate_variants(self.opened.prepared, self.variants)
        _ = self.opened.queries
        self.opened.validate_distractors()
        if is_training:
            for name, table in self._open_vectors().items():
                self._count_vectors(name, table)
            self.opened.validate_mix()
            self.train_order(self.opened.train)
        self._was_checked[is_training] = True

    def train_order(self, shards: ShardSet) -> BatchOrder:
        """Return which rows of the training set form which batch; of a run that resumes, in the order that it had.

        Raises:
            ValueError: the settings do not fit the set.
        """
        state, settings = self._state or {}, self.epoch_settings
        if isinstance(shards, ConcatShardSet):
            return make_mixture_order(shards, split_fractions(self.mixture), self.sampling, settings, state)
        return self.sampling.for_shards(shards, settings.resume(state))

    def use_sampling(self, sampling: OrderSettings) -> None:
        """Take other settings of the same order: from the next pass on, or where training resumes."""
        self.sampling = sampling
        if self._train_loader is not None:
            self._train_loader.use_order(self.train_order(self.opened.train))

    def present_order(self) -> BatchOrder:
        """Return the order of the training loader, or of the one that is to be made."""
        return self._train_loader.order if self._train_loader else self.train_order(self.opened.train)

    def train_dataloader(self) -> StreamLoader:
        shards = self.opened.train
        collate = self._train_collate(shards)
        order = self.train_order(shards)
        self._train_loader = StreamLoader(shards, collate, order, **self._placement(), policy=self.corrupt_samples)
        if self._state is not None:
            self._restore_position(self._train_loader, self._state)
        return self._train_loader

    def _train_collate(self, shards: ShardSet) -> Collate:
        features = {tower: table for tower, table in self._features.items() if self.is_deterministic(tower)}
        for name in self._columns:
            if name not in self._column_values:
                is_frequency = name == LOG_FREQUENCY
                self._column_values[name] = (
                    log_frequencies(shards, self.present_order()) if is_frequency else read_column(shards, "weights")
                )
        return Collate(
            *(self.specs, shards.max_relevant, self.augment, self.seed),
            features=features,
            columns=self._column_values,
            vectors=self._open_vectors(),
            references=ReferenceReader.of(shards, self.opened.train_catalogs) if self.reference_products else None,
        )

    def use_columns(self, names: Sequence[str]) -> None:
        """Give training batches columns of the set, see `types.Batch.columns`.

        Raises:
            ValueError: they would not count what is drawn.
        """
        if LOG_FREQUENCY in names and self.reference_products:
            raise ValueError(
                "loss.popularity_correction=true: counts how often rows draw a product, and with "
                "data.reference_products=true references draw products too; set one of them to false"
            )
        self._columns = tuple(names)

    def use_vectors(self, names: Sequence[str]) -> dict[str, int]:
        """Give training batches columns of `vectors`, and return the dimension of each.

        Raises:
            ValueError: a file is missing, or has no vectors.
        """
        found = validate_vectors({name: self.vectors[name] for name in names})
        self._vectors, self._vector_tables = found, {}
        return {name: read_width(name, path) for name, path in found.items()}

    def _open_vectors(self) -> dict[str, VectorTable]:
        root = (self.feature_cache or FeatureCacheSettings()).root.parent / "vectors"
        for name, path in self._vectors.items():
            if name not in self._vector_tables:  # opening reads the file
                self._vector_tables[name] = open_vectors(name, path, root)
        return self._vector_tables

    def _count_vectors(self, name: str, table: VectorTable) -> None:
        """Print how many training rows have a vector.

        Raises:
            ValueError: none has one.
        """
        shards, place = self.opened.train, f"data.vectors.{name}={self._vectors[name]}"
        keys = read_column(shards, "keys" if side_of(name) == QUERY else "product_keys")
        count = table.count(keys)
        release_pages(keys)
        if not count:
            raise ValueError(
                f"{place}: none of its {side_of(name)} ids is in the training rows of {shards.folder}; give vectors of "
                "this data set"
            )
        rank_zero_info(f"{place}: {count:,} of {len(keys):,} training rows have a vector ({count / len(keys):.1%})")

    def is_deterministic(self, tower: str) -> bool:
        """Return whether nothing is random in what a tower gets of a training row."""
        parts = fields_of(tower, self.specs[tower]).values()
        return self.augment is None or not any(isinstance(part, ImageSpec) for part in parts)

    def deterministic_sets(self, tower: str) -> list[tuple[str, ShardSet]]:
        """Return a tower with each set whose rows it always gets the same of."""
        evaluated = [self.opened.queries] if side_of(tower) == QUERY else self.opened.gallery
        trained = [self.opened.train] if self.is_deterministic(tower) else []
        if trained and self.reference_products and side_of(tower) == PRODUCT:
            trained += self.opened.train_catalogs.values()
        return [(tower, shards) for shards in (*trained, *evaluated)]

    def use_features(self, tables: Mapping[str, FeatureTable]) -> None:
        """Give towers the features in a table, where it has those of all their inputs, instead of the inputs."""
        self._features = dict(tables)
        if self._train_loader is not None:  # made before, for the number of its batches
            dataset = self._train_loader.dataset
            assert isinstance(dataset, ShardDataset)
            dataset.collate = self._train_collate(dataset.shards)

    def val_dataloader(self) -> list[StreamLoader]:
        return [self._evaluation_loader(idx, *part) for idx, part in enumerate(self._evaluated())]

    def train_query_pass(self) -> StreamLoader:
        """Return a pass over the query sides of the training rows, as they are evaluated."""
        return self._evaluation_loader(QUERIES, self.opened.train, None, self.corrupt_samples)

    def num_evaluated(self) -> list[int]:
        """Return the rows of a whole evaluation pass, by dataloader_idx."""
        return [len(shards) if numbers is None else len(numbers) for shards, numbers in self._evaluated()]

    def _evaluated(self) -> list[tuple[ShardSet, np.ndarray | None]]:
        """Return each set that is evaluated, by dataloader_idx, and which of its samples; None: all."""
        gallery = self.opened.gallery
        chosen: Sequence[np.ndarray | None] = self.gallery_numbers() or (None,) * len(gallery)
        return [(self.opened.queries, None), *zip(gallery, chosen, strict=True)]

    def last_batches(self) -> list[int]:
        """Return the first sample of the last batch of each set, in the batches that one process would make.

        -1 of a set without rows: the sample of a gallery may have none of the distractors' set.
        """
        return [
            start if numbers is None else int(numbers[start]) if num_rows else -1
            for shards, numbers in self._evaluated()
            for num_rows in [len(shards) if numbers is None else len(numbers)]
            for start in [(num_rows - 1) // self.eval_batch_size * self.eval_batch_size]
        ]

    def skip_embedded(self, embedded: Mapping[int, np.ndarray]) -> None:
        """Leave out batches of one process whose rows were embedded before; never the last one of a set.

        Args:
            embedded: the number of the first sample of each such batch, by dataloader_idx.
        """
        assert self.as_one_process
        self._embedded = dict(embedded)

    def sample_gallery(self, num_distractors: int | None, seed: int) -> None:
        """Evaluate against a sample of the gallery, see `data.sampling.gallery_sample`; None: against the whole."""
        sample = None if num_distractors is None else (num_distractors, seed)
        if sample != self._gallery_sample:
            self._gallery_sample, self._gallery_numbers = sample, None

    def gallery_numbers(self) -> list[np.ndarray] | None:
        """Return the samples of each set of the gallery that are evaluated; None: all."""
        if self._gallery_sample is not None and self._gallery_numbers is None:
            self._gallery_numbers = sample_gallery(self.opened.gallery, self.opened.queries, *self._gallery_sample)
        return self._gallery_numbers

    def _evaluation_loader(
        self, idx: int, shards: ShardSet, numbers: np.ndarray | None, policy: CorruptSamplePolicy | None = None
    ) -> StreamLoader:
        side = QUERY if idx == QUERIES else PRODUCT
        specs = {name: spec for name, spec in self.specs.items() if side_of(name) == side}
        num_rows, world_size = len(shards) if numbers is None else max(1, len(numbers)), self._placement()["world_size"]
        batch_size = min(self.eval_batch_size, num_rows)
        if (embedded := self._embedded.get(idx)) is not None:
            numbers = np.arange(num_rows) if numbers is None else numbers
            is_left = ~np.isin(numbers[::batch_size], embedded)
            is_left[-1:] = True  # Lightning leaves out a pass without batches
            numbers = numbers[np.repeat(is_left, batch_size)[: len(numbers)]]
        if self.as_one_process:
            batch_size *= world_size
        else:  # every rank needs a row, to take part in the collectives
            batch_size = -(-batch_size // world_size) * world_size
        plan = sequential_order(shards, batch_size) if numbers is None else SelectedOrder(numbers, batch_size)
        features = {tower: table for tower, table in self._features.items() if tower in specs}
        collate = Collate(specs, shards.max_relevant, image_key=self._image_key(), features=features)
        options = {**self._placement(), "policy": policy, "in_whole_batches": self.as_one_process}
        return StreamLoader(shards, collate, plan, **options)

    def _image_key(self) -> Callable[[bytes], int]:
        """Return how evaluation recognizes equal images: by pixels, or by bytes if there are many."""
        num_rows = len(self.opened.queries) + sum(len(products) for products in self.opened.gallery)
        return hash_pixels if num_rows <= MAX_KNOWN else hash_bytes

    def shard_pass(self, shards: ShardSet, side: str, shard_idxs: Sequence[int]) -> SequentialLoader:
        """Return this rank's part of a pass over shards, for the towers of a side, in the batches of one process."""
        placement = self._placement()
        rank, world_size = placement.pop("rank"), placement.pop("world_size")
        specs = {name: spec for name, spec in self.specs.items() if side_of(name) == side}
        own = shard_idxs[rank::world_size]
        return SequentialLoader(shards, Collate(specs, shards.max_relevant), own, self.eval_batch_size, **placement)

    def _placement(self) -> dict[str, Any]:
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return {
            "rank": rank,
            "world_size": world_size,
            "num_workers": self.num_loader_workers,
            "pin_memory": torch.cuda.is_available(),
        }

    @property
    def num_loader_workers(self) -> int:
        """Number of loader processes of each rank."""
        local = self.trainer.num_devices if self.trainer else 1
        # without a GPU the model needs cores too: half of them load
        cores = num_cores() // (1 if torch.cuda.is_available() else 2)
        return min(8, cores // local) if self.num_workers is None else self.num_workers

    # Lightning drops a loader's own state when the schedule asks for the number of steps before fitting
    # (pytorch-lightning #20550), so the position is kept here.
    def state_dict(self) -> dict[str, Any]:
        if self._train_loader is None:
            return {}
        vectors = {name: table.digest for name, table in self._open_vectors().items()}
        state = {**self._train_loader.state_dict(), CONTENT: self._train_loader.ranks.shards.digest}
        state |= {NEGATIVES: negatives} if (negatives := self._negatives_digest) else {}
        return state | ({VECTORS: vectors} if vectors else {})

    @cached_property
    def _negatives_digest(self) -> str | None:
        """Of the table of hard negatives, if one is given."""
        table = getattr(self.sampling, "table", None)
        return None if table is None else digest_negatives(Path(table), f"data.sampling.table={table}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None
        for name, digest in state_dict.get(VECTORS, {}).items():
            if name in self._vectors and self._open_vectors()[name].digest != digest:
                raise ValueError(
                    f"data.vectors.{name}={self._vectors[name]}: its content changed since the checkpoint was written; "
                    "restore the former file, or train under another run.id"
                )
        # where no table is given now, the order itself is another one, and refused
        if (own := self._negatives_digest) is not None and state_dict.get(NEGATIVES, own) != own:
            raise ValueError(
                f"data.sampling.table={getattr(self.sampling, 'table', None)}: its content is not that of the table "
                "that the checkpoint was made with; restore the former file, or train under another run.id"
            )
        if self._train_loader and self._state:
            self._train_loader.use_order(self.train_order(self._train_loader.ranks.shards))
            self._restore_position(self._train_loader, self._state)

    @staticmethod
    def _restore_position(loader: StreamLoader, state: Mapping[str, Any]) -> None:
        """Set a loader to a saved position.

        Raises:
            ValueError: the position would give other samples: the data or settings changed.
        """
        shards = loader.ranks.shards
        if state.get(CONTENT, shards.digest) != shards.digest:  # older checkpoints do not have it
            raise ValueError(
                f"{shards.folder}: its content changed since the checkpoint was written: the run would mix two data "
                "sets; restore the former data, or train under another run.id"
            )
        loader.load_state_dict(state)
