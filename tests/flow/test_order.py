"""Runs with grouped and weighted sampling and mixtures: a killed run resumes with the next batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mim_lightning.config import build, compose
from mim_lightning.data.preparation.prepared import open_prepared
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.run import Run, identify
from tests.flow.entry_points import start, timeless, weights
from tests.shop import small, write_shop

Fit = Callable[..., Run]
GROUPED = ["data/sampling=grouped", "data.sampling.samples_per_product=2", "data.sampling.same_category_fraction=0.5"]


@pytest.mark.slow  # that orders resume is tested without a run, and that runs do with another order
def test_a_grouped_run_killed_and_resumed_equals_one_not_stopped(shop: Path, fit: Fit) -> None:
    whole = fit(*GROUPED)
    parts = [*GROUPED, "callbacks.last.every_n_train_steps=1", f"paths.runs={shop}/parts"]
    # in the second of two epochs of three steps
    killed = start(*small(shop, *parts, "callbacks.progress_bar={_target_: tests.flow.kill_callback.KillAt, step: 4}"))
    assert killed.returncode == -9, killed.stderr
    resumed = fit(*parts)
    assert resumed.run_id == whole.run_id
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=1e-6)
    assert timeless(resumed) == pytest.approx(timeless(whole), abs=1e-6)


def datamodule(folder: Path, *overrides: str) -> MatchDataModule:
    data = compose("train", small(folder, *overrides))["data"]
    made: MatchDataModule = build(data, specs={})
    made.prepare_data()
    return made


def test_columns_of_a_prepared_shop_decide_the_batches(shop: Path) -> None:
    """7 products of 3 rows each are 7 pairs and 7 rows, half of each full batch of one category."""
    batches = list(datamodule(shop, *GROUPED).train_dataloader())
    assert [len(batch) for batch in batches] == [8, 8, 5]
    pairs = torch.cat([batch.product_keys[: len(batch) // 2 * 2].reshape(-1, 2) for batch in batches])
    assert (pairs[:, 0] == pairs[:, 1]).sum() == 7
    for batch in batches[:2]:
        _, counts = batch.category_keys.unique(return_counts=True)
        assert counts.max() >= 4
    weighted = datamodule(shop, "data/sampling=weighted", "data.rows_per_epoch=20").train_dataloader()
    assert [len(batch) for batch in weighted] == [8, 8, 4]


@pytest.fixture
def other_shop(tmp_path: Path) -> Path:
    """A second prepared shop, whose product ids are those of the first and some more."""
    folder = tmp_path / "other"
    write_shop(folder / "shop", num_products=9)
    datamodule(folder)
    return folder / "prepared" / "manifest"


def test_another_folder_is_mixed_in(shop: Path, other_shop: Path) -> None:
    mix = [f"+data.mixture.other.folder={other_shop}", "+data.mixture.other.fraction=0.25"]
    with pytest.raises(
        ValueError,
        match=r"data.mixture.other: 7 of its products have ids of .* give data.mixture.other.id_namespace=shared",
    ):
        datamodule(shop, *mix)
    made = datamodule(shop, *mix, "+data.mixture.other.id_namespace=separate")
    loader = made.train_dataloader()
    batches = list(loader)
    assert [int((batch.sample_nums >= 21).sum()) for batch in batches] == [2] * 4, "one pass over 21 rows, 6 a batch"
    own = set(open_prepared(shop / "prepared" / "manifest").catalog().keys.tolist())
    for batch in batches:
        assert [int(key) in own for key in batch.product_keys] == (batch.sample_nums < 21).tolist()
    assert len(made.opened.queries) == 7, "what is evaluated is the main set's"


def test_a_mixture_trains(fit: Fit, other_shop: Path) -> None:
    mix = f"data.mixture={{other: {{folder: {other_shop}, fraction: 0.5, id_namespace: separate}}}}"
    results = fit(mix, "trainer.max_epochs=1").read_results()
    assert results is not None
    assert results["step"] == 6, "one pass over 21 rows, 4 a batch"


def test_a_wrong_order_stops_before_anything_is_written(shop: Path, fit: Fit) -> None:
    with pytest.raises(
        ValueError, match=r"data.batch_size=8: must be a multiple of data.sampling.samples_per_product=3"
    ):
        fit("data/sampling=grouped", "data.sampling.samples_per_product=3")
    with pytest.raises(ValueError, match="unexpected keyword argument 'rows_per_produkt'"):
        fit("data/sampling=grouped", "+data.sampling.rows_per_produkt=3")
    assert not (shop / "runs").exists()


def test_a_mixture_changes_the_run_id_by_data_and_fraction(shop: Path, other_shop: Path, tmp_path: Path) -> None:
    def run_id(folder: Path, share: float) -> str:
        mixed = (f"+data.mixture.web.folder={folder}", f"+data.mixture.web.fraction={share}")
        return identify(compose("train", small(shop, *mixed)))[0].run_id

    moved = other_shop.rename(tmp_path / "elsewhere")
    found = run_id(moved, 0.5)
    assert found == run_id(moved.rename(other_shop), 0.5)
    assert len({found, run_id(other_shop, 0.25), identify(compose("train", small(shop)))[0].run_id}) == 3
