"""Named towers, ties, fusions and presence, with encoders whose output is plain to see."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import xxhash
from torch import nn

from mim_lightning.encoders.timm_image import TimmImage
from mim_lightning.encoders.tiny import TinyImage, TinyText
from mim_lightning.model.fingerprint import fingerprint
from mim_lightning.model.fusion import Fusion, describe_fusions, fuse
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.tower import Tower
from mim_lightning.types import Batch, Embeddings

TIED = {"product_image": "query_image", "query_text": "product_text"}
FUSIONS = {
    "query": {"query_image": 1.0, "query_text": 1.0},
    "product": {"product_image": 1.0, "product_text": 3.0},
}


def image_tower(embed_dim: int | None = 8) -> Tower:
    return Tower(TinyImage(32, 64), embed_dim)


def text_tower(embed_dim: int | None = 8) -> Tower:
    return Tower(TinyText(8, 50, 32, 1), embed_dim)


def four_towers() -> Matcher:
    torch.manual_seed(0)
    return Matcher({"query_image": image_tower(), "product_text": text_tower()}, TIED, FUSIONS).eval()


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8, generator=generator)
    tokenize = TinyText(8, 50, 32, 1).spec.tokenize
    keys = torch.arange(4)
    return Batch(
        inputs={
            "query_image": images,
            "product_image": images[:2],
            "product_text": tokenize(["red bag", "blue mug"]),
            "query_text": tokenize(["red"]),
        },
        rows={
            "query_image": torch.tensor([0, 1, 2, 0]),
            "product_image": torch.tensor([0, 1, 1, -1]),
            "product_text": torch.tensor([0, 1, 1, 0]),
            "query_text": torch.tensor([-1, 0, 0, -1]),
        },
        sample_nums=keys,
        query_keys=keys,
        product_keys=keys,
        target_keys=keys[:, None],
        target_grades=torch.ones(4, 1, dtype=torch.int64),
        reference_keys=keys[:, None],
        category_keys=keys,
        is_padding=torch.zeros(4, dtype=torch.bool),
    )


def test_vectors_have_unit_length_and_absent_rows_are_zero() -> None:
    embeddings = four_towers()(make_batch())
    assert set(embeddings.vectors) == {*TIED, "query_image", "product_text", *FUSIONS}
    for name, vectors in embeddings.vectors.items():
        lengths = vectors.norm(dim=1)
        torch.testing.assert_close(lengths, embeddings.present[name].float())
    assert embeddings.present["query_text"].tolist() == [False, True, True, False]
    assert embeddings.present["query"].tolist() == [True] * 4


def test_tied_towers_are_one_and_encode_together_as_apart() -> None:
    matcher = four_towers()
    assert matcher.tower("product_image") is matcher.tower("query_image")
    batch = make_batch()
    vectors = matcher(batch).vectors
    alone = matcher.tower("query_image")(batch.inputs["product_image"])
    torch.testing.assert_close(vectors["product_image"][:3], alone[torch.tensor([0, 1, 1])], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vectors["query_image"][0], vectors["query_image"][3])


def test_untying_one_tower_gives_it_weights_of_its_own() -> None:
    tied, untied = (
        four_towers(),
        Matcher(
            {"query_image": image_tower(), "product_image": image_tower(), "product_text": text_tower()},
            {"query_text": "product_text"},
            FUSIONS,
        ),
    )
    assert sum(p.numel() for p in untied.parameters()) > sum(p.numel() for p in tied.parameters())


def test_a_fusion_is_the_weighted_sum_of_what_is_there() -> None:
    embeddings = four_towers()(make_batch())
    v = embeddings.vectors
    expected = nn.functional.normalize(v["product_image"][0] + 3 * v["product_text"][0], dim=0)
    torch.testing.assert_close(v["product"][0], expected)
    torch.testing.assert_close(v["product"][3], v["product_text"][3])  # its image is absent
    torch.testing.assert_close(v["query"][0], v["query_image"][0])  # its text is absent


def test_fusing_again_with_other_weights_needs_no_encoder() -> None:
    embeddings = four_towers()(make_batch())
    again = fuse(embeddings, {"query": {"query_image": 1.0, "query_text": 0.0}})
    torch.testing.assert_close(again.vectors["query"], embeddings.vectors["query_image"])


def test_a_batch_of_one_side_gives_that_side() -> None:
    whole = make_batch()
    inputs = {name: whole.inputs[name] for name in ("product_image", "product_text")}
    side = Batch(**{**vars(whole), "inputs": inputs})
    assert set(four_towers()(side).vectors) == {"product_image", "product_text", "product"}


def test_every_parameter_gets_a_gradient_even_where_no_row_has_text() -> None:
    matcher, batch = four_towers(), make_batch()
    batch.rows["query_text"].fill_(-1)
    batch.rows["product_text"].fill_(-1)
    sum(v.sum() for v in matcher(batch).vectors.values()).backward()
    # an unused parameter (gradient None) would stop DDP; zero is right
    assert all(p.grad is not None for p in matcher.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ({"query_image": image_tower()}, {"product_image": "query_imgae"}, {}),
            "model.tied.product_image: no tower",
        ),
        (({"image": image_tower()}, {}, {}), "must start with 'query' or 'product'"),
        (({"query_image": image_tower()}, {}, {"query": {"query_text": 1.0}}), "model.fusions.query: no tower"),
        (({"query_image": image_tower()}, {}, {"query": {}}), "model.fusions.query: has no towers"),
        (({"query_image": image_tower(None), "product_text": text_tower(None)}, {}, {}), "set embed_dim"),
    ],
)
def test_invalid_matchers_name_the_entry(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        Matcher(*arguments)


def test_an_encoder_of_one_size_takes_no_other() -> None:
    four_towers().validate_image_size(40, "key")  # texts have no size
    whole = Tower(TimmImage("vit_tiny_patch16_224", image_size=32), 8)
    matcher = Matcher({"product_text": text_tower(), "query_image": whole}, {}, {}).train()
    with pytest.raises(ValueError, match=r"key=48: .* tower 'query_image' cannot take .*, its own is 32 x 32: "):
        matcher.validate_image_size(48, "key")
    assert all(module.training for module in matcher.modules())


def test_fingerprint_changes_with_weights_fusions_and_ties_and_with_nothing_else() -> None:
    matcher, same = four_towers(), four_towers()
    assert fingerprint(matcher) == fingerprint(same)
    same.replace_fusion(Fusion("query", {"query_image": 1.0, "query_text": 0.5}, same.dimension))
    assert fingerprint(matcher) != fingerprint(same)
    other = four_towers()
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    assert fingerprint(matcher) != fingerprint(other)


@pytest.mark.parametrize(
    ("like", "prefix", "hashed"), [("xxh3-0", "xxh3-", xxhash.xxh3_128), ("00", "", hashlib.sha256)]
)
def test_a_fingerprint_hashes_facts_then_each_tensor(like: str, prefix: str, hashed: Any) -> None:
    matcher = four_towers()
    matcher.register_buffer("counts", torch.tensor([], dtype=torch.int64))
    facts = {
        "owner_of": matcher.owner_of,
        "fusions": describe_fusions(matcher.fusions),
        "preprocessing": {name: matcher.tower(name).encoder.describe_preprocessing() for name in matcher.towers},
    }
    content = json.dumps(facts, sort_keys=True).encode()
    for name, tensor in sorted(matcher.state_dict().items()):
        content += f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes()
    assert fingerprint(matcher, like=like) == prefix + hashed(content).hexdigest()[:16]


def test_fuse_leaves_its_argument_alone() -> None:
    embeddings = Embeddings({"query_image": torch.eye(2)}, {"query_image": torch.ones(2, dtype=torch.bool)})
    fuse(embeddings, {"query": {"query_image": 1.0}})
    assert set(embeddings.vectors) == {"query_image"}


def test_running_means_count_no_padding() -> None:
    fusion = {"product_image": 1.0, "product_text": 3.0, "center": "running"}
    matcher = Matcher({"query_image": image_tower(), "product_text": text_tower()}, TIED, {"product": fusion}).train()
    batch = replace(make_batch(), is_padding=torch.tensor([False, False, True, True]))
    embeddings = matcher(batch)
    sums = matcher.fusions["product"].take_pending()
    assert sums is not None and sums[:, -1].tolist() == [2, 2]
    for part, sums_E in zip(fusion, sums, strict=False):
        torch.testing.assert_close(sums_E[:-1], embeddings.vectors[part][:2].sum(0).detach())
