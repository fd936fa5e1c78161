"""Two models joined: query towers of one, product towers of the other, and its query towers by names of their own."""

from dataclasses import replace

import pytest
import torch

from mim_lightning.config import build_matcher, compose
from mim_lightning.model.compatibility import CrossResult, cross_directions, deciding_result, former_name, join_models
from mim_lightning.model.matcher import Matcher
from tests.shop import small


def make(tmp_path, *words: str) -> Matcher:
    return build_matcher(compose("train", small(tmp_path, *words))).eval()


def test_joined_towers_and_fusions_are_those_of_each_model(tmp_path) -> None:
    options = ["model.fusions.query.kind=gate", "model.fusions.query.center=running"]
    new, old = make(tmp_path), make(tmp_path, *options, "model.fusions.product.kind=learned_sum")
    fusion = old.fusions["query"]
    torch.nn.init.normal_(fusion.gate[-1].weight)
    fusion.mean_query_image.normal_()
    joined = join_models(new, old)

    assert joined.tower("query_image") is new.tower("query_image")
    assert joined.tower("query_text") is new.tower("product_text"), "tied across sides"
    for name in ("product_image", "product_text"):
        assert joined.tower(name) is old.tower(name)
    assert joined.tower("query_former_text") is old.tower("product_text")
    assert joined.fields == {"query_former_image": ("query_image",), "query_former_text": ("query_text",)}
    vectors = {name: torch.randn(5, 16) for name in ("query_image", "query_text")}
    present = {name: torch.ones(5, dtype=torch.bool) for name in vectors}
    renamed = ({former_name(name): part for name, part in parts.items()} for parts in (vectors, present))
    torch.testing.assert_close(joined.fusions["query_former"](*renamed), fusion(vectors, present))
    assert joined.fusions["product"].kind == "learned_sum" and joined.fusions["query"].kind == "fixed_sum"


def test_the_former_queries_count_the_same_queries(tmp_path) -> None:
    config = compose("train", small(tmp_path))
    joined = join_models(make(tmp_path), make(tmp_path, "model=3tower"))
    found = cross_directions(config["directions"], joined)
    assert found["composed_to_product_former"] == {
        "query": "query_former_image",
        "gallery": "product",
        "relevance": "target",
        "leave_out": None,
        "requires": ["query_image", "query_text"],
        "excludes": [],
    }
    assert found["image_to_image_former"]["relevance"] == "reference"
    assert found["query_to_product_former"]["requires"] == []
    with pytest.raises(ValueError, match="no product tower or fusion that a direction of the model ranks"):
        cross_directions({"x": {"query": "query", "gallery": "product_name"}}, joined)


def test_models_of_other_dimensions_cannot_be_joined(tmp_path) -> None:
    with pytest.raises(ValueError, match="its vectors have 8 dimensions, the model's 16"):
        join_models(make(tmp_path), make(tmp_path, "embed_dim=8"))


def test_the_direction_of_most_queries_decides() -> None:
    def result(query: str, num_queries: int, value: float = 0.5) -> CrossResult:
        return CrossResult("d", query, "product", "hit@1", value, 0.4, 0.0, 0.2, num_queries, "shop", "val")

    text, photo, both = result("query_text", 50), result("query_image", 90), result("query", 90, 0.3)
    assert deciding_result([text, photo, both], "product") is both and not both.is_allowed and photo.is_allowed
    assert deciding_result([text], "product_image") is None
    lost = replace(text, value=0.1, low=-0.4, high=-0.2)
    assert deciding_result([photo, lost], "product") is lost and not lost.is_allowed
    nothing = {"former": 0.0}, {"num_queries": 49}, {"low": float("nan")}, {"metric": "sampled10_hit@1"}
    assert not any(replace(photo, **changed).is_allowed for changed in nothing)
