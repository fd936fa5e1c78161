"""The benchmark of training, at toy sizes: every arm trains what it says, and the table is of the same rounds."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks import train as benchmark
from benchmarks.training.arms import ARMS, missing_package
from benchmarks.training.gpu import measure_step
from benchmarks.training.metric_learning import LabeledPictures
from benchmarks.training.pace import Pace, Segment, StopTraining
from benchmarks.training.rows import TitledImages
from benchmarks.training.setup import Setup
from mim_lightning.types import ImageSpec, Sample

ENCODED = {  # times the images of a row go through their encoder
    "open_clip": 2,
    "open_clip, accum-freq": 4,
    "sentence-transformers, cached": 4,
    "plain Lightning, by pair": 7,  # of six pairs, one of them query against product
    "plain Lightning": 2,
}


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    overrides = (*benchmark.SMOKE, "model=4tower", "callbacks.progress_bar=null")
    return Setup(overrides, 8, 2, 4, 0, "cpu", tmp_path_factory.mktemp("benchmark"))


def one_segment(arm: str, setup: Setup) -> Segment:
    wanted: Iterator[bool] = iter((True, False))
    segments: list[Segment] = []
    with pytest.raises(StopTraining):
        ARMS[arm](setup, Pace(lambda: next(wanted), segments.append, setup.device))
    (segment,) = segments
    return segment


QUICK = ("ours", "open_clip", "plain Lightning, our collate")


@pytest.mark.parametrize("arm", [arm if arm in QUICK else pytest.param(arm, marks=pytest.mark.slow) for arm in ARMS])
def test_an_arm_trains_a_segment_and_counts_what_it_encodes(arm: str, setup: Setup) -> None:
    if package := missing_package(arm):
        pytest.skip(f"{package} is not installed")
    segment = one_segment(arm, setup)
    assert segment["rows"] == 16 and segment["seconds"] > 0 and segment["peak_gib"] >= segment["start_gib"]
    if arm in ENCODED:
        assert segment["images"] == 16 * ENCODED[arm]
    else:  # an image of two rows is encoded once, by a cached step twice
        most = 4 if arm == "ours, cached step" else 2
        assert 16 * (most - 1) < segment["images"] <= 16 * most


def test_a_step_of_the_gpu_part_counts_the_work_of_its_matrix_products(setup: Setup) -> None:
    step = measure_step(setup)
    assert step["seconds"] > 0 and 0 < step["images"] <= 16 and "aten::" in step["profile"]
    # forward and backward of the projections alone: more than twice their forward pass
    assert step["flop"] > 3 * step["images"] * 2 * 64 * 16


def test_the_table_compares_the_same_rounds() -> None:
    def segments(*seconds: float) -> list[Segment]:
        return [
            {"rows": 8, "seconds": s, "cpu_seconds": 2 * s, "peak_gib": s, "images": 16, "tokens": 80} for s in seconds
        ]

    facts = {"machine": "two cores", "load": 0.0, "versions": {"torch": "2"}}
    facts["setup"] = dict.fromkeys(("batch_size", "batches", "micro_batch_size", "workers"), 8) | {"overrides": ["a=b"]}
    lines = benchmark.table({"facts": facts, "rounds": {"ours": segments(1, 2, 4), "other": segments(3, 4, 4)}})
    assert "| other | 2.0 | 2.00 (1.00 to 3.00) | 2.00 (1.00 to 3.00) | 4.00 | 2.0 | 10.0 |" in lines.splitlines()


class ThreeRows:
    """A set of two queries of one product and one of another."""

    products = (7, 7, 8)

    def __len__(self) -> int:
        return 3

    def column(self, name: str) -> np.ndarray:
        return np.array(self.products)

    def read(self, numbers: Sequence[int]) -> list[Sample]:
        fields: Any = ("query_image", "product_image")
        return [Sample(n, {f: f"{f} {n}" for f in fields} | {"product_text": f"title {n}"}) for n in numbers]


def test_image_text_pairs_are_both_images_of_a_row_with_its_title() -> None:
    pairs = TitledImages(ThreeRows())  # type: ignore[arg-type]
    read = [(sample.inputs["product_image"], sample.inputs["product_text"]) for sample in pairs.read(range(len(pairs)))]
    assert read == [(f"{side}_image {n}", f"title {n}") for n in range(3) for side in ("query", "product")]


def test_labeled_pictures_are_all_queries_and_each_product_once() -> None:
    pictures = LabeledPictures(ThreeRows(), ImageSpec((8, 8)))  # type: ignore[arg-type]
    assert sorted(zip(pictures.labels, pictures.pictures, strict=True)) == [
        (7, (0, "product_image")),
        (7, (0, "query_image")),
        (7, (1, "query_image")),
        (8, (2, "product_image")),
        (8, (2, "query_image")),
    ]
