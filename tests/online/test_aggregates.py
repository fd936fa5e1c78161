"""Counts made in the database, against the same counts made by hand from the events themselves."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from mim_lightning.online.aggregates import ArmCounts, UserSums
from mim_lightning.online.event_log import EventLog
from mim_lightning.online.events import Click, Impression
from tests.online.event_factory import impression


def random_events(seed: int) -> tuple[list[Impression], list[Click]]:
    rng = random.Random(seed)
    shown, clicks = [], []
    for _ in range(120):
        products = "".join(rng.sample("abcdef", rng.randint(0, 6)))
        facts = {"latency_ms": float(rng.randint(1, 90)), "fingerprint": rng.choice("fff2")}
        made = impression(f"u{rng.randint(0, 25)}", rng.choice(["control", "new"]), products, **facts)
        shown.append(made)
        clicks += [Click(made.impression_id, product) for product in products if rng.random() < 0.25]
    return shown, clicks


def by_hand(shown: list[Impression], clicks: list[Click], arm: str) -> ArmCounts:
    clicked = defaultdict(set)
    for click in clicks:
        clicked[click.impression_id].add(click.product_id)
    mine = [made for made in shown if made.arm == arm]
    n: dict[str, int] = defaultdict(int)
    c: dict[str, int] = defaultdict(int)
    for made in mine:
        n[made.user_hash] += 1
        c[made.user_hash] += bool(clicked[made.impression_id])
    sums = UserSums(
        len(n),
        sum(n.values()),
        sum(c.values()),
        sum(n[user] ** 2 for user in n),
        sum(c[user] ** 2 for user in n),
        sum(n[user] * c[user] for user in n),
    )
    return ArmCounts(
        arm,
        sums,
        num_clicks=sum(len(clicked[made.impression_id]) for made in mine),
        num_clicking_users=sum(c[user] > 0 for user in n),
        num_empty=sum(not made.shown for made in mine),
        num_fingerprints=len({made.fingerprint for made in mine}),
        mean_latency_ms=pytest.approx(sum(made.latency_ms for made in mine) / len(mine)),
    )


def test_counts_are_those_of_the_events(events: str) -> None:
    shown, clicks = random_events(3)
    with EventLog(events) as log:
        log.record_many(shown, clicks)
        log.record_impression(impression("u1", experiment="another", products="a"))
        counts = log.counts("towers")
    assert dict(counts.arms) == {arm: by_hand(shown, clicks, arm) for arm in ("control", "new")}
    arms_of: dict[str, set[str]] = defaultdict(set)
    for made in shown:
        arms_of[made.user_hash].add(made.arm)
    assert counts.num_crossing_users == sum(len(arms) == 2 for arms in arms_of.values()) > 0
    assert (counts.first, counts.last) == (shown[0].time, shown[-1].time)


def test_positions_are_those_of_the_events(events: str) -> None:
    shown, clicks = random_events(4)
    with EventLog(events) as log:
        log.record_many(shown, clicks)
        log.record_many([impression("u1", experiment="another")])
        found = {(row.arm, row.position): (row.num_shown, row.num_clicks) for row in log.counts("towers").positions}
    wanted: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    pairs = {(click.impression_id, click.product_id) for click in clicks}
    for made in shown:
        for position, product in enumerate(made.shown, start=1):
            wanted[made.arm, position][0] += 1
            wanted[made.arm, position][1] += (made.impression_id, product.product_id) in pairs
    assert found == {key: tuple(value) for key, value in wanted.items()}


def test_an_experiment_without_impressions_has_no_arms(events: str) -> None:
    with EventLog(events) as log:
        counts = log.counts("towers")
        assert (counts.arms, list(counts.positions), counts.num_crossing_users) == ({}, [], 0)
        assert counts.first is None and counts.last is None
