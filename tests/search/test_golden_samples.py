"""Golden samples detect an encoder whose computation changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.shards.shard_writer import Record
from mim_lightning.search.golden_samples import (
    GoldenSamples,
    encode_golden_samples,
    read_golden_samples,
    select_inputs,
    verify_golden_samples,
    write_golden_samples,
)
from tests.shard_sets import write_shard_set


class Encoder:
    def __init__(self, turn: float = 0.0, fingerprint: str = "f00d") -> None:
        self.turn, self.fingerprint = turn, fingerprint

    def embed_images(self, images: Sequence[bytes], tower: str) -> np.ndarray:
        return self._vectors([sum(image) for image in images])

    def embed_texts(self, texts: Sequence[str], tower: str | None) -> np.ndarray:
        return self._vectors([len(text) for text in texts])

    def _vectors(self, numbers: Sequence[int]) -> np.ndarray:
        angles = np.array(numbers) + self.turn
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.fixture
def catalog(tmp_path: Path) -> ShardSet:
    records = [
        Record(
            {"product_image": bytes([number])} if number % 2 else {},
            {"product_id": f"p{number}", "product_text": "x" * number},
        )
        for number in range(30)
    ]
    write_shard_set(tmp_path / "catalogue", records, 30, samples_per_shard=10)
    return ShardSet(tmp_path / "catalogue")


def test_they_are_spread_over_the_catalog_and_survive_the_file(catalog: ShardSet, tmp_path: Path) -> None:
    inputs = select_inputs(catalog, ["product_image", "product_text"])
    assert inputs["product_text"][-1] == "x" * 29 and inputs["product_image"][-1] == bytes([29])
    assert len(inputs["product_text"]) == 7  # the first product has no text
    samples = encode_golden_samples(Encoder(), inputs)
    write_golden_samples(tmp_path / "golden_samples.safetensors", samples)
    again = read_golden_samples(tmp_path / "golden_samples.safetensors")
    assert again.inputs == inputs
    for tower, vectors in samples.vectors.items():
        np.testing.assert_array_equal(again.vectors[tower], vectors)


def test_a_changed_computation_is_detected(catalog: ShardSet) -> None:
    samples = encode_golden_samples(Encoder(), select_inputs(catalog, ["product_text"]))
    assert verify_golden_samples(Encoder(), samples) == pytest.approx(1)
    assert verify_golden_samples(Encoder(turn=0.02), samples) == pytest.approx(np.cos(0.02), abs=1e-5)
    assert verify_golden_samples(Encoder(turn=0.2, fingerprint="f00d+int8"), samples) == pytest.approx(
        np.cos(0.2), abs=1e-5
    )
    with pytest.raises(ValueError, match=r"'product_text' encodes the golden samples .* differently .*0\.9801"):
        verify_golden_samples(Encoder(turn=0.2), samples)


@pytest.mark.parametrize("content", [None, b"", b"no safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "golden_samples.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"golden_samples.safetensors: damaged"):
        read_golden_samples(path)


def sound() -> GoldenSamples:
    return encode_golden_samples(Encoder(), {"product_text": ["x", "xx"], "product_image": [b"\x01", b"\x02"]})


NO_UNIT = r"'product_text': vectors that are not of unit length"


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        (np.full((2, 2), np.nan, np.float32), NO_UNIT),
        (np.array([[1, 0], [np.nan, 0]], np.float32), NO_UNIT),
        (np.array([[1, 0], [np.inf, 0]], np.float32), NO_UNIT),
        (np.array([[1, 0], [2, 0]], np.float32), NO_UNIT),
        (np.zeros((2, 2), np.float32), NO_UNIT),
        (np.array([[1, 0], [0, 1]], np.int64), NO_UNIT),
        (np.ones((1, 1), np.float32), r"2 inputs, vectors of shape \(1, 1\)"),
        (np.ones((3, 1), np.float32), r"2 inputs, vectors of shape \(3, 1\)"),
        (np.ones((2, 0), np.float32), r"2 inputs, vectors of shape \(2, 0\)"),
        (np.ones(2, np.float32), r"2 inputs, vectors of shape \(2,\)"),
        (np.ones((2, 1, 1), np.float32), r"2 inputs, vectors of shape \(2, 1, 1\)"),
    ],
)
def test_golden_samples_that_verify_nothing_are_refused(tmp_path: Path, vectors: np.ndarray, reason: str) -> None:
    path = tmp_path / "golden_samples.safetensors"
    write_golden_samples(path, sound())
    with safe_open(path, "numpy") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors | {"vectors/product_text": vectors}, path, metadata)
    with pytest.raises(
        ValueError, match=rf"golden_samples\.safetensors: golden samples that verify nothing .*{reason}"
    ):
        read_golden_samples(path)


@pytest.mark.parametrize("texts", ["{}", '{"product_text": []}', '{"query_text": ["x", "x"]}', "[]", "null", "{"])
def test_inputs_without_vectors_are_refused(tmp_path: Path, texts: str) -> None:
    path = tmp_path / "golden_samples.safetensors"
    save_file({"vectors/product_text": np.eye(2, dtype=np.float32)}, path, {"texts": texts})
    with pytest.raises(ValueError, match=r"golden_samples\.safetensors: "):
        read_golden_samples(path)
    save_file({}, path, {"texts": "{}"})
    with pytest.raises(ValueError, match="golden samples that verify nothing"):
        read_golden_samples(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_model_that_gives_no_numbers_is_refused(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = sound()
    monkeypatch.setattr(Encoder, "_vectors", lambda self, numbers: np.full((len(numbers), 2), value, np.float32))
    with (
        np.errstate(all="ignore"),
        pytest.raises(ValueError, match=r"encodes the golden samples .* differently"),
    ):
        verify_golden_samples(Encoder(), samples)
    with pytest.raises(ValueError, match="not of unit length"):
        encode_golden_samples(Encoder(), samples.inputs)
    monkeypatch.setattr(Encoder, "_vectors", lambda self, numbers: np.ones((len(numbers), 3), np.float32))
    with pytest.raises(ValueError, match=r"to \(3,\) numbers, the index has \(2,\)"):
        verify_golden_samples(Encoder(), samples)


def test_products_without_inputs_are_skipped(tmp_path: Path) -> None:
    """The eight that are spread evenly have no image: others are found."""
    records = [
        Record({"product_image": bytes([number])} if number == 50 else {}, {"product_id": f"p{number}"})
        for number in range(100)
    ]
    write_shard_set(tmp_path / "catalogue", records, 100, samples_per_shard=50)
    assert select_inputs(ShardSet(tmp_path / "catalogue"), ["product_image"]) == {"product_image": [bytes([50])]}
