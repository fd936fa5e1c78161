"""Samples become a batch with every distinct input once, and -1 or NO_KEY for what is absent."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from PIL import Image

from mim_lightning.data.images.codec import hash_bytes, hash_pixels
from mim_lightning.data.images.transforms import Augment, eval_image
from mim_lightning.data.loading.collate import Collate
from mim_lightning.types import NO_KEY, Batch, ImageSpec, Sample, TextSpec, hash_id
from tests.data.conftest import encoded, jpeg, tokenize

SPECS = {
    "query_image": ImageSpec((12, 16)),
    "product_image": ImageSpec((8, 8)),
    "product_text": TextSpec(tokenize, 16),
    "query_text": TextSpec(tokenize, 16),
}
AUGMENT = Augment(brightness=0.3, contrast=0.3, saturation=0.3)


def sample(number: int, product: int | None, **inputs: bytes | str) -> Sample:
    ids = () if product is None else (f"p{product}",)
    return Sample(number, inputs, f"q{number}", *(ids or (None,)), target_ids=ids, reference_ids=ids, category="mugs")


SAMPLES = [
    sample(10, 1, query_image=jpeg(10), product_image=jpeg(1), product_text="mug"),
    sample(11, 2, query_image=jpeg(11), product_image=jpeg(2), product_text="cup", query_text="red"),
    sample(12, 1, product_image=jpeg(1), product_text="mug", query_text="blue mug"),
    sample(13, None, query_image=jpeg(10), query_text="red"),
]


def test_distinct_inputs_once() -> None:
    batch = Collate(SPECS)(SAMPLES)
    assert {tower: rows.tolist() for tower, rows in batch.rows.items()} == {
        "query_image": [0, 1, -1, 0],
        "product_image": [0, 1, 0, -1],
        "product_text": [0, 1, 0, -1],
        "query_text": [-1, 0, 1, 0],
    }
    images = batch.inputs["query_image"]
    assert isinstance(images, torch.Tensor) and images.dtype == torch.uint8
    assert torch.equal(images, torch.stack([eval_image(jpeg(n), ImageSpec((12, 16))) for n in (10, 11)]))
    texts = batch.inputs["query_text"]
    assert isinstance(texts, dict) and torch.equal(texts["ids"], tokenize(["red", "blue mug"])["ids"])


def test_ids_and_tables() -> None:
    many = Sample(5, {"query_text": "x"}, "q5", None, target_ids=("a", "b"), reference_ids=("c",), is_padding=True)
    batch = Collate({"query_text": SPECS["query_text"]}, max_relevant=3)([*SAMPLES[:1], many])
    assert len(batch) == 2
    assert batch.sample_nums.tolist() == [10, 5]
    assert batch.query_keys.tolist() == [hash_id("q10"), hash_id("q5")]
    assert batch.product_keys.tolist() == [hash_id("p1"), NO_KEY]
    assert batch.target_keys.tolist() == [[hash_id("p1"), NO_KEY, NO_KEY], [hash_id("a"), hash_id("b"), NO_KEY]]
    assert batch.reference_keys.tolist() == [[hash_id("p1"), NO_KEY, NO_KEY], [hash_id("c"), NO_KEY, NO_KEY]]
    assert batch.category_keys.tolist() == [hash_id("mugs"), NO_KEY]
    assert batch.is_padding.tolist() == [False, True]
    assert {getattr(batch, name).dtype for name in ("query_keys", "target_keys", "sample_nums")} == {torch.int64}


def test_evaluation_batches_have_image_keys_and_the_fields_of_a_row() -> None:
    assert Collate(SPECS)(SAMPLES).image_keys == {} and Collate(SPECS)(SAMPLES).has_field == {}
    specs = {"query_image": SPECS["query_image"]}  # has_field contains the text also for a model without a text tower
    lossless = encoded(Image.open(io.BytesIO(jpeg(10))), "PNG")
    other = encoded(Image.open(io.BytesIO(jpeg(10))).rotate(180), "PNG")
    rows = [*SAMPLES, sample(14, 1, query_image=lossless), sample(15, 1, query_image=other)]
    batch = Collate(specs, image_key=hash_pixels)(rows)
    assert batch.has_field["query_image"].tolist() == [True, True, False, True, True, True]
    assert batch.has_field["query_text"].tolist() == [False, True, True, True, False, False]
    first, second, none, again, copy, turned = batch.image_keys["query_image"].tolist()
    assert first == again == copy and none == NO_KEY and len({first, second, turned, NO_KEY}) == 4
    by_bytes = Collate(specs, image_key=hash_bytes)(rows).image_keys["query_image"].tolist()
    assert by_bytes[0] == by_bytes[3] != by_bytes[4]


def test_a_batch_without_an_input_still_has_one() -> None:
    batch = Collate(SPECS)([sample(0, None)])
    assert {tower: rows.tolist() for tower, rows in batch.rows.items()} == {tower: [-1] for tower in SPECS}
    texts = batch.inputs["query_text"]
    assert isinstance(texts, dict) and texts["ids"].shape == (1, 1)
    images = batch.inputs["query_image"]
    assert isinstance(images, torch.Tensor) and images.shape == (1, 3, 12, 16) and images.dtype == torch.uint8


def pixels(batch: Batch, tower: str) -> list[torch.Tensor | None]:
    images = batch.inputs[tower]
    assert isinstance(images, torch.Tensor)
    return [images[row] if row >= 0 else None for row in batch.rows[tower].tolist()]


def same(left: list[torch.Tensor | None], right: list[torch.Tensor | None]) -> bool:
    pairs = list(zip(left, right, strict=True))
    return all(b is None if a is None else b is not None and torch.equal(a, b) for a, b in pairs)


def test_augmentation_does_not_know_how_a_batch_is_split() -> None:
    samples = [sample(n, n % 3, query_image=jpeg(n), product_image=jpeg(100 + n % 3)) for n in range(12)]
    collate = Collate({tower: SPECS[tower] for tower in ("query_image", "product_image")}, augment=AUGMENT, seed=4)
    whole = collate(samples, (2, 64))
    for size in (1, 4, 6):
        parts = [collate(samples[i : i + size], (2, 64)) for i in range(0, 12, size)]
        for tower in collate.specs:
            assert same(pixels(whole, tower), [image for part in parts for image in pixels(part, tower)])


@pytest.mark.parametrize(("seed", "position"), [(5, (2, 64)), (4, (3, 64)), (4, (2, 65))])
def test_augmentation_changes_with_seed_and_position(seed: int, position: tuple[int, int]) -> None:
    specs = {"query_image": SPECS["query_image"]}
    one = Collate(specs, augment=AUGMENT, seed=4)(SAMPLES[:2], (2, 64))
    other = Collate(specs, augment=AUGMENT, seed=seed)(SAMPLES[:2], position)
    assert not same(pixels(one, "query_image"), pixels(other, "query_image"))


def test_the_same_image_on_both_sides_is_augmented_independently() -> None:
    specs = {"query_image": ImageSpec((8, 8)), "product_image": ImageSpec((8, 8))}
    batch = Collate(specs, augment=Augment())([sample(0, 0, query_image=jpeg(0), product_image=jpeg(0))])
    assert not same(pixels(batch, "query_image"), pixels(batch, "product_image"))


def test_evaluation_does_not_vary() -> None:
    collate = Collate({"query_image": SPECS["query_image"]}, seed=1)
    assert same(pixels(collate(SAMPLES, (0, 0)), "query_image"), pixels(collate(SAMPLES, (1, 9)), "query_image"))


def test_a_damaged_image_names_sample_and_tower() -> None:
    damaged = sample(77, 1, query_image=jpeg()[:-200])
    for augment in (None, AUGMENT):
        with pytest.raises(ValueError, match="sample 77, query_image: damaged image"):
            Collate(SPECS, augment=augment)([*SAMPLES, damaged])


def test_collate_can_be_sent_to_a_worker() -> None:
    collate = Collate(SPECS, 2, AUGMENT, 3)
    copy = pickle.loads(pickle.dumps(collate))
    assert same(pixels(copy(SAMPLES, (1, 2)), "query_image"), pixels(collate(SAMPLES, (1, 2)), "query_image"))


def test_grades_are_aligned_with_their_keys() -> None:
    samples = [
        Sample(0, {}, target_ids=("a", "b"), target_grades=(3, 1)),
        Sample(1, {}, target_ids=("c",)),  # without grades all count 1
        Sample(2, {}),
    ]
    batch = Collate({}, max_relevant=3)(samples)
    assert batch.target_grades.tolist() == [[3, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert ((batch.target_keys == NO_KEY) == (batch.target_grades == 0)).all()
