"""The record of a real run: its rows equal the report, with the ids of the tables."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mim_lightning.analysis.embeddings import read_embeddings
from mim_lightning.analysis.record import _read_direction, read_record
from mim_lightning.config import compose, load_config
from mim_lightning.evaluate import evaluate
from mim_lightning.io.damaged_file import DamagedFileError
from mim_lightning.model.checkpoint import load_matcher, store_fusions
from mim_lightning.model.fusion import describe_fusions
from mim_lightning.prepare import prepare
from mim_lightning.run import Run, identify
from mim_lightning.train import train
from mim_lightning.types import hash_id
from tests.shop import small, write_shop


def evaluation(run: Run, output: Path, *overrides: str) -> dict[str, float]:
    checkpoint = f"checkpoint={run.best_checkpoint}"
    return evaluate(compose("evaluate", [checkpoint, "trainer=cpu", f"output={output}", *overrides]))


def test_record_of_a_run(fit: Callable[..., Run], shop: Path) -> None:
    run = fit("data.source.segments=[text]")
    record = read_record(run.folder)
    results = run.read_results()
    assert record.facts.run_id == run.run_id and record.facts.config == load_config(run.config_path)
    assert record.facts.fingerprint == load_matcher(run.best_checkpoint).fingerprint
    config = record.facts.config
    # no query of this shop asks for another product than it shows
    assert set(record.directions) == set(config["directions"]) - {"composed_to_other_product"}
    for name, direction in record.directions.items():
        assert len(set(direction.query_ids)) == len(direction.query_ids) == 7 and direction.num_products == 7
        assert results[f"counts/{name}/num_queries"] == 7
        for metric, scores in direction.scores.items():
            assert np.nanmean(scores) == pytest.approx(results[f"val/{name}/{metric}"])
            low, high = (results[f"val/{name}/{metric}/{end}"] for end in ("low", "high"))
            assert low <= results[f"val/{name}/{metric}"] + 1e-9 and results[f"val/{name}/{metric}"] <= high + 1e-9
        for rank, unit, hits, found in zip(
            direction.ranks, direction.unit_ids, direction.hit_ids, direction.hit_is_relevant, strict=True
        ):
            assert hits[rank - 1] == unit and found == [hit == unit for hit in hits]
        assert set(direction.segments) == {"category", "query_words", "image_quality", "text"}
        assert direction.segments["text"] == direction.texts
    embeddings = read_embeddings(record.folder)
    assert (
        embeddings.fingerprint == record.facts.fingerprint
        and describe_fusions(embeddings.fusions) == config["model"]["fusions"]
    )
    products = {hash_id(f"{number:03d}") for number in range(7)}
    assert set(embeddings.gallery.columns["product_keys"].tolist()) == products


def test_evaluate_leaves_the_same_record(fit_once: Callable[..., Run], tmp_path: Path) -> None:
    run = fit_once("trainer.max_epochs=1")
    results = evaluation(run, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == results
    here, there = read_record(tmp_path / "again"), read_record(run.folder)
    assert here.gallery and here.gallery == there.gallery
    for name, direction in here.directions.items():
        assert direction.hit_ids == there.directions[name].hit_ids
        assert direction.query_ids == there.directions[name].query_ids
    seen = evaluation(run, tmp_path / "train", "split=train")
    assert seen["counts/image_to_image/num_queries"] == 21 and results["counts/image_to_image/num_queries"] == 7
    assert read_record(tmp_path / "train").facts.val_split == "train"


def test_a_table_is_evaluated_directly_though_it_has_a_test_split_alone(
    fit: Callable[..., Run], fit_once: Callable[..., Run], shop: Path, tmp_path: Path
) -> None:
    run = fit_once("trainer.max_epochs=1")
    queries = shop / "shop" / "queries.csv"
    lines = [line.replace("val,", "test,") for line in queries.read_text().splitlines() if "train," not in line]
    (shop / "shop" / "tests.csv").write_text("\n".join(lines) + "\n")
    table = ["data=manifest", f"data.source.products={shop}/shop/products.csv", f"paths.data={tmp_path}/other"]
    table += [f"data.source.queries={shop}/shop/tests.csv", "data.source.segments=[text]", "data.num_workers=0"]
    with pytest.raises(ValueError, match=r"tests\.csv: column 'split' has no row 'val'; it has \['test'\]"):
        evaluation(run, tmp_path / "val", *table)
    results = evaluation(run, tmp_path / "tests", *table, "split=test")
    assert results["val/image_to_image/hit@1"] == run.read_results()["val/image_to_image/hit@1"]
    assert set(read_record(tmp_path / "tests").directions["image_to_image"].segments["text"]) > {"red"}
    with pytest.raises(ValueError, match=r"no split 'train'; it has \['test'\]: these data can be evaluated, not"):
        fit("data.source=null", f"data.folder={tmp_path}/other/manifest", "data.val_split=test")


def test_only_rows_that_a_direction_requires_count(fit_once: Callable[..., Run], shop: Path, tmp_path: Path) -> None:
    """Four photos without words, one of them twice; seven catalog files with words for the next product."""
    run = fit_once("trainer.max_epochs=1")
    photos = [f"v{n},street{n}-1.jpg,,00{n},," for n in range(4)] + ["v4,street0-1.jpg,red,000,,"]
    composed = [f"c{n},shop{n}.jpg,blue,00{(n + 1) % 7},00{n},{n % 2}" for n in range(7)]
    rows = [f"{row},val" for row in [*photos, *composed]]
    table = shop / "shop" / "mixed.csv"
    table.write_text("\n".join(["query_id,image,text,product_id,shown_product_id,kind,split", *rows]) + "\n")
    source = ["data=manifest", f"data.source.products={shop}/shop/products.csv", f"data.source.queries={table}"]
    source += [f"paths.data={tmp_path}/mixed", "data.num_workers=0", "data.source.segments=[kind]"]
    results = evaluation(run, tmp_path / "out", *source, "directions={photos: {query: query_image, "
                         "gallery: product_image, excludes: [query_text]}, text_to_product: null}")  # fmt: skip
    counts = {
        name: tuple(
            results[f"counts/{name}/num_{what}"] for what in ("queries", "with_words", "in_gallery", "repeated")
        )
        for name in read_record(tmp_path / "out").directions
    }
    assert counts == {
        "image_to_image": (4, 0, 7, 1),
        "image_to_text": (4, 0, 7, 1),
        "image_to_product": (4, 0, 7, 1),
        "composed_to_product": (8, 8, 0, 0),
        "composed_to_other_product": (7, 7, 0, 0),
        "query_to_product": (12, 8, 0, 0),
        "image_to_asked_product": (8, 8, 0, 0),
        "photos": (4, 0, 0, 0),
    }
    parts = [results[f"segments/query_to_product/words={part}/hit@1"] for part in ("with", "without")]
    assert results["val/query_to_product/hit@1"] == pytest.approx((8 * parts[0] + 4 * parts[1]) / 12)
    assert results["segments/composed_to_other_product/kind=1/num_queries"] == 3
    assert not any(key.startswith("segments/photos/") for key in results)


def test_distractors_join_the_gallery(fit: Callable[..., Run], tmp_path: Path) -> None:
    products, queries = write_shop(tmp_path / "other", num_products=3)
    products.write_text(products.read_text().replace("\n00", "\nother-00"))
    queries.write_text("\n".join(line.replace(",00", ",other-00") for line in queries.read_text().splitlines()))
    source = [f"data.source.products={products}", f"data.source.queries={queries}", "data=manifest"]
    prepare(compose("prepare", [*source, f"data.folder={tmp_path}/distractors"]))
    run = fit("trainer.max_epochs=1", f"data.distractors={tmp_path}/distractors")
    record = read_record(run.folder).directions["image_to_image"]
    assert record.num_products == 10
    hits = {hit for row in record.hit_ids for hit in row}
    assert {hit for hit in hits if hit.startswith("other-")} == {"other-000", "other-001", "other-002"}
    assert not any(unit.startswith("other-") for unit in record.unit_ids)
    without = fit("trainer.max_epochs=1")
    assert read_record(without.folder).gallery != read_record(run.folder).gallery
    assert Path(read_record(run.folder).facts.config["data"]["distractors"]).is_absolute()
    assert without.run_id != run.run_id and without.read_results()["num_products"] == 7


def test_distractors_must_be_other_products(fit: Callable[..., Run], tmp_path: Path, shop: Path) -> None:
    prepare(compose("prepare", [*small(shop)[:3], f"data.folder={tmp_path}/same"]))
    with pytest.raises(ValueError, match=r"data\.distractors=.*7 of its products are in the catalog"):
        fit(f"data.distractors={tmp_path}/same")


def test_fusions_are_stored_beside_the_checkpoint(fit_once: Callable[..., Run], tmp_path: Path) -> None:
    run = fit_once("trainer.max_epochs=1")
    checkpoint = Path(shutil.copy(run.best_checkpoint, tmp_path))
    before = load_matcher(checkpoint)
    weights = {"query": {"query_image": 0.2, "query_text": 0.8}}
    path = store_fusions(checkpoint, weights, before.fingerprint)
    assert path.parent == tmp_path
    after = load_matcher(path)
    assert (
        describe_fusions(after.matcher.fusions) == describe_fusions(before.matcher.fusions) | weights
        and after.fingerprint != before.fingerprint
    )
    assert load_matcher(checkpoint).fingerprint == before.fingerprint
    with pytest.raises(ValueError, match="the weights were chosen for"):
        store_fusions(path, weights, before.fingerprint)
    with pytest.raises(ValueError, match="has no fusion 'both'"):
        store_fusions(checkpoint, {"both": {}}, before.fingerprint)


def test_a_runs_own_folder_is_refused_as_output(fit_once: Callable[..., Run]) -> None:
    run = fit_once("trainer.max_epochs=1")
    before = run.results_path.read_text()
    with pytest.raises(ValueError, match="is a run's own folder"):
        evaluation(run, run.folder)
    assert run.results_path.read_text() == before


def test_a_query_of_several_products_counts_once(shop: Path) -> None:
    table = shop / "shop" / "queries.csv"
    table.write_text("".join(f"{line.replace(',000', ',000|001')}\n" for line in table.read_text().splitlines()))
    config = compose("train", small(shop, "data.val_split=train", "trainer.max_epochs=1"))
    train(config)
    record = read_record(identify(config)[0].folder).directions["image_to_image"]
    assert len(set(record.query_ids)) == len(record.query_ids) == 21


def test_a_folder_without_a_record_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains no evaluation record; give the folder of a finished run, or of an"):
        read_record(tmp_path)
    with pytest.raises(
        ValueError, match="contains no evaluation record; there is no such folder; `mim runs` lists runs"
    ):
        read_record(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    (best := tmp_path / "checkpoints" / "best.ckpt").touch()
    with pytest.raises(
        ValueError, match=f"contains no evaluation record; make one with mim evaluate checkpoint={best}"
    ):
        read_record(tmp_path)
    renamed = tmp_path.rename(tmp_path.with_name("runs of May, all"))
    with pytest.raises(ValueError, match="contains no evaluation record") as caught:
        read_record(renamed)
    given = shlex.split(str(caught.value).partition("mim evaluate ")[2])
    assert given == [f"checkpoint={renamed}/checkpoints/best.ckpt", f"output={renamed}/evaluated"], (
        "as a shell reads it"
    )
    renamed.rename(tmp_path)
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(ValueError, match=r"record\.json: damaged"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("query_id", [{"a": 1}]),
        ("text", [None]),
        ("unit_id", [[1]]),
        ("hit_ids", ["a"]),
        ("hit_scores", [["many"]]),
        ("hit_is_relevant", [[{"a": 1}]]),
        ("rank", ["first"]),
        ("score:hit@1", ["good"]),
        ("segment:kind", [None]),
    ],
)
def test_columns_of_another_kind_are_damage(tmp_path: Path, column: str, values: list[Any]) -> None:
    whole: dict[str, list[Any]] = {
        **{name: ["x"] for name in ("query_id", "text", "unit_id", "segment:kind")},
        "rank": [1],
        "score:hit@1": [1.0],
        "hit_ids": [["x"]],
        "hit_scores": [[0.5]],
        "hit_is_relevant": [[True]],
    }
    counts = {"num_unanswerable": 0, "num_products": 1}
    pq.write_table(pa.table(whole), tmp_path / "image_to_image.parquet")
    assert _read_direction(tmp_path, "image_to_image", counts).hit_scores == [[0.5]]
    with pytest.raises(DamagedFileError, match=str(tmp_path)):
        _read_direction(tmp_path, "image_to_image", counts | {"num_products": "many"})
    pq.write_table(pa.table({**whole, column: values}), tmp_path / "image_to_image.parquet")
    with pytest.raises(DamagedFileError, match=str(tmp_path)) as caught:
        _read_direction(tmp_path, "image_to_image", counts)
    assert "\n" not in str(caught.value)
