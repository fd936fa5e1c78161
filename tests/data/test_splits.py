"""Product-disjoint folds: held-out products leave no trace in training, every product is held out once."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.data.manifest.manifest import Manifest, Product, Query
from mim_lightning.data.manifest.row_store import RowStore
from mim_lightning.data.splits import GivenSplits, ProductDisjointSplits

NUM_FOLDS = 3


def product(number: int, category: str) -> Product:
    return Product(f"p{number}", (), f"product {number}", f"product {number}", category, {}, "products.csv")


def query(name: str, split: str, targets: tuple[str, ...], references: tuple[str, ...] | None = None) -> Query:
    grades = tuple(range(1, len(targets) + 1))
    return Query(name, split, None, name, targets, grades, references or targets, {}, "queries.csv")


@pytest.fixture
def manifest() -> Manifest:
    products = {f"p{i}": product(i, "mug" if i < 6 else "bag") for i in range(9)}
    queries = [query(f"q{i}-{split}", split, (f"p{i}",)) for i in range(9) for split in ("train", "val")]
    queries += [query(f"change{i}", "train", (f"p{i}",), (f"p{(i + 1) % 9}",)) for i in range(9)]
    queries += [query(f"both{i}", "train", (f"p{i}", f"p{(i + 1) % 9}")) for i in range(9)]
    return Manifest(products, queries, Path("products.csv"), Path("queries.csv"))


def fold_of(manifest: Manifest, fold: int, seed: int = 0) -> dict[str, Query]:
    protocol = ProductDisjointSplits(NUM_FOLDS, fold, "", seed)
    return {found.query_id: found for found in protocol.apply(manifest, "train", "val").queries}


def held_out(queries: dict[str, Query]) -> set[str]:
    return {i for found in queries.values() if found.split == "val" for i in (*found.target_ids, *found.reference_ids)}


def test_every_product_is_held_out_once_and_categories_are_spread(manifest: Manifest) -> None:
    folds = [held_out(fold_of(manifest, fold)) for fold in range(NUM_FOLDS)]
    assert Counter(i for fold in folds for i in fold) == Counter(list(manifest.products))
    for fold in folds:
        assert Counter(manifest.products[i].category for i in fold) == {"mug": 2, "bag": 1}


@pytest.mark.parametrize("fold", range(NUM_FOLDS))
def test_training_knows_nothing_of_held_out_products(manifest: Manifest, fold: int) -> None:
    queries = fold_of(manifest, fold)
    assert set(queries) == {found.query_id for found in manifest.queries}  # none is lost
    hidden = held_out(queries)
    for found in queries.values():
        touched = {*found.target_ids, *found.reference_ids}
        if found.split == "train":
            assert not touched & hidden
        elif found.split == "val":
            assert touched and touched <= hidden  # and is asked for nothing that was trained on
        else:
            assert found.split == "val_seen" and not touched & hidden


def test_a_query_of_many_held_out_products_is_one_row(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row lists all of its products: a copy for each of them would grow with their square."""
    products = {f"p{i}": product(i, "mug") for i in range(60)}
    many = replace(manifest, products=products, queries=[query("many", "train", tuple(products))])
    sizes, select = {}, RowStore.select

    def count(store: RowStore, noun: str, *words: Any) -> str:
        table = select(store, noun, *words)
        sizes[noun] = store.number(f"SELECT count(*) FROM {table}")
        return table

    monkeypatch.setattr(RowStore, "select", count)
    (found,) = fold_of(many, 0).values()
    assert len(found.target_ids) == 20 and sizes["unsorted"] == 1


def test_a_query_between_the_two_keeps_its_held_out_half(manifest: Manifest) -> None:
    queries = fold_of(manifest, 0)
    hidden = held_out(queries)
    for i in range(9):
        target, reference = f"p{i}", f"p{(i + 1) % 9}"
        found = queries[f"change{i}"]
        if target in hidden or reference in hidden:
            assert found.target_ids == ((target,) if target in hidden else ())
            assert found.reference_ids == ((reference,) if reference in hidden else ())
        both = queries[f"both{i}"]
        grades = {target: 1, reference: 2}
        if hidden & {target, reference}:
            assert dict(zip(both.target_ids, both.target_grades, strict=True)) == {
                name: grade for name, grade in grades.items() if name in hidden
            }


def test_folds_depend_on_seed_alone(manifest: Manifest) -> None:
    shuffled = replace(manifest, products=dict(reversed(manifest.products.items())))
    assert held_out(fold_of(manifest, 1)) == held_out(fold_of(shuffled, 1))
    assert any(held_out(fold_of(manifest, 1)) != held_out(fold_of(manifest, 1, seed)) for seed in range(1, 5))


def test_seen_changes_nothing(manifest: Manifest) -> None:
    assert GivenSplits().apply(manifest, "train", "val") is manifest


@pytest.mark.parametrize(("num_folds", "fold"), [(1, 0), (3, 3), (3, -1)])
def test_impossible_folds_are_refused(num_folds: int, fold: int) -> None:
    with pytest.raises(ValueError, match=r"data\.splits: fold"):
        ProductDisjointSplits(num_folds, fold, "")
