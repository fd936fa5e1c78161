"""A new model searches the index of a former one when that was measured, and is refused before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mim_lightning.build_index import build_index
from mim_lightning.config import compose
from mim_lightning.evaluate import evaluate
from mim_lightning.export import export
from mim_lightning.inference.loading import load
from mim_lightning.io.locks import lock
from mim_lightning.model.checkpoint import load_matcher, store_fusions, store_gallery
from mim_lightning.run import Run
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import open_searcher

TITLES = ("red disc", "green box", "blue bar", "yellow disc", "grey box", "red box", "green bar")


def test_a_former_index_is_searched_once_its_queries_were_measured(
    fit: Callable[..., Run], shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mim_lightning.model.compatibility.MIN_QUERIES", 1)
    new = fit("trainer.max_epochs=1").best_checkpoint
    trained = load_matcher(new)
    # the same towers, another fingerprint: what either finds in the other's gallery is known
    old = store_fusions(new, {"query": {"query_image": 1.0, "query_text": 0.0}}, trained.fingerprint)
    index = f"{shop}/index"
    build_index(compose("build_index", [f"checkpoint={old}", f"output={index}", "trainer=cpu"]))
    with pytest.raises(ValueError, match="or, where its queries were trained to search that index, measure them first"):
        open_searcher(index, str(new), device="cpu")

    words = [f"checkpoint={new}", f"gallery_checkpoint={old}", "trainer=cpu", f"output={shop}/crossed"]
    run = Run(new.parent.parent.name, new.parent.parent)
    with lock(run.lock_path, removes=True), pytest.raises(ValueError, match="is training its run; evaluate it when"):
        evaluate(compose("evaluate", words))
    assert (shop / "crossed" / "results.json").is_file() and not load_matcher(new).galleries, "results come first"
    results = evaluate(compose("evaluate", words))

    assert "in the former gallery" in capsys.readouterr().out
    measured, former = load_matcher(new), load_matcher(old)
    assert measured.fingerprint == trained.fingerprint and [*measured.galleries] == [former.fingerprint]
    own, others = (evaluate(compose("evaluate", [f"checkpoint={path}", "trainer=cpu"])) for path in (new, old))
    by_name = {result.direction: result for result in measured.galleries[former.fingerprint]}
    for name in ("query_to_product", "image_to_product", "text_to_product"):
        key = f"val/{name}/hit@1"
        assert by_name[name].value == results[key] == own[key]
        assert by_name[name].former == results[f"val/{name}_former/hit@1"] == others[key]

    image, last = shop / "shop" / "street0-0.jpg", by_name["query_to_product"]
    with pytest.raises(ValueError, match=f"is model {trained.fingerprint} now, f00d was measured; evaluate it again"):
        store_gallery(new, former.fingerprint, (last,), "f00d")
    for value, is_allowed in ((last.former, True), (last.former - 0.01, False)):
        store_gallery(new, former.fingerprint, (replace(last, value=value),), trained.fingerprint)
        if not is_allowed:
            with pytest.raises(ValueError, match="measured, its queries find less there"):
                open_searcher(index, str(new), device="cpu")
            continue
        searcher = open_searcher(index, str(new), device="cpu")
        hits = searcher.search(SearchQuery(images=(str(image),), text="red", num_hits=3)).hits
        vector_D = load(new, device="cpu").embed_query([str(image)], ["red"])[0]
        pictures = [str(shop / "shop" / f"shop{number}.jpg") for number in range(7)]
        vectors_ND = load(old, device="cpu").embed_products(pictures, TITLES)
        best = np.argsort(-(vectors_ND @ vector_D))[:3]
        assert [hit.product_id for hit in hits] == [f"{number:03d}" for number in best]
    folder = export(compose("export", [f"checkpoint={new}", f"output={shop}/exported", "device=cpu"]))
    assert load(folder, device="cpu").galleries == load_matcher(new).galleries
    assert f"Searching an index of model `{former.fingerprint}`" in (folder / "README.md").read_text()
