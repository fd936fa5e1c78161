"""A tower that reads image and text together in place of a fusion: trained, evaluated, indexed, searched, exported."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from mim_lightning import load
from mim_lightning.build_index import build_index
from mim_lightning.config import build_matcher, compose
from mim_lightning.evaluate import evaluate
from mim_lightning.export import export
from mim_lightning.prepare import prepare
from mim_lightning.run import Run, identify
from mim_lightning.search.__main__ import search
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import Searcher, open_searcher
from mim_lightning.search.service.batching import BatchingEncoder
from mim_lightning.train import train
from tests.encoders.vision_language import write_vision_language_model
from tests.shop import small, write_shop, write_table


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    products, queries = write_shop(folder / "shop", num_products=6, queries_per_product=2)
    for path, column in ((queries, "text"), (products, "title")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in (*rows[1::6], *rows[2::6]):  # some have the image alone
            row[column] = ""
        write_table(path, rows)
    write_vision_language_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def run(shop: Path) -> Run:
    given = ["name={}/model", "image_size=32", "max_length=8", "prompts={{query: red}}"]
    encoder = [f"encoder.image_text.{word.format(shop)}" for word in given]
    plain = [word for word in small(shop) if not word.startswith(("encoder.", "embed_dim"))]
    overrides = [*plain, "model=joint", "encoder=qwen3_vl", *encoder, "trainer.max_epochs=1", "optim.lr=1e-3"]
    prepare(compose("prepare", [word for word in overrides if word.startswith(("data", "paths"))]))
    config = compose("train", overrides)
    train(config)
    return identify(config)[0]


def test_rows_without_one_of_the_fields_count(run: Run, shop: Path) -> None:
    results = run.read_results()
    assert results is not None
    counts = {name: results.get(f"counts/{name}_to_product/num_queries", 0) for name in ("query", "composed", "image")}
    assert counts["query"] == counts["composed"] + counts["image"] == 6 and min(counts.values()) > 0
    again = evaluate(compose("evaluate", [f"checkpoint={run.best_checkpoint}", "trainer=cpu"]))
    assert again["val/composed_to_product/mrr"] == results["val/composed_to_product/mrr"]


@pytest.fixture(scope="module")
def searcher(run: Run, shop: Path) -> Searcher:
    words = [f"checkpoint={run.best_checkpoint}", f"output={shop}/index", "trainer=cpu", "crops.grid=2"]
    card = build_index(compose("build_index", words))
    assert card is not None and (card.num_products, card.num_rows) == (6, 30)
    return open_searcher(f"{shop}/index")


def test_image_and_text_are_searched_together(run: Run, shop: Path, searcher: Searcher) -> None:
    photo = str(shop / "shop" / "street1-0.jpg")
    asked = {
        "image": SearchQuery(images=(photo,)),
        "text": SearchQuery(text="green"),
        "image_text": SearchQuery(images=(photo,), text="green"),
    }
    model = load(run.best_checkpoint)
    given = {"image": ([photo], [None]), "text": ([None], ["green"]), "image_text": ([photo], ["green"])}
    vectors = {part: searcher.encode(query).vector for part, query in asked.items()}
    for part, inputs in given.items():
        np.testing.assert_allclose(vectors[part], model.embed_query(*inputs)[0], atol=1e-6)
        assert searcher.search(asked[part]).hits[0].parts.keys() == {part}
    assert np.abs(vectors["image_text"] - vectors["text"]).max() > 1e-4
    np.testing.assert_allclose(model.embed_images([photo])[0], vectors["image"], atol=1e-6)
    np.testing.assert_allclose(model.embed_texts(["green"])[0], vectors["text"], atol=1e-6)
    with pytest.raises(ValueError, match="image 0: is None"):
        model.embed_images([None])  # type: ignore[list-item]
    # different weights ask for a sum of both
    summed = searcher.encode(SearchQuery(images=(photo,), text="green", weights={"text": 2.0}))
    assert summed.parts.keys() == {"image", "text"}


def test_a_service_encodes_them_together(run: Run, shop: Path, searcher: Searcher) -> None:
    photo = (shop / "shop" / "street1-0.jpg").read_bytes()
    model = load(run.best_checkpoint)
    batching = BatchingEncoder(model)
    found = Searcher(batching, searcher.index).encode(SearchQuery(images=(photo,), text="green")).vector
    batching.close()
    np.testing.assert_allclose(found, model.embed_query([photo], ["green"])[0], atol=1e-6)


def test_the_command_line_searches_with_it(shop: Path, searcher: Searcher, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    words = [f"index={shop}/index", f"image={shop}/shop/street1-0.jpg", "text=green", "json=true", "output_image=null"]
    search(compose("search", words))
    assert json.loads(capsys.readouterr().out)["hits"][0]["parts"].keys() == {"image_text"}


def test_an_export_embeds_alike(run: Run, shop: Path) -> None:
    words = [f"checkpoint={run.best_checkpoint}", f"output={shop}/export", "device=cpu"]
    folder = export(compose("export", words))
    photo = str(shop / "shop" / "street1-0.jpg")
    for inputs in (([photo], ["green"]), ([photo], [None]), ([None], ["green"])):
        vectors = load(folder).embed_query(*inputs)
        assert np.array_equal(vectors, load(run.best_checkpoint).embed_query(*inputs))
        assert not np.allclose(vectors, load(folder).embed_products(*inputs), atol=1e-4)  # another instruction
    with pytest.raises(ValueError, match="tower 'query' reads several fields together"):
        export(compose("export", [*words[:1], f"output={shop}/onnx", "device=cpu", "onnx=true"]))


def test_it_has_the_switches_of_other_models() -> None:
    others, joint = (compose("train", [*words])["model"] for words in (["model=2tower"], ["model=joint"]))
    assert others.keys() == joint.keys()
    assert others["towers"]["query_image"].keys() | {"fields"} == joint["towers"]["query"].keys()


def test_encoder_and_model_must_fit() -> None:
    for words in (["model=joint"], ["model=2tower", "encoder=qwen3_vl"]):
        with pytest.raises(ValueError, match=r"encoder: is null.*encoder=qwen3_vl and model=joint go together"):
            build_matcher(compose("train", words))
    with pytest.raises(ValueError, match=r"model\.fusions\.query_image: is a tower of this model"):
        build_matcher(compose("train", ["+model.fusions.query_image={query_text: 1}"]))
