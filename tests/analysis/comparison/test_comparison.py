"""Differences against naive oracles: planted ones are found, others are not."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mim_lightning.analysis.comparison.comparison import compare_groups, write_json
from mim_lightning.analysis.comparison.differences import Difference
from mim_lightning.analysis.run_groups import RunGroup
from tests.analysis.evaluations import Row, config, plain_rows, write_evaluation

NUM_QUERIES = 120


def write_arm(folder: Path, label: str, ranks_by_seed: Sequence[Sequence[int]], **more: object) -> RunGroup:
    records = [
        write_evaluation(folder / f"{label}{seed}", rows_of(ranks, **more), config(label, seed))
        for seed, ranks in enumerate(ranks_by_seed)
    ]
    return RunGroup(label, {0: tuple(records)})


def rows_of(ranks: Sequence[int], **more: object) -> list[Row]:
    """Return two queries a product, in the segments of odd and even products."""
    return [
        Row(f"q{place:03d}", f"p{place // 2}", rank, {"parity": "odd" if place // 2 % 2 else "even"}, **more)
        for place, rank in enumerate(ranks)
    ]


def noise(seed: int, share_right: float = 0.5, size: int = NUM_QUERIES) -> list[int]:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(size) < share_right, 1, rng.integers(2, 30, size)).tolist()


def test_numbers_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    before = [noise(0), noise(1)]
    after = [noise(2, 0.6), noise(3, 0.6), noise(4, 0.6)]
    arms = [write_arm(tmp_path, "a", before), write_arm(tmp_path, "b", after)]
    hit, mrr = compare_groups(arms, ["hit@1", "mrr"], segments=[], num_resamples=200).overall

    def mean(by_seed: Sequence[Sequence[int]], measure: str) -> float:
        total = 0.0
        for ranks in by_seed:
            for rank in ranks:
                total += float(rank == 1) if measure == "hit@1" else 1 / rank
        return total / (len(by_seed) * NUM_QUERIES)

    for row in (hit, mrr):
        assert row.baseline_mean == pytest.approx(mean(before, row.metric))
        assert row.group_mean == pytest.approx(mean(after, row.metric))
        assert row.difference == pytest.approx(row.group_mean - row.baseline_mean)
        assert row.relative == pytest.approx(row.difference / row.baseline_mean)
        assert row.low < row.difference < row.high
        assert (row.num_queries, row.num_clusters, row.num_products) == (NUM_QUERIES, NUM_QUERIES // 2, 50)
        assert (row.segment, row.label) == ("", "") and math.isnan(row.holm_p)


def test_a_planted_effect_is_found_and_its_absence_too(tmp_path: Path) -> None:
    ranks = [noise(seed) for seed in (0, 1)]
    rng = np.random.default_rng(5)
    better = [[1 if rng.random() < 0.2 else rank for rank in row] for row in ranks]
    # as many gain as lose
    swapped = [
        [2 if rank == 1 else 1 if rank < 30 and place % 2 else rank for place, rank in enumerate(row)] for row in ranks
    ]
    wobbled = [list(np.random.default_rng(9).permutation(row)) for row in ranks]
    arms = [
        write_arm(tmp_path, "a", ranks),
        write_arm(tmp_path, "better", better),
        write_arm(tmp_path, "worse", swapped),
        write_arm(tmp_path, "wobbled", wobbled),
        write_arm(tmp_path, "same", ranks),
    ]
    found = {row.group: row for row in compare_groups(arms, segments=[]).overall}
    assert found["better"].is_clear and found["better"].is_better and found["better"].p_value < 0.01
    assert found["worse"].is_clear and not found["worse"].is_better and found["worse"].p_value < 0.01
    assert not found["wobbled"].is_clear and found["wobbled"].p_value > 0.05
    same = found["same"]
    assert (same.difference, same.low <= 0 <= same.high, same.p_value) == (0, True, 1)
    assert not same.is_clear and not same.is_better


def test_an_effect_in_one_segment_is_found_there_alone(tmp_path: Path) -> None:
    ranks = noise(0)
    better = [1 if place // 2 % 2 and place % 3 else rank for place, rank in enumerate(ranks)]
    arms = [write_arm(tmp_path, "a", [ranks]), write_arm(tmp_path, "b", [better])]
    even, odd = compare_groups(arms).by_segment
    assert (even.segment, even.label, odd.label) == ("parity", "even", "odd")
    assert (even.num_queries, odd.num_queries) == (60, 60)
    assert (even.difference, even.is_clear) == (0, False)
    assert odd.difference == pytest.approx(np.mean([b == 1 for b in better]) * 2 - np.mean([r == 1 for r in ranks]) * 2)
    assert odd.is_clear and odd.holm_p == pytest.approx(min(1, 2 * odd.p_value))


def test_a_segment_is_clear_only_if_corrected() -> None:
    row = Difference("a_to_b", "hit@1", "b", "", "", 0.4, 0.5, 0.1, 0.01, 0.19, 0.03, math.nan, 50, 40, 60)
    assert row.is_clear and not replace(row, low=-0.01).is_clear
    assert not replace(row, segment="kind", label="same", holm_p=0.06).is_clear
    assert replace(row, segment="kind", label="same", holm_p=0.04).is_clear


def test_row_order_changes_nothing(tmp_path: Path) -> None:
    ranks, others = noise(0), noise(1, 0.6)
    rows = rows_of(others)
    shuffled = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    one = RunGroup("b", {0: (write_evaluation(tmp_path / "b", rows, config("b")),)})
    other = RunGroup("b", {0: (write_evaluation(tmp_path / "b2", shuffled, config("b")),)})
    baseline = write_arm(tmp_path, "a", [ranks])
    found, again = (compare_groups([baseline, side]) for side in (one, other))
    assert repr(found.overall) == repr(again.overall)
    assert repr(found.by_segment) == repr(again.by_segment)
    assert repr(found.gained) == repr(again.gained)


def test_a_metric_that_is_better_low(tmp_path: Path) -> None:
    def one(name: str, share: float) -> RunGroup:
        rng = np.random.default_rng(0)
        wrong = [{"wrong_category@1": float(rng.random() < share)} for _ in range(NUM_QUERIES)]
        rows = [replace(row, scores=score) for row, score in zip(rows_of(noise(0)), wrong, strict=True)]
        return RunGroup(name, {0: (write_evaluation(tmp_path / name, rows, config(name)),)})

    (row,) = compare_groups([one("a", 0.6), one("b", 0.3)], ["wrong_category@1"], segments=[]).overall
    assert row.difference < 0 and row.is_clear and row.is_better


def test_queries_without_a_value_are_left_out_and_reported(tmp_path: Path) -> None:
    def one(name: str, unknown: int) -> RunGroup:
        rows = [
            replace(row, scores={"wrong_category@1": math.nan if place == unknown else float(place % 2)})
            for place, row in enumerate(plain_rows([1] * 10))
        ]
        return RunGroup(name, {0: (write_evaluation(tmp_path / name, rows, config(name)),)})

    found = compare_groups([one("a", 0), one("b", 3)], ["wrong_category@1"])
    assert found.overall[0].num_queries == 8
    assert found.overall[0].baseline_mean == pytest.approx(4 / 8)
    assert "image_to_image, wrong_category@1: 2 queries excluded: some run has no value" in found.notes


def test_few_products_give_no_interval(tmp_path: Path) -> None:
    arms = [
        RunGroup(name, {0: (write_evaluation(tmp_path / name, plain_rows(ranks), config(name)),)})
        for name, ranks in (("a", [2, 2, 2, 2]), ("b", [1, 1, 1, 1]))
    ]
    (row,) = compare_groups(arms).overall
    assert row.difference == 1
    assert math.isnan(row.low) and math.isnan(row.p_value) and not row.is_clear


def test_the_queries_that_changed_most(tmp_path: Path) -> None:
    before = [[1, 2, 9, 0, 5, 4, 1], [1, 2, 1, 0, 5, 8, 1]]
    after = [[1, 1, 1, 2, 5, 0, 2], [1, 1, 1, 0, 5, 0, 3]]
    arms = [write_arm(tmp_path, "a", before), write_arm(tmp_path, "b", after)]
    found = compare_groups(arms, num_changes=2)

    def reciprocal(rank: int) -> float:
        return 1 / rank if rank else 0

    gains = {
        f"q{q:03d}": np.mean([reciprocal(r[q]) for r in after]) - np.mean([reciprocal(r[q]) for r in before])
        for q in range(7)
    }
    gained = sorted((q for q in gains if gains[q] > 0), key=lambda q: (-gains[q], q))[:2]
    lost = sorted((q for q in gains if gains[q] < 0), key=lambda q: (gains[q], q))[:2]
    assert [change.query_id for change in found.gained] == gained
    assert [change.query_id for change in found.lost] == lost
    assert [change.gain for change in found.gained] == pytest.approx([gains[q] for q in gained])
    change = next(change for change in found.lost if change.query_id == "q006")
    assert (change.before.ranks, change.after.ranks) == ((1, 1), (2, 3))
    assert change.after.hit_ids == ["other1", "p3", "other3", "other4", "other5"]  # of the better run of two
    assert change.after.hit_is_relevant == [False, True, False, False, False]
    assert (change.unit_id, change.segments) == ("p3", {"parity": "odd"})


def test_only_directions_that_both_have(tmp_path: Path) -> None:
    def two_ways(name: str) -> RunGroup:
        write_evaluation(tmp_path / name, rows_of([1, 2]), config(name))
        return RunGroup(name, {0: (write_evaluation(tmp_path / name, rows_of([3, 1]), config(name), "text_to_image"),)})

    def shared(*arms: RunGroup, **options: list[str]) -> list[str]:
        return [row.direction for row in compare_groups(arms, **options).overall]

    first, second, narrow = two_ways("a"), two_ways("b"), write_arm(tmp_path, "c", [[1, 2]])
    assert shared(first, narrow) == ["image_to_image"]
    assert shared(first, second) == ["image_to_image", "text_to_image"]
    assert shared(first, second, directions=["text_to_image"]) == ["text_to_image"]
    with pytest.raises(ValueError, match="--direction text_to_image: a and c share image_to_image"):
        shared(first, narrow, directions=["text_to_image"])
    with pytest.raises(ValueError, match="--segments color: image_to_image has parity"):
        shared(first, narrow, segments=["color"])


def test_groups_are_shown_side_by_side(tmp_path: Path) -> None:
    arms = [write_arm(tmp_path, name, [noise(seed)]) for seed, name in enumerate("abc")]
    found = compare_groups(arms, ["mrr", "hit@1"])
    assert [(row.metric, row.group) for row in found.overall] == [
        ("mrr", "b"),
        ("mrr", "c"),
        ("hit@1", "b"),
        ("hit@1", "c"),
    ]


def test_a_single_run_is_noted(tmp_path: Path) -> None:
    arms = [write_arm(tmp_path, "a", [noise(0), noise(1)]), write_arm(tmp_path, "b", [noise(2)])]
    note = "one run; the intervals do not include the variation between seeds"
    assert compare_groups(arms, ["hit@1", "mrr"]).notes == (f"b: {note}",)


def test_json_holds_every_number(tmp_path: Path) -> None:
    arms = [write_arm(tmp_path, "a", [noise(0), noise(1)]), write_arm(tmp_path, "b", [noise(2, 0.7)])]
    found = compare_groups(arms, ["hit@1", "mrr"])
    write_json(found, tmp_path / "out" / "compare.json")
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert content["arms"] == [
        {"label": "a", "runs": {"0": ["a-seed0", "a-seed1"]}},
        {"label": "b", "runs": {"0": ["b-seed0"]}},
    ]
    assert [row["difference"] for row in content["overall"]] == [row.difference for row in found.overall]
    assert content["overall"][0]["holm_p"] is None
    assert len(content["by_segment"]) == 4
    assert content["gained"][0]["before"]["ranks"] == list(found.gained[0].before.ranks)
