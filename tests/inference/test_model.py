"""What a loaded model embeds is what training's evaluation embeds; rows, weights, threads, and what it refuses."""

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import torch

import mim_lightning
from mim_lightning.data.loading.collate import Collate
from mim_lightning.inference.loading import load
from mim_lightning.inference.model import LoadedModel
from mim_lightning.inference.tower_encoder import TowerEncoder
from mim_lightning.model.fusion import describe_fusions
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import TextSpec, Tokenize, TowerInput
from tests.inference.models import TEXTS, samples_of, write_checkpoint


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LoadedModel:
    return load(checkpoint, device="cpu")


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@torch.no_grad()
def test_embeddings_are_those_of_an_evaluation(
    model: LoadedModel, four_tower: tuple[Path, Matcher], pictures: list[Path]
) -> None:
    matcher = four_tower[1]
    batch = Collate(matcher.input_specs())(samples_of(pictures, TEXTS))
    expected = {name: vectors.numpy() for name, vectors in matcher(batch).vectors.items()}
    found = {name: model.embed_images(pictures, name) for name in ("query_image", "product_image")}
    found |= {name: model.embed_texts(TEXTS, name) for name in ("query_text", "product_text")}
    found["query"] = model.embed_query(pictures, TEXTS)
    found["product"] = model.embed_products(pictures, TEXTS)
    assert set(found) == set(expected)
    for name, vectors in found.items():
        assert vectors.dtype == np.float32 and vectors.shape == (4, model.dimension) == (4, 16)
        np.testing.assert_allclose(vectors, expected[name], atol=1e-5)
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-3, "inputs that differ must not be embedded alike"


def test_description_of_the_source(model: LoadedModel, four_tower: tuple[Path, Matcher]) -> None:
    path, matcher = four_tower
    assert model.fingerprint == torch.load(path, weights_only=True)["mim_lightning"]["fingerprint"]
    assert model.tower_names == matcher.tower_names and describe_fusions(model.fusions) == describe_fusions(
        matcher.fusions
    )
    assert model.config["model"]["name"] == "4tower"
    assert model.device == torch.device("cpu") and model.precision == "float32"


def test_batches_change_nothing_and_no_input_is_no_row(model: LoadedModel, pictures: list[Path]) -> None:
    whole = model.embed_images(pictures)
    np.testing.assert_allclose(model.embed_images(pictures, batch_size=3), whole, atol=1e-6)
    np.testing.assert_allclose(model.embed_images(pictures[::-1], batch_size=1)[::-1], whole, atol=1e-6)
    assert np.array_equal(model.embed_images(pictures), whole)
    for empty in (model.embed_images([]), model.embed_texts([]), model.embed_query(), model.embed_products()):
        assert empty.shape == (0, 16) and empty.dtype == np.float32


def test_preparing_apart_from_encoding_changes_nothing(model: LoadedModel, pictures: list[Path]) -> None:
    prepared = model.prepare_images(pictures, "product_image")
    assert prepared.dtype == torch.uint8 and prepared.shape == (4, 3, 32, 32)
    found = model.embed_prepared(prepared, "product_image")
    assert np.array_equal(found, model.embed_images(pictures, "product_image"))
    with pytest.raises(ValueError, match="'query_text': no image tower of this model"):
        model.prepare_images(pictures, "query_text")


def test_a_row_is_fused_from_the_towers_that_it_has(model: LoadedModel, pictures: list[Path]) -> None:
    images, texts = model.embed_images(pictures[:3]), model.embed_texts(["red", "blue"])
    fused = model.embed_query([*pictures[:2], None], [None, "red", "blue"])
    np.testing.assert_allclose(fused, np.stack([images[0], unit(images[1:2] + texts[:1])[0], texts[1]]), atol=1e-5)
    np.testing.assert_allclose(model.embed_query(images=pictures[:3]), images, atol=1e-6)
    np.testing.assert_allclose(model.embed_query(texts=["red", "blue"]), texts, atol=1e-6)


def test_given_weights_replace_the_fusions_own(model: LoadedModel, pictures: list[Path]) -> None:
    image, text = model.embed_images(pictures[:1]), model.embed_texts(["red"])
    for weights, expected in (
        ({"query_image": 3.0, "query_text": 0.5}, 3 * image + 0.5 * text),
        ({"query_text": 2.0}, image + 2 * text),
        ({"query_image": 0.0}, text),
        ({"query_text": -0.5}, image - 0.5 * text),
    ):
        found = model.embed_query(pictures[:1], ["red"], weights)
        np.testing.assert_allclose(found, unit(expected), atol=1e-5)


def test_without_a_query_fusion_all_weigh_the_same(tmp_path: Path, pictures: list[Path]) -> None:
    three = load(write_checkpoint(tmp_path, "model=3tower", "model.fusions.product.product_text=3.0")[0])
    image, text = three.embed_images(pictures[:1]), three.embed_texts(["red"])
    assert np.array_equal(text, three.embed_texts(["red"], "product_text"))
    np.testing.assert_allclose(three.embed_query(pictures[:1], ["red"]), unit(image + text), atol=1e-5)
    product = three.embed_products(pictures[:1], ["red"])
    np.testing.assert_allclose(product, unit(three.embed_images(pictures[:1], "product_image") + 3 * text), atol=1e-5)


def test_an_image_model_reports_that_it_reads_no_text(tmp_path: Path, pictures: list[Path]) -> None:
    two = load(write_checkpoint(tmp_path, "model=2tower")[0])
    np.testing.assert_allclose(two.embed_products(pictures), two.embed_images(pictures, "product_image"), atol=1e-6)
    with pytest.raises(ValueError, match="no text tower; it has query_image, product_image"):
        two.embed_texts(["red"])
    with pytest.raises(ValueError, match="query: this model has no text tower for it"):
        two.embed_query(pictures[:1], ["red"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.embed_images("photo.jpg"), "images: give a list, not one str"),
        (lambda m: m.embed_texts("red"), "texts: give a list, not one str"),
        (
            lambda m: m.embed_images([], "query_text"),
            r"'query_text': no image tower .* \['query_image', 'product_image'",
        ),
        (lambda m: m.embed_texts(["a"], "query_image"), "'query_image': no text tower of this model"),
        (lambda m: m.embed_texts(["a"], "queri_text"), "'queri_text': no text tower"),
        (lambda m: m.embed_texts(["a", 3]), "text 1: give a string, not int"),
        (lambda m: m.embed_texts(["a"], batch_size=0), "batch_size=0: must be at least 1"),
        (lambda m: m.embed_query([None], [None]), "query 0: has neither image nor text"),
        (lambda m: m.embed_products([None, None], ["a", None]), "product 1: has neither image nor text"),
        (lambda m: m.embed_query([b"a", b"b"], ["a"]), "query: 2 images and 1 texts"),
        (lambda m: m.embed_query([None, b"no picture"], ["a", "b"]), "^image 1: not a readable image"),
        (lambda m: m.embed_query(texts=["a"], weights={"product_text": 1.0}), "'product_text' has no part in a query"),
        (lambda m: m.embed_query(texts=["a"], weights={"query_text": 0.0}), r"query 0: weights .* leave nothing"),
        (
            lambda m: m.embed_query(texts=["a"], weights={"query_text": float("nan")}),
            r"query 0: weights .* leave nothing",
        ),
    ],
)
def test_mistakes_are_named(model: LoadedModel, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device=gpu: cannot be used here"),
        ({"device": "cuda:99"}, "device=cuda:99: cannot be used here"),
        ({"precision": "int4"}, "precision=int4: there are float32, bfloat16, float16, int8"),
        ({"runtime": "tensorrt"}, "runtime=tensorrt: there are torch, onnx"),
        ({"runtime": "onnx"}, "no export here"),
    ],
)
def test_invalid_options_are_refused(checkpoint: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(checkpoint, **options)


class Exclusive:
    """A tokenizer that, like those of Hugging Face, must not be called twice at once."""

    def __init__(self, tokenize: Tokenize) -> None:
        self.tokenize, self.busy = tokenize, Lock()

    def __call__(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        if not self.busy.acquire(blocking=False):
            raise RuntimeError("Already borrowed")
        time.sleep(0.002)
        self.busy.release()
        return self.tokenize(texts)


@dataclass(frozen=True)
class WithSpec:
    encoder: TowerEncoder
    spec: TextSpec

    def __call__(self, inputs: TowerInput) -> torch.Tensor:
        return self.encoder(inputs)


def test_threads_share_it(model: LoadedModel, pictures: list[Path]) -> None:
    encoder = model.encoders["query_text"]
    assert isinstance(encoder.spec, TextSpec)
    exclusive = WithSpec(encoder, replace(encoder.spec, tokenize=Exclusive(encoder.spec.tokenize)))
    shared = replace(model, encoders={**model.encoders, "query_text": exclusive})
    texts = [[f"w{n} " * (1 + n % 13), f"w{n + 1}"] for n in range(12)]
    alone = [model.embed_query([pictures[n % 4], None], pair) for n, pair in enumerate(texts)]
    with ThreadPoolExecutor(8) as pool:
        work = [pool.submit(shared.embed_query, [pictures[n % 4], None], texts[n]) for n in [*range(12)] * 4]
        together = [task.result() for task in work]
    for number, found in enumerate(together):
        np.testing.assert_allclose(found, alone[number % 12], atol=1e-6)


def test_load_is_there_without_torch() -> None:
    assert mim_lightning.load is load and "load" in dir(mim_lightning)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        mim_lightning.lode  # noqa: B018
    code = "import sys, mim_lightning; assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
