"""Embedding tables made by hand or at random, for the tests of this package."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mim_lightning.metrics import EmbeddingTable
from mim_lightning.types import NO_KEY


def queries_of(
    vectors: dict[str, Tensor], targets: Tensor, references: Tensor | None = None, pictures: Tensor | None = None
) -> EmbeddingTable:
    """Return a table of queries 100, 101, ... with one target and one reference each, as older ones without more.

    With `pictures` it has the keys of the photos too, -1 for none.
    """
    num = len(targets)
    references = targets if references is None else references
    columns = {
        "query_keys": torch.arange(100, 100 + num),
        "product_keys": torch.full((num,), NO_KEY),
        "asked_keys": targets[:, None],
        "asked_grades": torch.ones(num, 1, dtype=torch.int64),
        "shown_keys": references[:, None],
        "category_keys": targets % 3,
    }
    return _table(vectors, columns | ({} if pictures is None else {"picture_keys": pictures}))


def gallery_of(vectors: dict[str, Tensor], keys: Tensor, pictures: Tensor | None = None) -> EmbeddingTable:
    none = torch.full((len(keys),), NO_KEY)
    columns = {
        "query_keys": none,
        "product_keys": keys,
        "asked_keys": none[:, None],
        "asked_grades": none[:, None] * 0,
        "shown_keys": none[:, None],
        "category_keys": keys % 3,
    }
    return _table(vectors, columns | ({} if pictures is None else {"picture_keys": pictures}))


def unit(rows: int, dim: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def _table(vectors: dict[str, Tensor], columns: dict[str, Tensor]) -> EmbeddingTable:
    num = len(columns["product_keys"])
    present = {name: part.abs().sum(dim=1) > 0 for name, part in vectors.items()}
    # files refuse tensors that share memory
    return EmbeddingTable(torch.arange(num), vectors, present, {name: part.clone() for name, part in columns.items()})
