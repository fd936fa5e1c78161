"""The picture of hits: an honest sample, frames in the right colour."""

from pathlib import Path

import torch

from mim_lightning.data.manifest import ManifestSource
from mim_lightning.data.prepared import ShardSettings, prepare_shards
from mim_lightning.lit.hits_figure import _sample, draw_hits
from mim_lightning.types import Hits, RetrievalReport
from tests.shop import write_shop


def test_the_sample_is_as_often_right_as_the_whole() -> None:
    is_right = torch.arange(100) % 4 != 0
    chosen = _sample(is_right, 8)
    assert len(set(chosen.tolist())) == 8
    assert is_right[chosen].sum() == 6
    assert _sample(torch.tensor([True, False]), 8).tolist() == [0, 1]
    assert _sample(torch.zeros(5, dtype=torch.bool), 3).tolist() == [0, 2, 4]


def test_right_hits_are_framed_blue_and_wrong_ones_red(tmp_path: Path) -> None:
    products, queries = write_shop(tmp_path / "shop")
    data = prepare_shards(ManifestSource(str(products), str(queries)), tmp_path / "prepared", ShardSettings())
    keys = torch.tensor(data.queries("val").keys)
    gallery = torch.tensor(data.catalogue().keys)
    hits = Hits(
        keys, gallery[:2].repeat(len(keys), 1), torch.zeros(len(keys), 2), torch.tensor([[True, False]] * len(keys))
    )
    picture = draw_hits(
        RetrievalReport("a_to_b", {"hit@1": 1.0}, len(keys), 0, 6, hits), data.queries("val"), data.catalogue(), 2, 2
    )
    colours = {colour for _, colour in picture.getcolors(1 << 20)}
    assert (0x1F, 0x6F, 0xEB) in colours and (0xD1, 0x24, 0x2F) in colours
