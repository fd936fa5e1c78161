"""Two processes are as one: equal weights, equal numbers, one folder a job, also inside a multirun."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from mim_lightning.config import compose
from mim_lightning.run import Run, identify
from tests.flow.entry_points import start, timeless, weights
from tests.shop import small

TIMED = ("train/seconds", "train/rows_per_second", "train/data_wait_fraction")
EPOCH_LOSS = "train/epoch_loss"
STEPS = (None, 3)  # inputs of a micro-batch: all, and fewer than a process has
# 21 rows: two batches of 8 and one of 5, which two processes fill up; in float64, for Adam makes much of rounding
EXACT = [
    "data.batch_size=8",
    "trainer.precision=64-true",
    "trainer.log_every_n_steps=4",
    "loss.widths={8: 0.5}",
    "+callbacks.collectives={_target_: tests.flow.collective_counter.CollectiveCounter}",
]


def write_teachers(shop: Path) -> list[str]:
    """Write vectors of all products and of some, and return pairs with them of each loss."""
    words = []
    for name, num_products, width, loss in (("product_old", 7, 16, "cosine"), ("product_large", 5, 9, "relational")):
        vectors = torch.randn(num_products, width, generator=torch.Generator().manual_seed(width)).tolist()
        table = pa.table({"product_id": [f"{number:03d}" for number in range(num_products)], "vector": vectors})
        pyarrow.parquet.write_table(table, shop / f"{name}.parquet")
        pair = f"{{left: product, right: {name}, loss: {loss}}}"
        words += [f"data.vectors.{name}={shop}/{name}.parquet", f"+model.pairs.{name}={pair}"]
    return [*words, "+model.pairs.new_to_old={left: query, right: product_old}"]


@pytest.fixture
def two_processes(shop: Path) -> Path:
    """Run a sweep over kinds of steps with two processes a job."""
    runs, teachers = shop / "two", write_teachers(shop)
    finished = start(
        "-m", *small(shop, *EXACT, *teachers, f"paths.runs={runs}", "trainer.devices=2", "step.micro_batch_size=null,3")
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "2 jobs" in finished.stdout and "step.micro_batch_size=3" in finished.stdout
    return runs


def test_one_process_and_two_end_equal_with_micro_batches_and_without(
    shop: Path, two_processes: Path, fit: Callable[..., Run]
) -> None:
    one, teachers = fit(*EXACT, *write_teachers(shop)), write_teachers(shop)
    for size in STEPS:
        step = f"step.micro_batch_size={'null' if size is None else size}"
        two = identify(compose("train", small(shop, *EXACT, *teachers, f"paths.runs={two_processes}", step)))[0]
        assert (two.run_id == one.run_id) == (size is None)
        for name, value in weights(one).items():
            torch.testing.assert_close(weights(two)[name], value, rtol=0, atol=1e-9)
        assert timeless(two) == pytest.approx(timeless(one), abs=1e-9)
        check_log(two, one)
    folders = [path for path in two_processes.iterdir() if path.name != "sweeps"]
    assert len(folders) == len(STEPS), "one folder a job"


@pytest.mark.slow
def test_checkpointing_a_gate_and_running_means_end_equal_in_two_processes(shop: Path, fit: Callable[..., Run]) -> None:
    switches = [f"model.towers.{name}.activation_checkpointing=true" for name in ("query_image", "product_text")]
    for side in ("query", "product"):
        switches += [f"model.fusions.{side}.kind=gate", f"model.fusions.{side}.center=running"]
    one = fit(*EXACT, *switches)
    runs = f"paths.runs={shop}/two"
    finished = start(*small(shop, *EXACT, *switches, runs, "trainer.devices=2"))
    assert finished.returncode == 0, finished.stderr[-3000:]
    two = identify(compose("train", small(shop, *EXACT, *switches, runs)))[0]
    expected = weights(one)
    assert any("mean" in name for name in expected)
    for name, value in weights(two).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-9)
    assert timeless(two) == pytest.approx(timeless(one), abs=1e-9)


def check_log(two: Run, one: Run) -> None:
    """Check that two processes log what one does, with one collective on a logged step and none on others."""
    (counts, losses, shown), (other_counts, other_losses, _) = (
        json.loads((two.folder / f"collectives-{rank}.json").read_text()) for rank in range(2)
    )
    # the fourth step is logged; the third and the last end an epoch
    assert counts == other_counts == [{}, {}, {"of the log": 1}, {"of the log": 1}, {}, {"of the log": 1}]
    _, all_losses, _ = json.loads((one.folder / "collectives-0.json").read_text())
    means = [(a + b) / 2 for a, b in zip(losses, other_losses, strict=True)]
    assert means == pytest.approx(all_losses, abs=1e-9)
    # of the rows of a process: 4, 4, and 3 with the one that fills up
    epochs = [(4 * first + 4 * second + 3 * third) / 11 for first, second, third in (means[:3], means[3:])]
    assert [shown[idx] for idx in (2, 3, 5)] == pytest.approx([epochs[0], means[3], epochs[1]], abs=1e-6)
    assert parts_of_a_step(two) == parts_of_a_step(one) | {"gather"} and "backward" in parts_of_a_step(one)
    logged, expected = scalars(two), scalars(one)
    assert [logged.pop((str(step), EPOCH_LOSS)) for step in (2, 5)] == pytest.approx(epochs, abs=1e-6)
    expected = {place: value for place, value in expected.items() if place[1] != EPOCH_LOSS}
    assert logged == pytest.approx(expected, abs=1e-9) and ("3", "train/loss") in logged


def parts_of_a_step(run: Run) -> set[str]:
    """Return what a run measured the seconds of."""
    (path,) = (run.folder / "csv").rglob("metrics.csv")
    with path.open() as file:
        names = next(csv.reader(file))
    return {name.removeprefix(TIMED[0]).strip("/") for name in names if name.startswith(TIMED[0])}


def scalars(run: Run) -> dict[tuple[str, str], float]:
    """Return what a run logged of its training, without what the clock decides, by step and name."""
    (path,) = (run.folder / "csv").rglob("metrics.csv")
    with path.open() as file:
        return {
            (row["step"], name): float(cell)
            for row in csv.DictReader(file)
            for name, cell in row.items()
            if cell and name.startswith("train/") and not name.startswith(TIMED)
        }
