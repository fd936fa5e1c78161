"""Files that an older version wrote keep working: checkpoint, export, index, prepared set, run, results."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mim_lightning import load
from mim_lightning.analysis.record import read_record
from mim_lightning.build_index import build_index
from mim_lightning.compare import compare
from mim_lightning.config import build, build_matcher, compose, save_config
from mim_lightning.evaluate import evaluate
from mim_lightning.model.checkpoint import load_matcher, stored_fingerprint
from mim_lightning.plot import plot
from mim_lightning.prepare import prepare
from mim_lightning.run import identify
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import open_searcher
from mim_lightning.train import train

FILES = Path(__file__).parent / "files"
CHECKPOINT = "interrupted/checkpoints/last.ckpt"
PHOTOS = ["shop/street0-1.jpg", "shop/street3-2.jpg", "shop/street5-0.jpg"]
TEXTS = ["red", "a blue box", ""]
COMMAND: list[str] = json.loads((FILES / "expected/command.json").read_text())
# model=4tower has got directions and another monitor since then: a run that keeps the former ones is the same run
FORMER_DIRECTIONS = [
    *("~directions.composed_to_other_product", "~directions.query_to_product"),
    *("~directions.image_to_asked_product.requires", "monitor=val/composed_to_product/hit@1"),
]
RUNS = [json.loads(line) for line in (FILES / "expected/runs.jsonl").read_text().splitlines()]
ORDERS: dict[str, Any] = json.loads((FILES / "expected/orders.json").read_text())


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy: commands, checkpoints and configs name everything relative to the current folder."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def num_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the optimizer's steps: a run that starts again ends with the same weights as one that resumes."""
    steps: list[int] = []
    step = torch.optim.AdamW.step

    def count(*args: Any, **options: Any) -> Any:
        steps.append(1)
        return step(*args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", count)
    yield steps


def embed(path: str | Path) -> dict[str, np.ndarray]:
    model = load(path)
    return {
        "query_image": model.embed_images(PHOTOS),
        "query_text": model.embed_texts(TEXTS),
        "product_text": model.embed_texts(TEXTS, "product_text"),
        "query": model.embed_query(PHOTOS, TEXTS),
        "product": model.embed_products(PHOTOS, [*TEXTS[:2], None]),
    }


def assert_embeds_as(name: str, path: str | Path) -> None:
    expected = load_file("expected/embeddings.safetensors")
    for key, vectors in embed(path).items():
        np.testing.assert_allclose(vectors, expected[f"{name}/{key}"], atol=1e-5, err_msg=key)


def assert_same_results(found: dict[str, float], path: str) -> None:
    former = {key: value for key, value in json.loads(Path(path).read_text()).items() if key != "fit_seconds"}
    expected = {key.replace("untouched/", "initial/"): value for key, value in former.items()}  # as it is named now
    assert {key: found.get(key) for key in expected} == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(("name", "path"), [("checkpoint", CHECKPOINT), ("exported", "exported")])
def test_a_model_loads_and_embeds_as_before(name: str, path: str) -> None:
    assert_embeds_as(name, path)


def test_a_checkpoint_is_evaluated_as_before() -> None:
    found = evaluate(compose("evaluate", [f"checkpoint={CHECKPOINT}", "trainer=cpu", "output=evaluated"]))

    assert read_record(Path("evaluated")).facts.fingerprint == stored_fingerprint(Path(CHECKPOINT))
    assert_same_results(found, "expected/evaluated.json")


@pytest.mark.parametrize(("model", "tolerance"), [(CHECKPOINT, 1e-5), ("exported", 1e-2)])
def test_an_index_opens_with_its_model_and_answers_as_before(model: str, tolerance: float) -> None:
    searcher = open_searcher("index", model)

    for case in json.loads(Path("expected/hits.json").read_text()):
        hits = searcher.search(SearchQuery(**case["query"])).hits
        scores = {hit.product_id: hit.score for hit in hits}
        assert scores == pytest.approx({hit["id"]: hit["score"] for hit in case["hits"]}, abs=tolerance)
        assert {hit.product_id: hit.metadata for hit in hits} == {hit["id"]: hit["metadata"] for hit in case["hits"]}


def test_an_index_opens_with_the_same_weights_written_today() -> None:
    content = torch.load(CHECKPOINT, weights_only=True)
    content["mim_lightning"]["fingerprint"] = load_matcher(CHECKPOINT, like="xxh3-").fingerprint
    torch.save(content, "today.ckpt")

    assert open_searcher("index", "today.ckpt").encoder.fingerprint == stored_fingerprint(Path(CHECKPOINT))


def test_an_index_can_be_changed() -> None:
    build_index(compose("build_index", [f"checkpoint={CHECKPOINT}", "output=index", "delete=['002','005']"]))

    hits = open_searcher("index", CHECKPOINT).search(SearchQuery(text="blue", num_hits=8)).hits
    assert {hit.product_id for hit in hits} == {f"{number:03d}" for number in range(8)} - {"002", "005"}


def test_a_prepared_set_is_verified(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # absolute: a store keeps what a relative path meant in the first folder of this process
    data = [*(part for part in COMMAND if part.startswith(("data=", "data.source"))), f"paths.data={shop}/prepared"]
    prepare(compose("prepare", [*data, "verify=true"]))

    Path("prepared/manifest/queries/val/000000.tar").write_bytes(b"another")
    with pytest.raises(ValueError, match="prepared/manifest"):
        prepare(compose("prepare", [*data, "verify=true"]))
    assert "queries/val/000000.tar" in capsys.readouterr().out


@pytest.mark.parametrize("name", ORDERS)
def test_a_prepared_set_gives_the_same_samples_in_the_same_order(name: str) -> None:
    config = identify(compose("train", [*COMMAND, *ORDERS[name]["command"]]))[1]
    data = build(config["data"], specs=build_matcher(config).input_specs())
    before = {path: path.stat().st_mtime_ns for path in Path("prepared").rglob("*")}

    data.prepare_data()
    loader = data.train_dataloader()

    for epoch in ORDERS[name]["epochs"]:
        found = [zip(batch.sample_nums, batch.query_keys, batch.product_keys, strict=True) for batch in loader]
        assert [[[int(value) for value in row] for row in batch] for batch in found] == epoch
    assert {path: path.stat().st_mtime_ns for path in Path("prepared").rglob("*")} == before  # nothing is made again


@pytest.mark.parametrize("known", RUNS, ids=lambda known: known["id"])
def test_the_command_of_a_run_finds_its_folder(known: dict[str, Any]) -> None:
    save_config(known["config"], Path(known["config"]["run"]["folder"]) / "config.yaml")

    run, *_ = identify(compose("train", known["command"]))

    assert run.run_id == known["id"]


def test_an_interrupted_run_is_resumed_by_its_command(num_steps: list[int]) -> None:
    folder = _as_run("interrupted")

    train(compose("train", [*COMMAND, *FORMER_DIRECTIONS]))

    assert [path.name for path in Path("runs").iterdir()] == [folder.name]
    assert len(num_steps) == 3  # those of the second epoch
    assert_same_results(json.loads((folder / "results.json").read_text()), "finished/results.json")
    assert_embeds_as("finished", folder / "checkpoints" / "last.ckpt")


def test_a_finished_run_gives_its_results_without_training(num_steps: list[int]) -> None:
    folder = _as_run("finished")
    results = json.loads((folder / "results.json").read_text())

    monitored = train(compose("train", [*COMMAND, *FORMER_DIRECTIONS]))

    assert monitored == results["val/composed_to_product/hit@1"]
    assert not num_steps
    assert json.loads((folder / "results.json").read_text()) == results


def test_a_record_is_read() -> None:
    record, results = read_record(Path("finished")), json.loads(Path("finished/results.json").read_text())

    assert set(record.directions) == {key.split("/")[1] for key in results if key.startswith("val/")}
    for name, direction in record.directions.items():
        for metric in ("hit@1", "mrr"):
            assert np.nanmean(direction.scores[metric]) == pytest.approx(results[f"val/{name}/{metric}"])


def test_runs_are_compared_and_plotted() -> None:
    shutil.copytree("finished", "other")
    path = Path("other/evaluation/record.json")
    record = json.loads(path.read_text())
    record["run"]["run_id"] = "other"
    record["run"]["config"]["optim"]["lr"] = 0.5
    path.write_text(json.dumps(record))

    compare([Path("finished"), Path("other")], resamples=20, output=Path("compared"))
    plot([Path("interrupted")], Path("figures"), only=["curves"])

    assert "0.5" in Path("compared/compare.html").read_text()
    assert Path("figures/curves.png").stat().st_size


def _as_run(name: str) -> Path:
    """Put a stored run where its config says that it is."""
    run_id = next(line.split()[1] for line in Path(name, "config.yaml").read_text().splitlines() if "  id:" in line)
    return Path(shutil.copytree(name, Path("runs") / run_id))
