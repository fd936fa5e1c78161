"""Shards in an object store that fails, stalls or lies: a fault that passes is no matter, a lasting one is one line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest

from tests.campaign.bench import Bench, contents, differences, error_line, leftovers
from tests.campaign.outcomes import cases, record_outcome
from tests.campaign.starved import Plan
from tests.data.stores import FOREVER, FaultyStore

FILES = {  # of a set, by how a command comes to them
    "settings.json": "the settings",
    "queries/train/index.json": "an index",
    "queries/train/000001.tar": "a shard",
    "queries/train/000001.npy": "a byte index",
    "queries/train/product_keys.npy": "a column",
}
FAULTS = ("error", "refused", "silent", "stall", "cut", "reset", "short", "flipped", "slow", "shifted")
# these two have no checksum: another byte is noticed where they cannot be read, or where it is of another file
UNSEEN = [("flipped", times, "settings.json") for times in ("once", "always")]
UNSEEN += [("flipped", "once", "queries/train/index.json")]
CASES = [
    (f"{fault} {times} at {what}", (name, fault, times))
    for name, what in FILES.items()
    for fault in FAULTS
    for times in ("once", "always")
    if not (fault in ("refused", "slow") and times == "once") and (fault, times, name) not in UNSEEN
]


@pytest.fixture(scope="session")
def store(bench: Bench) -> Iterator[FaultyStore]:
    """A store of the shop's shards; `bench` has what a training from it leaves."""
    bench.expected("prepare")
    shards = bench.states / "store"
    shutil.copytree(bench.states / "state-prepare" / "prepared" / "manifest", shards)
    found = FaultyStore(shards, has_ranges=True)
    yield found
    found.close()


@pytest.mark.parametrize("case", cases(CASES))
def test_a_store_that_fails_is_one_line_and_one_that_recovers_is_enough(
    bench: Bench, store: FaultyStore, case: tuple[str, str, str]
) -> None:
    name, fault, times = case
    words = [f"data.folder={store.address}", f"data.cache.folder={bench.folder}/cache"]
    # a second is short on a machine with more to do: for what never answers alone
    words += ["data.cache.timeout=1"] if fault in ("stall", "silent") else []
    store.fail(name, "", 0)
    expected = bench.expected("remote", *words)
    bench.reset("remote")
    with record_outcome("starved", "train on a store", f"{fault} {times}: {FILES[name]}") as found:
        store.fail(name, fault, 1 if times == "once" else FOREVER)
        ended = bench.run("remote", *words, plan=Plan())
        store.fail(name, "", 0)
        if ended.returncode == 0:
            found.outcome = "works, bit-equal"
            assert contents(bench.folder) == expected, differences(contents(bench.folder), expected)
        else:
            line = error_line(ended)
            assert times == "always", f"tried no second time: {line}"
            assert re.search(re.escape(name), line), f"does not name the file: {line}"
            found.outcome = "one line; bit-equal when the store is well again"
        assert not leftovers(bench.folder)
        again = bench.run("remote", *words, plan=Plan())
        assert again.returncode == 0, again.stderr[-500:]
        assert contents(bench.folder) == expected, differences(contents(bench.folder), expected)
