"""Callback that lets an interrupted evaluation go on: what is embedded is written to files every so often.

<folder>/facts.json                            what the vectors depend on
<folder>/0-<first batch>-<token>.safetensors   rows of some batches: queries (0) or gallery (1)
"""

from __future__ import annotations

import errno
import json
import re
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from safetensors import safe_open
from safetensors.torch import save_file

from mim_lightning.interruption import Interruption
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.lit.callbacks.retrieval_eval import RetrievalEval, find_retrieval_eval
from mim_lightning.lit.console import warn
from mim_lightning.lit.datamodule import GALLERY, QUERIES, MatchDataModule
from mim_lightning.lit.trainer import ask_first
from mim_lightning.metrics import EmbeddingCollector
from mim_lightning.types import Batch

FACTS_FILE, SUFFIX, BATCHES = "facts.json", ".safetensors", "batches"
OWN_NAME = re.compile(r"\.?(facts\.json|[01]-\d+-\d{12}-[0-9a-f]{8}\.safetensors)(\.[0-9a-f-]+\.partial)?")
PART_BYTES = 2**26  # of vectors, after which a file is written however little time has passed
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class _Pending:
    """Rows that are collected and not written yet: where they start, and the batches that they are of."""

    start: int = 0
    batches: list[tuple[int, int, int]] = field(default_factory=list)  # dataloader_idx, first sample, rows

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + sum(num_rows for _, _, num_rows in self.batches))


@dataclass(frozen=True)
class _Part:
    """A file of rows."""

    name: str
    place: int  # QUERIES or GALLERY
    batches: list[tuple[int, int, int]]

    @property
    def num_rows(self) -> int:
        return sum(num_rows for _, _, num_rows in self.batches)


class EvaluationParts(Callback):
    """Writes the rows that each process has embedded, and finds those of the same evaluation that was interrupted.

    Vectors are equal to the last bit however often the evaluation is interrupted and on however many processes it goes
    on: the unit is a batch that one process would make (`EvaluatedRows.as_one_process`). The files need as much disk
    as all processes keep in memory. Those of another evaluation, model or catalog are removed first; a folder with
    files that this class did not write stays as it is.

    Args:
        folder: that all processes see; else nothing is written.
        facts: what vectors depend on, besides data and batch size.
        interval: seconds between two writes of a process: what an interruption loses at most.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], interval: float) -> None:
        if interval < 0:
            raise ValueError(f"save_interval={interval}: give seconds, 0 or more, or null")
        self.folder, self.facts, self.interval = folder, dict(facts), interval
        self.is_on = True  # False: nothing is written (any more)
        self._token = uuid.uuid4().hex[:8]  # of this process: no file is written twice
        self._own: list[_Part] = []  # files whose rows this process takes
        self._written: list[Path] = []
        self._pending: dict[int, _Pending] = {}
        self._last_write = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        datamodule: MatchDataModule = trainer.datamodule  # type: ignore[attr-defined]
        evaluation = find_retrieval_eval(trainer)
        facts = {**self.facts, **_describe(datamodule, evaluation), **_describe_process(trainer)}
        parts = ask_first(trainer.strategy, lambda: self._open(facts))
        if parts is None:
            self.is_on = False
            return
        is_seen = _read_facts(self.folder) == facts and all((self.folder / part.name).is_file() for part in parts)
        if not trainer.strategy.reduce_boolean_decision(is_seen):
            self.is_on = False
            warn(
                f"{self.folder}: not seen by all processes, or they differ in device or versions; an interrupted "
                "evaluation would start from the beginning"
            )
            return
        lasts = set(enumerate(datamodule.evaluated.last_batches()))
        by_rank = _divide(parts, lasts, trainer.world_size)
        self._own = by_rank[trainer.global_rank]
        for place in (QUERIES, GALLERY):
            evaluation.num_restored[place] = max(
                sum(_kept_rows(part, lasts) for part in own if part.place == place) for own in by_rank
            )
        batches = [(idx, first) for part in parts for idx, first, _ in part.batches]
        datamodule.evaluated.skip_embedded(
            {idx: np.array([first for other, first in batches if other == idx]) for idx, _ in batches}
        )
        if parts:
            num_rows, total = sum(_kept_rows(part, lasts) for part in parts), sum(datamodule.evaluated.counts())
            rank_zero_info(f"{self.folder}: {num_rows:,} of {total:,} rows are embedded already")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_on:
            return
        lasts = set(enumerate(trainer.datamodule.evaluated.last_batches()))  # type: ignore[attr-defined]
        collectors = find_retrieval_eval(trainer).collectors
        for part in self._own:
            rows = self._read(part)
            is_kept = torch.from_numpy(_is_kept(part, lasts))
            collectors[part.place].append({name: values[is_kept] for name, values in rows.items()})
        trainer.strategy.barrier()  # a process whose disk is full removes files that another may still have to read
        self._pending = {place: _Pending(collector.num_rows) for place, collector in collectors.items()}
        self._last_write = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self.is_on:
            return
        num_rows = int((~batch.is_padding).sum())
        if num_rows:
            place = min(dataloader_idx, GALLERY)
            self._pending[place].batches.append((dataloader_idx, int(batch.sample_nums[0]), num_rows))
        collectors = find_retrieval_eval(trainer).collectors
        is_large = sum(_num_bytes(collectors[place], pending) for place, pending in self._pending.items()) >= PART_BYTES
        if is_large or time.monotonic() - self._last_write >= self.interval:
            self._write(collectors)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.is_on and isinstance(exception, Interruption):
            self._write(find_retrieval_eval(trainer).collectors)

    def remove(self) -> None:
        """Remove the files, once the results are written or need the room."""
        with suppress(OSError):  # the results are worth more than a clean folder
            if self._find_others() is None:
                for path in self.folder.iterdir():
                    path.unlink(missing_ok=True)
                self.folder.rmdir()

    def _find_others(self) -> Path | None:
        """Return a file in the folder that this class did not write."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return next((path for path in found if not OWN_NAME.fullmatch(path.name)), None)

    def _open(self, facts: Mapping[str, Any]) -> list[_Part] | None:
        """Return the parts that the folder has of this evaluation; None: nothing can be written to it.

        What it has of another evaluation is removed.
        """
        try:
            if other := self._find_others():
                warn(f"{other}: is no file of an evaluation; one that is interrupted would start from the beginning")
                return None
            if _read_facts(self.folder) != facts:
                self.remove()
                self.folder.mkdir(parents=True, exist_ok=True)
                with atomic_write(self.folder / FACTS_FILE) as partial:
                    partial.write_text(json.dumps(facts, indent=1))
        except OSError as error:
            warn(f"{error}: an interrupted evaluation would start from the beginning")
            return None
        return _without_repeated([_read_part(path) for path in self.folder.glob(f"[0-9]*{SUFFIX}")])

    def _read(self, part: _Part) -> dict[str, torch.Tensor]:
        path = self.folder / part.name
        with errors_as_damaged_file(path, "remove it and run again"), safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping

    def _write(self, collectors: Mapping[int, EmbeddingCollector]) -> None:
        for place, pending in self._pending.items():
            rows = collectors[place].read(pending.rows)
            num_rows = pending.rows.stop - pending.start
            if num_rows == 0 or len(rows.get("row_keys", ())) < num_rows:  # the latter: taken, to be ranked
                continue
            idx, first, _ = pending.batches[0]
            path = self.folder / f"{place}-{idx}-{first:012d}-{self._token}{SUFFIX}"
            try:
                with atomic_write(path) as partial:
                    tensors = {name: part.cpu().contiguous() for name, part in rows.items()}
                    save_file(tensors, partial, metadata={BATCHES: json.dumps(pending.batches)})
            except OSError as error:  # a full disk: the evaluation itself needs none
                self._stop_writing(error)
                return
            self._written.append(path)
            self._pending[place] = _Pending(pending.rows.stop)
        self._last_write = time.monotonic()

    def _stop_writing(self, error: OSError) -> None:
        self.is_on = False
        lost = "what is embedded from here on"
        if error.errno in FULL:  # the results need room
            lost = "what is embedded"
            for path in (*self._written, *(self.folder / part.name for part in self._own)):
                with suppress(OSError):
                    path.unlink()
        warn(f"{error}: {lost} is lost if the evaluation is interrupted")


def _describe(datamodule: MatchDataModule, evaluation: RetrievalEval) -> dict[str, Any]:
    """Return what rows are collected of, and how."""
    opened = datamodule.opened
    return {
        "sets": [shards.digest for shards in (opened.queries, *opened.gallery)],
        "num_rows": datamodule.evaluated.counts(),
        "num_distractors": evaluation.num_distractors,
        "distractor_seed": evaluation.distractor_seed,
        "max_kept_rows": evaluation.max_kept_rows,
        "storage_dtype": str(evaluation.storage_dtype),
        "batch_size": datamodule.eval_batch_size,
    }


def _describe_process(trainer: Trainer) -> dict[str, Any]:
    """Return what the last bits of vectors depend on, besides model and data; equal for one process and several."""
    strategy, device = trainer.strategy, trainer.strategy.root_device
    is_whole = type(strategy) in (SingleDeviceStrategy, DDPStrategy)  # each process has all weights
    is_cuda = device.type == "cuda"
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if is_cuda else torch.backends.cpu.get_cpu_capability(),
        "strategy": "whole weights" if is_whole else type(strategy).__name__,
        "versions": {name: version(name) for name in ("torch", "mim-lightning")},
    }


def _without_repeated(parts: list[_Part]) -> list[_Part]:
    """Return the parts that have a batch which no larger one has, by name."""
    kept: list[_Part] = []
    known: set[tuple[int, int, int]] = set()
    for part in sorted(parts, key=lambda part: (-part.num_rows, part.name)):
        if not known.issuperset(part.batches):
            kept.append(part)
            known.update(part.batches)
    return sorted(kept, key=lambda part: part.name)


def _divide(parts: list[_Part], lasts: set[tuple[int, int]], world_size: int) -> list[list[_Part]]:
    """Return the files that each rank takes: about as many rows of each set."""
    by_rank: list[list[_Part]] = [[] for _ in range(world_size)]
    for place in (QUERIES, GALLERY):
        taken = [0] * world_size
        of_place = [part for part in parts if part.place == place]
        for part in sorted(of_place, key=lambda part: (-part.num_rows, part.name)):
            rank = taken.index(min(taken))
            by_rank[rank].append(part)
            taken[rank] += _kept_rows(part, lasts)
    return by_rank


def _kept_rows(part: _Part, lasts: set[tuple[int, int]]) -> int:
    return sum(num_rows for idx, first, num_rows in part.batches if (idx, first) not in lasts)


def _is_kept(part: _Part, lasts: set[tuple[int, int]]) -> np.ndarray:
    flags = [(idx, first) not in lasts for idx, first, _ in part.batches]
    return np.repeat(flags, [num_rows for _, _, num_rows in part.batches])


def _num_bytes(collector: EmbeddingCollector, pending: _Pending) -> int:
    rows = collector.read(slice(pending.start, collector.num_rows))
    return sum(part.nbytes for part in rows.values())


def _read_facts(folder: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((folder / FACTS_FILE).read_text()))
    except (OSError, ValueError):
        return None


def _read_part(path: Path) -> _Part:
    with errors_as_damaged_file(path, "remove it and run again"), safe_open(path, "pt") as file:
        batches = [(int(idx), int(first), int(size)) for idx, first, size in json.loads(file.metadata()[BATCHES])]
    return _Part(path.name, int(path.name.partition("-")[0]), batches)
