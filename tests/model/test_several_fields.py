"""A tower over several fields: its inputs come together, and a row has them only if it has all of its fields."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mim_lightning import load
from mim_lightning.data.loading.collate import Collate
from mim_lightning.encoders.tiny import TinyImage, TinyText
from mim_lightning.model.fingerprint import fingerprint
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.tower import Tower
from mim_lightning.stored_config import TRUSTED_PACKAGES
from mim_lightning.types import Sample
from tests.data.conftest import jpeg
from tests.encoders.image_text_encoder import ImageTextEncoder
from tests.inference.models import write_checkpoint, write_pictures

FIELDS = ("query_image", "query_text")


def make_matcher(fields: tuple[str, ...] = FIELDS) -> Matcher:
    torch.manual_seed(0)
    towers = {"query": Tower(ImageTextEncoder(), 8), "product_image": Tower(TinyImage(32, 64), 8)}
    return Matcher(towers, {}, {}, {"query": fields}).eval()


def test_a_row_has_the_tower_only_with_all_fields() -> None:
    matcher = make_matcher()
    samples = [
        Sample(0, {"query_image": jpeg(1), "query_text": "red"}),
        Sample(1, {"query_image": jpeg(1)}),
        Sample(2, {"query_text": "red"}),
        Sample(3, {"query_image": jpeg(2), "query_text": "red"}),
        Sample(4, {"query_image": jpeg(1), "query_text": "red", "product_image": jpeg(1)}),
    ]
    batch = Collate(matcher.input_specs(), image_key=len)(samples)
    assert batch.rows["query"].tolist() == [0, -1, -1, 1, 0]
    assert (batch.image_keys["query_image"] >= 0).tolist() == [True, True, False, True, True]
    images, texts = batch.inputs["query"]
    assert len(images) == len(texts["input_ids"]) == 2
    embeddings = matcher(batch)
    expected = F.normalize(matcher.tower("query").projection(matcher.tower("query").encoder((images, texts))), dim=-1)
    torch.testing.assert_close(embeddings.vectors["query"][[0, 3, 4]], expected[[0, 1, 0]])
    assert embeddings.present["query"].tolist() == [True, False, False, True, True]
    moved = batch.map(lambda tensor: tensor + 0)
    assert torch.equal(moved.inputs["query"][0], images)


def test_a_batch_without_any_still_runs() -> None:
    matcher = make_matcher()
    embeddings = matcher(Collate(matcher.input_specs())([Sample(0, {"product_image": jpeg(1)})]))
    assert not embeddings.present["query"].any() and embeddings.vectors["query"].abs().sum() == 0


@pytest.mark.parametrize(
    "fields", [("query_text", "query_image"), ("query_image",), ("query_image", "product_text"), ()]
)
def test_fields_must_suit_the_encoder(fields: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"model\.towers\.query\.fields=.*: image, text"):
        make_matcher(fields)


def test_an_encoder_of_several_fields_needs_their_names() -> None:
    with pytest.raises(ValueError, match=r"model\.towers\.query\.fields: is missing"):
        Matcher({"query": Tower(ImageTextEncoder(), 8)}, {}, {})


def test_what_a_tower_reads_is_part_of_the_fingerprint() -> None:
    tower = Tower(TinyText(8, 50, 32, 1), 8)
    plain, other = (Matcher({"query_text": tower}, {}, {}, given) for given in (None, {"query_text": ["query_words"]}))
    assert fingerprint(plain) != fingerprint(other)
    assert fingerprint(plain) == fingerprint(Matcher({"query_text": tower}, {}, {}, {"query_text": ["query_text"]}))


def test_a_loaded_model_embeds_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUSTED_PACKAGES, "tests")
    tower = (
        "{_target_: mim_lightning.model.Tower, embed_dim: 16, fields: [query_image, query_text], "
        "encoder: {_target_: tests.encoders.image_text_encoder.ImageTextEncoder}}"
    )
    path, matcher = write_checkpoint(tmp_path, "model=3tower", f"+model.towers.query_both={tower}")
    model, pictures = load(path), write_pictures(tmp_path / "pictures")
    fused = model.embed_query(pictures[:2], ["red", None], {"query_image": 0.0001})
    alone = model.embed_images(pictures[1:2])
    np.testing.assert_allclose(fused[1], alone[0], atol=1e-6)
    samples = [Sample(0, {"query_image": pictures[0].read_bytes(), "query_text": "red"})]
    both = matcher(Collate({"query_both": matcher.input_specs()["query_both"]})(samples)).vectors["query_both"]
    assert float(fused[0] @ both[0].detach().numpy()) > 0.99
