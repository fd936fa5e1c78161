"""Tracked queries: a deterministic selection, spread over segments; a log that survives a killed process."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mim_lightning.analysis.query_history import (
    TrackedQuery,
    TrackedQueryLog,
    read_history,
    read_tracked,
    select_tracked_queries,
    track,
)
from mim_lightning.data.shards.lookup import QueryFacts
from mim_lightning.types import NO_KEY, Hits, RetrievalReport

FACTS = {
    key: QueryFacts(f"q{key}", "red", {"category": "rare" if key % 10 == 0 else "usual", "words": f"{key % 3}"})
    for key in range(60)
}


def row(
    epoch: int, rank: int, query_id: str = "q1", direction: str = "a_to_b", step: int | None = None
) -> TrackedQuery:
    step = (epoch + 1) * 5 if step is None else step
    return TrackedQuery(
        epoch, step, direction, query_id, "red", {"category": "mug"}, ["p1"], ["p2"], [0.5], [False], rank
    )


def test_the_choice_is_spread_over_the_segments() -> None:
    chosen = select_tracked_queries(list(FACTS), FACTS, 6)
    assert len(set(chosen)) == 6
    labels = [FACTS[key].segments for key in chosen]
    assert sum(label["category"] == "rare" for label in labels) == 3  # of one in ten
    assert sorted(label["words"] for label in labels) == ["0", "0", "1", "1", "2", "2"]


def test_the_choice_depends_on_queries_and_seed_alone() -> None:
    chosen = select_tracked_queries(list(FACTS), FACTS, 6)
    assert select_tracked_queries(list(reversed(FACTS)), FACTS, 6) == chosen
    assert select_tracked_queries(list(FACTS), FACTS, 3) == chosen[:3]
    others = [select_tracked_queries(list(FACTS), FACTS, 6, seed=seed) for seed in (1, 2, 3)]
    assert all(set(other) != set(chosen) for other in others)
    assert sorted(select_tracked_queries([4, 5], FACTS, 6)) == [4, 5]


def test_rows_contain_the_values_of_the_report() -> None:
    hits = Hits(
        query_keys=torch.tensor([3, 7, 9]),
        product_keys=torch.tensor([[11, 12, 13], [12, 11, NO_KEY], [13, 12, 11]]),
        scores=torch.tensor([[0.9, 0.8, 0.7], [0.6, 0.5, 0.0], [0.4, 0.3, 0.2]]),
        is_relevant=torch.tensor([[False, True, False], [True, False, False], [False, False, False]]),
    )
    report = RetrievalReport("a_to_b", {}, {}, 3, 0, 3, hits, {}, torch.tensor([2, 1, 0]), torch.tensor([12, 12, 14]))
    names = {11: "p11", 12: "p12", 13: "p13"}
    rows = track(report, [9, 7], FACTS, {9: ("p14",), 7: ("p12", "p15")}, names, num_hits=3, epoch=4, step=20)
    assert [(r.query_id, r.rank, r.truth_ids, r.hit_ids) for r in rows] == [
        ("q9", 0, ["p14"], ["p13", "p12", "p11"]),
        ("q7", 1, ["p12", "p15"], ["p12", "p11"]),  # the gallery is shorter than the hits kept
    ]
    assert rows[1].hit_scores == pytest.approx([0.6, 0.5]) and rows[1].hit_is_relevant == [True, False]
    assert (rows[0].epoch, rows[0].step, rows[0].direction, rows[0].text) == (4, 20, "a_to_b", "red")
    short = track(report, [9], FACTS, {9: ()}, names, num_hits=1, epoch=4, step=20)
    assert short[0].hit_ids == ["p13"]


def test_rank_before_and_best_rank(tmp_path: Path) -> None:
    history = TrackedQueryLog(tmp_path)
    found = [history.append([row(epoch, rank)])[0] for epoch, rank in ((-1, 0), (0, 9), (1, 3), (2, 5), (3, 0))]
    assert [r.rank_before for r in found] == [None, 0, 9, 3, 5]
    assert [r.best_rank for r in found] == [0, 9, 3, 3, 3]
    assert history.ranks("a_to_b", "q1") == [0, 9, 3, 5, 0]
    assert read_tracked(tmp_path) == found


def test_history_is_read_by_direction_and_query(tmp_path: Path) -> None:
    history = TrackedQueryLog(tmp_path / "run" / "browser")
    history.append([row(-1, 7), row(-1, 4, "q2"), row(-1, 2, direction="b_to_c")])
    history.append([row(0, 3), row(0, 1, "q2"), row(0, 1, direction="b_to_c")])
    first, second = row(-1, 1).step, row(0, 1).step
    expected = {
        "a_to_b": {"q1": [(first, -1, 7), (second, 0, 3)], "q2": [(first, -1, 4), (second, 0, 1)]},
        "b_to_c": {"q1": [(first, -1, 2), (second, 0, 1)]},
    }
    assert read_history(tmp_path / "run") == expected == read_history(tmp_path / "run" / "browser")
    assert read_history(tmp_path) == {}


@pytest.mark.parametrize("num_torn", [0, 1, 30, 200])
def test_a_killed_writer_leaves_no_row_twice(tmp_path: Path, num_torn: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    passes = [[row(epoch, 9 - epoch, query) for query in ("q1", "q2é")] for epoch in range(-1, 4)]
    history = TrackedQueryLog(whole)
    for rows in passes:
        history.append(rows)
    history = TrackedQueryLog(killed)
    for rows in passes[:4]:
        history.append(rows)
    path = killed / "history.jsonl"
    path.write_bytes(path.read_bytes()[: -num_torn or None])
    history = TrackedQueryLog(killed)
    for rows in passes[2:]:  # the last checkpoint was older than the last rows
        history.append(rows)
    assert read_tracked(killed) == read_tracked(whole)
    assert path.read_bytes() == (whole / "history.jsonl").read_bytes()


def test_several_passes_within_an_epoch_all_stay(tmp_path: Path) -> None:
    history = TrackedQueryLog(tmp_path)
    for step, rank in ((2, 5), (4, 3)):
        history.append([row(0, rank, step=step)])
    assert read_history(tmp_path)["a_to_b"]["q1"] == [(2, 0, 5), (4, 0, 3)]
    again = TrackedQueryLog(tmp_path)
    again.append([row(0, 2, step=4)])
    assert read_history(tmp_path)["a_to_b"]["q1"] == [(2, 0, 5), (4, 0, 2)]


def test_a_damaged_history_is_named(tmp_path: Path) -> None:
    TrackedQueryLog(tmp_path).append([row(0, 1)])
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps({"epoch": 1}) + "\n" + path.read_text())
    with pytest.raises(ValueError, match=r"history\.jsonl: damaged .*delete it"):
        read_history(tmp_path)


def test_rows_survive_the_file_as_they_are(tmp_path: Path) -> None:
    odd = replace(row(0, 1), text='5 "\n\u2028 zoll', segments={"category": "ä"}, truth_ids=[])
    TrackedQueryLog(tmp_path).append([odd])
    (found,) = read_tracked(tmp_path)
    assert found == replace(odd, best_rank=1)
