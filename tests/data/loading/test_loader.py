"""Whatever the number of ranks and workers, the stream is one: every sample once, resumed to the pixel."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mim_lightning.data.images.transforms import Augment
from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.corrupt_samples import CorruptSamplePolicy
from mim_lightning.data.loading.loader import SequentialLoader, StreamLoader, load_samples
from mim_lightning.data.sampling.shuffled import ShuffledOrder, sequential_order
from mim_lightning.data.shards.shard_set import MEMBERS, ShardSet
from mim_lightning.types import Batch, ImageSpec, TextSpec
from tests.data.conftest import MakeSet, tokenize
from tests.data.stores import in_processes

SPECS = {
    "query_image": ImageSpec((8, 8)),
    "product_image": ImageSpec((8, 8)),
    "product_text": TextSpec(tokenize, 16),
    "query_text": TextSpec(tokenize, 16),
}
AUGMENT = Augment(brightness=0.2, contrast=0.2, saturation=0.2)
Row = tuple[Any, ...]


def loaders(
    shards: ShardSet,
    world_size: int = 1,
    num_workers: int = 0,
    batch_size: int = 8,
    evaluate: bool = False,
    policy: CorruptSamplePolicy | None = None,
    **plan: Any,
) -> list[StreamLoader]:
    """Return the loaders of all ranks."""
    order = ShuffledOrder(tuple(shards.sizes), batch_size, **({"seed": 3, "num_streams": 2, "window": 2} | plan))
    if evaluate:
        order = sequential_order(shards, batch_size)
    collate = Collate(SPECS, shards.max_relevant, None if evaluate else AUGMENT, seed=3)
    return [
        StreamLoader(shards, collate, order, rank, world_size, num_workers, policy=policy) for rank in range(world_size)
    ]


def content(batch: Batch) -> list[Row]:
    """Return each real row as plain values: number, keys, and every input down to the pixel."""

    def value(tower: str, row: int) -> Any:
        inputs = batch.inputs[tower]
        if row < 0:
            return None
        if isinstance(inputs, dict):
            return tuple(number for number in inputs["ids"][row].tolist() if number)
        return inputs[row].numpy().tobytes()

    return [
        (
            int(batch.sample_nums[b]),
            int(batch.query_keys[b]),
            *(value(tower, rows[b]) for tower, rows in places.items()),
        )
        for places in [{tower: rows.tolist() for tower, rows in batch.rows.items()}]
        for b in range(len(batch))
        if not batch.is_padding[b]
    ]


def global_batches(ranks: list[StreamLoader], num: int | None = None) -> list[list[Row]]:
    """Return what all ranks together see, batch by batch; with `num`, over epochs."""

    def stream(loader: StreamLoader) -> Any:
        return itertools.chain.from_iterable(loader for _ in itertools.count()) if num else loader

    steps = itertools.islice(zip(*map(stream, ranks), strict=True), num)
    return [[row for part in parts for row in content(part)] for parts in steps]


@pytest.mark.parametrize("num", [23, 24])
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 0), (2, 1), (4, 0), (4, 1)])
def test_every_sample_once(make_set: MakeSet, num: int, world_size: int, num_workers: int) -> None:
    parts = [list(loader) for loader in loaders(make_set(num), world_size, num_workers)]
    assert {len(part) for part in parts} == {3}
    for step in zip(*parts, strict=True):
        assert len({len(batch) for batch in step}) == 1
    real = [row[0] for part in parts for batch in part for row in content(batch)]
    assert sorted(real) == list(range(num))
    num_rows = sum(len(batch) for part in parts for batch in part)
    num_padding = sum(int(batch.is_padding.sum()) for part in parts for batch in part)
    assert num_rows - num_padding == num
    assert num_padding == -num % world_size


@pytest.mark.parametrize("num", [9, 10, 11])
def test_a_last_batch_smaller_than_the_world(make_set: MakeSet, num: int) -> None:
    parts = [list(loader) for loader in loaders(make_set(num, 5), world_size=4, evaluate=True)]
    assert [[len(batch) for batch in part] for part in parts] == [[2, 1]] * 4
    assert sorted(row[0] for part in parts for batch in part for row in content(batch)) == list(range(num))


@pytest.mark.parametrize("num", [3, 8, 9, 17, 23, 40])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_take_runs_of_whole_batches_of_one_process(make_set: MakeSet, num: int, world_size: int) -> None:
    shards, size = make_set(num, 5), 4
    order, collate = sequential_order(shards, size), Collate(SPECS, shards.max_relevant)
    ranks = [
        StreamLoader(shards, collate, order, rank, world_size, in_whole_batches=True) for rank in range(world_size)
    ]
    parts = [list(loader) for loader in ranks]
    assert {len(part) for part in parts} == {len(ranks[0])}, "all take part in the collectives"
    alone = [list(range(start, min(start + size, num))) for start in range(0, num, size)]
    rows = [batch for part in parts for batch in part if not batch.is_padding.any()]
    assert [batch.sample_nums.tolist() for batch in rows] == alone
    assert max(sum(len(b) for b in part if not b.is_padding.any()) for part in parts) == ranks[0].ranks.most_rows
    repeats = [batch for part in parts for batch in part if batch.is_padding.any()]
    assert all(len(batch) == 1 and batch.is_padding.all() for batch in repeats)
    if len(alone) >= world_size:
        opened = [np.unique(shards.shards_of(torch.cat([b.sample_nums for b in part]).numpy())) for part in parts]
        assert sum(map(len, opened)) <= len(shards.sizes) + world_size - 1, "only borders are read twice"


def test_any_world_sees_the_same_global_batches(make_set: MakeSet) -> None:
    shards = make_set()
    alone = global_batches(loaders(shards), 7)
    assert [len(batch) for batch in alone] == [8, 8, 7, 8, 8, 7, 8]
    assert sorted(row[0] for batch in alone[:3] for row in batch) == list(range(23))
    assert [row[0] for row in alone[0]] != [row[0] for row in alone[3]]
    first, second = ({row[0]: row for batch in epoch for row in batch} for epoch in (alone[:3], alone[3:6]))
    assert first[0] != second[0]  # another augmentation of the same sample
    for world_size, num_workers in ((1, 1), (2, 0), (2, 2), (4, 0)):
        assert global_batches(loaders(shards, world_size, num_workers), 7) == alone


@pytest.mark.parametrize("num_done", range(7))
def test_resumes_with_the_next_batch(make_set: MakeSet, num_done: int) -> None:
    """Also where the epoch ends (3 batches), on other workers and another world, after prefetching."""
    shards = make_set()
    expected = global_batches(loaders(shards), 9)[num_done:]
    before = loaders(shards, world_size=2, num_workers=1 if num_done in (2, 3) else 0)
    for loader in before:
        stream = itertools.chain.from_iterable(loader for _ in itertools.count())
        for _ in range(num_done):
            next(stream)
    states = [loader.state_dict() for loader in before]
    assert states[0] == states[1]
    for world_size, num_workers in ((1, 2 if num_done in (2, 3) else 0), (4, 0)):
        after = loaders(shards, world_size, num_workers)
        for loader in after:
            loader.load_state_dict(states[0])
        assert global_batches(after, len(expected)) == expected


def test_a_relay_of_killed_processes(make_set: MakeSet, tmp_path: Path) -> None:
    """Processes stream and are killed; the next ones, of another world size, resume from the file that they saved."""
    shards = make_set(61, 9)  # eight batches an epoch, the last of 5
    legs = list(itertools.product((1, 2, 4), (0, 1, 2, 4)))
    legs = [legs[number * 5 % len(legs)] for number in range(len(legs))]
    state: dict[str, Any] = {}
    found: list[list[str]] = []
    for number, (world_size, num_workers) in enumerate(legs):
        folder = tmp_path / f"leg {number}"
        found += in_ranks(shards, folder, world_size, num_workers, state, num_steps=1 + number % 3)
        state = json.loads((folder / "0").read_text().splitlines()[-1])["state"]
    assert len(found) == 24
    assert (state["epoch"], state["consumed"]) == (2, 61)
    assert found == [[digest(row) for row in batch] for batch in global_batches(loaders(shards), 24)]


def in_ranks(
    shards: ShardSet,
    folder: Path,
    world_size: int,
    num_workers: int,
    state: dict[str, Any],
    num_steps: int,
) -> list[list[str]]:
    """Stream in a process a rank, all killed after so many steps; return what each step gave to them together."""
    folder.mkdir()

    def stream(rank: int) -> None:
        loader = loaders(shards, world_size, num_workers)[rank]
        if state:
            loader.load_state_dict(state)
        batches = itertools.chain.from_iterable(loader for _ in itertools.count())
        with (folder / str(rank)).open("w") as file:
            for step, batch in enumerate(batches, start=1):
                rows = [digest(row) for row in content(batch)]
                print(json.dumps({"rows": rows, "state": loader.state_dict()}), file=file, flush=True)
                if step == num_steps:
                    os.kill(os.getpid(), signal.SIGKILL)

    assert set(in_processes(stream, world_size)) == {-signal.SIGKILL}
    ranks = [[json.loads(line)["rows"] for line in (folder / str(rank)).open()] for rank in range(world_size)]
    return [[row for part in parts for row in part] for parts in zip(*ranks, strict=True)]


def digest(row: Row) -> str:
    """Return a row's number, and a checksum of everything in it."""
    return f"{row[0]} {zlib.crc32(repr(row).encode()):08x}"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_abandoned_epoch_resumes(make_set: MakeSet, num_workers: int) -> None:
    shards = make_set()
    (loader,) = loaders(shards, num_workers=num_workers)
    first = content(next(iter(loader)))
    rest = [content(batch) for batch in loader]
    assert [first, *rest] == global_batches(loaders(shards))
    assert len(loader) == 3


def test_evaluation_starts_at_the_first_row(make_set: MakeSet) -> None:
    (loader,) = loaders(make_set(), evaluate=True)
    assert [row[0] for row in content(next(iter(loader)))] == list(range(8))
    for _ in range(2):
        assert [row[0] for batch in loader for row in content(batch)] == list(range(23))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"batch_size": 4}, "data.batch_size=8, now it is 4"),
        ({"num_streams": 1}, "data.num_interleaved=2, now it is 1"),
        ({"window": 3}, "data.shuffle_window_shards=2, now it is 3"),
        ({"seed": 4}, "data.seed=3, now it is 4"),
    ],
)
def test_a_position_under_other_settings_is_refused(make_set: MakeSet, changed: dict[str, int], words: str) -> None:
    shards = make_set()
    state = loaders(shards)[0].state_dict()
    (other,) = loaders(shards, **changed)
    with pytest.raises(ValueError, match=words):
        other.load_state_dict(state)


@pytest.mark.parametrize(("num", "per_shard", "word"), [(22, 9, "num_samples"), (23, 4, "num_shards")])
def test_a_position_in_another_set_is_refused(make_set: MakeSet, num: int, per_shard: int, word: str) -> None:
    (other,) = loaders(make_set(num, per_shard))
    with pytest.raises(ValueError, match=word):
        other.load_state_dict(loaders(make_set())[0].state_dict())


def test_the_world_size_must_divide_the_batch(make_set: MakeSet) -> None:
    with pytest.raises(ValueError, match=r"data.batch_size=8 .* multiple of their number, 3"):
        loaders(make_set(), world_size=3)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damage_is_named_through_a_worker(make_set: MakeSet, num_workers: int) -> None:
    shards = make_set()
    tar: Path = shards.folder / "000000.tar"
    start, size = np.load(tar.with_suffix(".npy"))[0, 1].tolist()
    data = bytearray(tar.read_bytes())
    data[start : start + size] = bytes(size)
    tar.write_bytes(bytes(data))
    (loader,) = loaders(shards, num_workers=num_workers)
    with pytest.raises(ValueError, match=f"{shards.folder}: sample 0, query_image: not a readable image"):
        list(loader)


def spoil(shards: ShardSet, number: int, tower: str = "query_image") -> None:
    """Overwrite an image of a sample with zeros."""
    shard_idx = int(shards.shards_of(number))
    tar = Path(shards.shard_name(shard_idx))
    row, member = number - shards.span(shard_idx)[0], MEMBERS.index(tower)
    start, size = np.load(tar.with_suffix(".npy"))[row, member].tolist()
    data = bytearray(tar.read_bytes())
    data[start : start + size] = bytes(size)
    tar.write_bytes(bytes(data))


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 1), (4, 0)])
def test_skipped_samples_leave_masked_rows(
    make_set: MakeSet, tmp_path: Path, world_size: int, num_workers: int
) -> None:
    """Other rows stay what they were, to the pixel, and every rank has as many as the others."""
    whole = make_set()
    expected = [row for batch in global_batches(loaders(whole)) for row in batch]
    shards = ShardSet(shutil.copytree(whole.folder, tmp_path / "damaged"))
    spoil(shards, 4)
    Path(shards.shard_name(1)).unlink()
    lost = {4, *range(*shards.span(1))}
    ranks = loaders(shards, world_size, num_workers, policy=CorruptSamplePolicy("skip", 9))
    parts = [list(loader) for loader in ranks]
    assert [[len(batch) for batch in part] for part in parts] == [
        [8 // world_size] * 2 + [-(-7 // world_size)]
    ] * world_size
    found = [row for step in zip(*parts, strict=True) for batch in step for row in content(batch)]
    assert sorted(found) == sorted(row for row in expected if row[0] not in lost)
    assert sum(loader.skipped.num_skipped for loader in ranks) == len(lost) == 9
    for batch in itertools.chain.from_iterable(parts):
        left_out = batch.is_padding & torch.isin(batch.sample_nums, torch.tensor(sorted(lost)))
        for keys in (
            batch.query_keys,
            batch.product_keys,
            batch.target_keys,
            batch.reference_keys,
            *batch.rows.values(),
        ):
            assert (keys[left_out] == -1).all()


def test_more_skipped_samples_than_allowed_stop_the_run(make_set: MakeSet) -> None:
    shards = make_set()
    for number in (4, 9):
        spoil(shards, number)
    (stream,) = loaders(shards, policy=CorruptSamplePolicy("skip", 2))
    assert len(list(stream)) == 3
    assert len(list(stream)) == 3, "the limit is an epoch's"
    (stream,) = loaders(shards, policy=CorruptSamplePolicy("skip", "5%"))
    words = (
        rf"{shards.folder}: 2 of 23 samples of the epoch cannot be read, more than data.max_corrupt_samples=5% \(1\); "
        "the last: .*image"
    )
    with pytest.raises(ValueError, match=words):
        list(stream)


def test_evaluation_skips_nothing(make_set: MakeSet) -> None:
    shards = make_set()
    spoil(shards, 4)
    (stream,) = loaders(shards, evaluate=True)
    with pytest.raises(ValueError, match="sample 4, query_image: not a readable image"):
        list(stream)


@pytest.mark.parametrize(
    ("max_corrupt_samples", "limit"), [("1%", 10), ("0.1%", 1), (7, 7), ("7", 7), ("100 %", 1000), ("0%", 0), (0, 0)]
)
def test_limits_of_skipped_samples(max_corrupt_samples: str | int, limit: int) -> None:
    assert CorruptSamplePolicy("skip", max_corrupt_samples).limit(1000) == limit


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("drop", "1%"), "data.on_corrupt_sample=drop: give raise or skip"),
        (("skip", "few"), "data.max_corrupt_samples=few"),
        (("skip", 0.5), "data.max_corrupt_samples=0.5"),
        (("skip", "101%"), "data.max_corrupt_samples=101%"),
    ],
)
def test_impossible_ceilings_are_refused(options: tuple[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        CorruptSamplePolicy(*options)


def test_a_pass_over_some_shards(make_set: MakeSet) -> None:
    shards = make_set(23, 9)
    stream = SequentialLoader(shards, Collate(SPECS, shards.max_relevant), [2, 0], 5)
    batches = [batch.sample_nums.tolist() for batch in stream]
    assert batches == [[16, 17, 18, 19, 20], [21, 22], [0, 1, 2, 3, 4], [5, 6, 7]]
    assert len(stream) == len(batches)


def test_workers_start_worker_each(make_set: MakeSet) -> None:
    class Threads(Collate):
        def __call__(self, *arguments: Any) -> Batch:
            return replace(super().__call__(*arguments), query_keys=torch.tensor([torch.get_num_threads()]))

    shards = make_set()
    loader = StreamLoader(shards, Threads(SPECS), ShuffledOrder(tuple(shards.sizes), 8), num_workers=1)
    assert {int(batch.query_keys) for batch in loader} == {1}


def test_workers_leave_signals_to_the_main_process(make_set: MakeSet) -> None:
    """A scheduler and a terminal send them to all processes, while the main one needs further batches."""
    shards = make_set()
    loader = StreamLoader(shards, Collate(SPECS), ShuffledOrder(tuple(shards.sizes), 2), num_workers=1)
    batches = iter(loader)
    next(batches)
    (worker,) = (child for child in active_children() if child.is_alive())
    for signum in (signal.SIGINT, signal.SIGTERM):
        subprocess.run([sys.executable, "-c", f"import os; os.kill({worker.pid}, {signum:d})"], check=True)
    assert len([*batches]) == len(loader) - 1 and worker.is_alive()
    worker.terminate()  # by the main process
    worker.join(10)
    assert worker.exitcode == 0


def test_an_abandoned_pass_plans_nothing(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan keeps shards in the cache, and downloads them, until it is stopped."""
    shards, planned, stopped = make_set(16, 4), set[str](), []
    monkeypatch.setattr(shards.files, "prefetch_shards", 2)
    monkeypatch.setattr(shards.files, "plan", lambda plan, _: planned.add(plan.reader))
    monkeypatch.setattr(shards.files, "stop", stopped.append)
    collate = Collate(SPECS, shards.max_relevant)
    (train,), (evaluation,) = loaders(shards), loaders(shards, evaluate=True)
    passes: list[Any] = [
        iter(train),
        iter(evaluation),
        iter(SequentialLoader(shards, collate, [0, 1, 2], 2)),
        load_samples(shards, collate, range(16), 2, 0),
        shards.all_facts(),
    ]
    while passes:
        reading = passes.pop()
        next(reading)
        del reading
        assert sorted(stopped) == sorted(planned)
    assert len(planned) == 5
    batches = [list(map(content, train)), list(map(content, train))]
    assert len(batches[0]) == 1 and len(batches[1]) == 2, "goes on behind the abandoned batch, then with the next epoch"
    assert len(planned) == 6, "one plan for both epochs"
