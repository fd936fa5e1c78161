"""The page about other stores: its code, run on vectors as `embed` writes them, finds what an index of ours finds."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mim_lightning.search.index.factory import create_index
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts

PAGE = Path(__file__).parents[2] / "docs" / "search.md"
NUM_PRODUCTS, WIDTH, K = 60, 16, 10


@pytest.fixture
def vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[str]]:
    """Write vectors/product.parquet into the working folder; return a query and the ten best products, best first."""
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((NUM_PRODUCTS + 20, WIDTH)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = [f"p{number % NUM_PRODUCTS}" for number in range(len(rows))]  # twenty have two pictures
    table = pa.table(
        {
            "product_id": ids,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), WIDTH),
            "title": [f"product {one}" for one in ids],
            "price": generator.random(len(ids)),
        }
    )
    (tmp_path / "vectors").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "vectors" / "product.parquet")
    monkeypatch.chdir(tmp_path)
    query = rows[7] + 0.3 * rows[40]
    query /= np.linalg.norm(query)
    products = pa.table({"product_id": sorted({*ids})})
    index = create_index(
        rows, ids, products, IndexSettings(kind="flat"), ModelFacts("x", "product", WIDTH), tmp_path / "i"
    )
    return query, index.search(query[None], K).product_ids[0].tolist()


def run_page(library: str, old: str, new: str, query: Any) -> Any:
    """Run the page's code block about a library, at another address, and return what it found."""
    blocks = [block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if library in block]
    assert len(blocks) == 1 and blocks[0].count(old) == 1
    names = {"query": query}
    exec(compile(blocks[0].replace(old, new), str(PAGE), "exec"), names)  # noqa: S102
    return names["found"]


def test_qdrant(vectors: tuple[np.ndarray, list[str]]) -> None:
    pytest.importorskip("qdrant_client", reason="needs pip install qdrant-client")
    query, best = vectors
    found = run_page("qdrant_client", 'url="http://localhost:6333"', '":memory:"', query)
    assert [group.id for group in found.groups] == best
    assert found.groups[0].hits[0].payload["title"] == f"product {best[0]}"


@pytest.mark.slow
def test_pgvector(vectors: tuple[np.ndarray, list[str]], tmp_path: Path) -> None:
    pgserver = pytest.importorskip("pgserver", reason="needs pip install pgserver: PostgreSQL with pgvector")
    for library in ("pgvector", "psycopg"):
        pytest.importorskip(library, reason="needs pip install pgvector 'psycopg[binary]'")
    query, best = vectors
    with pgserver.get_server(tmp_path / "postgres") as server:
        found = run_page("psycopg", '"dbname=shop"', repr(server.get_uri()), query).fetchall()
    assert [*dict.fromkeys(product_id for (product_id,) in found)] == best[: len({*found})]
