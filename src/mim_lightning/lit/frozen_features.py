"""Computes the features of frozen encoders once, before training, into the feature cache; training reads them there.

The images of such towers are not decoded either. What is random - augmentation of training images - excludes a tower's
training rows; texts and evaluation are never augmented.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from mim_lightning.data.loading.collate import Collate, values_of
from mim_lightning.data.loading.feature_cache import (
    FeatureTable,
    input_key,
    list_features,
    prompts_of,
    remove_damaged,
    write_features,
)
from mim_lightning.data.loading.loader import load_samples
from mim_lightning.data.shards.shard_set import ShardError, ShardSet
from mim_lightning.display.numbers import format_count
from mim_lightning.fields import PRODUCT, texts_of
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.digest import XXH3
from mim_lightning.lit.console import warn
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.model.fingerprint import encoder_fingerprint
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.sharding import gathered
from mim_lightning.types import ImageSpec, Sample, fields_of, side_of

if TYPE_CHECKING:
    from mim_lightning.encoders.interface import Encoder

FORMAT = 2  # changes when keys are made, or images are decoded or resized otherwise
PART_BYTES = 1 << 28  # of features in memory before they are written
COMPLETE = ".complete.json"


def cacheable_towers(matcher: Matcher, datamodule: MatchDataModule) -> list[str]:
    """Return the towers with weights whose features training could read from a cache, in training rows too."""
    return [
        owner
        for owner in matcher.towers
        if matcher.tower(owner).is_frozen and any(datamodule.is_deterministic(name) for name in _users(matcher, owner))
    ]


class FrozenFeatures(Callback):
    """Fills the cache when fitting starts, and has the loaders read from it; see `FeatureCacheSettings`."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        matcher = pl_module.matcher
        assert isinstance(datamodule, MatchDataModule) and isinstance(matcher, Matcher)
        if str(trainer.precision) == "64-true":
            warn("data.feature_cache: holds float32; with trainer.precision=64-true features are computed every time")
            return
        tables: dict[str, FeatureTable] = {}
        for owner in matcher.towers:
            if matcher.tower(owner).is_frozen:
                names = _users(matcher, owner)
                table = _Pass(trainer, datamodule, owner, names, matcher.tower(owner).encoder).run()
                tables |= dict.fromkeys(names, table) if table is not None else {}
        datamodule.use_features(tables)


def _deterministic_sets(datamodule: MatchDataModule, tower: str) -> list[tuple[str, ShardSet]]:
    """Return a tower with each set whose rows it always gets the same of."""
    opened, is_of_products = datamodule.opened, side_of(tower) == PRODUCT
    trained = [opened.train] if datamodule.is_deterministic(tower) else []
    if trained and datamodule.reference_products and is_of_products:
        trained += opened.train_catalogs.values()
    return [(tower, shards) for shards in (*trained, *(opened.gallery if is_of_products else [opened.queries]))]


def _users(matcher: Matcher, owner: str) -> list[str]:
    return [name for name, other in matcher.owner_of.items() if other == owner]


@dataclass
class _Pass:
    """One encoder over every input that training will give it."""

    trainer: Trainer
    datamodule: MatchDataModule
    owner: str
    towers: Sequence[str]
    encoder: Encoder
    _keys: list[bytes] = field(default_factory=list)
    _features: list[Tensor] = field(default_factory=list)

    def run(self) -> FeatureTable | None:
        """Return the table of all features, or None if they do not fit."""
        started, strategy = time.perf_counter(), self.trainer.strategy
        settings = self.datamodule.feature_cache
        assert settings is not None
        folder = self._folder(settings.root)
        if self.trainer.local_rank == 0:
            for name in remove_damaged(folder, self.encoder.width):
                warn(f"{folder}/{name}: damaged; these features of tower '{self.owner}' are computed again")
        strategy.barrier()
        present = list_features(folder)
        sets = [item for tower in self.towers for item in _deterministic_sets(self.datamodule, tower)]
        missing: list[tuple[str, ShardSet, dict[bytes, int]]] = []
        marks = [folder / f"{_mark(tower, shards, self.datamodule)}{COMPLETE}" for tower, shards in sets]
        known = None
        for (tower, shards), mark in zip(sets, marks, strict=True):
            if not _is_complete(mark, present):
                known = FeatureTable(folder, present, self.encoder.width).keys() if known is None else known
                found = dict(self._find_inputs(tower, shards, known))
                known |= found.keys()
                missing.append((tower, shards, found))
        num_missing = sum(len(found) for _, _, found in missing)
        needed = num_missing * (4 * self.encoder.width + 16)
        used = sum(path.stat().st_size for path in settings.root.rglob("*.npy"))
        if not strategy.broadcast(used + needed <= settings.limit):
            warn(
                f"data.feature_cache.max_size={settings.max_size}: {folder.parent} has {used / 1e9:.2f} GB, the "
                f"features of tower '{self.owner}' need {needed / 1e9:.2f} GB more; they are computed every time"
            )
            return None
        if num_missing:
            rank_zero_info(f"tower '{self.owner}' is frozen: encoding {format_count(num_missing, 'input')} once")
        # the processes have different numbers of batches
        with gathered(self.trainer.lightning_module):
            for tower, shards, found in missing:
                self._compute(folder, tower, shards, found)
        self._write(folder)
        strategy.barrier()
        names = list_features(folder)
        table = FeatureTable(folder, names, self.encoder.width)
        if self.trainer.local_rank == 0:
            for mark in marks:
                with atomic_write(mark) as partial:
                    partial.write_text(json.dumps(names))
        seconds = time.perf_counter() - started
        rank_zero_info(
            f"tower '{self.owner}' reads features from {folder}: {num_missing} made in {seconds:.1f} s, "
            f"{len(table)} in all, {len(table) * 4 * self.encoder.width / 1e6:.1f} MB"
        )
        return table

    def _folder(self, root: Path) -> Path:
        folder = root / encoder_fingerprint(self.encoder, self._conditions())
        if not folder.exists() and any(not path.name.startswith(XXH3) for path in root.glob("[0-9a-fx]*")):
            former = root / encoder_fingerprint(self.encoder, self._conditions(), like="")  # of versions before 0.2
            return former if former.exists() else folder
        return folder

    def _conditions(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "precision": str(self.trainer.precision),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "device": self.trainer.strategy.root_device.type,
        }

    def _find_inputs(self, tower: str, shards: ShardSet, known: set[bytes]) -> Iterator[tuple[bytes, int]]:
        """Yield each distinct input of a set that is not known, by key, and a sample that has it."""
        fields = fields_of(tower, self.datamodule.specs[tower])
        has_images = any(isinstance(part, ImageSpec) for part in fields.values())
        prompts, seen = prompts_of(fields.values()), set[bytes]()
        for number in range(len(shards)):
            try:
                sample = shards.read([number])[0] if has_images else Sample(number, texts_of(shards.read_facts(number)))
            except ShardError:
                if not self.datamodule.corrupt_samples.skips:
                    raise
                continue
            values = values_of(sample, fields)
            key = None if values is None else input_key(values, prompts)
            if key is not None and key not in known and key not in seen:
                seen.add(key)
                yield key, number

    @torch.no_grad()
    def _compute(self, folder: Path, tower: str, shards: ShardSet, found: Mapping[bytes, int]) -> None:
        """Encode this rank's part of the inputs; the rank is chosen by the key, the same whatever others know."""
        rank, world_size = self.trainer.local_rank, self.trainer.num_devices
        own = {number: key for key, number in found.items() if key[0] % world_size == rank}
        collate = Collate({tower: self.datamodule.specs[tower]}, shards.max_relevant)
        batch_size = max(1, self.datamodule.eval_batch_size // self.trainer.world_size)
        skips, num_workers = self.datamodule.corrupt_samples.skips, self.datamodule.num_loader_workers
        device = self.trainer.strategy.root_device
        self.encoder.eval()
        for batch in load_samples(shards, collate, list(own), batch_size, num_workers, skips):
            inputs, rows = batch.to(device).inputs[tower], batch.rows[tower]
            with self.trainer.precision_plugin.forward_context():
                features = self.encoder(inputs).float().cpu()
            kept = rows >= 0  # others could not be read
            self._keys += [own[number] for number in batch.sample_nums[kept].tolist()]
            self._features.append(features[rows[kept]])
            if len(self._keys) * 4 * self.encoder.width > PART_BYTES:
                self._write(folder)

    def _write(self, folder: Path) -> None:
        if self._keys:
            write_features(folder, self._keys, torch.cat(self._features))
            self._keys.clear()
            self._features.clear()


def _is_complete(mark: Path, present: Sequence[str]) -> bool:
    """Return whether the inputs of a set were all encoded into files that are there."""
    try:
        return {*json.loads(mark.read_text())} <= {*present}
    except (OSError, ValueError, TypeError):
        return False


def _mark(tower: str, shards: ShardSet, datamodule: MatchDataModule) -> str:
    fields = fields_of(tower, datamodule.specs[tower])
    facts = json.dumps([shards.digest, list(fields), prompts_of(fields.values())])
    return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()
