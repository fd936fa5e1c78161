"""Runs are called after the set: the built-in ones as ever, a user's own after its folder or its tables."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mim_lightning.config import compose
from mim_lightning.run import identify
from mim_lightning.set_name import name_set
from tests.shop import small

MANIFEST = ["data=manifest", "data.source.queries=queries.csv"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["data=synthetic"], "synthetic"),
        (["data=grocery", "data.folder=elsewhere"], "grocery"),
        (["data=shards", "data.folder=/a/shoes"], "shoes"),
        (["data=shards", "data.folder=s3://bucket/my shoes/"], "my-shoes"),
        (["data=shards", "data.folder=shoes/shards"], "shoes"),
        (["data=shards", "data.folder=shards"], "shards"),
        (["data=shards", "data.folder=x", "data.name=mine"], "mine"),
        ([*MANIFEST, "data.source.products=/a/shoes/products.csv"], "shoes"),
        ([*MANIFEST, "data.source.products=shoes-2024.csv.gz"], "shoes-2024"),
        ([*MANIFEST, "data.source.products=products.csv"], "products"),
        ([*MANIFEST, "data.source.products='s3://bucket/shoes/train/*.parquet'"], "shoes"),
        ([*MANIFEST, "data.source.products=a/b.csv", "data.folder=shoes"], "shoes"),
        ([*MANIFEST, "data.source.products=a/shoes.csv", "data/splits=product_disjoint"], "shoes"),
        (["data=huggingface", "data.source.products.path=org/shoes", "data.source.queries.path=q"], "shoes"),
        (["data=webdataset", "data.source.shards.train='shoes/train-{000..003}.tar'"], "shoes"),
    ],
)
def test_a_set_is_called_after_its_folder_or_tables(overrides: list[str], name: str) -> None:
    data = compose("train", overrides)["data"]
    assert name_set(data) == name


def test_a_run_has_the_sets_name_and_its_id_changes_with_the_result(shop: Path) -> None:
    run, config, _ = identify(compose("train", small(shop, "logger=wandb")))
    assert run.run_id.startswith("4tower-shop-seed1-") and run.folder.name == run.run_id
    assert config["run"]["name"] == config["logger"]["wandb"]["name"] == "4tower-shop-seed1"
    assert config["logger"]["wandb"]["group"] == "4tower-shop"
    renamed = identify(compose("train", small(shop, "data.folder=" + str(shop / "prepared" / "other"))))[0]
    assert renamed.run_id == run.run_id.replace("-shop-", "-other-")  # the digest is the data's


def test_a_run_is_found_again_under_the_name_that_its_set_had(
    shop: Path, capsys: pytest.CaptureFixture[str], fit: Callable
) -> None:
    first = fit("trainer.max_epochs=0", "run.name=4tower-manifest-seed1")
    assert first.run_id.startswith("4tower-manifest-seed1-")
    assert fit("trainer.max_epochs=0") == first
    assert "finished before" in capsys.readouterr().out
