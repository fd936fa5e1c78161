"""A fifth tower by config alone: a column of the queries, trained on, evaluated, indexed and searched with."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from mim_lightning import load
from mim_lightning.build_index import build_index
from mim_lightning.config import compose
from mim_lightning.data.preparation.prepared import open_prepared
from mim_lightning.evaluate import evaluate
from mim_lightning.prepare import prepare
from mim_lightning.run import Run, identify
from mim_lightning.search.__main__ import search
from mim_lightning.search.index.factory import open_index
from mim_lightning.train import train
from tests.shop import small, write_shop, write_table

FIFTH = (
    "data.source.fields.query_category=category",
    "+model.towers.query_category=${model.towers.query_text}",
    "+model.pairs.query_category_product={left: query_category, right: product, weight: 1.0}",
    "+model.fusions.query.query_category=1.0",
    "+directions.category_to_product={query: query_category, gallery: product}",
    "+directions.without_category={query: query_image, gallery: product, requires: [], excludes: [query_category]}",
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    _, queries = write_shop(folder / "shop", num_products=6, queries_per_product=2)
    with queries.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):  # every fifth has none
        row["category"] = "" if number % 5 == 0 else f"shape {int(row['product_id']) % 3}"
    write_table(queries, rows)
    return folder


@pytest.fixture(scope="module")
def run(shop: Path) -> Run:
    config = compose("train", small(shop, "model=4tower", "trainer.max_epochs=1", *FIFTH))
    prepare(compose("prepare", [word for word in small(shop, FIFTH[0]) if word.startswith(("data", "paths"))]))
    train(config)
    return identify(config)[0]


def test_its_column_is_stored_by_name_and_missing_ones_are_left_out(run: Run, shop: Path) -> None:
    queries = open_prepared(shop / "prepared" / "manifest").queries("val")
    texts = [sample.inputs.get("query_category") for sample in queries.read(range(len(queries)))]
    assert None in texts and {"shape 0", "shape 1", "shape 2"} >= {text for text in texts if text}


def test_it_is_trained_evaluated_and_named_in_results(run: Run) -> None:
    results = run.read_results()
    assert results is not None
    num_without = results["counts/without_category/num_queries"]
    assert num_without > 0
    assert results["counts/category_to_product/num_queries"] + num_without == 6
    again = evaluate(compose("evaluate", [f"checkpoint={run.best_checkpoint}", "trainer=cpu"]))
    assert again["val/category_to_product/mrr"] == results["val/category_to_product/mrr"]


def test_an_index_is_searched_with_it(run: Run, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_index(compose("build_index", [f"checkpoint={run.best_checkpoint}", f"output={shop}/index", "trainer=cpu"]))
    photo, words = str(shop / "shop" / "street1-0.jpg"), {"query_category": "shape 1"}
    capsys.readouterr()
    asked = [f"index={shop}/index", f"image={photo}", "text=green", "fields={query_category: shape 1}", "json=true"]
    search(compose("search", [*asked, "output_image=null", "k=6"]))
    hits = json.loads(capsys.readouterr().out)["hits"]
    with pytest.raises(ValueError, match="fields=mugs: give texts by name"):
        search(compose("search", [asked[0], "fields=mugs"]))
    query = load(run.best_checkpoint).embed_query([photo], ["green"], fields={"query_category": ["shape 1"]})
    index = open_index(f"{shop}/index")
    scores = {f"{n:03d}": float((index.vectors_of(f"{n:03d}") @ query[0]).max()) for n in range(6)}
    assert {hit["product_id"]: hit["score"] for hit in hits} == pytest.approx(scores, abs=1e-5)
    assert hits[0]["parts"].keys() == {"image", "text", *words}


def test_the_fifth_tower_alone_is_a_query(run: Run, shop: Path) -> None:
    model = load(run.best_checkpoint)
    alone = model.embed_query(fields={"query_category": ["shape 1", "shape 2"]})
    np.testing.assert_allclose(alone, model.embed_texts(["shape 1", "shape 2"], "query_category"), atol=1e-6)
    with pytest.raises(ValueError, match="query_colour"):
        model.embed_query(fields={"query_colour": ["red"]})
