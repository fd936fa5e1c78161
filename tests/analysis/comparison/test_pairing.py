"""Queries are paired by id within a fold, never by row; what cannot be compared is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mim_lightning.analysis.comparison.pairing import pair_direction
from mim_lightning.analysis.record import EvaluationRecord
from mim_lightning.analysis.run_groups import RunGroup
from tests.analysis.evaluations import Row, config, plain_rows, write_evaluation


def arm(label: str, *records: EvaluationRecord, **folds: tuple[EvaluationRecord, ...]) -> RunGroup:
    return RunGroup(label, {int(name[-1]): found for name, found in folds.items()} or {0: records})


def evaluation(folder: Path, rows: list[Row], num_products: int = 50) -> EvaluationRecord:
    return write_evaluation(folder, rows, config(), num_products=num_products)


def test_rows_are_paired_by_query_id(tmp_path: Path) -> None:
    ranks = [3, 1, 0, 2, 7]
    rows = plain_rows(ranks)
    one = evaluation(tmp_path / "one", rows)
    shuffled = [replace(rows[place], rank=rows[place].rank * 10) for place in (4, 0, 3, 1, 2)]
    other = evaluation(tmp_path / "other", shuffled)
    paired = pair_direction("image_to_image", arm("a", one), arm("b", other))
    assert paired.query_ids == [row.query_id for row in rows]
    assert paired.unit_ids == [row.unit_id for row in rows]
    assert paired.before.ranks().tolist() == [ranks]
    assert paired.after.ranks().tolist() == [[10 * rank for rank in ranks]]
    assert paired.after.scores("mrr")[0, 3] == 1 / 20
    part, row = paired.after.locate(1)
    assert part.record.query_ids[row] == "q001"
    assert not paired.notes


def test_queries_that_a_run_lacks_are_left_out_and_reported(tmp_path: Path) -> None:
    rows = plain_rows([1, 2, 3, 4])
    seeds = (evaluation(tmp_path / "a1", rows), evaluation(tmp_path / "a2", rows[1:]))
    paired = pair_direction("image_to_image", arm("a", *seeds), arm("b", evaluation(tmp_path / "b", rows[:3])))
    assert paired.query_ids == ["q001", "q002"]
    assert paired.before.ranks().shape == (2, 2)
    assert paired.notes == ("image_to_image: 2 queries excluded: not every run has them",)


def test_each_fold_keeps_its_own_runs(tmp_path: Path) -> None:
    def fold(name: str, ranks: list[int], prefix: str) -> EvaluationRecord:
        return evaluation(tmp_path / name, plain_rows(ranks, prefix))

    before = arm("a", fold0=(fold("a0", [1, 2], "x"),), fold1=(fold("a1", [3], "y"),))
    after = arm(
        "b",
        fold0=(fold("b0", [4, 5], "x"), fold("b0s", [6, 7], "x")),
        fold1=(fold("b1", [8], "y"), fold("b1s", [9], "y"), fold("b1t", [10], "y")),
        fold2=(fold("b2", [11], "z"),),
    )
    paired = pair_direction("image_to_image", before, after)
    assert paired.query_ids == ["x000", "x001", "y000"]
    assert paired.before.ranks().tolist() == [[1, 2, 3]]
    assert paired.after.ranks().tolist() == [[4, 5, 8], [6, 7, 9]]
    assert paired.after.locate(2)[0].evaluation.folder.name == "b1"
    assert paired.notes == (
        "b: folds [2] excluded: it or a lacks them",
        "b: 1 run excluded: every fold has 2, only some have more",
    )
    with pytest.raises(ValueError, match=r"a has folds \[0, 1\], c has \[2\]"):
        pair_direction("image_to_image", before, arm("c", fold2=after.records[2]))


def test_a_query_id_of_two_folds_is_two_queries(tmp_path: Path) -> None:
    first, second = evaluation(tmp_path / "f0", plain_rows([1, 2])), evaluation(tmp_path / "f1", plain_rows([3, 4]))
    both = arm("a", fold0=(first,), fold1=(second,))
    assert pair_direction("image_to_image", both, both).before.ranks().tolist() == [[1, 2, 3, 4]]


def test_another_gallery_is_refused(tmp_path: Path) -> None:
    rows = plain_rows([1, 2])
    one, other = evaluation(tmp_path / "one", rows), evaluation(tmp_path / "other", rows, num_products=51)
    with pytest.raises(ValueError, match=r"ranked 50 products, .*other 51: another gallery"):
        pair_direction("image_to_image", arm("a", one), arm("b", other))
    theirs, ours = replace(one, gallery="0123"), replace(one, gallery="4567")
    with pytest.raises(ValueError, match="ranked different products: another gallery"):
        pair_direction("image_to_image", arm("a", theirs), arm("b", ours))
    for same in (theirs, one):  # one was written when galleries had no name
        pair_direction("image_to_image", arm("a", theirs), arm("b", same))


def test_another_truth_is_refused(tmp_path: Path) -> None:
    rows = [Row("q0", "p0", 1, hit_ids=("p0", "p1")), Row("q1", "p1", 2, hit_ids=("p0", "p1"))]
    one = arm("a", evaluation(tmp_path / "one", rows))
    moved = evaluation(tmp_path / "moved", [rows[0], replace(rows[1], unit_id="p2", hit_ids=("p3", "p2"))])
    with pytest.raises(ValueError, match="query q1 has other relevant products"):
        pair_direction("image_to_image", one, arm("b", moved))
    # the first relevant product is the same, but only one of them has a second one
    graded = evaluation(tmp_path / "graded", rows)
    graded.directions["image_to_image"].hit_is_relevant[0][1] = True
    with pytest.raises(ValueError, match="query q0 has other relevant products"):
        pair_direction("image_to_image", one, arm("b", graded))


def test_disjoint_queries_and_an_unknown_metric_are_errors(tmp_path: Path) -> None:
    one, other = evaluation(tmp_path / "one", plain_rows([1])), evaluation(tmp_path / "other", plain_rows([1], "z"))
    with pytest.raises(ValueError, match="no query in common"):
        pair_direction("image_to_image", arm("a", one), arm("b", other))
    paired = pair_direction("image_to_image", arm("a", one), arm("b", one))
    with pytest.raises(ValueError, match=r"hit@7: .*it has hit@1, mrr"):
        paired.before.scores("hit@7")
    assert np.array_equal(paired.before.scores("hit@1"), [[1.0]])


def counting(record: EvaluationRecord, **rule: object) -> EvaluationRecord:
    """Return a record that says what it counts."""
    known = {"requires": ["query_image"], "leave_out": None}
    found = {name: replace(part, counting=known | rule) for name, part in record.directions.items()}
    return replace(record, directions=found)


def test_other_versions_of_the_data_are_reported(tmp_path: Path) -> None:
    old, new = (evaluation(tmp_path / name, plain_rows([1, 2])) for name in ("old", "new"))
    grown = replace(new, facts=new.facts.reading({"main": 2}))
    (note,) = pair_direction("image_to_image", arm("a", old), arm("b", grown)).notes
    assert "old ranked version 1 of the data" in note and "products of the same id may differ" in note
    assert not pair_direction("image_to_image", arm("a", grown), arm("b", grown)).notes


def test_records_with_other_queries_are_reported_and_with_other_galleries_refused(tmp_path: Path) -> None:
    old = evaluation(tmp_path / "old", plain_rows([1, 2, 3]))
    new = evaluation(tmp_path / "new", plain_rows([1, 2]))
    assert not pair_direction("image_to_image", arm("a", counting(new)), arm("b", counting(new))).notes
    for before in (old, counting(old, requires=["query_text"])):
        paired = pair_direction("image_to_image", arm("a", before), arm("b", counting(new)))
        assert paired.query_ids == ["q000", "q001"]
        (warning,) = (note for note in paired.notes if note.startswith("warning: image_to_image: "))
        assert "count different queries" in warning and ("an older record" in warning) == (before is old)
    with pytest.raises(ValueError, match="exclude different products from the gallery of a query: not comparable"):
        pair_direction("image_to_image", arm("a", old), arm("b", counting(new, leave_out="shown")))
