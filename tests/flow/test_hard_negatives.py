"""Hard negatives from mining to batches: in training, resumed, and by a table that `mine` wrote from an index."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from mim_lightning.build_index import build_index
from mim_lightning.config import build, compose, load_stored_config
from mim_lightning.data.preparation.prepared import open_prepared
from mim_lightning.data.sampling.endless import EndlessOrder
from mim_lightning.data.sampling.negative_table import read_negatives
from mim_lightning.data.sampling.shuffled import ShuffledOrder
from mim_lightning.ids import NO_KEY
from mim_lightning.lit.callbacks import hard_negatives
from mim_lightning.mine import mine
from mim_lightning.model.checkpoint import load_matcher
from mim_lightning.run import Run
from tests.flow.entry_points import start, timeless, weights
from tests.shop import small

Fit = Callable[..., Run]
MINING = (("depth", 5), ("num_candidates", 2), ("max_relative_score", "null"), ("skip_duplicates", "false"))
ON = ("data/sampling=hard_negatives", *(f"data.sampling.mining.{key}={value}" for key, value in MINING))
STOPPED = "callbacks.progress_bar={_target_: tests.flow.kill_callback.RaiseAt, step: 4, rank: 0}"


def same(one: Run, other: Run) -> bool:
    return all(torch.equal(*pair) for pair in zip(weights(one).values(), weights(other).values(), strict=True))


def test_mined_in_training(fit: Fit) -> None:
    whole = fit(*ON)
    (path,) = (whole.folder / "negatives").iterdir()
    table = read_negatives(path, "")
    assert path.name == "pass-000001.parquet" and len(table) == 21 and (table.product_keys != NO_KEY).all()


@pytest.mark.slow
def test_resumed_with_the_negatives_that_were_mined(fit: Fit, shop: Path) -> None:
    whole = fit(*ON)
    parts = (*ON, f"paths.runs={shop}/parts", "callbacks.last.every_n_train_steps=1")
    with pytest.raises(ValueError, match="the callback of a user failed"):
        fit(*parts, STOPPED)
    (copy,) = (shop / "parts").glob("*/negatives/*")
    content = copy.read_bytes()
    copy.unlink()
    with pytest.raises(ValueError, match=r"pass-000001\.parquet, which the checkpoint goes on with: no such file"):
        fit(*parts)
    copy.write_bytes(content)
    resumed = fit(*parts)
    assert resumed.run_id == whole.run_id and same(resumed, whole) and timeless(resumed) == timeless(whole)


@pytest.mark.slow
def test_two_processes_mine_and_train_as_one(fit: Fit, shop: Path) -> None:
    exact = (*ON, "trainer.precision=64-true")
    one = fit(*exact)
    finished = start(*small(shop, *exact, f"paths.runs={shop}/two", "trainer.devices=2"))
    assert finished.returncode == 0, finished.stderr[-3000:]
    two = Run(one.run_id, shop / "two" / one.run_id)
    tables = [pyarrow.parquet.read_table(run.folder / "negatives" / "pass-000001.parquet") for run in (one, two)]
    assert all(tables[0][name].equals(tables[1][name]) for name in ("query_key", "negative_keys"))
    assert not same(one, fit(exact[-1])), "the batches of the second epoch are others"
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=0, atol=1e-9)


def test_mined_from_an_index_for_a_next_run(fit: Fit, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("trainer.max_epochs=1")
    checkpoint, index, output = f"checkpoint={run.best_checkpoint}", f"index={shop}/index", shop / "negatives.parquet"
    build_index(compose("build_index", [checkpoint, f"output={shop}/index", "trainer=cpu"]))
    words = [checkpoint, index, f"output={output}", *(f"mining.{key}={value}" for key, value in MINING)]
    mine(compose("mine", words))
    assert f"{output}: 2.0 of each of 21 queries" in capsys.readouterr().out
    found = pyarrow.parquet.read_table(output).to_pydict()
    facts = {one["query_id"]: one for one in _training_rows(run)}
    assert sorted(found["query_id"]) == sorted(facts)
    for query_id, negatives, scores in zip(found["query_id"], found["negative_ids"], found["scores"], strict=True):
        assert len({*negatives}) == 2 and not {*negatives} & {*facts[query_id]["asked_ids"]}
        assert scores == sorted(scores, reverse=True)
    data = {**load_stored_config(run.config_path)["data"], "source": None, "on_corrupt_sample": "skip"}
    vectors = pyarrow.table({"product_id": ["nowhere"], "vector": [[1.0]]})
    pyarrow.parquet.write_table(vectors, shop / "vectors.parquet")
    data["vectors"] = {"product_x": f"{shop}/vectors.parquet"}
    data["feature_cache"] = {**data["feature_cache"], "folder": f"{shop}/cache/features"}
    data["sampling"] = {"_target_": "mim_lightning.data.HardNegativeSettings", "table": f"{output}"}
    datamodule = build(data, specs=load_matcher(run.best_checkpoint).matcher.input_specs())
    assert datamodule.train_query_pass().dataset.skips, "as training does"
    with pytest.raises(ValueError, match=r"data\.sampling\.table=.*: its content is not that of the table"):
        datamodule.load_state_dict({"negatives": "of another table"})
    assert datamodule.vectors.use(["product_x"]) == {"product_x": 1}
    with pytest.raises(ValueError, match=r"data\.vectors\.product_x=.*: none of its product ids is in the training"):
        datamodule.prepare_data()
    again = fit("trainer.max_epochs=1", "data/sampling=hard_negatives", f"data.sampling.table={output}")
    assert not same(run, again) and not (again.folder / "negatives").exists()
    with pytest.raises(ValueError, match=r"mining\.direction=text: index=.* holds 'product', which image_to_product"):
        mine(compose("mine", [*words, "mining.direction=text"]))
    with pytest.raises(ValueError, match="was built with model"):
        mine(compose("mine", [f"checkpoint={again.best_checkpoint}", *words[1:]]))


def _training_rows(run: Run) -> list[dict]:
    return [*open_prepared(load_stored_config(run.config_path)["data"]["folder"]).queries("train").all_facts()]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("callbacks.retrieval_eval.num_distractors=2",), r"num_distractors=2: negatives are mined among the products"),
        (("data.sampling.mining.direction=text",), r"data\.sampling\.mining\.direction=text: is none; there are image"),
        (("data.sampling.mining.margin=3",), r"mining\.margin=3: .*; in training the key is data\.sampling\.mining"),
        (("data.sampling.first_epoch=0", "trainer.num_sanity_val_steps=0"), r"trainer\.num_sanity_val_steps=-1, not 0"),
        (("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=3"), "after epoch 3 of 3, too late for any of them"),
        (("trainer.max_epochs=2", "data.sampling.first_epoch=2"), "after epoch 2 of 2, too late for any of them"),
        (("data.sampling.mining.group_column=style",), r"data\.sampling\.mining\.group_column=style: no product has a"),
    ],
)
def test_mistakes_are_named(fit: Fit, shop: Path, overrides: tuple[str, ...], message: str) -> None:
    monitor = ("monitor=val/image_to_image/sampled2_hit@1",) if "distractors" in overrides[0] else ()
    with pytest.raises(ValueError, match=message):
        fit(*ON, *overrides, *monitor)
    assert "group_column" in message or not [*shop.rglob("config.yaml")], "before anything is written"


@pytest.mark.parametrize(
    ("rows_per_epoch", "options", "expected"),
    [
        (24, {}, {(0, 3): 1, (1, 3): 2}),
        (6, {}, {(3, 0): 1, (7, 0): 2}),  # an epoch is a quarter of a pass
        (24, {"val_check_batch": 2}, {(0, 3): 1, (1, 3): 2}),
        (6, {"check_val_every_n_epoch": 3}, {(2, 0): 1, (5, 0): 2}),
        (12, {"check_val_every_n_epoch": None, "val_check_batch": 3}, {(1, 0): 1, (2, 1): 2}),
    ],
)
def test_the_last_validation_before_a_pass_mines_for_it(
    rows_per_epoch: int, options: dict, expected: dict[tuple[int, int], int]
) -> None:
    """Batches of 6 rows, 4 a pass; `expected`: epoch and batch after which the table of a pass is mined."""
    passes = ShuffledOrder((24,), 6, seed=1)
    datamodule: Any = SimpleNamespace(present_order=lambda: EndlessOrder(passes, rows_per_epoch))
    num_batches, found = rows_per_epoch // 6, {}
    for epoch, batch in product(range(8), range(num_batches)):
        loop = SimpleNamespace(batch_idx=batch, total_batch_idx=epoch * num_batches + batch)
        facts = {"val_check_batch": num_batches, "check_val_every_n_epoch": 1, **options}
        trainer: Any = SimpleNamespace(
            current_epoch=epoch, fit_loop=SimpleNamespace(epoch_loop=loop), num_training_batches=num_batches, **facts
        )
        every_n = facts["check_val_every_n_epoch"]
        counted = loop.total_batch_idx if every_n is None else batch
        if (every_n is None or not (epoch + 1) % every_n) and not (counted + 1) % facts["val_check_batch"]:
            first_pass = hard_negatives._next_pass(datamodule, epoch + 1)
            last = hard_negatives._epoch_of_next_validation(trainer)
            if hard_negatives._epoch_of_pass(datamodule, first_pass) <= last:
                found[epoch, batch] = first_pass
    assert {place: found.get(place) for place in expected} == expected
    assert [*found.values()].count(1) == 1, "once for a pass"
