"""From a trained checkpoint to an index, a search and a service, by the entry points."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mim_lightning import load
from mim_lightning.build_index import build_index
from mim_lightning.calibrate import calibrate
from mim_lightning.config import compose
from mim_lightning.data.images import boxes as image_boxes
from mim_lightning.data.images.crops import grid_boxes
from mim_lightning.data.images.limits import ImageLimits
from mim_lightning.evaluate import evaluate
from mim_lightning.index_calibration import delete_products_of
from mim_lightning.inference.image_inputs import BoxedImage
from mim_lightning.model.checkpoint import store_fusions
from mim_lightning.run import identify
from mim_lightning.search import calibration
from mim_lightning.search.index.card import COST, CROPS
from mim_lightning.search.index.factory import open_index
from mim_lightning.search.product_images import ProductImages
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.results import describe_vectors
from mim_lightning.search.searcher import Searcher, open_searcher
from mim_lightning.search.size_cost import describe_cost, read_curve
from mim_lightning.train import train
from mim_lightning.tune_index import tune_index
from tests.flow.entry_points import start
from tests.preloaded import PYTHON
from tests.shop import small, write_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    products, _ = write_shop(folder / "shop", num_products=7)
    first, *more = products.read_text().splitlines()
    cells = ["parts", '"0,0,0.5,0.5; 0,0,1,0.05"', *[""] * 6]  # boxes of the first product, one of them thin
    products.write_text("".join(f"{line},{cell}\n" for line, cell in zip([first, *more], cells, strict=True)))
    return folder


@pytest.fixture(scope="module")
def checkpoint(shop: Path) -> Path:
    learning = ["model=4tower", "trainer.max_epochs=8", "optim.lr=3e-3", "data.shards.samples_per_shard=3"]
    config = compose("train", small(shop, *learning))
    train(config)
    return identify(config)[0].last_checkpoint


@pytest.fixture(scope="module")
def index(checkpoint: Path, shop: Path) -> Path:
    stdout = start(
        f"checkpoint={checkpoint}", f"output={shop}/index", "trainer=cpu", module="mim_lightning.build_index"
    )
    assert stdout.returncode == 0, stdout.stderr
    assert "recall@10" in stdout.stdout and "flat" in stdout.stdout
    return shop / "index"


def search(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return start(*arguments, module="mim_lightning.search", cwd=cwd)


def test_one_process_and_two_agree_and_stored_embeddings_are_reused(
    checkpoint: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = shutil.copytree(index, tmp_path / "index")
    ids = [f"{number:03d}" for number in range(7)]
    once = open_index(index)
    shards = sorted((index / "embeddings").glob("*.safetensors"))
    assert len(shards) == 3
    written = [path.stat().st_mtime_ns for path in shards]
    shards[1].unlink()
    again = start(
        f"checkpoint={checkpoint}", f"output={index}", "trainer=cpu", "trainer.devices=2", "index.kind=hnsw",
        "crops.grid=2", module="mim_lightning.build_index",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    now = [path.stat().st_mtime_ns for path in shards]
    assert now[0] == written[0] and now[2] == written[2] and now[1] > written[1]
    twice = open_index(index, once.card.fingerprint)
    assert twice.card.kind == "hnsw"
    same = [f"checkpoint={checkpoint}", f"output={index}", "trainer=cpu"]
    build_index(compose("build_index", [*same[::2], f"output={tmp_path / 'crops'}", "crops.grid=2"]))
    crops = open_index(tmp_path / "crops")
    for product_id in ids:
        np.testing.assert_allclose(twice.vectors_of(product_id)[:1], once.vectors_of(product_id), atol=1e-6)
        np.testing.assert_allclose(twice.vectors_of(product_id), crops.vectors_of(product_id), atol=1e-6)
    assert (twice.card.num_rows, crops.card.num_rows) == (35, 35)
    with pytest.raises(ValueError, match=r"^dimension=17: give a whole number from 1 to 16, or null for all"):
        build_index(compose("build_index", [*same, "dimension=17"]))
    card = build_index(compose("build_index", [*same, "dimension=8", "precision=int8"]))
    assert card is not None and card.full_recall is not None and card.extra["trained_widths"] == []
    said = capsys.readouterr().out
    assert "dimension=8: the model was not trained at this width (loss.widths); the index finds" in said
    assert describe_vectors(card) == "8 of 16 dimensions (the model was not trained at this width), int8 codes"
    assert "8 in memory, 40 on disk" in said
    assert [path.stat().st_mtime_ns for path in shards] == now, "nothing is embedded again"


def test_a_product_is_found_by_the_best_of_its_crops(
    checkpoint: Path,
    index: Path,
    shop: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    same = [f"checkpoint={checkpoint}", f"output={tmp_path / 'index'}", "trainer=cpu", "gallery=product_image"]
    card = build_index(compose("build_index", [*same, "crops.grid=2"]))
    assert card is not None and (card.num_products, card.num_rows) == (7, 35)
    assert "2 x 2 parts and the whole, 5.0 vectors a product" in capsys.readouterr().out
    made = open_index(tmp_path / "index")
    model = load(checkpoint)
    searcher = Searcher(model, made)
    boxes = [(0, 0, 1, 1), *grid_boxes(2)]
    wanted = {
        f"{number:03d}": model.embed_images(
            [BoxedImage(shop / "shop" / f"shop{number}.jpg", box) for box in boxes], "product_image"
        )
        for number in range(7)
    }
    for product_id, vectors in wanted.items():
        np.testing.assert_allclose(made.vectors_of(product_id), vectors, atol=1e-4)
    query = SearchQuery(images=(shop / "shop" / "street3-0.jpg",), num_hits=7)
    photo = searcher.encode(query).vector
    hits = searcher.search(query).hits
    assert {hit.product_id: hit.score for hit in hits} == pytest.approx(
        {product_id: (vectors @ photo).max() for product_id, vectors in wanted.items()}, abs=1e-4
    )
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "index" / "embeddings").rglob("*.safetensors")}
    assert len(written) == 3 * 5
    again = build_index(compose("build_index", [*same, "update=true"]))  # which keeps the crops
    assert again is not None and again.num_rows == 35
    assert written == {path: path.stat().st_mtime_ns for path in written}, "nothing is embedded again"
    with pytest.raises(ValueError, match=r"^crops: 3 x 3 parts; .* has 2 x 2 parts"):
        build_index(compose("build_index", [*same, "update=true", "crops.grid=3"]))
    with pytest.raises(ValueError, match=r"^crops: 2 x 2 parts, but the gallery 'product_text' has no product_image"):
        build_index(compose("build_index", [*same[:-1], "gallery=product_text", "crops.grid=2"]))
    monkeypatch.setattr(calibration, "MIN_QUERIES", 7)
    calibrate(compose("calibrate", [f"index={tmp_path / 'index'}", "num_hits=4", "false_alarm_rate=0.4"]))
    result = open_searcher(str(tmp_path / "index")).search(query)
    assert [hit.product_id for hit in result.hits] == [hit.product_id for hit in hits]
    assert result.has_match is not None and all(0 <= hit.probability <= 1 for hit in result.hits)
    made = open_index(tmp_path / "index")
    made.set_extra({CROPS: {"boxes": "regions"}})  # of a catalog with this column, which the one to add need not have
    made.save()
    again = build_index(compose("build_index", [*same, "update=true"]))
    assert again is not None and again.num_rows == 7
    said = capsys.readouterr().out
    assert "crops: boxes of column 'regions', of which this catalog has none" in said and "calibrated again" in said
    with pytest.raises(ValueError, match=r"^crops.boxes=regions: no product has boxes there"):
        build_index(compose("build_index", [*same, "crops.boxes=regions"]))
    monkeypatch.setattr(image_boxes, "BOX_LIMITS", ImageLimits(aspect=10))
    boxed = build_index(compose("build_index", [*same, "crops.boxes=parts"]))
    assert boxed is not None and boxed.num_rows == 8
    vectors = open_index(tmp_path / "index").vectors_of("000")
    part = model.embed_images([BoxedImage(shop / "shop" / "shop0.jpg", (0, 0, 0.5, 0.5))], "product_image")
    np.testing.assert_allclose(vectors, [wanted["000"][0], part[0]], atol=1e-4)
    assert "crops: 1 parts of 1 products are left out" in capsys.readouterr().out


def test_the_curve_of_small_vectors_has_what_an_evaluation_at_each_width_has(
    checkpoint: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, direction = checkpoint.parents[1], "composed_to_product"
    options = {"widths": [8], "precisions": ["float32", "binary"], "kinds": ["flat"], "rows": 300, "rerank": 1}
    shutil.copytree(run, copy := tmp_path / "run", ignore=shutil.ignore_patterns("*.ckpt"))
    before = (copy / "report.html").read_text()
    tune_index(copy, direction, output=tmp_path, max_loss=1.0, report=True, **options)
    out = capsys.readouterr().out
    chosen = "build_index dimension=8 precision=binary index.kind=flat"
    assert direction in out and f"the smallest that loses at most 1: {chosen}" in out
    assert "queries/s one at a time, of 300 rows" in " ".join(out.split())
    page = (copy / "report.html").read_text()
    assert "Small vectors" not in before and page.count("<tr data-width=") == 4 and "queries/s" in page
    curve = read_curve(tmp_path / "index_curve.json")
    with pytest.raises(ValueError, match=r"^curve=.*: was measured with whole images; leave it out with crops"):
        build_index(
            compose(
                "build_index",
                [f"checkpoint={checkpoint}", f"output={tmp_path}/index", f"curve={curve.path}", "crops.grid=2"],
            )
        )
    with pytest.raises(ValueError, match=r"curve=.*: has no point of 4 int8; it has 16 float32, 16 binary, 8 float32"):
        curve.validate(curve.fingerprint, 4, "int8")
    with pytest.raises(ValueError, match=r"curve=.*: is of model .*, the index of xxh3-0; run tune_index again"):
        curve.validate("xxh3-0", 8, "binary")
    card = replace(open_index(index).card, dimension=8, kind="binary_flat", settings={"precision": "binary"})
    assert curve.cost_of(replace(card, kind="binary_ivf")) is None
    cost = describe_cost(replace(card, extra={COST: curve.cost_of(card)}))
    assert (
        cost is not None and cost.startswith("nDCG@10 ") and f"of {direction}, " in cost and cost.endswith("300 rows")
    )
    with pytest.raises(ValueError, match=r"curve=nowhere: no such file; give the index_curve.json of tune_index"):
        read_curve(Path("nowhere"))
    rows = list(csv.DictReader((tmp_path / "index_curve.csv").open()))
    sizes = [(row["width"], row["precision"], row["kind"], float(row["memory_bytes"])) for row in rows]
    assert sizes == [
        ("16", "float32", "flat", 64.0),
        ("16", "binary", "binary_flat", 2.0),
        ("8", "float32", "flat", 32.0),
        ("8", "binary", "binary_flat", 1.0),
    ]
    assert all(float(row["queries_per_second"]) > 0 for row in rows)
    whole = json.loads((run / "results.json").read_text())
    arguments = [f"checkpoint={run}/checkpoints/best.ckpt", "trainer=cpu", "widths=[8]"]  # that of the results
    cut = evaluate(compose("evaluate", arguments))
    assert float(rows[0]["ndcg"]) == pytest.approx(whole[f"val/{direction}/ndcg@10"])
    assert float(rows[0]["difference"]) == 0 and rows[0]["recall"] == ""
    assert float(rows[2]["ndcg"]) == pytest.approx(cut[f"val/{direction}/ndcg@10/width_8"])
    assert (tmp_path / "index_curve.md").read_text().count("\n| ") == 5 and (tmp_path / "index_curve.png").exists()
    with pytest.raises(ValueError, match=r"dimension=99: give a whole number from 1 to 16"):
        tune_index(run, direction, output=None, **{**options, "widths": [99]})
    with pytest.raises(ValueError, match="--direction sideways: no such direction"):
        tune_index(run, "sideways", output=None, **options)


def test_hits_of_an_image_and_a_text_as_json_and_as_an_image(checkpoint: Path, index: Path, shop: Path) -> None:
    photo = shop / "shop" / "street3-0.jpg"
    stdout = search(f"index={index}", f"image={photo}", "text=that's yellow, isn't it?", "k=3", "json=true", cwd=shop)
    assert stdout.returncode == 0, stdout.stderr
    hits = json.loads(stdout.stdout)["hits"]
    query = load(checkpoint).embed_query([photo], ["that's yellow, isn't it?"])
    vectors = np.concatenate([open_index(index).vectors_of(f"{number:03d}") for number in range(7)])
    assert [hit["product_id"] for hit in hits] == [f"{row:03d}" for row in np.argsort(-(vectors @ query[0]))[:3]]
    assert hits[0]["score"] == pytest.approx(float((vectors @ query[0]).max()), abs=1e-5)
    assert sum(hits[0]["parts"].values()) == pytest.approx(hits[0]["score"], abs=1e-5)
    assert Image.open(shop / "search.png").width > 500
    table = search(f"index={index}", "like=003", "where={category: [box, disc]}", "output_image=null", cwd=shop)
    assert table.returncode == 0 and "003" not in table.stdout.split("\n", 4)[4], table.stderr


def test_products_are_added_and_deleted(checkpoint: Path, index: Path, shop: Path, tmp_path: Path) -> None:
    index = shutil.copytree(index, tmp_path / "index")
    more = (shop / "shop" / "products.csv").read_text().splitlines()
    (shop / "shop" / "more.csv").write_text("\n".join([more[0], more[1].replace("000", "900"), more[2]]) + "\n")
    added = start(
        f"checkpoint={checkpoint}", f"output={index}", "update=true", f"embeddings={shop}/more", "data=manifest",
        f"data.source.products={shop}/shop/more.csv", "data.source.queries=null", f"data.folder={shop}/more-shards",
        "data.num_workers=0", module="mim_lightning.build_index",
    )  # fmt: skip
    assert added.returncode == 0, added.stderr
    card = open_index(index).card
    pictures = ProductImages(card).read(["900", "000"])
    assert card.num_products == 8 and pictures["900"] == pictures["000"]
    found = search(f"index={index}", f"image={shop}/shop/shop0.jpg", "json=true", "output_image=null", cwd=shop)
    scores = {hit["product_id"]: hit["score"] for hit in json.loads(found.stdout)["hits"]}
    ids = list(scores)  # 900 is 000 once more: its neighbour, at the same score
    assert abs(ids.index("900") - ids.index("000")) == 1 and scores["900"] == pytest.approx(scores["000"], abs=1e-6)
    removed = start(f"output={index}", "delete=[000,nowhere]", module="mim_lightning.build_index")
    assert removed.returncode == 0 and "1 of 2 products" in removed.stdout, removed.stderr
    photo = f"image={shop}/shop/shop0.jpg"
    found = search(f"index={index}", photo, "box=[0,0,1,1]", "json=true", "output_image=null", cwd=shop)
    assert [hit["product_id"] for hit in json.loads(found.stdout)["hits"]] == [i for i in ids if i != "000"]


def test_a_calibrated_index_says_how_likely_a_hit_is_right(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    index = shutil.copytree(index, tmp_path / "index")
    with pytest.raises(
        ValueError, match=r"cannot be calibrated by split 'val' .* image: 7 queries, a calibration takes 50"
    ):
        calibrate(compose("calibrate", [f"index={index}"]))
    monkeypatch.setattr(calibration, "MIN_QUERIES", 7)
    calibrate(compose("calibrate", [f"index={index}", "num_hits=4", "false_alarm_rate=0.4"]))
    printed = capsys.readouterr().out
    assert "false alarms" in printed and all(kind in printed for kind in calibration.KINDS)
    assert (index / "calibration.svg").read_text().count("polyline") == 3
    result = open_searcher(str(index)).search(SearchQuery(text="red"))
    assert result.has_match is not None and all(0 <= hit.probability <= 1 for hit in result.hits)
    assert open_searcher(str(index)).search(SearchQuery(like="000")).has_match is None
    delete_products_of(str(index), ["006"])  # the calibration is of another content then, and made again
    assert "calibrated again: image, text, composed queries" in capsys.readouterr().out
    assert open_searcher(str(index)).search(SearchQuery(text="red")).has_match is not None


def test_errors_are_one_line(checkpoint: Path, index: Path, shop: Path) -> None:
    fusions = {"query": {"query_image": 1.0, "query_text": 0.5}}
    other = store_fusions(checkpoint, fusions, open_index(index).card.fingerprint)
    photo = shop / "shop" / "shop0.jpg"
    (shop / "text.jpg").write_text("no picture")
    for arguments, message in (
        ([f"index={index}"], "the query is empty"),
        ([f"index={shop}/nowhere", "text=red"], "nowhere"),
        ([f"index={index}", f"checkpoint={other}", "text=red"], "the index was built with model"),
        ([f"index={index}", f"image={shop}/text.jpg"], "text.jpg"),
        ([f"index={index}", f"image={photo}", "where={colour: red}"], "colour"),
        ([f"index={index}", "like=999"], "999"),
        ([f"index={index}", f"image={photo}", "box=[1,2]"], "box=[1, 2]: give left, top, right and bottom"),
        ([f"index={index}", "text=red", "k=0"], "k=0: must be at least 1"),
        (["text=red"], "index: needs a value"),
    ):
        stdout = search(*arguments, cwd=shop)
        assert stdout.returncode == 2 and message in stdout.stderr, stdout.stderr
        assert stdout.stderr.startswith("error: ") and stdout.stderr.count("\n") == 1, stdout.stderr


@pytest.fixture
def service(index: Path, shop: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    command = [os.environ[PYTHON], "-m", "mim_lightning.serve", f"index={index}", "port=0", "ui=false"]
    environment = {**os.environ, "MIM_USER_SALT": "s" * 32}
    more = ["experiment_name=words", "arms={words: {weights: {text: 2}}}"]
    with subprocess.Popen([*command, *more], cwd=shop, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield line.split()[0], process
        process.kill()


def post(address: str, form: dict[str, str]) -> dict:
    data = "&".join(f"{name}={value}" for name, value in form.items()).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{address}/search", data), timeout=60) as answer:
        return json.loads(answer.read())


def test_the_service_answers_records_and_stops(service: tuple[str, subprocess.Popen], shop: Path) -> None:
    address, process = service
    arms = {post(address, {"text": "red", "user": f"user-{number}"})["arm"] for number in range(20)}
    assert arms == {"control", "words"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(address, {"text": "red", "k": "0"})
    assert refused.value.code == 422
    port = int(address.rsplit(":", 1)[1])
    busy = start(f"index={shop}/index", f"port={port}", module="mim_lightning.serve", cwd=shop)
    assert busy.returncode == 2 and f"port={port}: cannot listen there" in busy.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, -signal.SIGTERM)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    stdout = start("event_log=events.db", "experiment_name=words", module="mim_lightning.ab_report", cwd=shop)
    assert stdout.returncode == 0 and "control" in stdout.stdout and "words" in stdout.stdout, stdout.stderr
    assert b"user-1" not in (shop / "events.db").read_bytes()
