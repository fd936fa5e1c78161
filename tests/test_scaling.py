"""The calculator of docs/scaling.md: its arithmetic by hand, the origin of each figure, and that tables are fresh."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.scaling import PRODUCTS, main, number, plan
from benchmarks.scaling_figures import ASSUMED, GIVEN, INPUTS, MEASURED, read_figures

RECORD = Path(__file__).parents[1] / "experiments" / "scale" / "plan"
VALIDATION = ("one process, peak", "a process for each GPU, peak", "stated before, at most")
ROUND = {  # figures that are easy to reckon with
    "rows_per_product": 2,
    "images_per_row": 3,
    "epochs": 5,
    "dimension": 256,
    "rows_per_shard": 1000,
    "global_batch_size": 1e4,
    "validation_queries": 1e4,
    "row_bytes": 1e5,
    "prepare_image_ms": 12,
    "prepare_peak_gib": 6,
    "addition_cost": 0.02,
    "remote_rate": 0.8,
    "validation_overhead": 1.5,
    "validation_fixed": 0.5,
    "load_row_ms": 2,
    "loader_workers": 3,
    "gpu_rows_per_second": 1000,
    "embed_speedup": 4,
    "gpus_per_machine": 8,
    "gpu_dollars": 2,
    "train_hours": 10,
    "prepare_hours": 5,
    "machine_cores": 10,
    "machine_gib": 100,
    "machine_dollars": 3,
    "store_dollars": 0.02,
    "connection_mb": 50,
    "fingerprint_gb": 2,
    "checkpoint_bytes": 4e9,
    "usable_memory": 0.5,
    "rows_per_index_shard": 2e7,
    "replicas": 3,
    "sq8_bytes": 264,
    "sq8_query_ms": 0.5,
    "sq8_build_us": 36,
}


def lines_of(num_products: float, **changed: float) -> dict[str, float | str]:
    return {f"{one.part}: {one.what}": one.value for one in plan(num_products, read_figures({**ROUND, **changed}))}


def test_the_plan_of_ten_million_products_by_hand() -> None:
    found = lines_of(1e7)
    expected: dict[str, float | str] = {
        "data: rows": 2e7,
        "data: shards": 20_000,
        "data: stored": 2.0,  # TB: 2e7 rows x 1e5 bytes
        "data: store": 40.0,  # 2,000 GB x 0.02
        "preparation: work": 200.0,  # 2e7 x 3 images x 12 ms
        "preparation: machines": 4,  # 200 core-hours in 5 hours on 10 cores each
        "preparation: time": 5.0,
        "preparation: cost": 60.0,  # 4 machines x 5 hours x 3
        "training: GPUs": 3,  # 1e8 rows at 1,000 a second are 27.8 hours, 10 are wanted
        "training: machines": 1,
        "training: time": 1e8 / 1000 / 3600 / 3,
        "training: cost": 1e8 / 1000 / 3600 * 2,
        "preparation: memory": 6.0,
        "preparation: adding 1 %": 4.0,
        "loading: cores": 2.5,  # 1,000 rows x 2 ms, at 0.8 of the local rate
        "loading: from the store": 300.0,  # 3 GPUs x 1,000 rows x 0.1 MB
        "loading: connections": 6,
        # two windows of four batches, six batches requested, eight shards ahead: 148,000 rows
        "loading: least disk cache": 14.8,
        "checkpoint: fingerprint": 2.0,
        "embedding: the catalog": 1e7 / 4000 / 3600,
        "index: kind": "sq8",  # a graph takes 13 GB, codes 2.6
        "index: memory": 1e7 * 264 / 2**30,
        "index: shards": 1,
        "index: machines": 3,
        "index: a query": 0.5 * 10**0.5,  # lists: the square root of ten times the rows
        "index: build": 1e7 * 36e-6 * 10**0.5 / 3600 / 10,
        "index: serving": 3 * 3 * 730.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    payload = 2 * 256 * 4  # bytes of two vectors
    alone, spread, stated = (float(found[f"validation: {what}"]) * 2**30 for what in VALIDATION)
    assert alone == pytest.approx((1e7 + 1e4) * payload * 1.5 + 2**29)
    assert spread == pytest.approx((1e7 + 1e4) * payload * 1.5 / 3 + 2**29)
    assert 1e7 / 3 * payload < stated < 1.3 * 1e7 / 3 * payload + 2**30


def test_what_does_not_fit_one_machine_is_spread() -> None:
    found = lines_of(1e8)
    assert found["training: GPUs"] == 32  # 28 are needed: four whole machines
    assert found["training: machines"] == 4
    assert found["loading: from the store"] == pytest.approx(800)  # of a machine of eight
    assert found["index: shards"] == 5
    assert found["index: machines"] == 15
    assert lines_of(1e8, machine_gib=1)["index: shards"] == 50  # half a GiB holds two million rows of 264 bytes
    assert lines_of(1e9)["index: kind"] == "ivf_pq"
    assert lines_of(1000)["loading: least disk cache"] == pytest.approx(0.2), "a small set fits whole"


@pytest.mark.parametrize("num_products", PRODUCTS)
def test_the_measured_peak_of_a_validation_keeps_to_what_is_stated_before_it(num_products: float) -> None:
    found = {(one.part, one.what): one.value for one in plan(num_products, read_figures({}))}
    assert float(found["validation", VALIDATION[1]]) < float(found["validation", VALIDATION[2]])


def test_each_figure_says_where_it_is_from(tmp_path: Path) -> None:
    here = read_figures({"epochs": 3})
    assert here.of["epochs"].origin == GIVEN
    assert here.of["row_bytes"].origin == MEASURED
    assert here.of["gpu_rows_per_second"].origin == ASSUMED
    without = read_figures({}, tmp_path)
    assert {figure.origin for figure in without.of.values()} == {ASSUMED}
    assert "no figure in experiments/data_throughput/preparing.json" in without.of["row_bytes"].source
    record = tmp_path / "scale" / "fingerprints" / "results.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"bytes": 5e9, "seconds": {"fingerprint (XXH3)": 2.0}}))
    assert read_figures({}, tmp_path).of["fingerprint_gb"][:2] == (2.5, MEASURED)
    record.write_text("{}")
    assert read_figures({}, tmp_path).of["fingerprint_gb"].origin == ASSUMED


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "0"], "--epochs=0: must be above 0"),
        (["--gpu-dollars", "nan"], "--gpu-dollars=nan: must be above 0"),
        (["--products", "1e6", "0.5"], "--products=1e+06 0.5: at least 1 each"),
        (["--gpus", "3"], "unrecognized arguments: --gpus 3"),
        (["--replicas", "two"], "argument --replicas: invalid float value: 'two'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"), [(1234567.0, "1,234,567"), (0.0426, "0.0426"), (3.0, "3"), (99.96, "100"), (12.345, "12.3")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_the_tables_of_the_record_are_of_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record that changed, or a formula, changes the plan: run `make experiment NAME=scale/plan`."""
    main(["--output", str(tmp_path)])
    for name in ("plan.md", "figures.md"):
        assert (tmp_path / name).read_text() == (RECORD / name).read_text(), name
    printed = capsys.readouterr().out
    assert all(f"`--{one.name.replace('_', '-')}`" in printed for one in INPUTS)
    assert all(f"{size:,.0f} products" in printed for size in PRODUCTS)
