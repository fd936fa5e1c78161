"""Columns of vectors: by id from a Parquet file, once into the cache, and one line for each mistake."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from mim_lightning.data.loading.vector_table import digest_vectors, open_vectors, read_width, validate_vectors
from mim_lightning.ids import NO_KEY, hash_id

FLOAT32 = pa.float32()


def write(path: Path, rows: dict[str, list[float]] | list[tuple], dtype: pa.DataType = FLOAT32) -> Path:
    ids, vectors = zip(*(rows.items() if isinstance(rows, dict) else rows), strict=True)
    vectors = [np.float16(row).tolist() if dtype == pa.float16() else row for row in vectors]
    pyarrow.parquet.write_table(pa.table({"product_id": ids, "vector": pa.array(vectors, pa.list_(dtype))}), path)
    return path


@pytest.mark.parametrize("dtype", [pa.float16(), pa.float32(), pa.float64()])
def test_rows_are_read_by_id_at_unit_length(tmp_path: Path, dtype: pa.DataType) -> None:
    path = write(tmp_path / "v.parquet", [("b", [3.0, 4.0]), ("a", [0.0, 2.0]), ("b", [1.0, 0.0])], dtype)
    assert read_width("product_old", path) == 2
    table = pickle.loads(pickle.dumps(open_vectors("product_old", path, tmp_path / "cache")))
    found = table.read(torch.tensor([hash_id("b"), NO_KEY, hash_id("a"), hash_id("nowhere"), hash_id("b")]))
    wanted = torch.tensor([[0.6, 0.8], [0, 0], [0, 1], [0, 0], [0.6, 0.8]])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)
    assert found.dtype == torch.float32 and table.digest == digest_vectors(path)
    assert table.count(np.array([hash_id("b"), NO_KEY, hash_id("a"), hash_id("b")])) == 3


def test_the_cache_follows_the_content(tmp_path: Path) -> None:
    path = write(tmp_path / "v.parquet", {"a": [1.0, 0.0]})
    first, digest = open_vectors("product_old", path, tmp_path / "cache"), digest_vectors(path)
    written = (first.folder / "vectors.bin").stat().st_mtime_ns
    assert open_vectors("product_old", path, tmp_path / "cache") == first
    assert (first.folder / "vectors.bin").stat().st_mtime_ns == written
    write(path, {"a": [0.0, 1.0]})
    assert digest_vectors(path) != digest
    found = open_vectors("product_old", path, tmp_path / "cache").read(torch.tensor([hash_id("a")]))
    assert found.tolist() == [[0.0, 1.0]]


def test_a_mistake_is_named(tmp_path: Path) -> None:
    good = write(tmp_path / "v.parquet", {"a": [1.0, 0.0]})
    cases = [
        (good, "query_old", "has no column query_id, but product_id, vector; it is of queries, as its name says"),
        (
            write(tmp_path / "z.parquet", {"a": [1.0], "b": [0.0]}),
            "product_old",
            "row 1 has a vector that is zero",
        ),
        (
            write(tmp_path / "w.parquet", {"a": [1.0], "b": [1.0, 2.0]}),
            "product_old",
            "row 1 has a vector of 2",
        ),
        (write(tmp_path / "i.parquet", {"a": [1]}, pa.int64()), "product_old", "give lists of floating point numbers"),
        (write(tmp_path / "n.parquet", {"a": None, "b": [1.0]}), "product_old", "row 0 has no vector"),
        (write(tmp_path / "m.parquet", [("a", [1.0]), (None, [1.0])]), "product_old", "row 1 has no product_id"),
    ]
    for path, name, said in cases:
        with pytest.raises(ValueError, match=said):
            open_vectors(name, path, tmp_path / "cache")
    assert not [*(tmp_path / "cache").glob("*")]
    good.write_bytes(good.read_bytes()[:-9])
    with pytest.raises(ValueError, match="no Parquet file"):
        digest_vectors(good)
    for given, said in (
        ({"teacher": "x"}, "give a name such as product_teacher"),
        ({"product_x": "nowhere"}, "no such file"),
    ):
        with pytest.raises(ValueError, match=said):
            validate_vectors(given)
    assert validate_vectors({"product_x": None}) == {}
