"""The LightningDataModule: loaders of training rows, evaluation queries and gallery over shard sets.

It prepares the data if they have a source, opens each set once (`opened`), and saves the position in the training
stream in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from mim_lightning.data.loading.loader import ShardDataset, StreamLoader
from mim_lightning.data.loading.references import ReferenceReader
from mim_lightning.data.loading.vector_columns import VectorColumns
from mim_lightning.data.manifest.composed_rows import parse_variants
from mim_lightning.data.manifest.manifest import Source
from mim_lightning.data.preparation.opened_data import DISTRACTORS as DISTRACTOR_SET
from mim_lightning.data.preparation.opened_data import OpenedData, parse_versions
from mim_lightning.data.preparation.preparation import Preparation, prepare_data, validate_variants
from mim_lightning.data.preparation.prepared import PreparedData, ShardSettings
from mim_lightning.data.sampling.evaluated_rows import EvaluatedRows
from mim_lightning.data.sampling.mixture import make_mixture_order
from mim_lightning.data.sampling.negative_table import digest_negatives
from mim_lightning.data.sampling.order import BatchOrder, EpochSettings, OrderSettings, read_column
from mim_lightning.data.sampling.product_frequency import log_frequencies
from mim_lightning.data.sampling.shuffled import ShuffledSettings
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
        eval_batch_size: evaluation rows of all processes together, see `EvaluatedRows`.
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
        evaluated: which of their rows are evaluated.
        vectors: the columns of vectors.
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
        least = ("batch_size", batch_size, 1), ("eval_batch_size", eval_batch_size, 1), ("num_workers", num_workers, 0)
        for key, value, smallest in least:
            if value is not None and value < smallest:
                raise ValueError(f"data.{key}={value}: must be at least {smallest}")
        self.batch_size, self.eval_batch_size, self.variants = batch_size, eval_batch_size, parse_variants(compose)
        self.num_workers, self.mixture = num_workers, parse_mixture(mixture or {})
        self.sampling: OrderSettings = sampling or ShuffledSettings()
        self.epoch_settings = EpochSettings(batch_size, seed, num_interleaved, shuffle_window_shards, rows_per_epoch)
        self.seed, self.reference_products = seed, reference_products
        names = [MAIN, *([DISTRACTOR_SET] if self.distractors else []), *self.mixture]
        self.versions = {**parse_versions(version, names), **(versions or {})}
        self.opened, self._is_prepared = self._open(prepared), prepared is not None or source is None
        self.evaluated = EvaluatedRows(self.evaluated_sets, eval_batch_size)
        self._was_checked: dict[bool, bool] = {}  # for training, or for evaluation alone
        self._features: dict[str, FeatureTable] = {}  # by tower
        self.vectors = VectorColumns(vectors or {}, feature_cache or FeatureCacheSettings())
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
            for line in self.vectors.describe(self.opened.train):
                rank_zero_info(line)
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
        collate, order = self._train_collate(shards), self.train_order(shards)
        self._train_loader = StreamLoader(shards, collate, order, **self.placement(), policy=self.corrupt_samples)
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
        augment = self.augment or Augment()
        specs = {tower: augment.training_spec(spec) for tower, spec in self.specs.items()}
        return Collate(
            *(specs, shards.max_relevant, self.augment, self.seed),
            features=features,
            columns=self._column_values,
            vectors=self.vectors.open(),
            references=ReferenceReader.of(shards, self.opened.train_catalogs) if self.reference_products else None,
        )

    def teardown(self, stage: str) -> None:
        """End the downloads for further epochs of training."""
        if self._train_loader is not None:
            self._train_loader.ranks.stop()

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

    def is_deterministic(self, tower: str) -> bool:
        """Return whether nothing is random in what a tower gets of a training row."""
        parts = fields_of(tower, self.specs[tower]).values()
        return self.augment is None or not any(isinstance(part, ImageSpec) for part in parts)

    def use_features(self, tables: Mapping[str, FeatureTable]) -> None:
        """Give towers the features in a table, where it has those of all their inputs, instead of the inputs."""
        self._features = dict(tables)
        if self._train_loader is not None:  # made before, for the number of its batches
            dataset = self._train_loader.dataset
            assert isinstance(dataset, ShardDataset)
            dataset.collate = self._train_collate(dataset.shards)

    def evaluated_sets(self) -> list[ShardSet]:
        """Return the queries and the sets of the gallery, by dataloader_idx."""
        return [self.opened.queries, *self.opened.gallery]

    def val_dataloader(self) -> list[StreamLoader]:
        return [self._evaluation_loader(idx, *part) for idx, part in enumerate(self.evaluated.parts())]

    def train_query_pass(self) -> StreamLoader:
        """Return a pass over the query sides of the training rows, as they are evaluated."""
        return self._evaluation_loader(QUERIES, self.opened.train, None, self.corrupt_samples)

    def _evaluation_loader(
        self, idx: int, shards: ShardSet, numbers: np.ndarray | None, policy: CorruptSamplePolicy | None = None
    ) -> StreamLoader:
        side = QUERY if idx == QUERIES else PRODUCT
        specs = {name: spec for name, spec in self.specs.items() if side_of(name) == side}
        placement = self.placement()
        order = self.evaluated.order(idx, shards, numbers, placement["world_size"])
        features = {tower: table for tower, table in self._features.items() if tower in specs}
        # equal images are recognized by their pixels, or by their bytes if there are many
        image_key = hash_pixels if sum(map(len, self.evaluated_sets())) <= MAX_KNOWN else hash_bytes
        collate = Collate(specs, shards.max_relevant, image_key=image_key, features=features)
        options = {**placement, "policy": policy, "in_whole_batches": self.evaluated.as_one_process}
        return StreamLoader(shards, collate, order, **options)

    def placement(self) -> dict[str, Any]:
        """Return what a loader must know of this rank."""
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
        state = {**self._train_loader.state_dict(), CONTENT: self._train_loader.ranks.shards.digest}
        others = {NEGATIVES: self._negatives_digest, VECTORS: self.vectors.digests()}
        return state | {name: digest for name, digest in others.items() if digest}

    @cached_property
    def _negatives_digest(self) -> str | None:
        """Of the table of hard negatives, if one is given."""
        table = getattr(self.sampling, "table", None)
        return None if table is None else digest_negatives(Path(table), f"data.sampling.table={table}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None
        self.vectors.validate_digests(state_dict.get(VECTORS, {}))
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
