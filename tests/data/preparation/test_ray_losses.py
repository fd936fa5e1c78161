"""A preparation by Ray that loses processes or nodes does again only what is missing."""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.data.preparation import ray_cluster, ray_engine
from mim_lightning.data.preparation.prepared import PreparedData, ShardSettings
from mim_lightning.data.preparation.ray_cluster import RaySettings
from mim_lightning.data.preparation.ray_engine import prepare_with_ray
from mim_lightning.data.preparation.staging import staging_path
from mim_lightning.data.validation.settings import ValidationSettings
from tests.data.preparation.ray_shop import shard_bytes, source_of, table

SETTINGS = ShardSettings(samples_per_shard=4)
RAY = RaySettings(rows_per_part=40)
DROP = ValidationSettings(on_invalid="drop", max_invalid=5)


def lost_node() -> Exception:
    return pytest.importorskip("ray").exceptions.NodeDiedError("the node died")


class Writing:
    """Counts the shards that are written, and fails after each number of `failures` once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *failures: int, error: Exception | None = None) -> None:
        self.num_rows, self.failures, self.error = 0, [*failures], error
        self.write = ray_engine._write_shards
        monkeypatch.setattr(ray_engine, "_write_shards", self)

    def __call__(self, *arguments: Any) -> Iterator[dict[str, Any]]:
        for num_rows, row in enumerate(self.write(*arguments)):
            if self.failures and num_rows == self.failures[0]:
                self.failures.pop(0)
                raise self.error or lost_node()
            self.num_rows += 1
            yield row


def add_invalid(root: Path, folder: Path) -> None:
    """Add queries whose images are not there yet."""
    rows = [{"query_id": f"r{n}", "split": "train", "image": str(folder / f"{n}.jpg"), "text": None} for n in range(2)]
    table(root / "queries" / "zbad.parquet", [row | {"product_id": ["p1"]} for row in rows])


def skipped(folder: Path) -> list[str]:
    with (folder / "skipped.csv").open(newline="") as file:
        return sorted(row["id"] for row in csv.DictReader(file))


def test_a_lost_node_costs_the_unfinished_shards_only(
    no_cluster: None,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_invalid(root, tmp_path / "gone")
    whole = prepare_with_ray(source_of(root), tmp_path / "whole", SETTINGS, RAY, DROP)
    num_shards = len(shard_bytes(tmp_path / "whole"))
    writing = Writing(monkeypatch, 5, 3)
    prepared = prepare_with_ray(source_of(root), tmp_path / "out", SETTINGS, RAY, DROP)
    assert prepared.content() == whole.content() and skipped(tmp_path / "out") == ["r0", "r1"]
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")
    # a shard that was written when the loss was noticed is not counted; it has a marker
    assert num_shards - 2 <= writing.num_rows <= num_shards and num_shards > 15
    assert "nodes or processes were lost; 6 of" in caplog.text
    rounds: list[int] = []

    def lose(*arguments: Any) -> Iterator[dict[str, Any]]:
        rounds.append(1)
        raise lost_node()
        yield {}

    monkeypatch.setattr(ray_engine, "_write_shards", lose)
    with pytest.raises(type(lost_node())):
        prepare_with_ray(source_of(root), tmp_path / "never", SETTINGS, RAY, DROP)
    assert len(rounds) == 3, "no attempt finished a shard"


def test_a_repeated_task_keeps_the_shard_and_its_issues(
    no_cluster: None, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_invalid(root, tmp_path / "gone")
    calls: list[tuple[int, int]] = []
    write = ray_engine.write_group

    def write_twice(group: Any, job: Any) -> Any:
        first, number = write(group, job), int(group["shard"][0].as_py())
        set_name, shard_idx = job.layout.locate(number)
        path = Path(job.store.address) / set_name / f"{shard_idx:06d}.tar"
        before = path.stat().st_ino
        assert write(group, job) == first
        calls.append((before, path.stat().st_ino))
        return first

    monkeypatch.setattr(ray_engine, "write_group", write_twice)
    prepare_with_ray(source_of(root), tmp_path / "out", SETTINGS, RAY, DROP)
    assert len(calls) > 15 and all(before == after for before, after in calls)


def test_a_new_command_reads_dropped_rows_again_and_keeps_the_other_shards(
    no_cluster: None, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended = tmp_path / "mended"
    add_invalid(root, mended)
    Writing(monkeypatch, 10_000)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ray_engine, "finish_set", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare_with_ray(source_of(root), tmp_path / "out", SETTINGS, RAY, DROP)
    mended.mkdir()
    for number in range(2):
        (mended / f"{number}.jpg").write_bytes((tmp_path / "pictures" / f"{number}.jpg").read_bytes())
    again = Writing(monkeypatch)
    prepare_with_ray(source_of(root), tmp_path / "out", SETTINGS, RAY, DROP)
    assert 1 <= again.num_rows <= 2 and skipped(tmp_path / "out") == []


def test_messages_of_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    message = r"nodes or processes were lost: .*; the same command writes the shards"
    with pytest.raises(ValueError, match=message) as lost, ray_cluster.ray_cluster(RAY):
        raise lost_node()
    assert "\n" not in str(lost.value)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray_cluster, "CORES_TIMEOUT", -1.0)
    watch = ray_cluster._NodeWatch()
    watch.look()
    with pytest.raises(ValueError, match=r"no node of the cluster has had a core for .*; add nodes, the same command"):
        watch.look()


@pytest.mark.slow
def test_several_nodes(no_cluster: None, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shards are those of one machine, also if the driver is killed, and then a node: each is written once."""
    pytest.importorskip("ray")
    from tests.data.preparation import ray_nodes

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    plain = prepare_with_ray(source_of(root), tmp_path / "plain", ray_nodes.SETTINGS, ray_nodes.RAY)
    expected = shard_bytes(tmp_path / "plain")
    nodes = ray_nodes.Nodes(2, tmp_path / "events.jsonl")
    try:
        with nodes.start(root, tmp_path / "out") as process:
            nodes.wait_for(3, process)
            process.kill()
        time.sleep(3.0)  # Ray ends the tasks of a driver that is gone
        num_finished = len(list((staging_path(tmp_path / "out") / "receipts").rglob("*.npz")))
        num_begun = len(nodes.events("began"))
        assert 3 <= num_finished < len(expected) / 2
        with nodes.start(root, tmp_path / "out") as process:
            nodes.wait_for(num_finished + 4, process)
            nodes.kill("127.0.0.3")
            assert process.wait(600) == 0
    finally:
        nodes.cluster.shutdown()
    assert shard_bytes(tmp_path / "out") == expected
    assert PreparedData(tmp_path / "out").content() == plain.content()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"catalogue", "queries", "settings.json", "skipped.csv"}
    began = [event["shard"] for event in nodes.events("began")]
    written = Counter(event["shard"] for event in nodes.events("wrote"))
    assert set(began) == expected.keys() >= written.keys()
    assert max(written.values()) == 1, "a shard was written twice"
    assert len(began[:num_begun]) - num_finished <= 3, "the first driver lost what three cores were writing"
    assert len(began[num_begun:]) - len(nodes.events("kept")) <= len(expected) - num_finished + 1, "one core was lost"
