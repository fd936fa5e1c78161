"""An index finds its model where its card says it is, also when that is the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mim_lightning.search import opening
from mim_lightning.search.opening import MODEL, open_searcher
from tests.search.service.shopfronts import ColourModel, colour_index


class LoadedColourModel(ColourModel):
    dimension = 3


def test_a_model_on_the_hub_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(path: str, **options: Any) -> LoadedColourModel:
        loaded.append(path)
        return LoadedColourModel()

    monkeypatch.setattr(opening, "load", load)
    place = index_of_model_at("hf://me/colours@v1", tmp_path)
    open_searcher(place)
    assert loaded == ["hf://me/colours@v1"]


def test_a_model_that_has_moved_is_told(tmp_path: Path) -> None:
    place = index_of_model_at(str(tmp_path / "gone.ckpt"), tmp_path)
    with pytest.raises(ValueError, match=r"its model c010c010c010c010 is not at .*gone\.ckpt; give checkpoint="):
        open_searcher(place)


def index_of_model_at(model: str, folder: Path) -> str:
    index = colour_index(folder)
    more = pa.table({"product_id": ["teal-1"], "title": ["teal"], "category": ["cold"], "price": [1.0]})
    index.add(np.eye(3, dtype=np.float32)[:1], ["teal-1"], more, {MODEL: model})
    index.save()
    return str(folder / "index")
