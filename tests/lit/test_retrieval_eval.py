"""The callback on real runs: whole passes only, and loggers of every kind get what they can show."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mim_lightning.analysis.record import read_record
from mim_lightning.config import compose
from mim_lightning.data.loading.rank_sampler import RankSampler
from mim_lightning.data.sampling.gallery_sample import SelectedOrder
from mim_lightning.evaluate import evaluate
from mim_lightning.lit import trainer as trainer_module
from mim_lightning.lit.callbacks.retrieval_eval import _num_ids
from mim_lightning.metric_names import whole_name
from mim_lightning.metrics.directions import COLUMNS, GALLERY_COLUMNS
from mim_lightning.run import Run


def test_a_partial_pass_publishes_nothing(fit: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "validate_trainer", lambda options: None)  # which refuses it before
    with pytest.raises(ValueError, match=r"validation queries: .* no numbers are published from a partial pass"):
        fit("data.eval_batch_size=2", "+trainer.limit_val_batches=1")


def test_a_sampled_gallery_is_named_in_every_metric_and_the_whole_can_be_evaluated(
    fit: Callable[..., Run], shop: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    table = shop / "shop" / "products.csv"
    with table.open("a") as file:  # products that no query asks for
        file.writelines(f"{number:03d},shop{number - 7}.jpg,thing,box\n" for number in range(7, 13))
    sampled = ("callbacks.retrieval_eval.num_distractors=2", "callbacks.retrieval_eval.storage_dtype=float16")
    with pytest.raises(ValueError, match=r"num_distractors=2; give monitor=val/image_to_image/sampled2_hit@1"):
        fit("trainer.max_epochs=1", *sampled)
    with pytest.raises(ValueError, match=r"retrieval_eval\.widths: no embedding has a width of 17; give whole numbers"):
        fit("trainer.max_epochs=1", "callbacks.retrieval_eval.widths=[17]")
    monitor = "monitor=val/image_to_image/sampled2_hit@1"
    run = fit("trainer.max_epochs=1", monitor, *sampled, "loss.widths={8: 1.0}")
    results = run.read_results()
    assert results is not None
    names = {key.split("/")[2] for key in results if key.startswith(("val/", "initial/"))}
    assert "sampled2_hit@1" in names and all(name.startswith("sampled2_") for name in names)
    assert {key.replace("/width_8", "") for key in results if "width_8" in key} == {
        key for key in results if key.startswith(("val/", "initial/")) and "width_8" not in key
    }, "every metric at both widths, with its interval"
    assert not [key for key in results if key.startswith("segments/") and key.endswith("/hit@1")]
    record = read_record(run.folder)
    answers = record.directions["image_to_image"]
    assert all(name.startswith("sampled2_") for name in answers.scores)
    assert answers.counting is not None and answers.counting["num_distractors"] == 2
    assert results["num_products"] == 7 + 2
    said = capfd.readouterr().out
    assert "sampled2\n" in said.replace(" ", "") and "of a sample of the gallery: higher than in the whole" in said
    assert "evaluation keeps " in caplog.text and "of 16 float16 each; ranking adds at most " in caplog.text
    whole = evaluate(
        compose(
            "evaluate",
            [
                f"checkpoint={run.best_checkpoint}",
                "whole_gallery=true",
                f"output={run.folder}/whole",
                "trainer=cpu",
                "widths=[4, 2]",
            ],
        )
    )
    assert whole["num_products"] == 13
    assert {f"val/image_to_image/hit@1{end}" for end in ("", "/low", "/width_2", "/width_4/high")} <= whole.keys()
    assert not [key for key in whole if "width_8" in key] and not [key for key in whole if "sampled" in key]
    again = read_record(run.folder / "whole")
    assert again.facts.config["callbacks"]["retrieval_eval"]["num_distractors"] is None
    assert again.gallery != record.gallery, "so they are not compared"


def test_the_end_of_an_interval_is_that_of_its_metric() -> None:
    for metric in (
        "hit@1",
        "val/both/hit@1",
        "val/both/hit@1/low",
        "val/sampled3_direction/hit@1/high",
        "val/both/hit@1/width_8",
        "val/both/hit@1/width_8/low",
    ):
        stage, name, end = re.fullmatch(r"(.*/)?(hit@1)((?:/\w+)*)", metric).groups("")  # type: ignore[union-attr]
        assert whole_name(f"{stage}sampled20_{name}{end}") == whole_name(metric) == metric


@pytest.mark.parametrize("num_rows", [3, 8, 9, 17, 23, 37])
@pytest.mark.parametrize("in_whole_batches", [True, False])
def test_memory_is_that_of_the_rank_with_most_rows(num_rows: int, in_whole_batches: bool) -> None:
    order, shards = SelectedOrder(np.arange(num_rows), 8), SimpleNamespace(prefetch_shards=0)
    options: dict[str, Any] = {"shards": shards, "order": order, "in_whole_batches": in_whole_batches}
    ranks = [RankSampler(rank=rank, world_size=4, **options) for rank in range(4)]
    dealt = [sum(len(part.numbers) - part.num_padding for part in rank) for rank in ranks]
    assert sum(dealt) == num_rows
    assert max(dealt) == ranks[0].most_rows


def test_ids_of_a_row_are_counted_by_its_own_side() -> None:
    assert _num_ids(GALLERY_COLUMNS, max_relevant=9) == len(GALLERY_COLUMNS)
    assert _num_ids(COLUMNS, max_relevant=0) == len(COLUMNS)
    assert _num_ids(COLUMNS, max_relevant=3) == len(COLUMNS) + 3 * 2


def test_wandb_offline_contains_metrics_and_the_image(
    fit: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = fit("logger=wandb", "logger.wandb.offline=true", "trainer.log_every_n_steps=1")
    files = {path.name for path in (run.folder / "wandb").rglob("*") if path.is_file()}
    assert f"run-{run.run_id}.wandb" in files
    assert any(name.endswith(".png") for name in files)
    (record,) = (run.folder / "wandb").rglob(f"run-{run.run_id}.wandb")
    content = Path(record).read_bytes()
    for key in (b"val/composed_to_product/hit@1", b"train/loss/query_product", b"train/logit_scale"):
        assert key in content


def test_a_monitor_that_counts_no_query_stops_before_anything_is_embedded(fit: Callable[..., Run], shop: Path) -> None:
    table = shop / "shop" / "queries.csv"
    split, *rows = table.read_text().splitlines()
    columns = split.split(",")
    place = columns.index("image")
    cells = [row.split(",") for row in rows]
    words = [",".join("" if i == place and row[0] == "val" else cell for i, cell in enumerate(row)) for row in cells]
    table.write_text("\n".join([split, *words]) + "\n")
    advice = r"give monitor=val/text_to_product/hit@1 or monitor=val/query_to_product/hit@1$"
    with pytest.raises(ValueError, match=r"monitor=val/image_to_image/hit@1: image_to_image counts no .*; " + advice):
        fit("trainer.max_epochs=1")
    run = fit("trainer.max_epochs=1", "monitor=val/text_to_product/hit@1")
    assert run.read_results()["counts/text_to_product/num_queries"] == 7
