"""Everything is opened once: a set and process, its index parsed once, a table hashed once a start."""

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.config import compose
from mim_lightning.data.manifest import content_hash as identity
from mim_lightning.data.shards import set_index, shard_set
from mim_lightning.evaluate import evaluate
from mim_lightning.run import Run
from mim_lightning.train import train
from tests.data.stores import serving
from tests.shop import small

Fit = Callable[..., Run]
SETS = ("catalogue", "queries/train", "queries/val")


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count opened sets, parsed indexes and hashed tables."""
    found: Counter[str] = Counter()

    def count(owner: Any, name: str, describe: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def counting(*args: Any, **options: Any) -> Any:
            found[describe(*args)] += 1
            return original(*args, **options)

        monkeypatch.setattr(owner, name, counting)

    count(shard_set.ShardSet, "__init__", lambda self, folder, *_: f"open {'/'.join(str(folder).split('/')[-2:])}")
    count(shard_set, "parse_index", lambda content: f"parse {content!r}")
    count(identity, "file_id", lambda place: f"hash {Path(place).name}")
    assert shard_set.parse_index is not set_index.parse_index
    return found


def most(counts: Counter[str], verb: str) -> dict[str, int]:
    return {name.removeprefix(verb).strip(): count for name, count in counts.items() if name.startswith(verb)}


def test_a_run_opens_each_set_once_and_hashes_each_table_once(fit: Fit, counts: Counter[str]) -> None:
    """Three steps an epoch with validation, a result, its page and images: first from tables, then from shards."""
    for seed in (1, 2):
        counts.clear()
        fit(f"seed={seed}", "trainer.max_epochs=1")
        assert most(counts, "hash") == {"products.csv": 2, "queries.csv": 2}, "once a start: the fixture identifies too"
        opened = most(counts, "open")
        assert set(opened.values()) == {1}
        assert len(opened) == len(most(counts, "parse")) == len(SETS) and set(most(counts, "parse").values()) == {1}


def test_an_evaluation_asks_an_address_for_each_index_once(fit: Fit, counts: Counter[str], tmp_path: Path) -> None:
    """A column that is newly fetched is followed by one more request, to compare; the second evaluation makes none."""
    checkpoint = fit("data.shards.samples_per_shard=1", "trainer.max_epochs=1").best_checkpoint
    with serving(tmp_path / "prepared" / "manifest") as store:
        words = ["data=shards", f"data.folder={store.address}", f"data.cache.folder={tmp_path}/cache"]
        words += [f"checkpoint={checkpoint}", f"output={tmp_path}/out", "data.num_workers=0", "data.eval_batch_size=8"]
        for num_comparisons in (1, 0):
            store.asked.clear()
            counts.clear()
            evaluate(compose("evaluate", words))
            assert set(most(counts, "open").values()) == set(most(counts, "parse").values()) == {1}
            for name in ("catalogue", "queries/val"):
                assert store.asked[f"{name}/index.json"] == 1 + num_comparisons
            assert store.asked["settings.json"] == 1


def test_a_run_ends_its_downloads(fit: Fit, tmp_path: Path) -> None:
    """Those for an epoch that never comes, too: the next run of a sweep is in the same process."""
    fit("data.shards.samples_per_shard=1", "trainer.max_epochs=1")
    with serving(tmp_path / "prepared" / "manifest") as store:
        words = [word for word in small(tmp_path) if not word.startswith(("data=", "data.source"))]
        words += ["data=shards", f"data.folder={store.address}", f"data.cache.folder={tmp_path}/cache"]
        train(compose("train", [*words, "trainer.max_epochs=1"]))
        for thread in threading.enumerate():
            if thread.name == "prefetcher":
                thread.join(60)
                assert not thread.is_alive()
